"""A first layer's convolution of stride 2 in three steps: see `stem_tiles.py` for the mathematics.

How it runs: a worker takes a run of tiles, part of a row of tiles, through all steps. Few input
channels and many output channels ask for another order than in `winograd.py`: the run is
transformed once, then some output channels after the others are multiplied and transformed back,
so that what lies between stays near the core. While the core multiplies, it asks for the
pixels that it will write, or for the upstream gradient of the next run. Finished rows of a run may
be shifted, rectified or summed (`finishing.py`).

Workers own fixed ranges of runs, so the result does not depend on which one is faster. The weight
has a few thousand numbers, whose transforms are matrix products, left to NumPy, in float64.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numba import njit

from minires.kernels import memory
from minires.kernels.cpu.finishing import check_before, finish_of, finish_rows, merged_moments
from minires.kernels.cpu.simd import lanes, prefetch
from minires.kernels.cpu.stem_tiles import (
    SIZE,
    constants,
    kernel_matrix,
    load_gradient_tiles,
    load_tiles,
    store_tiles,
    transform_rows,
)
from minires.kernels.cpu.team import parallel
from minires.kernels.cpu.tile import tile_product
from minires.kernels.fusing import After, Before
from minires.kernels.geometry import ConvGeometry
from minires.kernels.layout import to_nchw, to_nhwc
from minires.kernels.threads import num_threads

ELEMENTS = SIZE * SIZE
RUN = 32  # tiles at most that are transformed together
WIDTH = 64  # output channels at most that are multiplied before they are transformed back
ROWS, CHANNELS = 4, 6  # rows of a register tile: tiles, or channels of a weight gradient


@njit(cache=True)
def _place(run, rows, parts, cols):
    """Image, row, first column and one behind the last of a run of tiles."""
    n, rest = divmod(run, rows * parts)
    row, part = divmod(rest, parts)
    return n, row, part * cols // parts, (part + 1) * cols // parts


@njit(cache=True, forceinline=True)
def _ask_for(y, at, share, L):
    """Prefetch `share` numbers: all at once the requests would queue up, and the core with them."""
    for i in range(at, at + share, L):
        prefetch(y, i)


@parallel
def _convolve(
    worker, x, u, y, finish, counts, shape, out, pad, plan, depths, workers, work
):  # fmt: skip
    """Each worker takes its runs of tiles through all three steps; counts: of its pixels."""
    (H, W, C), (OH, OW, O) = shape, out
    rows, cols, parts, near, length, panel, panels, v, v_step, m, m_step, patch, L = plan
    channels, line = panels * panel, OW * O
    runs = x.size // (H * W * C) * rows * parts
    k, mine, kept, sums = constants(x), work[worker], finish.kept[worker], finish.sums[worker]
    start, stop = np.intp(worker * runs // workers), np.intp((worker + 1) * runs // workers)
    for run in range(start, stop):
        n, row, first, end = _place(run, rows, parts, cols)
        if first == 0 or run == start:
            transform_rows(x, shape, pad, n, 8 * row - pad[0], mine, length, L, k)
        load_tiles(mine, length, C, first, end - first, v, v_step, near, L, k)
        corner = ((n * OH + 4 * row) * OW + 4 * first) * O
        high, wide = min(4, OH - 4 * row), min(4 * end, OW) - 4 * first
        share = wide * O // (12 * panels) + 1
        for o in range(0, O, channels):
            for e in range(ELEMENTS):
                ask = corner + e // 12 * line + e % 12 * panels * share
                for p in range(panels):
                    if o == 0:
                        _ask_for(y, ask + p * share, share, L)
                    a, c = v + e * v_step, m + e * m_step + p * panel
                    b = (e * O + o + p * panel) * 4 * C
                    for _ in range(first, end, ROWS):
                        tile_product(
                            4, 2, mine, a, 4 * C, 1, u, b, panel, mine, c, channels,
                            depths[e], False,
                        )  # fmt: skip
                        a, c = a + ROWS * 4 * C, c + ROWS * channels
            store_tiles(
                mine, m, m_step, y, corner + o, line, O, high, wide, channels, patch, L, k
            )  # fmt: skip
        for i in range(high):
            finish_rows(
                y, corner + i * line, wide, O, finish.shift, finish.shortcut, finish.rectify,
                kept, sums, run == start and i == 0, L,
            )  # fmt: skip
        counts[worker] += high * wide


@parallel
def _weight_gradient(worker, x, gy, du, shape, out, pad, plan, depths, workers, work):
    """Each worker sums the products of its own tiles into its part of du."""
    (H, W, C), (OH, OW, O) = shape, out
    rows, cols, parts, near, length, panel, panels, v, v_step, w, w_step, patch, L = plan
    channels, line = panels * panel, OW * O
    runs, depth = x.size // (H * W * C) * rows * parts, du.shape[1] // (ELEMENTS * O)
    k, mine, sums = constants(x), work[worker], du[worker]
    start, stop = np.intp(worker * runs // workers), np.intp((worker + 1) * runs // workers)
    for run in range(start, stop):
        n, row, first, end = _place(run, rows, parts, cols)
        if first == 0 or run == start:
            transform_rows(x, shape, pad, n, 8 * row - pad[0], mine, length, L, k)
        load_tiles(mine, length, C, first, end - first, v, v_step, near, L, k)
        corner = ((n * OH + 4 * row) * OW + 4 * first) * O
        high, wide = min(4, OH - 4 * row), min(4 * end, OW) - 4 * first
        share = wide * O // (12 * panels) + 1
        n, row, first_next, _ = _place(run + 1, rows, parts, cols)
        following = ((n * OH + 4 * row) * OW + 4 * first_next) * O
        for o in range(0, O, channels):
            load_gradient_tiles(
                gy, corner + o, line, O, high, wide, channels, mine, w, w_step, patch, L, k
            )  # fmt: skip
            for e in range(ELEMENTS):
                ask = following + e // 12 * line + e % 12 * panels * share
                for p in range(panels):
                    if o == 0:
                        _ask_for(gy, ask + p * share, share, L)
                    a, b = v + e * v_step, w + e * w_step + p * panel
                    c, add = (e * O + o + p * panel) * depth, run > start
                    for _ in range(0, depths[e], CHANNELS):
                        tile_product(
                            6, 2, mine, a, 1, 4 * C, mine, b, channels, sums, c, panel,
                            end - first, add,
                        )  # fmt: skip
                        a, c = a + CHANNELS, c + CHANNELS * panel


class Plan(NamedTuple):
    """How the work is divided, and what lies where in a worker's space.

    rows, cols: of tiles in an image; a row is divided into `parts` runs.
    near: what is between the two row phases in the last column of V.
    length: of a line of the band, at the beginning.
    panel: output channels of a register tile; panels: of what is multiplied and transformed back.
    v, m: where V and the products begin; v_step, m_step: from one element to the next.
    """

    rows: int
    cols: int
    parts: int
    near: int
    length: int
    panel: int
    panels: int
    v: int
    v_step: int
    m: int
    m_step: int
    patch: int
    L: int


def _plan(g: ConvGeometry, dtype: Any) -> tuple[Plan, Any]:
    """And the workers' space."""
    L = lanes(dtype)
    rows, cols = -(-g.out[0] // 4), -(-g.out[1] // 4)
    parts = -(-cols // RUN)
    room = -(-cols // (parts * ROWS)) * ROWS
    near = g.C if g.kernel[1] < 8 else 2 * g.C
    length = -(-2 * (4 * cols + 3) * g.C // L) * L
    panel = 2 * L
    panels = next(p for p in range(WIDTH // panel, 0, -1) if g.O % (p * panel) == 0)
    v, v_step, m_step = 2 * SIZE * length + L, room * 4 * g.C + L, room * panels * panel + L
    m = v + ELEMENTS * v_step
    patch = m + ELEMENTS * m_step
    plan = Plan(rows, cols, parts, near, length, panel, panels, v, v_step, m, m_step, patch, L)
    workers = min(num_threads(), g.N * rows * parts)
    return plan, memory.empty((workers, patch + 4 * SIZE * L), dtype)


PHASES = ((0, 0), (0, 1), (1, 0), (1, 1))
FINITE, LAST = slice(0, SIZE - 1), slice(SIZE - 1, SIZE)  # rows or columns of a transformed tile
_G = np.kron(kernel_matrix(), kernel_matrix())  # (49, 16)


def _depths(g: ConvGeometry) -> Any:
    """How many of the 4C channels have products other than zero, per element."""
    depths = np.full((SIZE, SIZE), 4 * g.C)
    for size, last in zip(g.kernel, (depths[-1], depths[:, -1]), strict=True):
        last //= 1 if size == 8 else 2
    return depths.ravel()


def _transformed(weight: Any, panel: int) -> Any:
    """U = G g G^T, in panels of output channels: u[e, o // panel, c, o % panel], flat."""
    O, C, KH, KW = weight.shape
    whole = np.zeros((O, C, 8, 8))
    whole[:, :, :KH, :KW] = weight
    taps = np.stack([whole[:, :, p::2, q::2] for p, q in PHASES])
    taps = taps.reshape(4, O // panel, panel, C, 16).transpose(4, 1, 0, 3, 2)
    u = (_G @ taps.reshape(16, -1)).reshape(SIZE, SIZE, O // panel, 4, C, panel)
    if KW < 8:
        u[:, -1, :, 1] = u[:, -1, :, 2]
    return u.astype(weight.dtype).reshape(-1)


def _back(du: Any, g: ConvGeometry, panel: int) -> Any:
    """dg = G^T dU G of the workers' sums: (O, C, KH, KW)."""
    (O, C, KH, KW), depths = g.weight_shape, _depths(g).reshape(SIZE, SIZE)
    depth = du.shape[1] // (ELEMENTS * O)
    parts = du.reshape(len(du), SIZE, SIZE, O // panel, depth, panel)
    sums = np.zeros((SIZE, SIZE, O // panel, 4 * C, panel))
    for i in FINITE, LAST:
        for j in FINITE, LAST:
            there = slice(depths[i, j].max())
            sums[i, j, :, there] = parts[:, i, j, :, there].sum(axis=0)
    sums = sums.reshape(SIZE, SIZE, O // panel, 4, C, panel)
    if KW < 8:
        sums[:, -1, :, 2] = sums[:, -1, :, 1]
        sums[:, -1, :, 1] = 0
    taps = (_G.T @ sums.reshape(ELEMENTS, -1)).reshape(4, 4, O // panel, 4, C, panel)
    taps = taps.transpose(3, 2, 5, 4, 0, 1).reshape(4, O, C, 4, 4)
    whole = np.empty((O, C, 8, 8))
    for (p, q), phase in zip(PHASES, taps, strict=True):
        whole[:, :, p::2, q::2] = phase
    return whole[:, :, :KH, :KW].astype(du.dtype, order="C")


def conv2d(x: Any, weight: Any, g: ConvGeometry) -> Any:
    """Winograd F(4x4, 4x4) of the image's four phases."""
    return conv2d_fused(x, weight, g, None, None, moments=False)


def conv2d_fused(
    x: Any, weight: Any, g: ConvGeometry, before: Before | None, after: After | None, moments: bool
) -> Any:
    """The same and what `after` makes of it (`fusing.py`), or (y, mean, var), in float64.

    Raises ValueError for a `before`, for `after` together with `moments`, and for the moments of
    nothing.
    """
    check_before(before, possible=False)
    x = to_nhwc(x)
    plan, work = _plan(g, x.dtype)
    finish = finish_of(after, moments, g.O, len(work), x.dtype)
    y, counts = memory.empty((g.N, *g.out, g.O), x.dtype), np.zeros(len(work), np.intp)
    _convolve(
        x.reshape(-1), _transformed(weight, plan.panel), y.reshape(-1), finish, counts,
        (g.H, g.W, g.C), (*g.out, g.O), g.padding, plan, _depths(g), len(work), work,
    )  # fmt: skip
    return (to_nchw(y), *merged_moments(finish, counts)) if moments else to_nchw(y)


def conv2d_grad_weight(x: Any, gy: Any, g: ConvGeometry) -> Any:
    """The adjoint of Winograd F(4x4, 4x4) of the image's four phases."""
    x, gy = to_nhwc(x), to_nhwc(gy)
    plan, work = _plan(g, x.dtype)
    depth = -(-4 * g.C // CHANNELS) * CHANNELS
    du = memory.empty((len(work), ELEMENTS * depth * g.O), x.dtype)
    _weight_gradient(
        x.reshape(-1), gy.reshape(-1), du,
        (g.H, g.W, g.C), (*g.out, g.O), g.padding, plan, _depths(g), len(work), work,
    )  # fmt: skip
    return _back(du, g, plan.panel)
