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

from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
from numba import njit

from minires.kernels import memory
from minires.kernels.cpu import phases
from minires.kernels.cpu.channels import merge
from minires.kernels.cpu.copying import add_run, clear_run, copy_run, copy_windows
from minires.kernels.cpu.elementwise import add
from minires.kernels.cpu.finishing import (
    Finish,
    add_parts,
    check_after,
    check_before,
    check_pixels,
    clear_sums,
    finish_rows,
    mask_rows,
    normalise_rows,
    part_of,
)
from minires.kernels.cpu.product import panel_width, product_address, product_to_memory
from minires.kernels.cpu.simd import lanes
from minires.kernels.cpu.team import parallel
from minires.kernels.cpu.tile import FRESH, ONTO
from minires.kernels.cpu.weights import SMALL, pack, pack_transposed, packed_transposed
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
    worker, address, x, before, weight, y, finish, pixels, O, sizes, panel, plain, mode, workers,
    rooms, room, L,
):  # fmt: skip
    begin, end = worker * pixels // workers, (worker + 1) * pixels // workers
    part = part_of(finish, worker)
    clear_sums(part.sums)
    _forward_pixels(
        address, x, before, weight, y, part, begin, end, O, sizes, panel, panel > L, plain, mode,
        rooms[worker * room : (worker + 1) * room], L,
    )  # fmt: skip


@njit(cache=True)
def _convolve(
    plan, x, mean, scale, shift, weight, transposed, y, mode, added, shortcut, rectify, source,
    output, sums, work,
):  # fmt: skip
    """All of a pass in one call: from Python each costs as much as a small layer, see `Plan`.

    mean, scale, shift: of `Before`, or of `Rectified` if transposed, as are source, its x, and
    output; added, shortcut, rectify: of `After`. sums: (workers + 1, 2, O), of which the last
    become mean and variance of y, or the first the gradient's sums; of no elements if nobody wants
    them.
    """
    address, sizes, pixels, O, taps, panel, plain, workers, room, L = plan
    C, threads = sizes[2], 1
    if weight.size >= SMALL:  # waking a thread takes longer than packing less
        threads = workers
    if transposed:
        pack_transposed(weight, C, O, taps, panel, work, threads, L)
    else:
        pack(weight, O, C, taps, panel, work, threads, L)
    rooms = work[(O + panel - 1) // panel * panel * taps * C :]
    size = len(mean)
    norm = rooms[workers * room : workers * room + 3 * size]
    for i in range(size):
        norm[i], norm[size + i], norm[2 * size + i] = mean[i], scale[i], shift[i]
    masks, none = transposed and sums.size > 0, work[:0]
    kept = np.empty((workers, O + 2 * L if sums.size > 0 and not masks else 0), work.dtype)
    finish = Finish(added, shortcut, rectify, kept, sums, source, output, norm if masks else none)
    _forward(
        address, x, none if masks else norm, work, y, finish, pixels, O, sizes, panel, plain,
        mode, workers, rooms, room, L,
    )  # fmt: skip
    if sums.size == 0:
        return
    if masks:
        add_parts(sums[:workers])
        return
    counts = np.empty(workers, np.int64)
    for part in range(workers):
        counts[part] = (part + 1) * pixels // workers - part * pixels // workers
    clear_sums(sums[workers])
    merge(kept, sums, counts, sums[workers, 0], sums[workers, 1])


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


class Plan(NamedTuple):
    """What sizes alone decide. In a training step a call's Python is in no cache any more, and what
    it looks at comes from memory: worked out at each call, this costs as much as a small layer.

    shape: of y in memory. room: numbers of work space: the packed weight, then a room for each
    worker, then three numbers for each channel. none, unsummed: for what is not asked for. fixed:
    what `_convolve` unpacks.
    """

    shape: tuple[int, int, int, int]
    room: int
    pixels: int
    lanes: int
    workers: int
    none: Any
    unsummed: Any
    fixed: tuple[Any, ...]


@lru_cache(maxsize=1024)
def _plan(g: ConvGeometry, transposed: bool, dtype: Any, workers: int) -> Plan:
    """transposed: of a 1x1 layer's input gradient, the forward pass of the transposed weight."""
    C, O, L = g.C, g.O, lanes(dtype)
    shape, sizes, pixels = (g.N, *g.out, O), g.window_sizes, g.N * g.out[0] * g.out[1]
    if transposed:
        C, O, shape, sizes = O, C, (g.N, g.H, g.W, C), (1, 1, O, *sizes[3:])
    taps, panel = g.kernel[0] * g.kernel[1], panel_width(O, L)
    room = PIXELS * taps * C
    packed = -(-O // panel) * panel * taps * C
    fixed = (product_address(dtype), sizes, pixels, O, taps, panel, _plain(g), workers, room, L)
    none, unsummed = np.empty(0, dtype), np.empty((workers + 1, 2, 0))
    # Never less than the pool lends: y comes from there, whose code is then in the caches.
    room = max(packed + workers * room + 3 * max(C, O), memory.SMALLEST // np.dtype(dtype).itemsize)
    return Plan(shape, room, pixels, L, workers, none, unsummed, fixed)


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
    plan = _plan(g, False, x.dtype, num_threads())
    none, sums = plan.none, plan.unsummed
    shift, shortcut, rectify, norm = none, none, False, (none, none, none)
    if before is not None:
        check_before(before, _plain(g) and g.C % plan.lanes == 0)
        norm = before
    if after is not None:
        check_after(after, moments)
        shift, rectify = after.shift, after.rectify
        if after.shortcut is not None:
            shortcut = to_nhwc(after.shortcut).reshape(-1)
    if moments:
        check_pixels(plan.pixels)
        sums = np.empty((plan.workers + 1, 2, g.O))
    y = memory.empty(plan.shape, x.dtype)
    _convolve(
        plan.fixed, to_nhwc(x).reshape(-1), *norm, np.ascontiguousarray(weight).reshape(-1), False,
        y.reshape(-1), FRESH, shift, shortcut, rectify, none, none, sums,
        memory.empty(plan.room, x.dtype),
    )  # fmt: skip
    return (to_nchw(y), *sums[-1]) if moments else to_nchw(y)


def _transposed(
    gy: Any, weight: Any, g: ConvGeometry, total: Any, rectified: Rectified | None
) -> tuple[Any, Any]:
    """The input gradient of a 1x1 layer and its sums; added to `total` if that is given."""
    plan = _plan(g, True, gy.dtype, num_threads())
    none, sums = plan.none, plan.unsummed
    x, output, norm = none, none, (none, none, none)
    if rectified is not None:
        x, norm = to_nhwc(rectified.x).reshape(-1), rectified[1:4]
        sums = np.empty((plan.workers + 1, 2, g.C))
        if rectified.y is not None:
            output = to_nhwc(rectified.y).reshape(-1)
    gx = memory.empty(plan.shape, gy.dtype) if total is None else to_nhwc(total)
    _convolve(
        plan.fixed, to_nhwc(gy).reshape(-1), *norm, np.ascontiguousarray(weight).reshape(-1), True,
        gx.reshape(-1), FRESH if total is None else ONTO, none, none, False, x, output, sums,
        memory.empty(plan.room, gy.dtype),
    )  # fmt: skip
    return to_nchw(gx), sums[0]


def conv2d_grad_input(gy: Any, weight: Any, g: ConvGeometry) -> Any:
    """Gradient columns of a few pixels at a time, added back where they came from."""
    return _input_gradient(gy, weight, g, None)


def add_conv2d_grad_input(total: Any, gy: Any, weight: Any, g: ConvGeometry) -> Any:
    """The same, added to `total`; in its memory where no columns are added up."""
    if g.pointwise or phases.fits(g, lanes(gy.dtype)):
        return _input_gradient(gy, weight, g, total)
    return add(total, conv2d_grad_input(gy, weight, g))


def _input_gradient(gy: Any, weight: Any, g: ConvGeometry, total: Any) -> Any:
    """A new array, or `total` where windows do not meet: the bits are those of a sum."""
    if _plain(g):
        return _transposed(gy, weight, g, total, None)[0]
    gx = memory.empty((g.N, g.H, g.W, g.C), gy.dtype) if total is None else to_nhwc(total)
    if phases.fits(g, lanes(gy.dtype)):
        return phases.grad_input(gy, weight, g, gx, FRESH if total is None else ONTO)
    gy, L = to_nhwc(gy), lanes(gy.dtype)
    P, K = g.out[0] * g.out[1], g.kernel[0] * g.kernel[1] * g.C
    panel, workers = panel_width(K, L), num_threads()
    weight = packed_transposed(weight, panel)
    row = -(-K // panel) * panel
    work = memory.empty((workers, PIXELS * row), gy.dtype)
    _grad_input(
        product_address(gy.dtype), gy.reshape(-1), weight, gx.reshape(-1), total is None,
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
    return _transposed(gy, weight, g, total, rectified)
