"""Records of timings, and what changed from one to another beyond noise.

A record is JSON: the machine, its limits, the settings, and a row per layer, pass and kernel. Two
records are compared row by row. Let r be the new median over the old one, s the half distance of
the quartiles as a share of the median. A row has changed if

    |ln(r / drift)| > ln(1 + noise),     noise = max(5 %, 2 sqrt(s_old^2 + s_new^2))

drift is the median of r over the rows of PyTorch, if both records have some of the same version:
that library did not change, so what it shows is the machine. Without such rows drift is 1, and a
machine that was busier is not told from a kernel that became slower.
"""

from __future__ import annotations

import json
import math
import os
import statistics
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from minires.files import atomic_write_text

KIND, FORMAT = "minires kernels bench", 1
LEAST_NOISE = 0.05
PEER = "torch"

FASTER, SLOWER, SAME, NEW, GONE = "faster", "slower", "same", "new", "gone"

StrPath = str | os.PathLike[str]
Key = tuple[str, str, str, str]


@dataclass(frozen=True)
class Change:
    """One row of two records.

    old, new: medians in seconds, None where it was not timed. ratio: new over old, less the drift.
    noise: the relative change that may be chance. verdict: "faster", "slower", "same", "new" or
    "gone"; why: for "gone", the reason for which it was refused, if it was.
    """

    layer: str
    operation: str
    kernel: str
    old: float | None
    new: float | None
    ratio: float | None
    noise: float | None
    verdict: str
    why: str = ""


@dataclass(frozen=True)
class Comparison:
    """changes: every row of the two records. drift: of the machine, 1 if it cannot be told.

    differences: what else is not the same (processor, threads, versions), in words.
    """

    changes: tuple[Change, ...]
    drift: float
    differences: tuple[str, ...]

    @property
    def changed(self) -> list[Change]:
        """The rows that are not the same."""
        return [change for change in self.changes if change.verdict != SAME]


def write_record(path: StrPath, record: dict[str, Any]) -> None:
    """Write a record as JSON, whole or not at all."""
    atomic_write_text(path, json.dumps(record, indent=1, allow_nan=False) + "\n")


def read_record(path: StrPath) -> dict[str, Any]:
    """Read what `write_record` wrote. Raises ValueError if it is something else."""
    try:
        found = json.loads(Path(path).read_text(encoding="utf-8"))
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ValueError(f"{path}: not a record of timings, not even JSON ({error})") from None
    if not isinstance(found, dict) or found.get("kind") != KIND:
        raise ValueError(f"{path}: expected a record written by `{KIND} --json`")
    if found.get("format") != FORMAT:
        raise ValueError(
            f"{path}: written in format {found.get('format')!r}, this version of minires reads "
            f"format {FORMAT}; time it again"
        )
    return found


def compare(old: dict[str, Any], new: dict[str, Any]) -> Comparison:
    """What changed between two records beyond noise; the rule stands at the top of this file."""
    before, after = _by_key(old["rows"]), _by_key(new["rows"])
    drift = _drift(old, new, before, after)
    changes = [_change(before.get(key), after.get(key), drift) for key in {**after, **before}]
    return Comparison(tuple(c for c in changes if c), drift, tuple(_differences(old, new)))


def _by_key(rows: Iterable[dict[str, Any]]) -> dict[Key, dict[str, Any]]:
    return {(r["shape"], r["operation"], r["kernel"], r["dtype"]): r for r in rows}


def _median(row: dict[str, Any] | None) -> float | None:
    if row is None or row["times"] is None:
        return None
    return float(row["times"]["median_ms"]) / 1e3


def _spread(row: dict[str, Any]) -> float:
    low, high = row["times"]["quartiles_ms"]
    return float((high - low) / 2 / row["times"]["median_ms"])


def _drift(
    old: dict[str, Any],
    new: dict[str, Any],
    before: dict[Key, dict[str, Any]],
    after: dict[Key, dict[str, Any]],
) -> float:
    versions = [record["machine"]["versions"].get(PEER) for record in (old, new)]
    if versions[0] != versions[1]:
        return 1.0
    ratios = []
    for key in before.keys() & after.keys():
        was, now = _median(before[key]), _median(after[key])
        if before[key]["kernel"].startswith(PEER) and was and now:
            ratios.append(now / was)
    return statistics.median(ratios) if ratios else 1.0


def _change(
    before: dict[str, Any] | None, after: dict[str, Any] | None, drift: float
) -> Change | None:
    row = after or before
    was, now = _median(before), _median(after)
    if row is None or (was is None and now is None):
        return None
    about = row["layer"], row["operation"], row["kernel"]
    if was is None:
        return Change(*about, None, now, None, None, NEW)
    if now is None or before is None or after is None:
        return Change(*about, was, None, None, None, GONE, (after or {}).get("refused", ""))
    noise = max(LEAST_NOISE, 2 * math.hypot(_spread(before), _spread(after)))
    ratio = now / was / drift
    if abs(math.log(ratio)) <= math.log1p(noise):
        verdict = SAME
    else:
        verdict = FASTER if ratio < 1 else SLOWER
    return Change(*about, was, now, ratio, noise, verdict)


def _differences(old: dict[str, Any], new: dict[str, Any]) -> Iterable[str]:
    """What should be equal for times to be comparable, and is not."""
    was, now = old["machine"], new["machine"]
    for name in ("cpu", "threads"):
        if was[name] != now[name]:
            yield f"{name}: {was[name]} then, {now[name]} now"
    for name in sorted({*was["versions"], *now["versions"]} - {"minires"}):
        first, second = was["versions"].get(name), now["versions"].get(name)
        if first != second:
            yield f"{name}: {first or 'not installed'} then, {second or 'not installed'} now"
