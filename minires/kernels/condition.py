"""What a kernel supports, as a function of the geometry, and as text for tables and errors."""

from __future__ import annotations

import ast
import linecache
from collections.abc import Callable, Iterator
from typing import Any

Condition = Callable[[Any], bool]
"""Takes a ConvGeometry or PoolGeometry, or the first array's shape for other operations."""


def never(geometry: Any) -> bool:
    """Only when asked for by name."""
    return False


def when_measured(geometry: Any) -> bool:
    """Only when asked for by name, or where a measurement found it the fastest."""
    return False


def condition_text(condition: Condition | None) -> str:
    """A condition in words: the first line of its docstring, or else the expression it returns.

    `lambda g: g.kernel == (3, 3)` reads `g.kernel == (3, 3)`. The name of the function if its
    source cannot be found.
    """
    if condition is None:
        return "any"
    if condition is bool:  # of a shape
        return "at least one axis"
    doc = (condition.__doc__ or "").strip()
    if doc:
        return doc.split("\n")[0].rstrip(".")
    return _expression(condition) or str(getattr(condition, "__name__", repr(condition)))


def _expression(condition: Condition) -> str | None:
    """The source of what a function of one expression returns; None if it is not one."""
    code = getattr(condition, "__code__", None)
    if code is None:
        return None
    source = "".join(linecache.getlines(code.co_filename))
    try:
        tree = ast.parse(source)
    except SyntaxError:
        return None
    found = [value for value, node in _returned(tree, code.co_firstlineno) if _holds(node, code)]
    if len(found) != 1:
        return None
    text = ast.get_source_segment(source, found[0]) or ""
    return ast.unparse(found[0]) if "\n" in text else text


def _returned(tree: ast.AST, line: int) -> Iterator[tuple[ast.expr, ast.expr | ast.stmt]]:
    """What the functions that begin on this line return, and the node that says so."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Lambda) and node.lineno == line:
            yield node.body, node.body
        elif isinstance(node, ast.FunctionDef) and node.lineno == line and len(node.body) == 1:
            (statement,) = node.body
            if isinstance(statement, ast.Return) and statement.value is not None:
                yield statement.value, statement


def _holds(node: ast.expr | ast.stmt, code: Any) -> bool:
    """Whether the function's instructions stand here: a line may have several functions."""
    start = (node.lineno, node.col_offset)
    end = (node.end_lineno or node.lineno, node.end_col_offset or 0)
    places = [
        (line, column, end_line, end_column)
        for line, end_line, column, end_column in code.co_positions()
        if None not in (line, column, end_line, end_column) and end_column
    ]
    return bool(places) and all(
        start <= (line, column) and (end_line, end_column) <= end
        for line, column, end_line, end_column in places
    )
