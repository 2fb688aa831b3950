"""The table of planted bugs fits the sources; benchmarks/mutations says what catches them."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parents[1]


def load_table() -> ModuleType:
    path = ROOT / "benchmarks" / "mutations" / "table.py"
    spec = importlib.util.spec_from_file_location("mutation_table", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


table = load_table()
MUTATIONS = table.read()


@pytest.mark.parametrize("path", sorted({m.path for m in MUTATIONS}))
def test_every_entry_applies(path: str) -> None:
    source = (ROOT / path).read_text(encoding="utf-8")
    for mutation in MUTATIONS:
        if mutation.path == path:
            changed = mutation.apply(source)
            different = [
                (a, b)
                for a, b in zip(source.splitlines(), changed.splitlines(), strict=True)
                if a != b
            ]
            assert [b.strip() for _, b in different] == [mutation.new.strip()], mutation


def test_the_likely_tests_exist() -> None:
    for mutation in MUTATIONS:
        for test in mutation.tests:
            assert (ROOT / test.partition("::")[0]).is_file(), f"{mutation}: no {test}"


def test_there_are_many_bugs_of_many_kinds() -> None:
    assert len(MUTATIONS) >= 60
    assert len({m.kind for m in MUTATIONS}) >= 10


SOURCE = """\
class A:
    def f(self, x):
        y = x + 1
        return y

class B:
    def f(
        self, x
    ):
        y = x + 1
        return y
"""


def entry(**changes: str) -> object:
    fields = {"path": "a.py", "kind": "sign", "old": "y = x + 1", "new": "y = x - 1"}
    return table.Mutation(**(fields | changes), tests=())


def test_within_names_the_block() -> None:
    for within, at in (("class A", 2), ("class B", 9)):
        mutation = entry(within=within)
        assert mutation.line(SOURCE) == at
        assert mutation.apply(SOURCE).splitlines()[at] == "        y = x - 1"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({}, "occurs 2 times and must occur once; .* name its block"),
        ({"old": "y = x + 2"}, "occurs 0 times"),
        ({"within": "class C"}, "0 blocks begin with `class C`"),
        ({"within": "def f"}, "2 blocks begin with `def f`"),
        ({"within": "class A", "new": "y = (x"}, "the result is no Python"),
    ],
)
def test_an_entry_that_is_out_of_date_says_so(changes: dict[str, str], message: str) -> None:
    with pytest.raises(table.OutOfDateError, match=message):
        entry(**changes).apply(SOURCE)
