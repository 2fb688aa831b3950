"""Max pooling in one read: windows are walked per output pixel, all channels at a time."""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit, prange

from minires.kernels import memory
from minires.kernels.geometry import PoolGeometry
from minires.kernels.layout import to_nchw, to_nhwc
from minires.kernels.threads import num_threads


@njit(cache=True)
def _first(start, step):
    """The first k with start + k * step >= 0."""
    return (-start + step - 1) // step if start < 0 else 0


@njit(cache=True, parallel=True)
def _max_pool(x, sizes, y, indices, workers):
    N, C, H, W, KH, KW, sh, sw, ph, pw, dh, dw, OH, OW = sizes
    for worker in prange(workers):
        for line in range(worker * N * OH // workers, (worker + 1) * N * OH // workers):
            n, i = line // OH, line % OH
            top = i * sh - ph
            for j in range(OW):
                left, to = j * sw - pw, (line * OW + j) * C
                best, place = y[to : to + C], indices[to : to + C]
                u0, v0 = _first(top, dh), _first(left, dw)
                best[:] = -np.inf
                place[:] = u0 * KW + v0
                for u in range(u0, KH):
                    if top + u * dh >= H:
                        break
                    for v in range(v0, KW):
                        if left + v * dw >= W:
                            break
                        at = ((n * H + top + u * dh) * W + left + v * dw) * C
                        row, k = x[at : at + C], np.int32(u * KW + v)
                        for c in range(C):
                            # The first of equal values; a NaN beats any number.
                            larger = row[c] > best[c] or (row[c] != row[c] and best[c] == best[c])
                            best[c] = row[c] if larger else best[c]
                            place[c] = k if larger else place[c]


@njit(cache=True, parallel=True)
def _max_pool_grad(gy, indices, sizes, gx, workers):
    N, C, H, W, _, KW, sh, sw, ph, pw, dh, dw, OH, OW = sizes
    for worker in prange(workers):
        for n in range(worker * N // workers, (worker + 1) * N // workers):
            gx[n * H * W * C : (n + 1) * H * W * C] = 0
            for i in range(OH):
                for j in range(OW):
                    at = ((n * OH + i) * OW + j) * C
                    for c in range(C):
                        u, v = indices[at + c] // KW, indices[at + c] % KW
                        h, w = i * sh - ph + u * dh, j * sw - pw + v * dw
                        gx[((n * H + h) * W + w) * C + c] += gy[at + c]


def _sizes(g: PoolGeometry) -> tuple[int, ...]:
    return (*g.x_shape, *g.kernel, *g.stride, *g.padding, *g.dilation, *g.out)


def max_pool2d(x: Any, g: PoolGeometry) -> tuple[Any, Any]:
    """The largest value of each window and its place in it (u * KW + v)."""
    x = to_nhwc(x)
    y = memory.empty((g.N, *g.out, g.C), x.dtype)
    indices = memory.empty(y.shape, np.int32)
    _max_pool(x.reshape(-1), _sizes(g), y.reshape(-1), indices.reshape(-1), num_threads())
    return to_nchw(y), to_nchw(indices)


def max_pool2d_grad(gy: Any, indices: Any, g: PoolGeometry) -> Any:
    """Each output's gradient to the input that was the maximum."""
    gy, indices = to_nhwc(gy), to_nhwc(indices)
    gx = memory.empty((g.N, g.H, g.W, g.C), gy.dtype)
    _max_pool_grad(gy.reshape(-1), indices.reshape(-1), _sizes(g), gx.reshape(-1), num_threads())
    return to_nchw(gx)
