"""A stand-in that runs nothing and notes every launch: for tests of the host side.

    with record.device() as recorder:
        conv.conv2d(x, weight, g)
    recorder.launches[0].grid
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np

from minires.kernels.cuda import source
from minires.kernels.cuda.launch import (
    HOPPER,
    Kernel,
    Module,
    Size,
    definition_texts,
    standing_in,
)

MAX_GRID = (2**31 - 1, 65535, 65535)
MAX_THREADS = 1024
MAX_SHARED = 232448
"""Bytes of shared memory that one block may use on compute capability 9.0."""


@dataclass(frozen=True)
class Launch:
    """One launch: which kernel of which source, compiled how, over what."""

    source: str
    kernel: str
    definitions: dict[str, str]
    grid: tuple[int, int, int]
    block: tuple[int, int, int]
    args: tuple[Any, ...]
    shared: int


class Recorder:
    """Checks the limits that a launch must keep, and keeps the launches."""

    xp = np

    def __init__(self, multiprocessors: int, capability: tuple[int, int]) -> None:
        self.multiprocessors, self.capability = multiprocessors, capability
        self.launches: list[Launch] = []

    def module(self, name: str, **definitions: Any) -> Module:
        return RecordedModule(self, name, dict(definition_texts(definitions)))

    def address(self, array: np.ndarray) -> int:
        return array.ctypes.data

    def pointers(self, arrays: Sequence[np.ndarray]) -> np.ndarray:
        return np.array([self.address(a) for a in arrays], np.uint64)

    def numbered(self, number: int) -> None:
        """None: it records kernels called with NumPy arrays, and stands for no device."""


@dataclass(frozen=True)
class RecordedModule:
    recorder: Recorder
    name: str
    definitions: dict[str, str]

    def kernel(self, name: str) -> Kernel:
        if name not in source.kernels(source.text(self.name)):
            raise ValueError(f"{self.name} has no kernel {name!r}")

        def launch(grid: Size, block: Size, args: Sequence[Any], shared: int = 0) -> None:
            sizes = three(grid), three(block)
            if any(not 1 <= n <= most for n, most in zip(sizes[0], MAX_GRID, strict=True)):
                raise ValueError(f"{name}: a grid of {grid} cannot be launched")
            threads = sizes[1][0] * sizes[1][1] * sizes[1][2]
            if not 1 <= threads <= MAX_THREADS or shared > MAX_SHARED:
                raise ValueError(f"{name}: a block of {block} with {shared} bytes cannot be run")
            self.recorder.launches.append(
                Launch(self.name, name, self.definitions, *sizes, tuple(args), shared)
            )

        return launch


def three(size: Size) -> tuple[int, int, int]:
    """A grid or block size with its missing axes."""
    x, y, z = (*size, 1, 1)[:3]
    return x, y, z


@contextmanager
def device(multiprocessors: int = 132, capability: tuple[int, int] = HOPPER) -> Iterator[Recorder]:
    """Inside the block, CUDA kernels take NumPy arrays, and nothing runs: results are arbitrary."""
    with standing_in(recorder := Recorder(multiprocessors, capability)):
        yield recorder
