"""The table of planted bugs: read from the *.toml files beside this one, and applied to sources.

    [[file]]
    path = "minires/functional/linear.py"       # where the bugs go
    tests = ["tests/functional/test_linear.py"]   # what is likely to catch them, run first

      [[file.mutation]]
      kind = "missing factor"
      within = "class Linear"       # only where the line occurs more than once: this block of it
      old = "return gy.sum(axis=0)"  # one line of the file, without its indentation
      new = "return gy.mean(axis=0)"
      survives = "why"              # only for a bug that no test can see
"""

from __future__ import annotations

import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

TABLES = Path(__file__).parent


class OutOfDateError(ValueError):
    """An entry that no longer fits the source it is meant for."""


@dataclass(frozen=True)
class Mutation:
    """One bug on one line. kind: what went wrong, in a word or two; tests: run first."""

    path: str
    kind: str
    old: str
    new: str
    tests: tuple[str, ...]
    within: str = ""
    survives: str = ""

    @property
    def key(self) -> tuple[str, str, str, str]:
        """What tells it from all others."""
        return self.path, self.within, self.old, self.new

    def __str__(self) -> str:
        place = f", in `{self.within}`" if self.within else ""
        return f"{self.path}{place}: `{self.old}` -> `{self.new}`"

    def line(self, source: str) -> int:
        """The index of the line it changes. Raises OutOfDateError unless there is exactly one."""
        lines = source.splitlines()
        places = [i for i in self._block(lines) if lines[i].strip() == self.old]
        if len(places) != 1:
            raise OutOfDateError(
                f"{self}: the line occurs {len(places)} times and must occur once; bring the entry "
                "up to date" + (", or name its block with `within`" if len(places) > 1 else "")
            )
        return places[0]

    def apply(self, source: str) -> str:
        """The source with the bug. Raises OutOfDateError where it does not fit."""
        lines = source.splitlines(keepends=True)
        at = self.line(source)
        lines[at] = lines[at].replace(self.old, self.new)
        changed = "".join(lines)
        try:
            compile(changed, self.path, "exec")
        except SyntaxError as error:
            raise OutOfDateError(f"{self}: the result is no Python: {error}") from None
        return changed

    def _block(self, lines: list[str]) -> range:
        """The lines to look in: all, or those of the function or class named by `within`."""
        if not self.within:
            return range(len(lines))
        heads = [i for i, line in enumerate(lines) if _is_head(line, self.within)]
        if len(heads) != 1:
            raise OutOfDateError(f"{self}: {len(heads)} blocks begin with `{self.within}`")
        start = heads[0]
        depth = _indentation(lines[start])
        end = start + 1
        while end < len(lines) and (
            not lines[end].strip()
            or _indentation(lines[end]) > depth
            or lines[end].strip().startswith(")")
        ):
            end += 1
        return range(start, end)


def _indentation(line: str) -> int:
    return len(line) - len(line.lstrip())


def _is_head(line: str, within: str) -> bool:
    text = line.strip()
    return text.startswith(within) and not text[len(within) : len(within) + 1].isidentifier()


def read(tables: Path = TABLES) -> list[Mutation]:
    """Every entry of every table. Raises ValueError for one that is given twice."""
    found = list(_entries(tables))
    keys = [m.key for m in found]
    for mutation in found:
        if keys.count(mutation.key) > 1:
            raise ValueError(f"{mutation}: given twice")
    return found


def _entries(tables: Path) -> Iterator[Mutation]:
    for table in sorted(tables.glob("*.toml")):
        for file in tomllib.loads(table.read_text(encoding="utf-8"))["file"]:
            for entry in file["mutation"]:
                yield Mutation(path=file["path"], tests=tuple(file["tests"]), **entry)
