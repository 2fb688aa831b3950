"""When a device's memory is used up: which tensor found no room, and which batch would fit."""

from __future__ import annotations

import math
import re
import traceback
from collections.abc import Callable
from types import FrameType
from typing import Any

import numpy as np

from minires.autograd import Function
from minires.kernels.cuda.memory import MemoryUse
from minires.kernels.geometry import shape_text
from minires.kernels.registry import Operation

CREATORS = ("empty", "zeros", "ones", "full")
"""Functions of CuPy that are given a shape and a dtype; written in Python, so that they are seen
in a traceback with their arguments."""

ROOM = 0.95
"""Of the memory that is available: what an estimate counts on. Pools do not fill it to the end."""


class OutOfMemoryError(MemoryError):
    """A device had no room for a tensor.

    operation: what made it. shape, dtype: of the tensor, or None if it cannot be told. bytes: how
    many were asked for. in_use, available: bytes on the device. fits: images in the largest batch
    that would fit, by an estimate, or None if there is none.
    """

    def __init__(
        self, device: str, found: Allocation, in_use: int, available: int, batch: int,
        fits: int | None, per_image: float,
    ) -> None:  # fmt: skip
        self.operation, self.shape, self.dtype = found.operation, found.shape, found.dtype
        self.bytes, self.in_use, self.available, self.fits = found.bytes, in_use, available, fits
        tensor = "a tensor"
        if found.shape is not None:
            tensor = f"a tensor of {shape_text(found.shape) or 'one number'} {found.dtype}"
        if fits:
            advice = (
                f"A batch of {fits} would fit, by {size_text(per_image)} for each image as measured"
            )
        else:
            advice = "No batch would fit, however small"
        super().__init__(
            f"out of memory on {device}, with a batch of {batch}: {found.operation} found no room "
            f"for {tensor}, {size_text(found.bytes)}, with {size_text(in_use)} of "
            f"{size_text(available)} in use. {advice}. Nothing is lost: weights, momentum and "
            "checkpoints are as they were before this step"
        )


class Allocation:
    """The tensor that an error of an allocator is about, as its traceback tells."""

    def __init__(self, error: MemoryError) -> None:
        self.operation, self.shape, self.dtype = "an operation", None, None
        self.bytes = _bytes(error)
        for frame, _ in traceback.walk_tb(error.__traceback__):  # outermost first
            self._look(frame)

    shape: tuple[int, ...] | None
    dtype: Any

    def _look(self, frame: FrameType) -> None:
        values = frame.f_locals
        owner = values.get("self")
        if isinstance(owner, Function | Operation):
            backward = frame.f_code.co_name in ("backward", "differentiate")
            self.operation = f"the gradient of {owner.name}" if backward else owner.name
        if frame.f_code.co_name in CREATORS and "shape" in values and "dtype" in values:
            shape = values["shape"]
            self.shape = tuple(shape) if isinstance(shape, tuple | list) else (int(shape),)
            self.dtype = np.dtype(values["dtype"])
            self.bytes = math.prod(self.shape) * self.dtype.itemsize


def _bytes(error: MemoryError) -> int:
    """`Out of memory allocating 1,024 bytes (...)`: CuPy's words."""
    found = re.search(r"allocating ([\d,]+) bytes", str(error))
    return int(found[1].replace(",", "")) if found else 0


def explained(
    error: MemoryError,
    device: str,
    batch: int,
    use_of: Callable[[], MemoryUse],
    release: Callable[[], None],
    peak_of: Callable[[int], int],
) -> OutOfMemoryError:
    """The error in full, after everything that the failed step held was given back.

    use_of: the memory in use. release: forgets gradients, graphs and cached memory.
    peak_of: the most bytes in use during a step of so many images, measured by doing one that
        changes nothing; may raise MemoryError.
    """
    found = Allocation(error)
    use = use_of()
    traceback.clear_frames(error.__traceback__)  # they hold the tensors of the failed step
    error.__traceback__ = None
    release()
    fits, per_image = _largest(batch, use.available, peak_of)
    release()
    return OutOfMemoryError(device, found, use.in_use, use.available, batch, fits, per_image)


def _largest(
    batch: int, available: int, peak_of: Callable[[int], int]
) -> tuple[int | None, float]:
    """The largest batch that fits if memory grows in a straight line, and bytes per image."""
    few = min(2, batch)
    try:
        base = peak_of(few)
        if base > ROOM * available:
            return None, 0.0
        more = peak_of(2 * few)
    except MemoryError:
        return None, 0.0
    per_image = max(1.0, (more - base) / few)
    fits = few + int((ROOM * available - base) / per_image)
    return min(fits, batch - 1) or None, per_image


def size_text(size: float) -> str:
    """`392 MiB`, `1.53 GiB`."""
    for unit in ("bytes", "KiB", "MiB"):
        if size < 1024:
            return f"{size:.4g} {unit}"
        size /= 1024
    return f"{size:.4g} GiB"
