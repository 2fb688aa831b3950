"""How the commands write to the terminal."""

from __future__ import annotations

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table


def output() -> Console:
    """Standard output."""
    return Console(highlight=False)


def errors() -> Console:
    """Standard error."""
    return Console(stderr=True, highlight=False)


def table(*columns: str) -> Table:
    """A plain table: a heading, a line, rows. A column named `>x` is aligned to the right."""
    made = Table(box=SIMPLE_HEAD, pad_edge=False)
    for column in columns:
        right = column.startswith(">")
        made.add_column(column.removeprefix(">"), justify="right" if right else "left")
    return made


def facts(title: str | None = None) -> Table:
    """A table of names and values."""
    made = Table(box=None, show_header=False, title=title, title_justify="left",
                 title_style="bold", pad_edge=False, padding=(0, 2, 0, 0))  # fmt: skip
    made.add_column(style="dim")
    made.add_column()
    return made


def clock(seconds: float) -> str:
    """`0:04`, `1:05` or `2:05:09`."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def duration(seconds: float) -> str:
    """`4.2 s`, `1:05 min` or `2:05:09 h`."""
    if seconds < 59.95:
        return f"{seconds:.1f} s"
    return f"{clock(seconds)} {'min' if seconds < 3599.5 else 'h'}"


def short(number: float) -> str:
    """`40.55 M`, `11.69 G`: four digits and a unit."""
    units = ["", " k", " M", " G"]
    while number >= 999.95 and len(units) > 1:
        number /= 1000
        units.pop(0)
    return f"{number:.4g}{units[0]}"
