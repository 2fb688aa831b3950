"""Tables as aligned text."""

from __future__ import annotations

from collections.abc import Sequence


def aligned(heading: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Columns under a heading: the first to the left, the others to the right."""
    lines = [heading, *rows]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    text = [
        "  ".join(
            cell.ljust(width) if i == 0 else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    ]
    text.insert(1, "-" * (sum(widths) + 2 * (len(widths) - 1)))
    return "\n".join(text)
