"""The sizes of launches, and what else the host side of kernels shares."""

from __future__ import annotations

from typing import Any

import numpy as np

from minires.kernels.cuda.launch import Device
from minires.kernels.layout import to_nchw, to_nhwc

THREADS = 256
BLOCKS_PER_PROCESSOR = 8
"""Blocks of 256 threads that a multiprocessor holds at once; more wait for their turn."""


nchw = to_nchw


def nhwc(xp: Any, x: Any) -> Any:
    """`layout.to_nhwc`, for host code that has the array module at hand."""
    return to_nhwc(x)


def accumulator(dtype: Any) -> Any:
    """The dtype of sums and statistics: float64 for float64, else float32."""
    return np.dtype(np.float64 if dtype == np.float64 else np.float32)


def pack(dtype: Any) -> int:
    """Elements in the 16 bytes that one instruction moves."""
    return 16 // int(dtype.itemsize)


def aligned(device: Device, *arrays: Any) -> bool:
    """Whether every array begins at a multiple of 16 bytes."""
    return all(a is None or device.address(a) % 16 == 0 for a in arrays)


def on_16_bytes(device: Device, array: Any) -> Any:
    """The array, copied if it does not begin at a multiple of 16 bytes, as chunks must."""
    return array if aligned(device, array) else array.copy()


def ceil_div(a: int, b: int) -> int:
    """a / b, rounded up."""
    return -(-a // b)


def power_of_two(n: int) -> int:
    """The smallest power of two that is at least n."""
    return 1 << max(n - 1, 0).bit_length()


def grid_for(device: Device, items: int) -> tuple[int]:
    """Blocks of THREADS for a loop over the grid: all items, or as many as run at once."""
    most = device.multiprocessors * BLOCKS_PER_PROCESSOR
    return (max(1, min(ceil_div(items, THREADS), most)),)
