"""The weight gradient of 3x3 convolutions of stride 2: dg = G^T [sum (B^T d B) . (A gy A^T)] G.

`strided_tiles.py` has the mathematics; elements that share a tap are summed into one of 36 dU. A
small dU is summed by each worker over its own tiles, batch after batch. Of a large one each worker
owns blocks, as in `winograd_blocked.py`: x's tiles are transformed first, those of gy by the worker
whose outputs they are, a block's channels at a time in memory of its own; then a block of dU is
summed over all of them in cache and transformed back at once.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from minires.kernels import memory
from minires.kernels.cpu.copying import clear_run
from minires.kernels.cpu.finishing import flat_before
from minires.kernels.cpu.product import panel_width, product_address
from minires.kernels.cpu.simd import lanes
from minires.kernels.cpu.strided_products import ELEMENTS, accumulate
from minires.kernels.cpu.strided_tiles import (
    View,
    coefficients,
    input_view,
    load_gradient_tiles,
    load_tiles,
    steps_of,
)
from minires.kernels.cpu.strided_weights import inverse_block
from minires.kernels.cpu.team import parallel
from minires.kernels.cpu.tilings import Tiling, ranges
from minires.kernels.cpu.winograd_weights import SCATTERED
from minires.kernels.fusing import Before
from minires.kernels.geometry import ConvGeometry
from minires.kernels.layout import to_nhwc
from minires.kernels.threads import num_threads

BATCH = 24  # tiles that are transformed and summed together
LARGE = 160 * 160  # channel pairs from which on a dU of one's own does not stay near the core
BLOCK = 64  # channels of a block of dU, inputs' and outputs'


class Plan(NamedTuple):
    """How the work is divided: tiles in all, and those of a batch; channels of a block."""

    tiles: int
    batch: int
    block: int
    panel: int
    wide: bool


class Problem(NamedTuple):
    """A weight gradient: flat arrays, and how it is done.

    address: of the product. x (N, H, W, C), shape (H, W, C); gy (N, OH, OW, O), out (OH, OW, O).
    weight: dg. du: one per worker. v: all transformed tiles of x. works: a row per worker.
    before: see `finishing.py`; coef: see `coefficients`.
    """

    address: int
    x: Any
    before: Any
    gy: Any
    weight: Any
    du: Any
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
def _batches(worker, p, workers):
    """One worker's batches of tiles, summed into its dU."""
    plan, tiling, work, L = p.plan, p.tiling, p.works[worker], p.L
    C, O, batch, total = p.shape[2], p.out[2], plan.batch, plan.tiles
    vs, ws = steps_of(batch, C, L), steps_of(batch, O, L)
    own_v, own_w = work[: vs.size], work[vs.size : vs.size + ws.size]
    patch, size = work[vs.size + ws.size :], ELEMENTS * C * O
    sums = p.du[worker * size : (worker + 1) * size]
    batches, cols = (total + batch - 1) // batch, tiling.wide + tiling.narrow
    x_tile, y_tile = p.x.size // max(total, 1), p.gy.size // max(total, 1)
    ahead = batch + (0 if batch % cols == 0 else cols)  # a row of tiles needs whole rows of pixels
    start, behind = worker * batches // workers, (worker + 1) * batches // workers
    if start == behind:
        clear_run(sums, 0, size, L)
    for b in range(start, behind):
        first = b * batch
        count = min(batch, total - first)
        load_tiles(
            p.x, p.before, p.shape, p.window, tiling, first, count, 0, C, own_v, 0, vs, patch,
            p.coef, L,
        )  # fmt: skip
        load_gradient_tiles(p.gy, p.out, tiling, first, count, 0, O, own_w, 0, ws, p.coef, L)
        accumulate(
            p.address, own_w, 0, O, ws, own_v, 0, C, vs, plan.panel, plan.wide, sums,
            b == start, ranges(tiling, first, count), count, L,
            p.gy, (first + ahead) * y_tile, batch * y_tile,
            p.x, (first + ahead) * x_tile, batch * x_tile,
        )  # fmt: skip


@parallel
def _back(worker, p, workers):
    """One worker's output channels of dg, from all workers' dU."""
    C, O, L = p.shape[2], p.out[2], p.L
    size = ELEMENTS * C * O
    for o in range(worker * O // workers, (worker + 1) * O // workers):
        inverse_block(
            p.du, o * C, O * C, size, p.du.size // size, C, p.weight, o * C * 9, p.works[worker], L
        )  # fmt: skip


@parallel
def _transform(worker, p, workers):
    """One worker's share of x's tiles, in blocks of channels."""
    C, block, total, L = p.shape[2], p.plan.block, p.plan.tiles, p.L
    first, last = worker * total // workers, (worker + 1) * total // workers
    size = steps_of(total, block, L).size
    for c in range(0, C, block):
        channels = min(block, C - c)
        load_tiles(
            p.x, p.before, p.shape, p.window, p.tiling, first, last - first, c, channels, p.v,
            c // block * size + first * channels, steps_of(total, channels, L), p.works[worker],
            p.coef, L,
        )  # fmt: skip


@parallel
def _blocks(worker, p, workers):
    """One worker's blocks of dU, summed over all tiles and transformed back."""
    plan, work, L = p.plan, p.works[worker], p.L
    C, O, block, total = p.shape[2], p.out[2], plan.block, plan.tiles
    across, size = (C + block - 1) // block, steps_of(total, block, L).size
    w_at = ELEMENTS * block * block
    sums, w, buffer = work[:w_at], work[w_at : w_at + size], work[w_at + size :]
    before = -1
    units = (O + block - 1) // block * across
    for unit in range(worker * units // workers, (worker + 1) * units // workers):
        row, col = unit // across, unit % across
        outputs, inputs = min(block, O - row * block), min(block, C - col * block)
        ws = steps_of(total, outputs, L)
        if row != before:
            load_gradient_tiles(
                p.gy, p.out, p.tiling, 0, total, row * block, outputs, w, 0, ws, p.coef, L
            )  # fmt: skip
            before = row
        accumulate(
            p.address, w, 0, outputs, ws, p.v, col * size, inputs, steps_of(total, inputs, L),
            plan.panel, plan.wide, sums, True, ranges(p.tiling, 0, total), total, L,
            p.gy, 0, 0, p.x, 0, 0,
        )  # fmt: skip
        for o in range(outputs):
            to = ((row * block + o) * C + col * block) * 9
            inverse_block(
                sums, o * inputs, outputs * inputs, 0, 1, inputs, p.weight, to, buffer, L
            )  # fmt: skip


def conv2d_grad_weight(x: Any, gy: Any, g: ConvGeometry) -> Any:
    """The adjoint of Winograd F(4x4, 2x2) of the phases."""
    return conv2d_grad_weight_fused(x, gy, g, None)


def conv2d_grad_weight_fused(x: Any, gy: Any, g: ConvGeometry, before: Before | None) -> Any:
    """The same of a normalised and rectified x, see `kernels/fusing.py`."""
    x, gy = to_nhwc(x), to_nhwc(gy)
    C, O, L, dtype, workers = g.C, g.O, lanes(x.dtype), x.dtype, num_threads()
    tiling, view, panel = Tiling.of(g.N, *g.out), input_view(g.padding), panel_width(C, L)
    total, blocked, nothing = tiling.tiles, C * O >= LARGE, memory.empty(0, dtype)
    if blocked:
        block, batch, du = BLOCK, total, nothing
        tiles = steps_of(total, block, L).size
        v = memory.empty(-(-C // block) * tiles, dtype)
        room = ELEMENTS * block * block + max(tiles + SCATTERED * block, view.size**2 * block)
    else:
        block, batch, v = C, min(BATCH, max(1, total // workers)), nothing
        du = memory.empty(workers * ELEMENTS * C * O, dtype)
        room = steps_of(batch, C, L).size + steps_of(batch, O, L).size + view.size**2 * C
    plan = Plan(total, batch, block, panel, panel > L)
    gweight = memory.empty((O, C, 3, 3), dtype)
    problem = Problem(
        product_address(dtype), x.reshape(-1), flat_before(before, dtype), gy.reshape(-1),
        gweight.reshape(-1), du, (g.H, g.W, C), (*g.out, O), view, tiling, plan, v,
        memory.empty((workers, room), dtype), coefficients(dtype), L,
    )  # fmt: skip
    steps = (_transform, _blocks) if blocked else (_batches, _back)
    for step in steps:
        step(problem, workers)
    return gweight
