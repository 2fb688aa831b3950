"""Guard zones around arrays: what a kernel reads or writes outside of them comes to light.

    guards = Guards()
    x = guards.place(x, "x")                # a copy, in the same layout, between two zones
    with guards.allocations():              # np.empty, np.zeros, ... do the same
        y = kernel(x)
    guards.broken()                         # the zones that were written to

The zones are filled with bytes 0xff, which read as NaN, or as -1: reading outside gives a NaN.
`np.empty` is filled alike, so that what a kernel returns without having written it is NaN too.

Compiled functions that make arrays of their own are out of reach; give them their arrays.
"""

from __future__ import annotations

import ctypes
import math
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
from numpy.lib.array_utils import byte_bounds

from minires.kernels import memory

Array = np.ndarray

ZONE = 1 << 14
"""Bytes on each side."""

ALIGNMENT = 64
NAN_BYTE, ZERO_BYTE = 0xFF, 0x00


class Guards:
    """Arrays between guard zones.

    zone: the byte that fills the zones; content: the byte that fills `np.empty`.
    """

    def __init__(self, zone: int = NAN_BYTE, content: int = NAN_BYTE) -> None:
        self.zone, self.content = zone, content
        self._kept: list[tuple[str, Array, int, int]] = []

    def place(self, array: Array, label: str) -> Array:
        """A copy with the same strides (and what lies between the elements)."""
        low, high = byte_bounds(array)
        memory, start = self._between_zones(high - low, label)
        source = (ctypes.c_uint8 * (high - low)).from_address(low)
        memory[start : start + high - low] = np.frombuffer(source, np.uint8)
        offset = start + array.ctypes.data - low
        return np.ndarray(array.shape, array.dtype, memory, offset, array.strides)

    def broken(self) -> list[str]:
        """The arrays before or behind which something was written, such as `before x`."""
        found = []
        for label, whole, start, size in self._kept:
            if (whole[:start] != self.zone).any():
                found.append(f"before {label}")
            if (whole[start + size :] != self.zone).any():
                found.append(f"behind {label}")
        return found

    def _between_zones(self, size: int, label: str) -> tuple[Array, int]:
        memory = np.ndarray(size + 2 * ZONE + ALIGNMENT, np.uint8)
        memory[:] = self.zone
        start = ZONE + -(memory.ctypes.data + ZONE) % ALIGNMENT
        self._kept.append((label, memory, start, size))
        return memory, start

    def _make(self, shape: Any, dtype: Any, order: str | None) -> Array:
        """An array between zones, filled with `content`."""
        dtype = np.dtype(float if dtype is None else dtype)
        sizes = tuple(shape) if hasattr(shape, "__iter__") else (shape,)
        if dtype.hasobject:
            return np.ndarray(sizes, dtype)
        size = math.prod(map(int, sizes)) * dtype.itemsize
        memory, start = self._between_zones(size, f"the array {_caller()}")
        memory[start : start + size] = self.content
        return np.ndarray(sizes, dtype, memory, start, order="F" if order == "F" else "C")

    def _make_like(self, prototype: Any, dtype: Any, order: str | None, shape: Any) -> Array:
        prototype = np.asarray(prototype)
        dtype = prototype.dtype if dtype is None else dtype
        if shape is not None or order in ("C", "F"):
            return self._make(prototype.shape if shape is None else shape, dtype, order)
        # The axes in the order in which they lie in the prototype.
        axes = sorted(range(prototype.ndim), key=lambda axis: -abs(prototype.strides[axis]))
        dense = self._make([prototype.shape[axis] for axis in axes], dtype, "C")
        return dense.transpose(np.argsort(axes))

    @contextmanager
    def allocations(self) -> Iterator[None]:
        """Inside the block, arrays from `np.empty`, `np.zeros` and their like have guard zones.

        Only there: while Numba compiles, NumPy's own are back, which it knows by identity.
        """

        def creator(value: int | None) -> Callable[..., Array]:
            def create(shape: Any, dtype: Any = None, order: str = "C", **_: Any) -> Array:
                return _filled(self._make(shape, dtype, order), value)

            return create

        def creator_like(value: int | None) -> Callable[..., Array]:
            def create(
                prototype: Any, dtype: Any = None, order: str = "K", subok: bool = True,
                shape: Any = None, **_: Any,
            ) -> Array:  # fmt: skip
                return _filled(self._make_like(prototype, dtype, order, shape), value)

            return create

        def full(
            shape: Any, fill_value: Any, dtype: Any = None, order: str = "C", **_: Any
        ) -> Array:
            dtype = np.asarray(fill_value).dtype if dtype is None else dtype
            return _filled(self._make(shape, dtype, order), fill_value)

        def full_like(
            prototype: Any, fill_value: Any, dtype: Any = None, order: str = "K",
            subok: bool = True, shape: Any = None, **_: Any,
        ) -> Array:  # fmt: skip
            return _filled(self._make_like(prototype, dtype, order, shape), fill_value)

        patch = mock.patch.multiple(
            np,
            empty=creator(None), zeros=creator(0), ones=creator(1), full=full,
            empty_like=creator_like(None), zeros_like=creator_like(0), ones_like=creator_like(1),
            full_like=full_like,
        )  # fmt: skip
        pooled = mock.patch.multiple(
            memory, empty=creator(None), zeros=creator(0), empty_like=creator_like(None)
        )
        with pooled, _undone_while_compiling(patch), patch:
            yield


@contextmanager
def _undone_while_compiling(patch: Any) -> Iterator[None]:
    """Inside the block, the patch is taken back whenever Numba compiles something."""
    from numba.core import event
    from numba.core.registry import cpu_target

    # What Numba knows of NumPy's functions it looks up once: now, not under the patch.
    cpu_target.typing_context.refresh()
    cpu_target.target_context.refresh()
    compiling = 0

    class Listener(event.Listener):
        def on_start(self, event: Any) -> None:
            nonlocal compiling
            compiling += 1
            if compiling == 1:
                patch.__exit__(None, None, None)

        def on_end(self, event: Any) -> None:
            nonlocal compiling
            compiling -= 1
            if compiling == 0:
                patch.__enter__()

    with event.install_listener("numba:compile", Listener()):
        yield


def _filled(array: Array, value: Any) -> Array:
    if value is not None:
        array[...] = value
    return array


def _caller() -> str:
    """Where the kernel made the array."""
    frame = sys._getframe()
    while frame.f_back is not None and frame.f_code.co_filename == __file__:
        frame = frame.f_back
    return f"made at {Path(frame.f_code.co_filename).name}:{frame.f_lineno}"
