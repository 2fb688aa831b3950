"""The documentation runs: every Python block that is marked so, page by page.

    ```python run            is executed, in one namespace per page and in an empty folder
    ```python run raises     must end in an exception

A ```text block right behind one is what it prints (or `Type: message` of the exception). Numbers
such as 3.1e-12 are what rounding left, and may be any such numbers; `...` stands for anything.
"""

from __future__ import annotations

import contextlib
import doctest
import io
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from lab import restored_kernels

DOCS = Path(__file__).resolve().parents[1] / "docs"
BLOCK = re.compile(
    r"^```python run(?P<raises> raises)?\n(?P<code>.*?)^```\n"
    r"(?:\n*^```text\n(?P<output>.*?)^```\n)?",
    flags=re.MULTILINE | re.DOTALL,
)
ROUNDING = re.compile(r"\b\d(\.\d+)?e-\d+")


@dataclass(frozen=True)
class Block:
    """A block of code, the line it starts on, and what it must print (None: anything)."""

    code: str
    line: int
    raises: bool
    output: str | None


def blocks(text: str) -> list[Block]:
    return [
        Block(
            match["code"], text.count("\n", 0, match.start("code")) + 1,
            match["raises"] is not None, match["output"],
        )
        for match in BLOCK.finditer(text)
    ]  # fmt: skip


def run(block: Block, page: str, namespace: dict[str, Any]) -> None:
    """Execute a block and compare what it prints."""
    # Blank lines before it, so that a traceback names the line of the page.
    code = compile("\n" * (block.line - 1) + block.code, page, "exec", dont_inherit=True)
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        if block.raises:
            with pytest.raises(Exception) as caught:  # noqa: PT011 - the page tells which
                exec(code, namespace)
            print(f"{caught.type.__name__}: {caught.value}", file=printed)
        else:
            exec(code, namespace)
    if block.output is not None:
        expected, actual = (ROUNDING.sub("<tiny>", t) for t in (block.output, printed.getvalue()))
        same = doctest.OutputChecker().check_output(
            expected, actual, doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
        )
        assert same, (
            f"{page}:{block.line} prints something else:\n{printed.getvalue()}\n"
            f"where the page has\n{block.output}"
        )


PAGES = [page for page in sorted(DOCS.glob("*.md")) if blocks(page.read_text(encoding="utf-8"))]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_page(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MPLBACKEND", "Agg")
    namespace: dict[str, Any] = {"__name__": "__main__"}
    with restored_kernels():
        for block in blocks(page.read_text(encoding="utf-8")):
            run(block, page.name, namespace)


@pytest.mark.parametrize("page", sorted(DOCS.glob("*.md")), ids=lambda page: page.name)
def test_pictures_and_pages_that_a_page_names_are_there(page: Path) -> None:
    links = re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", page.read_text(encoding="utf-8"))
    for link in links:
        assert (page.parent / link).exists(), f"{page.name} names {link}"


def test_the_testing_chapter_lists_every_kind_of_fault() -> None:
    from minires.testing import ADVICE, FAULTS

    assert set(ADVICE) == set(FAULTS)
    text = (DOCS / "testing_gradients.md").read_text(encoding="utf-8")
    rows = dict(re.findall(r"^\| `([^`]+)` \| (.+ \| .+) \|$", text, flags=re.MULTILINE))
    assert set(rows) == set(FAULTS)
    for kind, row in rows.items():
        assert row == f"{FAULTS[kind]} | {ADVICE[kind]}", kind


# -- the runner itself -----------------------------------------------------------------------------

PAGE = """\
```python run
x = 3
print(x, 1.25e-12)
```

```text
3 4e-11
```

```python
this is not Python, and not run
```

```python run raises
raise ValueError(f"x is {x}")
```
```text
ValueError: x is ...
```
"""


def test_blocks_are_found_with_their_lines_and_output() -> None:
    first, second = blocks(PAGE)
    assert (first.line, first.raises, first.output) == (2, False, "3 4e-11\n")
    assert (second.line, second.raises, second.output) == (15, True, "ValueError: x is ...\n")
    namespace: dict[str, Any] = {}
    for block in (first, second):
        run(block, "page.md", namespace)
    assert namespace["x"] == 3


@pytest.mark.parametrize(
    ("block", "error"),
    [
        (Block("print(4)\n", 1, False, "3\n"), "prints something else"),
        (Block("print(0.5)\n", 1, False, "1e-12\n"), "prints something else"),
        (Block("print(4)\n", 1, True, None), "DID NOT RAISE"),
        (Block("raise ValueError('no')\n", 1, True, "ValueError: yes\n"), "prints something else"),
    ],
)
def test_a_page_that_says_something_else_fails(block: Block, error: str) -> None:
    with pytest.raises((AssertionError, pytest.fail.Exception), match=error):
        run(block, "page.md", {})


def test_a_traceback_names_the_line_of_the_page() -> None:
    with pytest.raises(ZeroDivisionError) as caught:
        run(Block("1 / 0\n", 42, False, None), "page.md", {})
    assert caught.traceback[-1].lineno + 1 == 42
