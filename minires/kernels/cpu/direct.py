"""Convolution of images with few channels (a network's first layer), without columns.

With C = 3 a window row is only 9 or 21 numbers, and copying it into columns costs as much as using
it. But in a padded band of input rows, window rows of neighbouring pixels lie `stride * C` apart,
which is all that a register tile needs to know: the product reads its rows where they are, one
kernel row u at a time.

    forward          y[i, :]  += band[i*sh + u, j*sw ...] @ W[u]        for each kernel row u
    weight gradient  dW[u]    += band[i*sh + u, j*sw ...]^T @ gy[i]     a private sum per worker
"""

from __future__ import annotations

from typing import Any

from numba import njit, prange

from minires.kernels import memory
from minires.kernels.cpu.product import panel_width, product, product_address, product_to_memory
from minires.kernels.cpu.simd import lanes
from minires.kernels.cpu.tile import FRESH, ONWARD
from minires.kernels.cpu.weights import packed, unpacked_sum
from minires.kernels.geometry import ConvGeometry
from minires.kernels.layout import to_nchw, to_nhwc
from minires.kernels.threads import num_threads

OUTPUT_ROWS = 8  # rows of output whose input band is copied at a time


@njit(cache=True)
def _copy_band(x, image, top, rows, sizes, band):
    """Input rows top, ... of one image with their zero border: band[r*(W + 2*pw)*C + ...]."""
    H, W, C, _, _, _, _, _, pw, _, _ = sizes
    wide = (W + 2 * pw) * C
    for r in range(rows):
        h, to = top + r, r * wide
        if 0 <= h < H:
            at = (image * H + h) * W * C
            band[to : to + pw * C] = 0
            band[to + pw * C : to + (pw + W) * C] = x[at : at + W * C]
            band[to + (pw + W) * C : to + wide] = 0
        else:
            band[to : to + wide] = 0


@njit(cache=True, parallel=True)
def _forward(address, x, weight, y, N, O, sizes, panel, wide, workers, work):
    _, W, C, KH, KW, sh, sw, ph, pw, OH, OW = sizes
    row, run = (W + 2 * pw) * C, KW * C
    blocks = (OH + OUTPUT_ROWS - 1) // OUTPUT_ROWS
    for worker in prange(workers):
        band = work[worker]
        for item in range(worker * N * blocks // workers, (worker + 1) * N * blocks // workers):
            n, first = item // blocks, item % blocks * OUTPUT_ROWS
            count = min(OUTPUT_ROWS, OH - first)
            _copy_band(x, n, first * sh - ph, (count - 1) * sh + KH, sizes, band)
            for i in range(count):
                product_to_memory(
                    address, band, i * sh * row, sw * C, 1, OW, weight, 0, panel,
                    KH * run * panel, panel, wide, O, y, (n * OH + first + i) * OW * O, O, run,
                    FRESH, KH, row, run * panel, band, 0, 0,
                )  # fmt: skip


@njit(cache=True, parallel=True)
def _grad_weight(address, x, gy, sums, N, O, sizes, panel, wide, workers, work):
    _, W, C, KH, KW, sh, sw, ph, pw, OH, OW = sizes
    row, run = (W + 2 * pw) * C, KW * C
    blocks = (OH + OUTPUT_ROWS - 1) // OUTPUT_ROWS
    for worker in prange(workers):
        band, mine = work[worker], sums[worker]
        mine[:] = 0
        for item in range(worker * N * blocks // workers, (worker + 1) * N * blocks // workers):
            n, first = item // blocks, item % blocks * OUTPUT_ROWS
            count = min(OUTPUT_ROWS, OH - first)
            _copy_band(x, n, first * sh - ph, (count - 1) * sh + KH, sizes, band)
            for i in range(count):
                at = (n * OH + first + i) * OW * O
                for u in range(KH):
                    product(
                        address, band, (i * sh + u) * row, 1, sw * C, run,
                        gy, at, O, panel, panel, wide, O,
                        mine, u * run * O, O, OW, ONWARD,
                    )  # fmt: skip


def _sizes(g: ConvGeometry) -> tuple[int, ...]:
    return (g.H, g.W, g.C, *g.kernel, *g.stride, *g.padding, *g.out)


def _bands(g: ConvGeometry, dtype: Any, workers: int) -> Any:
    rows = (OUTPUT_ROWS - 1) * g.stride[0] + g.kernel[0]
    return memory.empty((workers, rows * (g.W + 2 * g.padding[1]) * g.C), dtype)


def conv2d(x: Any, weight: Any, g: ConvGeometry) -> Any:
    """Products read straight from a padded band of the input."""
    x, L = to_nhwc(x), lanes(x.dtype)
    panel, workers = panel_width(g.O, L), num_threads()
    y = memory.empty((g.N, *g.out, g.O), x.dtype)
    _forward(
        product_address(x.dtype), x.reshape(-1), packed(weight, panel), y.reshape(-1), g.N, g.O,
        _sizes(g), panel, panel > L, workers, _bands(g, x.dtype, workers),
    )  # fmt: skip
    return to_nchw(y)


def conv2d_grad_weight(x: Any, gy: Any, g: ConvGeometry) -> Any:
    """Products of a padded band of the input with the upstream gradient."""
    x, gy, L = to_nhwc(x), to_nhwc(gy), lanes(x.dtype)
    panel, workers = panel_width(g.O, L), num_threads()
    KH, KW = g.kernel
    sums = memory.empty((workers, KH * KW * g.C * g.O), x.dtype)
    _grad_weight(
        product_address(x.dtype), x.reshape(-1), gy.reshape(-1), sums, g.N, g.O, _sizes(g),
        panel, panel > L, workers, _bands(g, x.dtype, workers),
    )  # fmt: skip
    return unpacked_sum(sums, g.weight_shape)
