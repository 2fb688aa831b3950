"""Which kernels the shell asks for, and where what was found out about them is kept.

    MINIRES_KERNELS=conv2d=im2col,relu=simd     kernels by name
    MINIRES_ALGORITHM=exact                     none that is not the plain sum of products
    MINIRES_TUNING=off | table.json             no measured table, or this one (`selection.py`)
    MINIRES_CACHE=folder                        in place of the user's cache folder

What `use` says in Python goes before both. They are read when a kernel is first chosen, so that
kernels from files that are loaded until then can be named.
"""

from __future__ import annotations

import os
from functools import lru_cache
from pathlib import Path

from minires._names import unknown

KERNELS = "MINIRES_KERNELS"
ALGORITHM = "MINIRES_ALGORITHM"
TUNING = "MINIRES_TUNING"
CACHE = "MINIRES_CACHE"

ALGORITHMS = ("any", "exact")
"""exact: no kernel whose result differs from the plain sum of products by more than rounding."""


def checked_algorithm(name: str, source: str) -> str:
    """The name, if it is one of ALGORITHMS. Raises ValueError otherwise."""
    if name not in ALGORITHMS:
        raise ValueError(f"{source}: {unknown('algorithm', name, ALGORITHMS)}")
    return name


def algorithm() -> str:
    """MINIRES_ALGORITHM, or "any" if it is not set."""
    text = os.environ.get(ALGORITHM, "").strip()
    return checked_algorithm(text, ALGORITHM) if text else "any"


def kernels() -> dict[str, str]:
    """MINIRES_KERNELS as kernel names by operation; whether they exist is not looked up here."""
    return _parsed(os.environ.get(KERNELS, ""))


def tuning() -> Path | bool:
    """MINIRES_TUNING: the table it names, False for "off", True if it is not set."""
    text = os.environ.get(TUNING, "").strip()
    return Path(text).expanduser() if text not in ("", "off") else not text


def cache_folder() -> Path:
    """$MINIRES_CACHE, or $XDG_CACHE_HOME/minires, or ~/.cache/minires."""
    given = os.environ.get(CACHE)
    if given:
        return Path(given)
    base = os.environ.get("XDG_CACHE_HOME", "")
    # The standard says that a relative path is to be ignored.
    return (Path(base) if os.path.isabs(base) else Path.home() / ".cache") / "minires"


@lru_cache(maxsize=1)
def _parsed(text: str) -> dict[str, str]:
    found: dict[str, str] = {}
    for part in filter(None, map(str.strip, text.split(","))):
        operation, equals, kernel = map(str.strip, part.partition("="))
        if not (operation and equals and kernel):
            raise ValueError(
                f"{KERNELS}: expected operation=kernel, separated by commas "
                f"(conv2d=im2col,relu=simd), got {part!r}"
            )
        if operation in found:
            raise ValueError(f"{KERNELS}: names two kernels for {operation}: {text!r}")
        found[operation] = kernel
    return found
