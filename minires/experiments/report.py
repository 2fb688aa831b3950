"""The report of an experiment: one Markdown page, tables as CSV, numbers as JSON, pictures."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from minires.experiments.statistics import Spread
from minires.files import atomic_write_text


@dataclass(frozen=True)
class Table:
    """Rows of text, numbers and `Spread`s under headings. name: of its CSV file."""

    name: str
    caption: str
    columns: Sequence[str]
    rows: Sequence[Sequence[Any]]
    digits: int = 1

    def markdown(self) -> str:
        lines = ["| " + " | ".join(self.columns) + " |"]
        numeric = [
            bool(self.rows) and all(_numeric(row[i]) for row in self.rows)
            for i in range(len(self.columns))
        ]
        lines.append("|" + "|".join("--:" if right else "---" for right in numeric) + "|")
        lines += ["| " + " | ".join(map(self._shown, row)) + " |" for row in self.rows]
        return "\n".join(lines)

    def _shown(self, value: Any) -> str:
        if isinstance(value, Spread):
            return value.text(self.digits)
        if value is None:
            return "-"
        if isinstance(value, float):
            return f"{value:.{self.digits}f}"
        return f"{value:,}" if isinstance(value, int) else str(value).replace("|", "\\|")

    def csv(self) -> str:
        """A Spread takes three columns: mean, deviation and how many."""
        spread = [any(isinstance(row[i], Spread) for row in self.rows)
                  for i in range(len(self.columns))]  # fmt: skip
        buffer = io.StringIO()
        writer = csv.writer(buffer, lineterminator="\n")
        head: list[str] = []
        for name, several in zip(self.columns, spread, strict=True):
            head += [name, f"{name}, deviation", f"{name}, seeds"] if several else [name]
        writer.writerow(head)
        for row in self.rows:
            cells: list[Any] = []
            for value, several in zip(row, spread, strict=True):
                if isinstance(value, Spread):
                    cells += [value.mean, value.deviation, len(value.values)]
                else:
                    cells += [value, None, None] if several else [value]
            writer.writerow(cells)
        return buffer.getvalue()


@dataclass(frozen=True)
class Figure:
    """A picture: `draw(path)` writes a PNG."""

    name: str
    caption: str
    draw: Callable[[Path], None]


@dataclass
class Report:
    """What an experiment has to say. Every sentence of `found` is made from numbers.

    paper: what was published. found: what this run measured. limits: what it cannot show.
    """

    title: str
    question: str
    paper: list[str]
    found: list[str]
    limits: list[str] = field(default_factory=list)
    tables: list[Table] = field(default_factory=list)
    figures: list[Figure] = field(default_factory=list)

    def write(self, folder: Path, result: Any, how: Sequence[str]) -> Path:
        """Write pictures, tables, `results.json` and, last, `report.md`; returns the page's path.

        result: the dataclass of the experiment. how: how it was run, one sentence each.
        """
        folder.mkdir(parents=True, exist_ok=True)
        for figure in self.figures:
            figure.draw(folder / f"{figure.name}.png")
        for table in self.tables:
            atomic_write_text(folder / f"{table.name}.csv", table.csv())
        text = json.dumps(plain(result), indent=1, allow_nan=False)
        atomic_write_text(folder / "results.json", text + "\n")
        page = folder / "report.md"
        atomic_write_text(page, self.markdown(how))
        return page

    def markdown(self, how: Sequence[str]) -> str:
        parts = [f"# {self.title}", self.question]
        parts += ["## What the paper found", _bullets(self.paper)]
        parts += ["## What this run found", _bullets(self.found)]
        for figure in self.figures:
            parts += [f"![{figure.caption}]({figure.name}.png)", f"*{figure.caption}*"]
        for table in self.tables:
            parts += [f"**{table.caption}** ([CSV]({table.name}.csv))", table.markdown()]
        parts += ["## What this run cannot show", _bullets(self.limits)]
        parts += ["## How it was run", _bullets(how), "All numbers: [results.json](results.json)."]
        return "\n\n".join(parts) + "\n"


def _numeric(value: Any) -> bool:
    return not isinstance(value, str) or value[:1].isdigit() or value[:1] == "-"


def _bullets(sentences: Sequence[str]) -> str:
    return "\n".join(f"- {sentence}" for sentence in sentences)


def plain(value: Any) -> Any:
    """Dataclasses, arrays and numbers as JSON holds them; what is not finite becomes null."""
    if isinstance(value, Spread):
        return {"mean": plain(value.mean), "deviation": plain(value.deviation),
                "values": plain(value.values)}  # fmt: skip
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = [f.name for f in dataclasses.fields(value) if f.repr]
        return {name: plain(getattr(value, name)) for name in fields}
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, np.ndarray):
        return plain(value.tolist())
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if value is None or isinstance(value, bool | int | float | str):
        return value
    return str(value)
