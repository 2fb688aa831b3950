"""Convolution of images with few channels (a network's first layer), without columns.

With C = 3 a window row is only 9 or 21 numbers, and copying it into columns costs as much as using
it. But in a padded band of input rows, window rows of neighbouring pixels lie `stride * C` apart,
which is all that a register tile needs to know: the product reads its rows where they are. Its sum
runs over the kernel rows u, or over the output rows i of the band, without leaving the registers.

    forward          y[i, :]  = sum_u band[i*sh + u, j*sw ...] @ W[u]
    weight gradient  dW[u]   += sum_i band[i*sh + u, j*sw ...]^T @ gy[i]    private to a worker
"""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np

from minires.kernels import memory
from minires.kernels.cpu.copying import copy_band
from minires.kernels.cpu.finishing import (
    check_before,
    finish_of,
    finish_rows,
    merged_moments,
)
from minires.kernels.cpu.product import panel_width, product_address, product_to_memory
from minires.kernels.cpu.simd import lanes
from minires.kernels.cpu.team import parallel
from minires.kernels.cpu.tile import FRESH, ONWARD
from minires.kernels.cpu.weights import packed, unpacked_sum
from minires.kernels.fusing import After, Before
from minires.kernels.geometry import ConvGeometry
from minires.kernels.layout import to_nchw, to_nhwc
from minires.kernels.threads import num_threads

BAND = 1 << 16  # bytes of input that are copied at a time: they stay in the second-level cache


@parallel
def _forward(
    worker, address, x, weight, y, finish, N, O, sizes, panel, wide, rows, workers, work, L
):  # fmt: skip
    H, W, C, KH, KW, sh, sw, ph, pw, OH, OW = sizes
    row, run = (W + 2 * pw) * C, KW * C
    blocks = (OH + rows - 1) // rows
    band, kept, sums = work[worker], finish.kept[worker], finish.sums[worker]
    begin = worker * N * blocks // workers
    for item in range(begin, (worker + 1) * N * blocks // workers):
        n, first = item // blocks, item % blocks * rows
        count = min(rows, OH - first)
        top, height = first * sh - ph, (count - 1) * sh + KH
        copy_band(x, n, top, height, H, W * C, pw * C, pw * C, band, L)
        following = (n * H + min(top + height, H)) * W * C
        for i in range(count):
            to = (n * OH + first + i) * OW * O
            product_to_memory(
                address, band, i * sh * row, sw * C, 1, OW, weight, 0, panel,
                KH * run * panel, panel, wide, O, y, to, O, run,
                FRESH, KH, row, run * panel, x, following + i * sh * W * C, sh * W * C,
            )  # fmt: skip
        finish_rows(  # once per band: the call costs as much as a row of few channels
            y, (n * OH + first) * OW * O, count * OW, O, finish.shift, finish.shortcut,
            finish.rectify, kept, sums, item == begin, L,
        )  # fmt: skip


@parallel
def _grad_weight(worker, address, x, gy, sums, N, O, sizes, panel, wide, rows, workers, work, L):
    H, W, C, KH, KW, sh, sw, ph, pw, OH, OW = sizes
    row, run = (W + 2 * pw) * C, KW * C
    blocks = (OH + rows - 1) // rows
    band, mine = work[worker], sums[worker]
    mine[:] = 0
    for item in range(worker * N * blocks // workers, (worker + 1) * N * blocks // workers):
        n, first = item // blocks, item % blocks * rows
        count = min(rows, OH - first)
        top, height = first * sh - ph, (count - 1) * sh + KH
        copy_band(x, n, top, height, H, W * C, pw * C, pw * C, band, L)
        at, size = (n * OH + first) * OW * O, count * OW * O
        for u in range(KH):
            product_to_memory(
                address, band, u * row, 1, sw * C, run, gy, at, O, panel, panel, wide, O,
                mine, u * run * O, O, OW, ONWARD, count, sh * row, OW * O,
                gy, at + size + u * size // KH, size // KH,
            )  # fmt: skip


def _sizes(g: ConvGeometry) -> tuple[int, ...]:
    return (g.H, g.W, g.C, *g.kernel, *g.stride, *g.padding, *g.out)


def _bands(g: ConvGeometry, dtype: Any, workers: int) -> tuple[int, Any]:
    """How many rows of output a band is for, and a band for each worker."""
    row = (g.W + 2 * g.padding[1]) * g.C
    fit = BAND // (row * np.dtype(dtype).itemsize) - g.kernel[0]
    most = min(max(fit // g.stride[0] + 1, 1), g.out[0])
    rows = -(-g.out[0] // -(-g.out[0] // most))  # balanced: 16 as 8 + 8, not as 14 + 2
    return rows, memory.empty((workers, ((rows - 1) * g.stride[0] + g.kernel[0]) * row), dtype)


def conv2d(x: Any, weight: Any, g: ConvGeometry) -> Any:
    """Products read straight from a padded band of the input."""
    return conv2d_fused(x, weight, g, None, None, moments=False)


def conv2d_fused(
    x: Any, weight: Any, g: ConvGeometry, before: Before | None, after: After | None, moments: bool
) -> Any:
    """The same and what `after` makes of it (`fusing.py`), or (y, mean, var), in float64.

    Raises ValueError for a `before`, for `after` together with `moments`, and for the moments of
    nothing.
    """
    check_before(before, possible=False)
    x, L, workers = to_nhwc(x), lanes(x.dtype), num_threads()
    panel = panel_width(g.O, L)
    finish = finish_of(after, moments, g.O, workers, x.dtype)
    y = memory.empty((g.N, *g.out, g.O), x.dtype)
    rows, bands = _bands(g, x.dtype, workers)
    _forward(
        product_address(x.dtype), x.reshape(-1), packed(weight, panel), y.reshape(-1), finish,
        g.N, g.O, _sizes(g), panel, panel > L, rows, workers, bands, L,
    )  # fmt: skip
    if not moments:
        return to_nchw(y)
    blocks = -(-g.out[0] // rows)
    items = [divmod(worker * g.N * blocks // workers, blocks) for worker in range(workers + 1)]
    ends = [n * g.out[0] + min(block * rows, g.out[0]) for n, block in items]
    counts = [(b - a) * g.out[1] for a, b in pairwise(ends)]
    return to_nchw(y), *merged_moments(finish, counts)


def conv2d_grad_weight(x: Any, gy: Any, g: ConvGeometry) -> Any:
    """Products of a padded band of the input with the upstream gradient."""
    x, gy, L = to_nhwc(x), to_nhwc(gy), lanes(x.dtype)
    panel, workers = panel_width(g.O, L), num_threads()
    KH, KW = g.kernel
    sums = memory.empty((workers, KH * KW * g.C * g.O), x.dtype)
    rows, bands = _bands(g, x.dtype, workers)
    _grad_weight(
        product_address(x.dtype), x.reshape(-1), gy.reshape(-1), sums, g.N, g.O, _sizes(g),
        panel, panel > L, rows, workers, bands, L,
    )  # fmt: skip
    return unpacked_sum(sums, g.weight_shape)
