"""The rows of a profile, and how they are printed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from minires.bench.costs import Cost
from minires.bench.limits import Limits

if TYPE_CHECKING:
    from minires.bench.profile import profile

PASSES = ("forward", "backward", "update")


@dataclass
class Row:
    """Calls of one kind, added up.

    seconds: in all. by_pass: the same by forward, backward and update.
    flops, bytes, costed: by definition, of the calls whose cost is known, and their seconds.
    least, bounded: seconds that these must take on this machine, and those they took.
    algorithms: the kernels' names.
    """

    layer: str
    phase: str
    operation: str
    algorithm: str
    calls: int = 0
    seconds: float = 0.0
    by_pass: dict[str, float] = field(default_factory=lambda: dict.fromkeys(PASSES, 0.0))
    flops: int = 0
    bytes: int = 0
    costed: float = 0.0
    least: float = 0.0
    bounded: float = 0.0
    algorithms: set[str] = field(default_factory=set)

    def add(
        self, phase: str, seconds: float, cost: Cost | None, least: float | None, algorithm: str
    ) -> None:
        """One more call."""
        self.calls += 1
        self.seconds += seconds
        self.by_pass[phase] += seconds
        if algorithm:
            self.algorithms.add(algorithm)
        if cost is not None:
            self.flops, self.bytes = self.flops + cost.flops, self.bytes + cost.bytes
            self.costed += seconds
        if least is not None:
            self.least, self.bounded = self.least + least, self.bounded + seconds

    @property
    def gflops(self) -> float | None:
        """10^9 operations/s, by definition; None where nothing was counted."""
        return self.flops / self.costed * 1e-9 if self.costed and self.flops else None

    @property
    def gbs(self) -> float | None:
        """10^9 bytes/s that had to move."""
        return self.bytes / self.costed * 1e-9 if self.costed and self.bytes else None

    @property
    def share(self) -> float | None:
        """The least time this could take, over the time it took; 1 is the machine's limit."""
        return self.least / self.bounded if self.bounded and self.least else None


def table_text(
    profile: profile, by: str, rows: Sequence[Row], limit: Limits, most: int | None
) -> str:
    """A heading, the rows, what lies between them, and the sum, which is the wall time."""
    shown = list(rows if most is None else rows[:most])
    hidden = rows[len(shown) :]
    names = {
        "operation": ["operation", "pass", "algorithm"],
        "layer": ["layer"],
        "call": ["layer", "pass", "operation", "algorithm"],
    }[by]
    numbers = ["calls", "ms", "share", "GFLOP/s", "GB/s", "of limit"]
    if by == "layer":
        numbers[2:2] = ["forward", "backward"]
        numbers.append("algorithms")
    lines = [[*names, *numbers]]

    def add(labels: list[str], seconds: float, row: Row | None = None, calls: int = 0) -> None:
        labels = labels + [""] * (len(names) - len(labels))
        cells = [f"{calls / profile.steps:.4g}" if calls else "", _ms(seconds, profile.steps)]
        if by == "layer":
            cells += ["", ""] if row is None else [
                _ms(row.by_pass[p], profile.steps) if row.by_pass[p] else "" for p in PASSES[:2]
            ]  # fmt: skip
        cells.append(f"{100 * seconds / profile.wall:.1f} %" if profile.wall else "")
        if row is not None:
            cells += [_rate(row.gflops), _rate(row.gbs), _percent(row.share)]
            if by == "layer":
                cells.append(", ".join(sorted(row.algorithms)))
        lines.append([*labels, *cells])

    for row in shown:
        labels = {
            "operation": [row.operation, row.phase, row.algorithm],
            "layer": [row.layer or "(outside)"],
            "call": [row.layer or "(outside)", row.phase, row.operation, row.algorithm],
        }[by]
        add(labels, row.seconds, row, row.calls)
    body = len(lines)
    if hidden:
        label = f"{len(hidden)} others"
        add([label], sum(row.seconds for row in hidden), calls=sum(row.calls for row in hidden))
    add(["engine, in Python"], profile.engine)
    add(["other"], profile.other)
    add(["wall time"], profile.wall)
    steps = f", per step of {profile.steps}" if profile.steps > 1 else ""
    rates = ", ".join(f"{rate:.0f} GFLOP/s {name}" for name, rate in limit.gflops.items())
    threads = f"on {limit.threads} {'thread' if limit.threads == 1 else 'threads'}"
    where = threads if limit.device == "cpu" else f"of {limit.name}"
    heading = f"time by {by}{steps}; limits {where}: {rates}, copy {limit.copy_gbs:.1f} GB/s"
    return "\n".join([heading, "", *_aligned(lines, len(names), {0, body - 1, len(lines) - 2})])


def _aligned(lines: list[list[str]], names: int, rules: set[int]) -> list[str]:
    """Columns, the first ones to the left, numbers to the right; a rule below some lines."""
    columns = len(lines[0])
    cells = [line + [""] * (columns - len(line)) for line in lines]
    widths = [max(len(line[i]) for line in cells) for i in range(columns)]
    words = {*range(names), *(i for i, name in enumerate(lines[0]) if name == "algorithms")}
    text = []
    for number, line in enumerate(cells):
        padded = [
            cell.ljust(width) if i in words else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(line, widths, strict=True))
        ]
        text.append("  ".join(padded).rstrip())
        if number in rules:
            text.append("-" * (sum(widths) + 2 * (columns - 1)))
    return text


def _ms(seconds: float, steps: int) -> str:
    return f"{seconds / steps * 1e3:.2f}"


def _rate(value: float | None) -> str:
    return "" if value is None else f"{value:.1f}"


def _percent(share: float | None) -> str:
    return "" if share is None else f"{100 * share:.0f} %"
