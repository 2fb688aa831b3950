"""Winograd convolution in three passes; the mathematics is at the top of `winograd_tiles.py`.

How it runs: each worker takes a batch of tiles through all steps, half a transform, then for each
of the six rows of elements the rest of it, six products and half of the inverse transform, then its
other half: `winograd_runs.py`. What lies between the steps stays in its cache. While the core
multiplies, the next batch's input and this batch's output are on their way from memory, a few lines
with each register tile: in bursts they would stand in each other's way. The transformed weight is
read once per batch; where it is too large for that, `winograd_blocked.py` takes over.

Workers own fixed ranges of tiles, so the result does not depend on which one is faster.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np

from minires.kernels import memory
from minires.kernels.cpu import winograd_blocked
from minires.kernels.cpu.finishing import (
    added_sums,
    finish_of,
    flat_before,
    masking,
    merged_moments,
    part_of,
)
from minires.kernels.cpu.simd import VECTOR_BYTES, start, streams
from minires.kernels.cpu.team import parallel
from minires.kernels.cpu.tile import offset
from minires.kernels.cpu.winograd_moments import pixels_before
from minires.kernels.cpu.winograd_products import (
    ELEMENTS,
    ROWS,
    Request,
    accumulate,
    accumulated,
    multiplied,
    multiply,
    share,
)
from minires.kernels.cpu.winograd_runs import (
    COLUMNS,
    ends_of,
    input_row,
    load_gradient_runs,
    load_runs,
    output_row,
    store_runs,
)
from minires.kernels.cpu.winograd_weights import (
    inverse_weight,
    transform_panels,
    transform_weight,
)
from minires.kernels.fusing import After, Before, Rectified
from minires.kernels.geometry import ConvGeometry
from minires.kernels.layout import to_nchw, to_nhwc
from minires.kernels.threads import num_threads

BATCH = 24  # tiles
LARGE_BATCH = 30  # from SMALL channel pairs on, where U, or dU, comes by once per batch
FEW = 12  # where a worker has few tiles, and a batch of more would be much of its work
LARGE = 256 * 256  # channel pairs from which on U is not made as a whole
LARGE_GRADIENT = 192 * 192
PAST = 1 << 22  # bytes from which on what is finished is written past the caches
SMALL = 64 * 64  # channel pairs up to which a U of one's own comes sooner than a shared one


@parallel
def _convolve(
    worker, x, before, weight, columns, swap, own, y, past, finish, shape, out, tiles, pad, batch,
    workers, work, room, L, wide,
):  # fmt: skip
    """Each worker takes `batch` tiles at a time through all three steps.

    work: a room for each worker, then U, or one for each, which it makes itself, if `own`.
    past: whether to write y past the caches.
    before, finish: as `finishing.py` describes them.
    """
    C, O = shape[2], out[2]
    total = x.size // (shape[0] * shape[1] * C) * tiles[0] * tiles[1]
    v_step, m_step = batch * C + L, batch * O + L
    z_step = COLUMNS * batch * max(C, O) + L
    x_tile, y_tile = x.size // total, y.size // total  # numbers per tile: where tiles lie, roughly
    products = multiplied(batch, O, L, wide)
    x_share, y_share = share(batch * x_tile, products, L), share(batch * y_tile, products, L)
    ahead = 0 if batch % tiles[1] == 0 else tiles[1]  # a row of tiles needs four rows of pixels
    v_at = worker * room
    m_at = v_at + 6 * v_step
    z_at = m_at + 6 * m_step
    u_at = workers * room
    if own:
        u_at += worker * ELEMENTS * C * O
        transform_panels(weight, columns, swap, C, O, 2 * L if wide else L, 0, 1, work, u_at, L)
    ends = ends_of(part_of(finish, worker), past)
    x, before, active, y, work = start(x), start(before), before.size > 0, start(y), start(work)
    v, m, z = offset(work, v_at), offset(work, m_at), offset(work, z_at)
    begin, end = worker * total // workers, (worker + 1) * total // workers
    for first in range(begin, end, batch):
        count = min(batch, end - first)
        load_runs(x, before, active, shape, tiles, pad, first, count, z, z_step)
        to = (first + ahead) * y_tile
        requests = (
            Request(x, (first + batch + ahead) * x_tile, x_share),
            Request(y, to, 0 if past else y_share),
            Request(ends.shortcut, to, y_share if ends.added else 0),
            Request(ends.x, to, y_share if ends.masks else 0),
            Request(ends.output, to, y_share if ends.gated else 0),
        )
        tile = 0
        for e in range(ELEMENTS):
            i, j = e // 6, e % 6
            if j == 0:
                input_row(offset(z, i * z_step), C, tiles, first, count, v, v_step)
            tile = multiply(
                v, j * v_step, C, work, u_at + e * C * O, m, j * m_step, O, count, L, wide,
                False, requests, tile,
            )  # fmt: skip
            if j == 5:
                output_row(m, m_step, count * O, offset(z, i * z_step))
        store_runs(z, z_step, out, tiles, first, count, y, first == begin, ends)


@parallel
def _weight_gradient(
    worker, x, before, gy, shape, out, tiles, pad, batch, workers, work, room, L, wide
):  # fmt: skip
    """Each worker sums the products of its own tiles into its dU, behind the workers' rooms."""
    C, O = shape[2], out[2]
    total = x.size // (shape[0] * shape[1] * C) * tiles[0] * tiles[1]
    v_step, w_step = batch * C + L, batch * O + L
    z_step = COLUMNS * batch * max(C, O) + L
    x_tile, y_tile = x.size // total, gy.size // total
    products = accumulated(C, O, L, wide)
    x_share, y_share = share(batch * x_tile, products, L), share(batch * y_tile, products, L)
    ahead = batch + (0 if batch % tiles[1] == 0 else tiles[1])
    x, before, active, gy, work = start(x), start(before), before.size > 0, start(gy), start(work)
    v = offset(work, worker * room)
    w = offset(v, 6 * v_step)
    z = offset(w, ELEMENTS * w_step)
    du = offset(work, workers * room + worker * ELEMENTS * C * O)
    begin, end = worker * total // workers, (worker + 1) * total // workers
    for first in range(begin, end, batch):
        count = min(batch, end - first)
        load_runs(x, before, active, shape, tiles, pad, first, count, z, z_step)
        load_gradient_runs(gy, out, tiles, first, count, w, w_step, v)
        requests = (
            Request(x, (first + ahead) * x_tile, x_share),
            Request(gy, (first + ahead) * y_tile, y_share),
        )
        tile = 0
        for e in range(ELEMENTS):
            if e % 6 == 0:
                input_row(offset(z, e // 6 * z_step), C, tiles, first, count, v, v_step)
            tile = accumulate(
                w, e * w_step, O, v, e % 6 * v_step, C, du, e * C * O, count, L, wide,
                first > begin, requests, tile,
            )  # fmt: skip


def _batch(total: int, workers: int, C: int, O: int) -> int:
    """Tiles that a worker takes at a time: whole register tiles, and work for every worker."""
    most, each = BATCH if C * O < SMALL else LARGE_BATCH, total // workers
    return -(-min(most, max(1, each), max(FEW, each // 16)) // ROWS) * ROWS


class Plan(NamedTuple):
    """What the sizes decide.

    batch: tiles that a worker takes at a time. room: numbers that it keeps of a batch: v and m or w
    of some elements, z of all. own: each makes its own U. pixels: of each worker's y.
    """

    tiles: tuple[int, int]
    total: int
    batch: int
    workers: int
    own: bool
    L: int
    room: int
    pixels: Any


@lru_cache(maxsize=1024)
def _plan(N: int, C: int, O: int, out: tuple[int, int], itemsize: int, workers: int) -> Plan:
    tiles = -(-out[0] // 4), -(-out[1] // 4)
    total = N * tiles[0] * tiles[1]
    batch = _batch(total, workers, C, O)
    own, L = C * O <= SMALL, VECTOR_BYTES // itemsize
    z, v, w = 6 * COLUMNS * batch * max(C, O), 6 * batch * C, ELEMENTS * batch * O
    room = z + v + w + (2 * 6 + ELEMENTS) * L
    ends = [part * total // workers for part in range(workers + 1)]
    pixels = np.diff([pixels_before(end, tiles, out) for end in ends])
    return Plan(tiles, total, batch, workers, own, L, room, pixels)


def _run(
    x: Any, weight: Any, pad: tuple[int, int], out: tuple[int, int], swap: bool = False,
    total: Any = None, before: Before | None = None, after: After | None = None,
    moments: bool = False, rectified: Rectified | None = None,
) -> Any:  # fmt: skip
    """x (N, H, W, C) with `weight`, or with its adjoint if `swap`; added to `total` if given.

    before, after, moments: see `conv2d_fused`; rectified: `conv2d_grad_input_fused`.
    """
    N, H, W, C = x.shape
    dtype, O, columns = x.dtype, weight.shape[1 if swap else 0], weight.shape[1]
    y = memory.empty((N, *out, O), dtype) if total is None else total
    plan = _plan(N, C, O, out, x.itemsize, num_threads())
    workers, L, pixels, large = plan.workers, plan.L, plan.pixels, C * O >= LARGE
    parts = winograd_blocked.chunks(plan.total, O, dtype, workers) if large else workers
    flat_y, norm = y.reshape(-1), flat_before(before, dtype)
    added = None if total is None else flat_y
    if rectified is None:
        finish = finish_of(after, moments, O, parts, dtype, added)
    else:
        finish = masking(rectified, parts, added)
    if large:
        pixels = winograd_blocked.convolve(x, norm, weight, swap, y, finish, pad, parts, workers)
    else:
        flat_weight, wide = np.ascontiguousarray(weight).reshape(-1), O % (2 * L) == 0
        rooms = workers * plan.room
        work = memory.empty(rooms + ELEMENTS * C * O * (workers if plan.own else 1), dtype)
        if not plan.own:
            transform_weight(
                flat_weight, columns, swap, C, O, 2 * L if wide else L, workers, work[rooms:], L
            )  # fmt: skip
        _convolve(
            x.reshape(-1), norm, flat_weight, columns, swap, plan.own, flat_y,
            after is not None and streams(y, PAST), finish, (H, W, C), (*out, O), plan.tiles, pad,
            plan.batch, workers, work, plan.room, L, wide,
        )  # fmt: skip
    if rectified is not None:
        return to_nchw(y), added_sums(finish)
    return (to_nchw(y), *merged_moments(finish, pixels)) if moments else to_nchw(y)


def conv2d(x: Any, weight: Any, g: ConvGeometry) -> Any:
    """Winograd F(4x4, 3x3)."""
    return _run(to_nhwc(x), weight, g.padding, g.out)


def conv2d_fused(
    x: Any, weight: Any, g: ConvGeometry, before: Before | None, after: After | None, moments: bool
) -> Any:
    """The same with what `kernels/fusing.py` describes done to the tiles as they come and go.

    Returns y (N, O, OH, OW), or if `moments` y and the mean and the biased variance of each of its
    channels, (O,) in float64.
    """
    return _run(to_nhwc(x), weight, g.padding, g.out, False, None, before, after, moments)


def conv2d_grad_input(
    gy: Any, weight: Any, g: ConvGeometry, total: Any = None, rectified: Rectified | None = None
) -> Any:
    """Winograd F(4x4, 3x3) of the upstream gradient with the rotated kernel."""
    pad = (2 - g.padding[0], 2 - g.padding[1])
    total = None if total is None else to_nhwc(total)
    return _run(to_nhwc(gy), weight, pad, (g.H, g.W), swap=True, total=total, rectified=rectified)


def add_conv2d_grad_input(total: Any, gy: Any, weight: Any, g: ConvGeometry) -> Any:
    """The same, added to `total`, whose memory it takes."""
    return conv2d_grad_input(gy, weight, g, total)


def conv2d_grad_input_fused(
    gy: Any, weight: Any, g: ConvGeometry, rectified: Rectified, total: Any = None
) -> tuple[Any, Any]:
    """The same, added to `total` if given, masked and summed as `kernels/fusing.py` describes."""
    gx, sums = conv2d_grad_input(gy, weight, g, total, rectified)
    return gx, sums


def conv2d_grad_weight(x: Any, gy: Any, g: ConvGeometry) -> Any:
    """The adjoint of Winograd F(4x4, 3x3)."""
    return conv2d_grad_weight_fused(x, gy, g, None)


def conv2d_grad_weight_fused(x: Any, gy: Any, g: ConvGeometry, before: Before | None) -> Any:
    """The same of a normalised and rectified x, see `kernels/fusing.py`."""
    x, gy = to_nhwc(x), to_nhwc(gy)
    dtype, C, O, workers = x.dtype, g.C, g.O, num_threads()
    gweight, norm = memory.empty((O, C, 3, 3), dtype), flat_before(before, dtype)
    if C * O >= LARGE_GRADIENT:
        winograd_blocked.weight_gradient(x, norm, gy, gweight, g.padding, workers)
        return gweight
    plan, size = _plan(g.N, C, O, g.out, x.itemsize, workers), ELEMENTS * C * O
    workers, L = min(workers, -(-plan.total // plan.batch)), plan.L
    rooms = workers * plan.room
    work = memory.empty(rooms + workers * size, dtype)
    _weight_gradient(
        x.reshape(-1), norm, gy.reshape(-1), (g.H, g.W, C), (*g.out, O), plan.tiles, g.padding,
        plan.batch, workers, work, plan.room, L, C % (2 * L) == 0,
    )  # fmt: skip
    inverse_weight(work[rooms:], O, C, workers, gweight.reshape(-1), L)
    return gweight
