r"""Pooling: maximum, average, and average to a given output size.

Each pooling is linear once the maxima are chosen, so its gradient is its adjoint: an output's
gradient goes back to the inputs that made it. The window is walked position by position (u, v):
at each, one strided slice of the input meets all outputs at once.

Padding counts as -infinity for the maximum and as 0 for the average, which divides by the window
size, or by the number of real pixels if `count_include_pad` is off.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from minires.kernels import memory
from minires.kernels.geometry import Pair, PoolGeometry, adaptive_windows
from minires.kernels.layout import to_nchw, to_nhwc
from minires.kernels.registry import register


def _positions(g: PoolGeometry) -> Iterator[tuple[int, slice, slice]]:
    """Each position of the window with the slices of the padded input that it touches."""
    (KH, KW), (sh, sw), (dh, dw), (OH, OW) = g.kernel, g.stride, g.dilation, g.out
    for u in range(KH):
        for v in range(KW):
            yield (
                u * KW + v,
                slice(u * dh, u * dh + sh * (OH - 1) + 1, sh),
                slice(v * dw, v * dw + sw * (OW - 1) + 1, sw),
            )


def _padded(x: Any, g: PoolGeometry, value: float) -> Any:
    """(N, C, H, W) -> (N, H + 2ph, W + 2pw, C) with a constant border."""
    ph, pw = g.padding
    x = to_nhwc(x)
    if ph == pw == 0:
        return x
    y = np.full((g.N, g.H + 2 * ph, g.W + 2 * pw, g.C), value, x.dtype)
    y[:, ph : ph + g.H, pw : pw + g.W] = x
    return y


def _unpadded(padded: Any, g: PoolGeometry) -> Any:
    (ph, pw) = g.padding
    return to_nchw(np.ascontiguousarray(padded[:, ph : ph + g.H, pw : pw + g.W]))


def _empty_padded(g: PoolGeometry, dtype: Any) -> Any:
    return np.zeros((g.N, g.H + 2 * g.padding[0], g.W + 2 * g.padding[1], g.C), dtype)


@register("max_pool2d", name="numpy")
def max_pool2d(x: Any, g: PoolGeometry) -> tuple[Any, Any]:
    """The largest value of each window and its place in it (u * KW + v); the first one on ties.

    A NaN in a window is its maximum.
    """
    padded = _padded(x, g, -np.inf)
    y = np.full((g.N, *g.out, g.C), -np.inf, x.dtype)
    # A window of nothing but -infinity must still point at a real pixel: the first one unpadded.
    indices = _first_real_position(g)
    for k, rows, cols in _positions(g):
        candidate = padded[:, rows, cols]
        larger = (candidate > y) | (np.isnan(candidate) & ~np.isnan(y))
        np.copyto(y, candidate, where=larger)
        np.copyto(indices, k, where=larger)
    return to_nchw(y), to_nchw(indices)


def _first_real_position(g: PoolGeometry) -> Any:
    """(N, OH, OW, C) int32: the first position of each window that lies inside the image."""
    firsts = []
    for axis in range(2):
        starts = np.arange(g.out[axis]) * g.stride[axis] - g.padding[axis]
        firsts.append(np.maximum(0, -(starts // g.dilation[axis])) * (starts < 0))
    u, v = firsts
    first = (u[:, None] * g.kernel[1] + v[None, :]).astype(np.int32)
    return np.broadcast_to(first[None, :, :, None], (g.N, *g.out, g.C)).copy()


@register("max_pool2d_grad", name="numpy")
def max_pool2d_grad(gy: Any, indices: Any, g: PoolGeometry) -> Any:
    """Each output's gradient to the input that was the maximum."""
    gy, indices = to_nhwc(gy), to_nhwc(indices)
    padded = _empty_padded(g, gy.dtype)
    for k, rows, cols in _positions(g):
        padded[:, rows, cols] += np.where(indices == k, gy, gy.dtype.type(0))
    return _unpadded(padded, g)


@register("max_pool2d_take", name="numpy")
def max_pool2d_take(x: Any, indices: Any, g: PoolGeometry) -> Any:
    """The inputs at the places found by max_pool2d: the adjoint of max_pool2d_grad."""
    padded, indices = _padded(x, g, 0.0), to_nhwc(indices)
    y = np.zeros((g.N, *g.out, g.C), x.dtype)
    for k, rows, cols in _positions(g):
        np.copyto(y, padded[:, rows, cols], where=indices == k)
    return to_nchw(y)


def _divisor(g: PoolGeometry, dtype: Any) -> Any:
    """How many values each window's sum is divided by: a number, or (1, OH, OW, 1)."""
    if g.count_include_pad or g.padding == (0, 0):
        return np.asarray(g.kernel[0] * g.kernel[1], dtype)
    counts = []
    for axis, size in enumerate((g.H, g.W)):
        starts = np.arange(g.out[axis]) * g.stride[axis] - g.padding[axis]
        ends = np.minimum(starts + g.kernel[axis], size)
        counts.append(ends - np.maximum(starts, 0))
    return (counts[0][:, None] * counts[1][None, :]).astype(dtype)[None, :, :, None]


@register("avg_pool2d", name="numpy")
def avg_pool2d(x: Any, g: PoolGeometry) -> Any:
    """The mean of each window."""
    padded = _padded(x, g, 0.0)
    y = np.zeros((g.N, *g.out, g.C), x.dtype)
    for _, rows, cols in _positions(g):
        y += padded[:, rows, cols]
    y /= _divisor(g, x.dtype)
    return to_nchw(y)


@register("avg_pool2d_grad", name="numpy")
def avg_pool2d_grad(gy: Any, g: PoolGeometry) -> Any:
    """Each output's gradient in equal shares to the inputs of its window."""
    share = to_nhwc(gy) / _divisor(g, gy.dtype)
    padded = _empty_padded(g, gy.dtype)
    for _, rows, cols in _positions(g):
        padded[:, rows, cols] += share
    return _unpadded(padded, g)


@register("adaptive_avg_pool2d", name="numpy")
def adaptive_avg_pool2d(x: Any, out: Pair) -> Any:
    """Means over windows that cover the image in `out`: over their rows, then their columns."""
    N, C, H, W = x.shape
    x = to_nhwc(x)
    if out == (1, 1):
        return to_nchw(x.reshape(N, H * W, C).mean(axis=1).reshape(N, 1, 1, C))
    y = np.stack([x[:, a:b].mean(axis=1) for a, b in adaptive_windows(H, out[0])], axis=1)
    return to_nchw(
        np.stack([y[:, :, a:b].mean(axis=2) for a, b in adaptive_windows(W, out[1])], axis=2)
    )


@register("adaptive_avg_pool2d_grad", name="numpy")
def adaptive_avg_pool2d_grad(gy: Any, size: Pair) -> Any:
    """The adjoint: each output's gradient in equal shares to the pixels of its window."""
    (H, W), (N, C, OH, OW) = size, gy.shape
    gy = to_nhwc(gy)
    if (OH, OW) == (1, 1):
        gx = memory.empty((N, H, W, C), gy.dtype)
        gx[...] = gy / gy.dtype.type(H * W)
        return to_nchw(gx)
    gx = np.zeros((N, H, W, C), gy.dtype)
    columns = adaptive_windows(W, OW)
    for i, (top, bottom) in enumerate(adaptive_windows(H, OH)):
        for j, (left, right) in enumerate(columns):
            share = gy[:, i, j] / gy.dtype.type((bottom - top) * (right - left))
            gx[:, top:bottom, left:right] += share[:, None, None]
    return to_nchw(gx)
