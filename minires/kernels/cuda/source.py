"""The CUDA sources as text: one file with its includes written out, for any compiler.

Every source is written on a type name, given as the definition `ELEMENT=float` and the like, so
that one text serves all dtypes. Kernels are `extern "C"` and found by their names.
"""

from __future__ import annotations

import hashlib
import re
from functools import lru_cache
from pathlib import Path

FOLDER = Path(__file__).parent / "src"

TYPES = {"float32": "float", "float64": "double", "float16": "f16", "bfloat16": "bf16"}
"""The C++ type of each dtype that kernels take; f16 and bf16 are ours, in types.cuh."""

_INCLUDE = re.compile(r'^#include "([^"]+)"\n', re.MULTILINE)
_KERNEL = re.compile(r'extern "C" __global__ void(?:\s+__launch_bounds__\([^)]*\))?\s+(\w+)\(')


_given: dict[str, str] = {}


def give(name: str, text: str) -> str:
    """Make a text a source of this name and contents; returns what it is called from then on.

    It may include ours, such as "types.cuh".
    """
    unique = f"{hashlib.sha256(text.encode()).hexdigest()[:12]}-{name}"
    _given[unique] = text
    return unique


def _read(file: str) -> str:
    return _given[file] if file in _given else (FOLDER / file).read_text()


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

        return _INCLUDE.sub(include, _read(file).replace("#pragma once\n", ""))

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
