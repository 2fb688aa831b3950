"""The CUDA sources as text: one file with its includes written out, for any compiler.

Every source is written on a type name, given as the definition `ELEMENT=float` and the like, so
that one text serves all dtypes. Kernels are `extern "C"` and found by their names.
"""

from __future__ import annotations

import re
from functools import lru_cache
from pathlib import Path

FOLDER = Path(__file__).parent / "src"

TYPES = {"float32": "float", "float64": "double", "float16": "f16", "bfloat16": "bf16"}
"""The C++ type of each dtype that kernels take; f16 and bf16 are ours, in types.cuh."""

_INCLUDE = re.compile(r'^#include "([^"]+)"\n', re.MULTILINE)
_KERNEL = re.compile(r'extern "C" __global__ void(?:\s+__launch_bounds__\([^)]*\))?\s+(\w+)\(')


@lru_cache(maxsize=64)
def text(name: str) -> str:
    """A source with its includes in place, each once."""
    included: set[str] = set()

    def expand(file: str) -> str:
        def include(match: re.Match[str]) -> str:
            if match[1] in included:
                return ""
            included.add(match[1])
            return expand(match[1])

        return _INCLUDE.sub(include, (FOLDER / file).read_text().replace("#pragma once\n", ""))

    return expand(name)


def kernels(source: str) -> list[str]:
    """The names of the kernels in a text."""
    return _KERNEL.findall(source)


def type_name(dtype: object) -> str:
    """The C++ name of a dtype. Raises TypeError for one that no kernel takes."""
    name = str(dtype)
    if name not in TYPES:
        raise TypeError(f"CUDA kernels take {', '.join(TYPES)}, got {name}")
    return TYPES[name]
