"""Many arrays in one launch: cut into chunks, a block for each."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import Any

import numpy as np

from minires.kernels.cuda.arrays import THREADS, ceil_div
from minires.kernels.cuda.launch import Device, device_of

CHUNK = 1 << 14
"""Elements that a block takes; a multiple of every 16-byte pack."""


class Chunks:
    """Arrays of these sizes in pieces of CHUNK elements: which array, and where it begins."""

    def __init__(self, device: Device, sizes: Sequence[int]) -> None:
        self.device, self.given = device, tuple(sizes)
        self.cut = [(i, k * CHUNK) for i, n in enumerate(sizes) for k in range(ceil_div(n, CHUNK))]

    @property
    def grid(self) -> tuple[int]:
        return (len(self.cut),)

    @cached_property
    def arguments(self) -> tuple[Any, Any, Any, int]:
        """sizes, owner, start, chunk: as the kernels take them."""
        xp = self.device.xp
        return (
            xp.asarray(np.array(self.given, np.int64)),
            xp.asarray(np.array([i for i, _ in self.cut], np.int32)),
            xp.asarray(np.array([k for _, k in self.cut], np.int64)),
            CHUNK,
        )


_known: dict[tuple[int, tuple[int, ...]], Chunks] = {}


def chunks_of(device: Device, sizes: tuple[int, ...]) -> Chunks:
    """The chunks of arrays of these sizes; their tables are sent to the device once."""
    found = _known.get((id(device), sizes))
    if found is None:
        found = _known[id(device), sizes] = Chunks(device, sizes)
    return found


def cast_many(arrays: Sequence[Any], target: Any) -> list[Any]:
    """Arrays of one dtype in another, all in one launch; each keeps its memory order.

    They must fill their memory without gaps.
    """
    device, target = device_of(arrays[0]), np.dtype(target)
    chunks = chunks_of(device, tuple(a.size for a in arrays))
    results = [device.xp.empty_like(a, dtype=target) for a in arrays]
    tables = device.pointers(arrays), device.pointers(results)
    module = device.module("cast.cu", SOURCE_ELEMENT=arrays[0].dtype, ELEMENT=target)
    module.kernel("cast_many")(chunks.grid, (THREADS,), (*tables, *chunks.arguments))
    return results
