"""Which kernels the shell asks for.

    MINIRES_KERNELS=conv2d=im2col,relu=simd     kernels by name
    MINIRES_ALGORITHM=exact                     none that is not the plain sum of products

What `use` says in Python goes before both. They are read when a kernel is first chosen, so that
kernels from files that are loaded until then can be named.
"""

from __future__ import annotations

import os
from functools import lru_cache

from minires._names import unknown

KERNELS = "MINIRES_KERNELS"
ALGORITHM = "MINIRES_ALGORITHM"

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
