"""3x3 convolution of stride 2 by Winograd, all passes; `strided_tiles.py` has the mathematics.

How it runs, forward and input gradient: as in `winograd.py` each worker takes batches of tiles
through all steps, transform, products, inverse transform, and reads all of U once per batch. Where
U is large, all tiles are transformed first; then each worker takes a panel of output channels at a
time and makes U of it in its cache, a group of elements just before they are multiplied. A product
then sums over all input channels at once: M is written once and not read back for more. The weight
gradient likewise (`strided_gradient.py`): a worker's own dU for its own batches, or blocks of dU
for all tiles.

Workers own fixed ranges of tiles, or of channels, so the result does not depend on which one is
faster.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from minires.kernels import memory
from minires.kernels.cpu.finishing import (
    added_sums,
    finish_of,
    flat_before,
    masking,
    merged_moments,
    part_of,
)
from minires.kernels.cpu.product import panel_width, product_address
from minires.kernels.cpu.simd import lanes
from minires.kernels.cpu.strided_products import (
    ELEMENTS,
    PRODUCTS,
    SPARE,
    multiply_batch,
    multiply_group,
)
from minires.kernels.cpu.strided_tiles import (
    PATCH,
    View,
    coefficients,
    gradient_view,
    input_view,
    load_tiles,
    steps_of,
    store_tiles,
)
from minires.kernels.cpu.strided_weights import (
    AROUND,
    GROUPS,
    TOGETHER,
    gather_panel,
    group_range,
    transform_group,
    transform_panels,
)
from minires.kernels.cpu.team import parallel
from minires.kernels.cpu.tilings import Tiling, ranges
from minires.kernels.fusing import After, Before, Rectified
from minires.kernels.geometry import ConvGeometry
from minires.kernels.layout import to_nchw, to_nhwc
from minires.kernels.threads import num_threads

BATCH = 6  # tiles that are taken through all steps together
SMALL = 16 * 32  # channel pairs up to which twice as many tiles make up for what a step costs
WIDTH = 64  # output channels that are multiplied before they are transformed back
LARGE = 256 * 256  # channel pairs from which on U is not made as a whole
BLOCK = 64  # channels of a tile that are transformed together where U is large


class Plan(NamedTuple):
    """How the work is divided.

    tiles: all of them. blocked: whether U is made panel by panel, or else as a whole. parts: of the
    tiles; of which sums are kept. batch: tiles that are multiplied together. block: input channels
    that are transformed together. width: output channels that are multiplied together. panel:
    outputs of a register tile.
    """

    tiles: int
    blocked: bool
    parts: int
    batch: int
    block: int
    width: int
    panel: int
    wide: bool


class Problem(NamedTuple):
    """A convolution: flat arrays, and how it is done.

    address: of the product. x (N, H, W, C), shape (H, W, C); y (N, OH, OW, O), out (OH, OW, O); or
    the upstream gradient and gx, with the weight's adjoint, if `swap`. weight: of so many `columns`
    in its second dimension. before, finish: see `finishing.py`. counts: pixels of each part.
    u: all of U. v: all transformed tiles. works: a row per worker. coef: see `coefficients`.
    """

    address: int
    x: Any
    before: Any
    weight: Any
    columns: int
    swap: bool
    u: Any
    y: Any
    finish: Any
    counts: Any
    shape: tuple[int, int, int]
    out: tuple[int, int, int]
    window: View
    tiling: Tiling
    plan: Plan
    v: Any
    works: Any
    coef: Any
    L: int


@parallel
def _transform_weight(worker, p, workers):
    """One worker's panels of U."""
    transform_panels(
        p.weight, p.columns, p.swap, p.shape[2], p.out[2], p.plan.panel, worker, workers,
        p.u, p.works[worker], p.L,
    )  # fmt: skip


@parallel
def _transform_tiles(worker, p, workers):
    """One worker's share of all tiles, in blocks of channels."""
    C, block, total, L = p.shape[2], p.plan.block, p.plan.tiles, p.L
    vs = steps_of(total, C, L)
    for t in range(worker * total // workers, (worker + 1) * total // workers):
        for c in range(0, C, block):
            load_tiles(
                p.x, p.before, p.shape, p.window, p.tiling, t, 1, c, min(block, C - c), p.v,
                t * C + c, vs, p.works[worker], p.coef, L,
            )  # fmt: skip


@parallel
def _batches(worker, p, workers):
    """One worker's batches of tiles through all steps."""
    plan, tiling, work, L = p.plan, p.tiling, p.works[worker], p.L
    C, O, batch, width, total = p.shape[2], p.out[2], plan.batch, plan.width, plan.tiles
    vs, ms = steps_of(batch, C, L), steps_of(batch, width, L)
    m_at = vs.size + SPARE * C
    patch_at = m_at + ms.size + SPARE * width
    v, m, patch = work[:m_at], work[m_at:patch_at], work[patch_at:]
    batches, cols = (total + batch - 1) // batch, tiling.wide + tiling.narrow
    ahead = 0 if batch % cols == 0 else cols  # a row of tiles needs whole rows of pixels
    x_tile, y_tile = p.x.size // max(total, 1), p.y.size // max(total, 1)
    x_share, y_share = batch * x_tile // PRODUCTS + 1, batch * y_tile // PRODUCTS + 1
    start, part = worker * batches // workers, part_of(p.finish, worker)
    for b in range(start, (worker + 1) * batches // workers):
        first = b * batch
        count = min(batch, total - first)
        tiles = ranges(tiling, first, count)
        load_tiles(
            p.x, p.before, p.shape, p.window, tiling, first, count, 0, C, v, 0, vs, patch, p.coef, L
        )  # fmt: skip
        for o in range(0, O, width):
            multiply_batch(
                v, C, vs, p.u, o * C, C * O, m, width, ms, tiles, count, L, plan.wide,
                p.x, (first + batch + ahead) * x_tile, x_share if o == 0 else 0,
                p.y, (first + ahead) * y_tile, y_share if o == 0 else 0, part,
            )  # fmt: skip
            pixels = store_tiles(
                m, ms, p.out, p.window, p.swap, tiling, first, count, o, width, p.y, b == start,
                part, patch, p.coef, L,
            )  # fmt: skip
            if o == 0:
                p.counts[worker] += pixels


@parallel
def _outputs(worker, p, workers):
    """One worker's panels of outputs, each for a part of the tiles."""
    plan, work, L = p.plan, p.works[worker], p.L
    C, panel, parts, total = p.shape[2], plan.panel, plan.parts, plan.tiles
    vs, ms = steps_of(total, C, L), steps_of(plan.batch, panel, L)
    m_at = TOGETHER * C * panel
    rest_at = m_at + ms.size
    u, m, rest = work[:m_at], work[m_at:rest_at], work[rest_at:]
    units = p.out[2] // panel * parts
    for unit in range(worker * units // workers, (worker + 1) * units // workers):
        part, o = unit % parts, unit // parts * panel
        first, end = part * total // parts, (part + 1) * total // parts
        count, tiles = end - first, ranges(p.tiling, first, end - first)
        gather_panel(p.weight, p.columns, p.swap, o, panel, C, rest, L)
        for group in range(GROUPS):
            begin, behind = group_range(group)
            transform_group(rest, p.swap, panel, C, group, u, 0, C * panel, L)
            multiply_group(
                p.address, p.v, first * C, C, vs, u, begin, behind, panel, plan.wide, m, ms,
                tiles, count,
            )  # fmt: skip
        pixels = store_tiles(
            m, ms, p.out, p.window, p.swap, p.tiling, first, count, o, panel, p.y, True,
            part_of(p.finish, part), rest, p.coef, L,
        )  # fmt: skip
        if o == 0:
            p.counts[part] = pixels


def _plan(total: int, C: int, O: int, size: int, L: int) -> tuple[Plan, int]:
    """And how many numbers a worker needs room for; size: of a tile's window."""
    workers, panel = num_threads(), panel_width(O, L)
    if C * O >= LARGE:
        block, width, room = BLOCK, panel, TOGETHER * C * panel
        parts = max(min(-(-workers // (O // panel)), total), 1)
        batch = -(-total // parts)
    else:
        block, batch, parts = C, BATCH * 2 if C * O <= SMALL else BATCH, workers
        width = next(w for w in range(max(WIDTH, panel), 0, -panel) if O % w == 0)
        room = steps_of(batch, C, L).size + SPARE * (C + width)
    plan = Plan(total, C * O >= LARGE, parts, batch, block, width, panel, panel > L)
    room += steps_of(batch, width, L).size
    return plan, room + max(size**2 * block, PATCH * L, (9 * C + AROUND) * panel)


def _run(
    x: Any, weight: Any, view: View, out: tuple[int, int], phases: bool, total: Any = None,
    before: Before | None = None, after: After | None = None, moments: bool = False,
    rectified: Rectified | None = None,
) -> Any:  # fmt: skip
    """x (N, H, W, C) with `weight`, or with its adjoint if `phases`; added to `total` if given.

    before, after, moments: see `conv2d_fused`; rectified: `conv2d_grad_input_fused`.
    """
    N, H, W, C = x.shape
    O, columns = weight.shape[1 if phases else 0], weight.shape[1]
    L, dtype = lanes(x.dtype), x.dtype
    y = memory.empty((N, *out, O), dtype) if total is None else total
    tiling = Tiling.of(N, *(-(-n // 2) for n in out)) if phases else Tiling.of(N, *out)
    plan, room = _plan(tiling.tiles, C, O, view.size, L)
    if rectified is None:
        finish = finish_of(after, moments, O, plan.parts, dtype)
    else:
        finish = masking(rectified, plan.parts)
    if total is not None:
        finish = finish._replace(shortcut=y.reshape(-1))
    if plan.blocked:
        v = memory.empty(steps_of(tiling.tiles, C, L).size, dtype)
        u = v[:0]
    else:
        u = memory.empty(ELEMENTS * C * O, dtype)
        v = u[:0]
    counts = np.zeros(plan.parts, np.intp)
    problem = Problem(
        product_address(dtype), x.reshape(-1), flat_before(before, dtype),
        np.ascontiguousarray(weight).reshape(-1), columns, phases, u, y.reshape(-1), finish,
        counts, (H, W, C), (*out, O), view, tiling, plan, v,
        memory.empty((num_threads(), room), dtype), coefficients(dtype), L,
    )  # fmt: skip
    steps = (_transform_tiles, _outputs) if plan.blocked else (_transform_weight, _batches)
    for step in steps:
        step(problem, num_threads())
    if rectified is not None:
        return to_nchw(y), added_sums(finish)
    return (to_nchw(y), *merged_moments(finish, counts)) if moments else to_nchw(y)


def conv2d(x: Any, weight: Any, g: ConvGeometry) -> Any:
    """Winograd F(4x4, 2x2) of the phases."""
    return conv2d_fused(x, weight, g, None, None, moments=False)


def conv2d_fused(
    x: Any, weight: Any, g: ConvGeometry, before: Before | None, after: After | None, moments: bool
) -> Any:
    """The same with what `kernels/fusing.py` describes done to the tiles as they come and go.

    Returns y (N, O, OH, OW), or if `moments` y and the mean and the biased variance of each of its
    channels, (O,) in float64.
    """
    view = input_view(g.padding)
    return _run(to_nhwc(x), weight, view, g.out, False, None, before, after, moments)


def conv2d_grad_input(
    gy: Any, weight: Any, g: ConvGeometry, total: Any = None, rectified: Rectified | None = None
) -> Any:
    """The same of the upstream gradient, phase by phase."""
    total = None if total is None else to_nhwc(total)
    view, size = gradient_view(g.padding), (g.H, g.W)
    return _run(to_nhwc(gy), weight, view, size, True, total, rectified=rectified)


def add_conv2d_grad_input(total: Any, gy: Any, weight: Any, g: ConvGeometry) -> Any:
    """The same, added to `total`, whose memory it takes."""
    return conv2d_grad_input(gy, weight, g, total)


def conv2d_grad_input_fused(
    gy: Any, weight: Any, g: ConvGeometry, rectified: Rectified, total: Any = None
) -> tuple[Any, Any]:
    """The same, added to `total` if given, masked and summed as `kernels/fusing.py` describes."""
    gx, sums = conv2d_grad_input(gy, weight, g, total, rectified)
    return gx, sums
