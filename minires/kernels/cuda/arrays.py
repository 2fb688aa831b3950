"""Memory layouts on a device, and the sizes of launches: what the host side of kernels shares."""

from __future__ import annotations

from typing import Any

import numpy as np

from minires.kernels.cuda.launch import Device

THREADS = 256
BLOCKS_PER_PROCESSOR = 8
"""Blocks of 256 threads that a multiprocessor holds at once; more wait for their turn."""


def nhwc(xp: Any, x: Any) -> Any:
    """(N, C, H, W) in any memory -> (N, H, W, C) contiguous; copies only if x is not so already."""
    return xp.ascontiguousarray(x.transpose(0, 2, 3, 1))


def nchw(x: Any) -> Any:
    """(N, H, W, C) -> (N, C, H, W), a view."""
    return x.transpose(0, 3, 1, 2)


def rows(xp: Any, x: Any) -> Any:
    """(N, C, H, W) or (N, C) -> (N*H*W, C): one row per pixel; a view of channels-last memory."""
    if x.ndim == 2:
        return xp.ascontiguousarray(x)
    return nhwc(xp, x).reshape(-1, x.shape[1])


def from_rows(flat: Any, shape: tuple[int, ...]) -> Any:
    """The inverse of `rows`: (N*H*W, C) -> `shape`, a view."""
    if len(shape) == 2:
        return flat.reshape(shape)
    N, C, H, W = shape
    return nchw(flat.reshape(N, H, W, C))


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
