"""Pooling and its gradients. The mathematics: src/pool.cu."""

from __future__ import annotations

from typing import Any

import numpy as np

from minires.kernels.cuda.arrays import THREADS, aligned, ceil_div, nchw, nhwc, pack
from minires.kernels.cuda.launch import device_of
from minires.kernels.geometry import Pair, PoolGeometry

MOST_IMAGES = 65535
"""Blocks along the third axis of a grid; with more images, a thread takes several."""


def max_pool2d(x: Any, g: PoolGeometry) -> tuple[Any, Any]:
    """The largest value of each window and its place in it (u * KW + v); the first one on ties.

    Places are bytes where they fit into one.
    """
    xp = device_of(x).xp
    small = g.kernel[0] * g.kernel[1] <= 256
    indices = xp.empty((g.N, *g.out, g.C), np.uint8 if small else np.int32)
    y = _pool("max_pool", (nhwc(xp, x),), (g.N, *g.out, g.C), windows(g), indices)
    return y, nchw(indices)


def max_pool2d_grad(gy: Any, indices: Any, g: PoolGeometry) -> Any:
    """Each output's gradient to the input that was the maximum."""
    xp = device_of(gy).xp
    given = nhwc(xp, gy), _places(xp, indices)
    return _pool("max_pool_grad", given, (g.N, g.H, g.W, g.C), windows(g))


def max_pool2d_take(x: Any, indices: Any, g: PoolGeometry) -> Any:
    """The inputs at the places found by max_pool2d: the adjoint of max_pool2d_grad."""
    xp = device_of(x).xp
    given = nhwc(xp, x), _places(xp, indices)
    return _pool("max_pool_take", given, (g.N, *g.out, g.C), windows(g))


def _places(xp: Any, indices: Any) -> Any:
    """Places in channels-last memory, as bytes or 32-bit integers."""
    return nhwc(xp, indices if indices.dtype.itemsize in (1, 4) else indices.astype(np.int32))


def avg_pool2d(x: Any, g: PoolGeometry) -> Any:
    """The mean of each window."""
    xp = device_of(x).xp
    return _pool("avg_pool", (nhwc(xp, x),), (g.N, *g.out, g.C), windows(g))


def avg_pool2d_grad(gy: Any, g: PoolGeometry) -> Any:
    """Each output's gradient in equal shares to the inputs of its window."""
    xp = device_of(gy).xp
    return _pool("avg_pool_grad", (nhwc(xp, gy),), (g.N, g.H, g.W, g.C), windows(g))


def adaptive_avg_pool2d(x: Any, out: Pair) -> Any:
    """Means over windows that cover the image in `out`."""
    N, C, H, W = x.shape
    xp = device_of(x).xp
    sizes = integers(N, C, H, W, *out)
    return _pool("adaptive_avg_pool", (nhwc(xp, x),), (N, *out, C), sizes)


def adaptive_avg_pool2d_grad(gy: Any, size: Pair) -> Any:
    """The adjoint: each output's gradient in equal shares to the pixels of its window."""
    N, C, OH, OW = gy.shape
    xp = device_of(gy).xp
    sizes = integers(N, C, *size, OH, OW)
    return _pool("adaptive_avg_pool_grad", (nhwc(xp, gy),), (N, *size, C), sizes)


def integers(*values: int) -> tuple[np.int32, ...]:
    """Values as `int` arguments."""
    return tuple(map(np.int32, values))


def windows(g: PoolGeometry) -> tuple[np.int32, ...]:
    """The arguments WINDOWS of src/pool.cu."""
    return integers(
        g.N, g.C, g.H, g.W, *g.out, *g.kernel, *g.stride, *g.padding, *g.dilation,
        g.count_include_pad,
    )  # fmt: skip


def _pool(
    name: str,
    given: tuple[Any, ...],
    shape: tuple[int, int, int, int],
    sizes: tuple[np.int32, ...],
    *more: Any,
) -> Any:
    """Run a kernel that makes an (N, H, W, C) result, with a thread for each pack of it."""
    device, (N, H, W, C) = device_of(given[0]), shape
    result = device.xp.empty(shape, given[0].dtype)
    if not N * C:
        return nchw(result)
    indices = [a for a in (*given, *more) if a.dtype.kind in "iu"]
    packed = C % pack(result.dtype) == 0 and aligned(device, given[0], result, *indices)
    V = pack(result.dtype) if packed else 1
    module = device.module(
        "pool.cu", ELEMENT=result.dtype, PACKED=int(packed),
        PLACE_BYTES=indices[0].dtype.itemsize if indices else 1,
    )  # fmt: skip
    grid = ceil_div(W * (C // V), THREADS), H, min(N, MOST_IMAGES)
    module.kernel(name)(grid, (THREADS,), (*given, result, *more, *sizes))
    return nchw(result)
