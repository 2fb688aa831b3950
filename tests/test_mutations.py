"""The table of planted bugs fits the sources; benchmarks/mutations says what catches them."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "benchmarks" / "mutations"))
import runner  # noqa: E402
import table  # noqa: E402

sys.path.pop(0)
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


# -- planting ------------------------------------------------------------------------------------


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A project of one function and one test, which looks at one of its two results."""
    root = tmp_path / "source"
    (root / "tests").mkdir(parents=True)
    (root / "pyproject.toml").write_text("[tool.pytest.ini_options]\ntestpaths = ['tests']\n")
    (root / "small.py").write_text("def f(x):\n    a = x + 1\n    b = x - 1\n    return a, b\n")
    (root / "tests" / "test_f.py").write_text(
        "from small import f\n\n\ndef test_first():\n    assert f(1)[0] == 2\n"
    )
    return root


def test_bugs_are_planted_in_a_copy_and_taken_out_again(project: Path, tmp_path: Path) -> None:
    copy = runner.Copy(project, tmp_path / "work")
    tests = ("tests/test_f.py",)
    copy.baseline(tests, 60.0)
    seen = table.Mutation("small.py", "sign", "a = x + 1", "a = x - 1", tests)
    unseen = table.Mutation("small.py", "sign", "b = x - 1", "b = x + 1", tests)
    caught = copy.run(seen, tests, 60.0)
    assert (caught.passed, caught.by) == (False, "tests/test_f.py::test_first")
    assert copy.run(unseen, tests, 60.0).passed
    assert copy.run(unseen, tests, 1e-3).by.startswith("no end within")
    for root in (project, copy.root):
        assert "a = x + 1" in (root / "small.py").read_text()
    with pytest.raises(table.OutOfDateError, match="no such file"):
        copy.check(table.Mutation("other.py", "sign", "a", "b", tests))
