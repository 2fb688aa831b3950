"""Winograd convolution in three passes; the mathematics is at the top of `winograd_tiles.py`.

How it runs: each worker takes a batch of tiles through all steps, transform, 36 products, inverse
transform, so that what lies between the steps stays in its cache. The transformed weight is then
read once per batch. When that costs more than it saves (many channels, few tiles: the last stages
of the ImageNet nets), the steps run one after the other over all tiles instead and the 36 products
are divided among the workers.

Workers own fixed ranges of tiles, so the result does not depend on which one is faster.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit, prange

from minires.kernels import memory
from minires.kernels.cpu.simd import fill, fmuladd, lanes, load, prefetch, store, tile_product
from minires.kernels.cpu.winograd_tiles import (
    G,
    constants,
    load_gradient_tiles,
    load_tiles,
    store_tiles,
)
from minires.kernels.geometry import ConvGeometry
from minires.kernels.layout import to_nchw, to_nhwc
from minires.kernels.threads import num_threads

ELEMENTS = 36  # of a transformed tile
ROWS = 6  # of a register tile
MAX_BATCH = 24
BATCH_CHANNELS = 768  # of a batch, inputs' and outputs': V and M are to stay near the core
PHASED_WEIGHT = 256 * 256  # from this many channel pairs on, the steps run over all tiles
PHASED_GRADIENT = 128 * 128


@njit(cache=True)
def _multiply(v, v_at, C, u, u_at, m, m_at, O, count, L, wide):
    """m[t, o] = sum_c v[t, c] * u[c, o] for one element of the transform; u comes in panels.

    Rows are done six at a time: the buffers have room for `count` rounded up.
    """
    panel = 2 * L if wide else L
    for o in range(0, O, panel):
        for t in range(0, count, ROWS):
            a, c = v_at + t * C, m_at + t * O + o
            if wide:
                tile_product(6, 2, v, a, C, 1, u, u_at + o * C, panel, m, c, O, C, False)
            else:
                tile_product(6, 1, v, a, C, 1, u, u_at + o * C, panel, m, c, O, C, False)


@njit(cache=True)
def _accumulate(w, w_at, O, v, v_at, C, du, du_at, count, L, wide):
    """du[o, c] += sum_t w[t, o] * v[t, c] for one element of the transform.

    O is even and at least 4: rows of six, and one or two of four.
    """
    panel = 2 * L if wide else L
    fours = O - (2 if O % ROWS == 2 else O % ROWS // 4) * 4
    for c in range(0, C, panel):
        o = 0
        while o < fours:
            at = du_at + o * C + c
            if wide:
                tile_product(6, 2, w, w_at + o, 1, O, v, v_at + c, C, du, at, C, count, True)
            else:
                tile_product(6, 1, w, w_at + o, 1, O, v, v_at + c, C, du, at, C, count, True)
            o += 6
        while o < O:
            at = du_at + o * C + c
            if wide:
                tile_product(4, 2, w, w_at + o, 1, O, v, v_at + c, C, du, at, C, count, True)
            else:
                tile_product(4, 1, w, w_at + o, 1, O, v, v_at + c, C, du, at, C, count, True)
            o += 4


@njit(cache=True)
def _prefetch_share(x, first, count, total, e, L):
    """Ask for one of 36 equal parts of what `count` tiles, or little more, cover of an array.

    Doing so between products keeps the memory busy while the core multiplies. All at once they
    would queue up, and the core with them.
    """
    per_tile = x.size // total
    begin = (first * ELEMENTS + count * e) * per_tile // ELEMENTS
    end = (first * ELEMENTS + count * (e + 1)) * per_tile // ELEMENTS
    for i in range(begin, end, L):
        prefetch(x, i)


@njit(cache=True, parallel=True)
def _convolve(x, u, y, shape, out, tiles, pad, batch, workers, work, L, wide):
    """Each worker takes `batch` tiles at a time through all three steps."""
    C, O = shape[2], out[2]
    total = x.size // (shape[0] * shape[1] * C) * tiles[0] * tiles[1]
    batches = (total + batch - 1) // batch
    v_step, m_step = batch * C + L, batch * O + L
    for worker in prange(workers):
        k = constants(x)
        v = work[worker, : ELEMENTS * v_step]
        m = work[worker, ELEMENTS * v_step : ELEMENTS * (v_step + m_step)]
        patch = work[worker, ELEMENTS * (v_step + m_step) :]
        for b in range(worker * batches // workers, (worker + 1) * batches // workers):
            first = b * batch
            count = min(batch, total - first)
            load_tiles(x, shape, tiles, pad, first, count, v, v_step, patch, L, k)
            for e in range(ELEMENTS):
                _prefetch_share(x, first + batch, count, total, e, L)
                _prefetch_share(y, first, count, total, e, L)
                _multiply(v, e * v_step, C, u, e * C * O, m, e * m_step, O, count, L, wide)
            store_tiles(m, m_step, out, tiles, first, count, y, patch, L, k)


@njit(cache=True, parallel=True)
def _convolve_phased(x, u, y, shape, out, tiles, pad, workers, v, m, patches, L, wide):
    """Each step over all tiles; the products divided by element of the transform."""
    C, O = shape[2], out[2]
    total = x.size // (shape[0] * shape[1] * C) * tiles[0] * tiles[1]
    v_step, m_step = v.size // ELEMENTS, m.size // ELEMENTS
    for worker in prange(workers):
        k = constants(x)
        first, last = worker * total // workers, (worker + 1) * total // workers
        at = v[first * C :]
        load_tiles(x, shape, tiles, pad, first, last - first, at, v_step, patches[worker], L, k)
    for e in prange(ELEMENTS):
        _multiply(v, e * v_step, C, u, e * C * O, m, e * m_step, O, total, L, wide)
    for worker in prange(workers):
        k = constants(x)
        first, last = worker * total // workers, (worker + 1) * total // workers
        at = m[first * O :]
        store_tiles(at, m_step, out, tiles, first, last - first, y, patches[worker], L, k)


@njit(cache=True, parallel=True)
def _weight_gradient(x, gy, du, shape, out, tiles, pad, batch, workers, work, L, wide):
    """Each worker sums the products of its own tiles into du[worker]."""
    C, O = shape[2], out[2]
    total = x.size // (shape[0] * shape[1] * C) * tiles[0] * tiles[1]
    batches = (total + batch - 1) // batch
    v_step, w_step = batch * C + L, batch * O + L
    for worker in prange(workers):
        k = constants(x)
        v = work[worker, : ELEMENTS * v_step]
        w = work[worker, ELEMENTS * v_step : ELEMENTS * (v_step + w_step)]
        patch = work[worker, ELEMENTS * (v_step + w_step) :]
        mine = du[worker]
        mine[:] = 0
        for b in range(worker * batches // workers, (worker + 1) * batches // workers):
            first = b * batch
            count = min(batch, total - first)
            load_tiles(x, shape, tiles, pad, first, count, v, v_step, patch, L, k)
            load_gradient_tiles(gy, out, tiles, first, count, w, w_step, patch, L, k)
            for e in range(ELEMENTS):
                _prefetch_share(x, first + batch, count, total, e, L)
                _prefetch_share(gy, first + batch, count, total, e, L)
                _accumulate(
                    w, e * w_step, O, v, e * v_step, C, mine, e * C * O, count, L, wide
                )  # fmt: skip


@njit(cache=True, parallel=True)
def _weight_gradient_phased(x, gy, du, shape, out, tiles, pad, workers, v, w, patches, L, wide):
    """Each step over all tiles; the products divided by element of the transform."""
    C, O = shape[2], out[2]
    total = x.size // (shape[0] * shape[1] * C) * tiles[0] * tiles[1]
    v_step, w_step = v.size // ELEMENTS, w.size // ELEMENTS
    for worker in prange(workers):
        k = constants(x)
        first, last = worker * total // workers, (worker + 1) * total // workers
        count, patch = last - first, patches[worker]
        load_tiles(x, shape, tiles, pad, first, count, v[first * C :], v_step, patch, L, k)
        load_gradient_tiles(gy, out, tiles, first, count, w[first * O :], w_step, patch, L, k)
    mine = du[0]
    for e in prange(ELEMENTS):
        mine[e * C * O : (e + 1) * C * O] = 0
        _accumulate(w, e * w_step, O, v, e * v_step, C, mine, e * C * O, total, L, wide)


@njit(cache=True, parallel=True)
def _transform_weight(weight, O, C, swap, u, L, wide, g):
    """U = G g G^T in panels of output channels: u[e, o // panel, c, o % panel].

    `swap` turns (O, C, 3, 3) into the weight of the input gradient: rotated, channels exchanged.
    """
    panel = 2 * L if wide else L
    inputs, outputs = (O, C) if swap else (C, O)
    for p in prange(outputs // panel):
        taps = np.empty(9 * panel, weight.dtype)
        half = np.empty(18 * panel, weight.dtype)
        for c in range(inputs):
            for j in range(panel):
                o = p * panel + j
                at = ((c * C + o) if swap else (o * C + c)) * 9
                for e in range(9):
                    taps[e * panel + j] = weight[at + (8 - e if swap else e)]
            to = (p * inputs + c) * panel
            _transform_lines(taps, 3 * panel, panel, half, 3 * panel, panel, 3, panel, L, g)
            _transform_lines(
                half, panel, 3 * panel, u[to:], inputs * outputs, 6 * inputs * outputs,
                6, panel, L, g,
            )  # fmt: skip


@njit(cache=True)
def _transform_lines(x, step, line, y, y_step, y_line, lines, panel, L, g):
    """y[i*y_step + n*y_line] = sum_k g[i, k] * x[k*step + n*line], for rows of `panel` numbers."""
    for n in range(lines):
        for j in range(0, panel, L):
            x0 = load(x, n * line + j)
            x1 = load(x, n * line + step + j)
            x2 = load(x, n * line + 2 * step + j)
            for i in range(6):
                value = fmuladd(
                    x2, fill(x, g[i, 2]), fmuladd(x1, fill(x, g[i, 1]), x0 * fill(x, g[i, 0]))
                )
                store(y, n * y_line + i * y_step + j, value)


@njit(cache=True, parallel=True)
def _inverse_weight(du, weight, O, C, L, g):
    """dg = G^T [sum over workers du] G, from du[worker, e, o, c] to (O, C, 3, 3)."""
    workers = du.shape[0]
    for o in prange(O):
        half, taps = np.empty(18 * C, du.dtype), np.empty(9 * C, du.dtype)
        for c in range(0, C, L):
            for j in range(6):
                for i in range(3):
                    total = fill(half, 0.0)
                    for e in range(6):
                        at, factor = ((e * 6 + j) * O + o) * C + c, fill(half, g[e, i])
                        for worker in range(workers):
                            total = fmuladd(factor, load(du[worker], at), total)
                    store(half, (i * 6 + j) * C + c, total)
            for i in range(3):
                for j in range(3):
                    total = fill(half, 0.0)
                    for e in range(6):
                        total = fmuladd(fill(half, g[e, j]), load(half, (i * 6 + e) * C + c), total)
                    store(taps, (i * 3 + j) * C + c, total)
        for c in range(C):
            for tap in range(9):
                weight[(o * C + c) * 9 + tap] = taps[tap * C + c]


def _round_up(value: int, multiple: int) -> int:
    return -(-value // multiple) * multiple


def _batch(total: int, workers: int, channels: int) -> int:
    """Tiles that a worker takes at a time: whole register tiles, and work for every worker."""
    most = min(MAX_BATCH, max(1, BATCH_CHANNELS // channels))
    return _round_up(min(most, max(1, total // workers)), ROWS)


def _run(x: Any, weight: Any, pad: tuple[int, int], out: tuple[int, int], swap: bool) -> Any:
    """x (N, H, W, C) with `weight`, or with its adjoint if `swap`."""
    N, H, W, C = x.shape
    O = weight.shape[1] if swap else weight.shape[0]
    L, workers, dtype = lanes(x.dtype), num_threads(), x.dtype
    wide = O % (2 * L) == 0
    u = memory.empty(ELEMENTS * C * O, dtype)
    flat = np.ascontiguousarray(weight).reshape(-1)
    _transform_weight(flat, *weight.shape[:2], swap, u, L, wide, G.astype(dtype))
    y = memory.empty((N, *out, O), dtype)
    tiles = (-(-out[0] // 4), -(-out[1] // 4))
    total = N * tiles[0] * tiles[1]
    sizes = (H, W, C), (*out, O), tiles, pad
    if C * O >= PHASED_WEIGHT:
        room = _round_up(total, ROWS)
        v = memory.empty(ELEMENTS * (room * C + L), dtype)
        v.reshape(ELEMENTS, -1)[:, total * C :] = 0
        m = memory.empty(ELEMENTS * (room * O + L), dtype)
        patches = memory.empty((workers, ELEMENTS * max(C, O)), dtype)
        _convolve_phased(
            x.reshape(-1), u, y.reshape(-1), *sizes, workers, v, m, patches, L, wide
        )  # fmt: skip
    else:
        batch = _batch(total, workers, C + O)
        room = ELEMENTS * (batch * (C + O) + 2 * L + max(C, O))
        work = memory.zeros((workers, room), dtype)
        _convolve(x.reshape(-1), u, y.reshape(-1), *sizes, batch, workers, work, L, wide)
    return to_nchw(y)


def conv2d(x: Any, weight: Any, g: ConvGeometry) -> Any:
    """Winograd F(4x4, 3x3)."""
    return _run(to_nhwc(x), weight, g.padding, g.out, swap=False)


def conv2d_grad_input(gy: Any, weight: Any, g: ConvGeometry) -> Any:
    """Winograd F(4x4, 3x3) of the upstream gradient with the rotated kernel."""
    pad = (2 - g.padding[0], 2 - g.padding[1])
    return _run(to_nhwc(gy), weight, pad, (g.H, g.W), swap=True)


def conv2d_grad_weight(x: Any, gy: Any, g: ConvGeometry) -> Any:
    """The adjoint of Winograd F(4x4, 3x3)."""
    x, gy = to_nhwc(x), to_nhwc(gy)
    L, workers, dtype = lanes(x.dtype), num_threads(), x.dtype
    C, O, wide = g.C, g.O, g.C % (2 * L) == 0
    tiles = (-(-g.out[0] // 4), -(-g.out[1] // 4))
    total = g.N * tiles[0] * tiles[1]
    sizes = (g.H, g.W, C), (*g.out, O), tiles, g.padding
    if C * O > PHASED_GRADIENT:
        v = memory.empty(ELEMENTS * (total * C + L), dtype)
        w = memory.empty(ELEMENTS * (total * O + L), dtype)
        patches = memory.empty((workers, ELEMENTS * max(C, O)), dtype)
        du = memory.empty((1, ELEMENTS * C * O), dtype)
        _weight_gradient_phased(
            x.reshape(-1), gy.reshape(-1), du, *sizes, workers, v, w, patches, L, wide
        )
    else:
        batch = _batch(total, workers, C + O)
        room = ELEMENTS * (batch * (C + O) + 2 * L + max(C, O))
        work = memory.zeros((workers, room), dtype)
        du = memory.empty((workers, ELEMENTS * C * O), dtype)
        _weight_gradient(x.reshape(-1), gy.reshape(-1), du, *sizes, batch, workers, work, L, wide)
    gweight = memory.empty((O, C, 3, 3), dtype)
    _inverse_weight(du, gweight.reshape(-1), O, C, L, G.astype(dtype))
    return gweight
