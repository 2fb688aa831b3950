"""Convolution of any geometry: im2col a few pixels at a time, in cache.

The matrix of columns (see kernels/reference/conv.py for the mathematics) is KH*KW times the size
of the input: written to memory and read back, it costs more than the product it serves. Here a
worker makes the columns of `PIXELS` output pixels, multiplies them while they are in its cache, and
makes the next ones in the same place:

    forward          columns = im2col(x);      y   = columns @ W       rows of y
    input gradient   columns = gy @ W^T;       gx += col2im(columns)   whole images per worker

Strided layers with small weights have an input gradient without columns (`phases.py`).

A 1x1 convolution of stride 1 needs no columns: x and gy are the matrices already, and x may be
normalised block by block. Rows of y that have just been computed may be shifted, rectified or
summed, those of gx masked and summed (`finishing.py`). The weight gradient has its own file,
`outer.py`.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
from numba import njit

from minires.kernels import memory
from minires.kernels.cpu import phases
from minires.kernels.cpu.copying import add_run, clear_run, copy_run, copy_windows
from minires.kernels.cpu.elementwise import add
from minires.kernels.cpu.finishing import (
    Finish,
    added_sums,
    check_before,
    finish_of,
    finish_rows,
    flat_before,
    mask_rows,
    masking,
    merged_moments,
    normalise_rows,
    nothing,
    part_of,
)
from minires.kernels.cpu.product import panel_width, product_address, product_to_memory
from minires.kernels.cpu.simd import lanes
from minires.kernels.cpu.team import parallel
from minires.kernels.cpu.tile import FRESH, ONTO
from minires.kernels.cpu.weights import packed, packed_transposed
from minires.kernels.fusing import After, Before, Rectified
from minires.kernels.geometry import ConvGeometry
from minires.kernels.layout import to_nchw, to_nhwc
from minires.kernels.threads import num_threads

PIXELS = 48  # output pixels whose columns are made at a time: eight register tiles of six rows


@njit(cache=True)
def _col2im(columns, row, image, first, count, sizes, gx, L):
    """The adjoint: adds columns of output pixels first, ... into one image of gx."""
    H, W, C, KH, KW, sh, sw, ph, pw, dh, dw, _, OW = sizes
    for t in range(count):
        top, left = (first + t) // OW * sh - ph, (first + t) % OW * sw - pw
        for u in range(KH):
            h, at = top + u * dh, t * row + u * KW * C
            to = ((image * H + h) * W + left) * C
            if not 0 <= h < H:
                continue
            if dw == 1 and left >= 0 and left + KW <= W:
                add_run(columns, at, gx, to, KW * C, L)
                continue
            for v in range(KW):
                if 0 <= left + v * dw < W:
                    add_run(columns, at + v * C, gx, to + v * dw * C, C, L)


@njit(cache=True)
def _forward_pixels(
    address, x, before, weight, y, part, begin, end, O, sizes, panel, wide, plain, mode, columns, L
):  # fmt: skip
    """y[pixel, o] for output pixels begin, ..., end - 1 of the batch."""
    C, KH, KW = sizes[2], sizes[3], sizes[4]
    K = KH * KW * C
    for first in range(begin, end, PIXELS):
        count = min(PIXELS, end - first)
        rows, at, ask = columns, 0, 0
        if plain:
            ask = min(PIXELS, end - first - count) * C
            if before.size:
                normalise_rows(x, first * C, count, C, before, columns, 0, L)
            else:
                rows, at = x, first * C
        else:
            copy_windows(x, first, count, 0, K, sizes, columns, 0, K, L)
        product_to_memory(
            address, rows, at, K, 1, count, weight, 0, panel, K * panel, panel, wide, O,
            y, first * O, O, K, mode, 1, 0, 0, x, (first + count) * C, ask,
        )  # fmt: skip
        if part.x.size:
            mask_rows(y, first * O, count, O, part, L)
        else:
            finish_rows(
                y, first * O, count, O, part.shift, part.shortcut, part.rectify, part.kept,
                part.sums, first == begin, L,
            )  # fmt: skip


@parallel
def _forward(
    worker, address, x, before, weight, y, finish, pixels, O, sizes, panel, wide, plain, mode,
    workers, work, L,
):  # fmt: skip
    begin, end = worker * pixels // workers, (worker + 1) * pixels // workers
    _forward_pixels(
        address, x, before, weight, y, part_of(finish, worker), begin, end, O, sizes, panel,
        wide, plain, mode, work[worker], L,
    )  # fmt: skip


@njit(cache=True)
def _spread(columns, row, image, first, count, sizes, gx, fresh, L):
    """`_col2im` for windows of one pixel: they do not meet, so each is written once.

    fresh: put in its place, with zeros between; otherwise added to what is there.
    """
    H, W, C, _, _, sh, sw, _, _, _, _, OH, OW = sizes
    for t in range(count):
        i, j = (first + t) // OW, (first + t) % OW
        to = ((image * H + i * sh) * W + j * sw) * C
        if not fresh:
            add_run(columns, t * row, gx, to, C, L)
            continue
        copy_run(columns, t * row, gx, to, C, L)
        last = j == OW - 1
        clear_run(gx, to + C, ((W - j * sw if last else sw) - 1) * C, L)
        if last:
            below = H - i * sh if i == OH - 1 else sh
            clear_run(gx, (image * H + i * sh + 1) * W * C, (below - 1) * W * C, L)


@njit(cache=True)
def _grad_input_images(
    address, gy, weight, gx, fresh, single, begin, end, P, O, sizes, row, panel, wide,
    columns, L,
):  # fmt: skip
    """gx of images begin, ..., end - 1; `row` is KH*KW*C rounded up to whole panels.

    single: windows are single pixels, without padding, and do not meet; then what is in gx is
    added to unless `fresh`.
    """
    H, W, C = sizes[:3]
    blocks = (P + PIXELS - 1) // PIXELS
    for n in range(begin, end):
        if not single:
            clear_run(gx, n * H * W * C, H * W * C, L)
        for block in range(blocks):
            first = block * P // blocks
            count = (block + 1) * P // blocks - first
            at = (n * P + first) * O
            product_to_memory(
                address, gy, at, O, 1, count, weight, 0, panel, O * panel, panel, wide, row,
                columns, 0, row, O, FRESH, 1, 0, 0, gy, at + count * O, count * O,
            )  # fmt: skip
            if single:
                _spread(columns, row, n, first, count, sizes, gx, fresh, L)
            else:
                _col2im(columns, row, n, first, count, sizes, gx, L)


@parallel
def _grad_input(
    worker, address, gy, weight, gx, fresh, single, N, P, O, sizes, row, panel, wide, workers,
    work, L,
):  # fmt: skip
    begin, end = worker * N // workers, (worker + 1) * N // workers
    _grad_input_images(
        address, gy, weight, gx, fresh, single, begin, end, P, O, sizes, row, panel, wide,
        work[worker], L,
    )  # fmt: skip


def _plain(g: ConvGeometry) -> bool:
    return g.pointwise and g.stride == (1, 1)


def conv2d(x: Any, weight: Any, g: ConvGeometry) -> Any:
    """Columns of a few pixels at a time, multiplied in cache."""
    return conv2d_fused(x, weight, g, None, None, moments=False)


def conv2d_fused(
    x: Any, weight: Any, g: ConvGeometry, before: Before | None, after: After | None, moments: bool
) -> Any:
    """The same of what `before` makes of x, and what `after` makes of that (`fusing.py`).

    Returns y, or with `moments` (y, mean, var), mean and biased variance in float64.

    Raises ValueError for a `before` of a layer that is not 1x1 of stride 1, for `after` together
    with `moments`, and for the moments of nothing.
    """
    check_before(before, _plain(g) and g.C % lanes(x.dtype) == 0)
    workers, pixels = num_threads(), g.N * g.out[0] * g.out[1]
    finish = finish_of(after, moments, g.O, workers, x.dtype)
    x, L, K = to_nhwc(x), lanes(x.dtype), g.kernel[0] * g.kernel[1] * g.C
    panel = panel_width(g.O, L)
    y = memory.empty((g.N, *g.out, g.O), x.dtype)
    copied = before is not None or not _plain(g)
    room = (workers, PIXELS * K if copied else 0)
    work = memory.empty(room, x.dtype) if copied else np.empty(room, x.dtype)
    _forward(
        product_address(x.dtype), x.reshape(-1), flat_before(before, x.dtype),
        packed(weight, panel), y.reshape(-1), finish, pixels, g.O, g.window_sizes,
        panel, panel > L, _plain(g), FRESH, workers, work, L,
    )  # fmt: skip
    if not moments:
        return to_nchw(y)
    ends = [worker * pixels // workers for worker in range(workers + 1)]
    return to_nchw(y), *merged_moments(finish, [b - a for a, b in pairwise(ends)])


def _transposed(
    gy: Any, weight: Any, g: ConvGeometry, gx: Any, mode: int, finish: Finish | None = None
) -> Any:
    """The input gradient of a 1x1 layer: the forward pass of the transposed weight."""
    gy, L = to_nhwc(gy), lanes(gy.dtype)
    panel, workers = panel_width(g.C, L), num_threads()
    _forward(
        product_address(gy.dtype), gy.reshape(-1), flat_before(None, gy.dtype),
        packed_transposed(weight, panel), gx.reshape(-1),
        nothing(workers, gy.dtype) if finish is None else finish, g.N * g.H * g.W, g.C,
        (1, 1, g.O, *g.window_sizes[3:]), panel, panel > L, True, mode,
        workers, np.empty((workers, 0), gy.dtype), L,
    )  # fmt: skip
    return to_nchw(gx)


def conv2d_grad_input(gy: Any, weight: Any, g: ConvGeometry) -> Any:
    """Gradient columns of a few pixels at a time, added back where they came from."""
    gx = memory.empty((g.N, g.H, g.W, g.C), gy.dtype)
    return _input_gradient(gy, weight, g, gx, FRESH)


def add_conv2d_grad_input(total: Any, gy: Any, weight: Any, g: ConvGeometry) -> Any:
    """The same, added to `total`; in its memory where no columns are added up."""
    if g.pointwise or phases.fits(g, lanes(gy.dtype)):
        return _input_gradient(gy, weight, g, to_nhwc(total), ONTO)
    return add(total, conv2d_grad_input(gy, weight, g))


def _input_gradient(gy: Any, weight: Any, g: ConvGeometry, gx: Any, mode: int) -> Any:
    """gx, (N, H, W, C) in memory, is written or added to; mode: FRESH, or ONTO where windows do not
    meet: the bits are those of a sum."""
    if _plain(g):
        return _transposed(gy, weight, g, gx, mode)
    if phases.fits(g, lanes(gy.dtype)):
        return phases.grad_input(gy, weight, g, gx, mode)
    gy, L = to_nhwc(gy), lanes(gy.dtype)
    P, K = g.out[0] * g.out[1], g.kernel[0] * g.kernel[1] * g.C
    panel, workers = panel_width(K, L), num_threads()
    weight = packed_transposed(weight, panel)
    row = -(-K // panel) * panel
    work = memory.empty((workers, PIXELS * row), gy.dtype)
    _grad_input(
        product_address(gy.dtype), gy.reshape(-1), weight, gx.reshape(-1), mode == FRESH,
        g.pointwise, g.N, P, g.O, g.window_sizes, row, panel, panel > L, workers,
        work, L,
    )  # fmt: skip
    return to_nchw(gx)


def conv2d_grad_input_fused(
    gy: Any, weight: Any, g: ConvGeometry, rectified: Rectified, total: Any = None
) -> tuple[Any, Any]:
    """The same, added to `total` if given, masked and summed as `kernels/fusing.py` describes.

    Raises ValueError for a layer that is not 1x1 of stride 1.
    """
    if not _plain(g):
        raise ValueError(
            "conv2d_grad_input: `rectified` needs a 1x1 kernel of stride 1 without padding; mask "
            "and sum gx in a pass of its own"
        )
    fresh = total is None
    gx = memory.empty((g.N, g.H, g.W, g.C), gy.dtype) if fresh else to_nhwc(total)
    finish = masking(rectified, num_threads())
    gx = _transposed(gy, weight, g, gx, FRESH if fresh else ONTO, finish)
    return gx, added_sums(finish)
