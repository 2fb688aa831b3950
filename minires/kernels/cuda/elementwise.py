"""Sums, ReLU and its gradient, joins, casts. The mathematics: src/elementwise.cu, cast.cu."""

from __future__ import annotations

from typing import Any

from minires.kernels.cuda.arrays import THREADS, aligned, grid_for, nchw, nhwc, pack
from minires.kernels.cuda.launch import Device, device_of


def relu(x: Any) -> Any:
    """max(x, 0); NaN stays NaN."""
    return _apply("relu", x)


def relu_grad(gy: Any, y: Any) -> Any:
    """gy where y > 0, else 0."""
    return _apply("relu_grad", gy, y)


def add(a: Any, b: Any) -> Any:
    """a + b, of equal shapes: two gradients that meet."""
    return _apply("add", a, b)


def add_relu(a: Any, b: Any) -> Any:
    """max(a + b, 0) in one pass: the end of a residual block."""
    return _apply("add_relu", a, b)


def cast(x: Any, dtype: Any) -> Any:
    """x in another floating-point type, rounded to nearest; always a copy."""
    device = device_of(x)
    (x,) = _alike(device, x)
    y = device.xp.empty(x.shape, dtype)
    size = x.size
    widest = max(x.dtype.itemsize, y.dtype.itemsize)
    packs = size // (16 // widest) if aligned(device, x, y) else 0
    if size:
        module = device.module("cast.cu", SOURCE_ELEMENT=x.dtype, ELEMENT=y.dtype)
        module.kernel("cast")(grid_for(device, packs or size), (THREADS,), (x, y, size, packs))
    return nchw(y) if y.ndim == 4 else y


def _alike(device: Device, *arrays: Any) -> list[Any]:
    """The arrays in the first one's dtype and one memory order: images channels last, else C."""
    xp, dtype = device.xp, arrays[0].dtype
    if arrays[0].ndim == 4:
        return [nhwc(xp, xp.asarray(a, dtype)) for a in arrays]
    return [xp.ascontiguousarray(a, dtype).reshape(a.shape) for a in arrays]


def _apply(name: str, *arrays: Any) -> Any:
    device = device_of(arrays[0])
    given = _alike(device, *arrays)
    y = device.xp.empty(given[0].shape, given[0].dtype)
    size = y.size
    packs = size // pack(y.dtype) if aligned(device, *given, y) else 0
    if size:
        kernel = device.module("elementwise.cu", ELEMENT=y.dtype).kernel(name)
        kernel(grid_for(device, packs or size), (THREADS,), (*given, y, size, packs))
    return nchw(y) if y.ndim == 4 else y
