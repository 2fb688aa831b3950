"""The weight gradient of any convolution: a sum of outer products, blocked for the caches.

    dW[o, k] = sum over pixels t  gy[t, o] * columns[t, k]        k = (u, v, c)

A small dW is summed by each worker over its own pixels and added up at the end. gy is read where it
lies then, whole rows one after the other, and so is x in a layer of 1x1 and stride 1; the rows of
the next pixels are asked for evenly, a line every few steps of the products. Asked for in bursts,
they are not fetched: the queue of requests is short, and what finds it full is dropped.

A large dW is divided instead: each worker owns ranges of k and o and sums over all pixels. So no dW
is streamed through the cache. `PIXELS` pixels at a time are copied out, ranges of rows of gy and of
columns, with a row length that is no power of two: rows that lie 4 KB apart compete for the same
few places of the caches. For the same reason the sums have rows of such a length, and are put into
dW when they are done. What is multiplied stays in cache: two vectors of columns of `PIXELS` rows in
the first level, the rows of gy and the sums of a range in the second.

What a batch norm and a ReLU would make of x can be made of it as it is copied to columns.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np
from numba import njit

from minires.kernels import memory
from minires.kernels.cpu.copying import (
    AHEAD,
    add_run,
    clear_run,
    copy_rows,
    copy_windows,
    prefetch_run,
)
from minires.kernels.cpu.product import product, product_address, product_to_memory
from minires.kernels.cpu.simd import fmuladd, lanes, load, positive, store
from minires.kernels.cpu.team import parallel
from minires.kernels.cpu.tile import FRESH, ONWARD
from minires.kernels.cpu.weights import taps_last
from minires.kernels.fusing import Before
from minires.kernels.geometry import ConvGeometry
from minires.kernels.layout import to_nhwc
from minires.kernels.threads import num_threads

PIXELS = 128
RANGE = 512  # window elements in a range, or output channels, at most
SMALL = 1 << 17  # elements: a dW of which each worker can keep its own


@njit(cache=True)
def _normalise_windows(x, first, count, k0, k1, sizes, before, out, row, L):
    """`copy_windows` of relu((x - mean) * scale + shift), with zeros around it, not around x.

    C is a multiple of L. The operations, and so the bits, are those of `norm.normalise`.
    """
    H, W, C, _, KW, sh, sw, ph, pw, dh, dw, OH, OW = sizes
    mean, scale, shift = before
    n, rest = first // (OH * OW), first % (OH * OW)
    i, j = rest // OW, rest % OW
    u0, v0, c0 = k0 // (KW * C), k0 // C % KW, k0 % C
    for t in range(count):
        k, u, v, c = k0, u0, v0, c0
        while k < k1:
            h, w = i * sh - ph + u * dh, j * sw - pw + v * dw
            run, to = min(k1 - k, C - c), t * row + k - k0 - c
            if 0 <= h < H and 0 <= w < W:
                at = ((n * H + h) * W + w) * C
                prefetch_run(x, at + AHEAD * sw * C + c, run, L)
                for e in range(c, c + run, L):
                    d = load(x, at + e) - load(mean, e)
                    value = fmuladd(d, load(scale, e), load(shift, e))
                    store(out, to + e, positive(value))
            else:
                clear_run(out, to + c, run, L)
            k, v, c = k + run, v + 1, 0
            if v == KW:
                u, v = u + 1, 0
        j += 1
        if j == OW:
            i, j = i + 1, 0
            if i == OH:
                n, i = n + 1, 0


@njit(cache=True)
def _sum_range(
    address, x, before, gy, dw, begin, end, O, K, sizes, k0, k1, o0, o1, row, step, near, dense,
    work, L,
):  # fmt: skip
    """dw[o*row + k] for o0 <= o < o1, k0 <= k < k1, over pixels begin, ..., end - 1.

    k0 and k1 are whole vectors; where K is less than k1, what is written beyond it is arbitrary.
    step: pixels at a time, at most. near: gy is read where it lies, all of its rows, and x, too,
    if it is dense (its pixels are the windows) and not normalised; and dw holds the sums.
    """
    panel, M, there = 2 * L, o1 - o0, min(k1, K)
    wide, tall = _odd(k1 - k0, L), _odd(M, L)
    to, pairs = o0 * row + k0, (k1 - k0) // panel * panel
    normalised = before[0].size > 0
    # While the first columns are computed gy is asked for, then x: shares as their rows are long.
    some = pairs
    if dense:
        some = min(max(pairs // panel * M // (M + k1 - k0) * panel, panel), pairs)
    c, c_at, c_row = (dw, to, row) if near else (work, step * (wide + tall), wide)
    blocks = (end - begin + step - 1) // step
    for block in range(blocks):
        first = begin + block * (end - begin) // blocks
        after = begin + (block + 1) * (end - begin) // blocks
        count, mode = after - first, ONWARD if block > 0 else FRESH
        coming = min(count, end - after)
        if near and dense and not normalised:
            b, b_at, b_row = x, first * K, K
        else:
            b, b_at, b_row = work, 0, wide
            if normalised:
                _normalise_windows(x, first, count, k0, k1, sizes, before, work, wide, L)
            else:
                copy_windows(x, first, count, k0, there, sizes, work, 0, wide, L)
        if near:
            a, a_at, a_row = gy, first * O, O
        else:
            a, a_at, a_row = work, step * wide, tall
            copy_rows(gy, first * O + o0, O, work, a_at, tall, count, M, L)
        source, ask, ask_row = gy, after * O + o0, O
        run, runs = (coming * O, 1) if near else (M, coming)
        if coming == 0 and not near:  # dw, where the sums will be put
            source, ask, ask_row, run, runs = dw, to, row, k1 - k0, M
        x_run, x_runs = (coming * K, 1) if near else (k1 - k0, coming)
        product_to_memory(
            address, a, a_at, 1, a_row, M, b, b_at, b_row, panel, panel, True, some,
            c, c_at, c_row, count, mode, 1, 0, 0,
            source, ask, run if some > 0 else 0, ask_row, runs,
        )  # fmt: skip
        product_to_memory(
            address, a, a_at, 1, a_row, M, b, b_at + some, b_row, panel, panel, True,
            pairs - some, c, c_at + some, c_row, count, mode, 1, 0, 0,
            x, after * K + k0, x_run if pairs > some else 0, K, x_runs,
        )  # fmt: skip
        product(
            address, a, a_at, 1, a_row, M, b, b_at + pairs, b_row, L, L, False, k1 - k0 - pairs,
            c, c_at + pairs, c_row, count, mode,
        )  # fmt: skip
    if not near:
        copy_rows(work, c_at, wide, dw, to, row, M, k1 - k0, L)


@parallel
def _sum_outer(
    worker, address, x, before, gy, dw, others, parts, pixels, O, K, sizes, k_ranges, o_ranges, row,
    step, near, dense, workers, work, room, L,
):  # fmt: skip
    """dw[o*row + k] over the first part of the pixels, others[(part - 1)*O*row + ...] over the
    rest; `row` is K in whole vectors. Either parts or ranges are one."""
    items, vectors = k_ranges * o_ranges, row // L
    jobs = parts * items
    for job in range(worker * jobs // workers, (worker + 1) * jobs // workers):
        part, item = job // items, job % items
        k, o = item // o_ranges, item % o_ranges
        _sum_range(
            address, x, before, gy, dw if part == 0 else others[(part - 1) * O * row :],
            part * pixels // parts, (part + 1) * pixels // parts, O, K, sizes,
            k * vectors // k_ranges * L, (k + 1) * vectors // k_ranges * L,
            o * O // o_ranges, (o + 1) * O // o_ranges, row, step, near, dense,
            work[worker * room : (worker + 1) * room], L,
        )  # fmt: skip


@parallel
def _add_others(worker, others, parts, size, dw, workers, L):
    vectors = size // L
    begin, end = worker * vectors // workers * L, (worker + 1) * vectors // workers * L
    for part in range(1, parts):
        add_run(others, (part - 1) * size + begin, dw, begin, end - begin, L)


@njit(cache=True)
def _weight_gradient(plan, x, mean, scale, shift, gy, weight, work):
    """All of a pass in one call: from Python each costs as much as a small layer."""
    address, sizes, ranges, pixels, O, K, step, near, dense, workers, room, L = plan
    parts, k_ranges, o_ranges = ranges
    C, row = sizes[2], (K + L - 1) // L * L
    taps, size = K // C, O * row
    rest = work[workers * room :]
    in_place = taps == 1 and row == C
    dw, others = weight if in_place else rest[:size], rest if in_place else rest[size:]
    _sum_outer(
        address, x, (mean, scale, shift), gy, dw, others, parts, pixels, O, K, sizes, k_ranges,
        o_ranges, row, step, near, dense, workers, work, room, L,
    )  # fmt: skip
    if not in_place:
        taps_last(rest[: parts * size].reshape((parts, size)), row, O, C, taps, weight, workers)
    elif parts > 1:
        threads = workers if parts * size > SMALL else 1  # waking them takes longer
        _add_others(others, parts, size, weight, threads, L)


@njit(cache=True)
def _odd(count, L):
    """A row length of at least `count`: an odd number of vectors."""
    return (count + L - 1) // L // 2 * 2 * L + L


def _division(workers: int, vectors: int, O: int, pixels: int, L: int) -> tuple[int, int, int]:
    """Into how many parts the pixels are divided, and into how many ranges k and o."""
    k_ranges, o_ranges = -(-vectors * L // RANGE), -(-O // RANGE)
    if vectors * L * O <= SMALL:
        return min(workers, -(-pixels // PIXELS)), k_ranges, 1
    if k_ranges * o_ranges % workers:  # more along the longer side, as many for every worker
        if vectors * L < O:
            o_ranges = min(-(-o_ranges // workers) * workers, O // L)
        else:
            k_ranges = min(-(-k_ranges // workers) * workers, vectors)
    k_ranges = max(k_ranges, min(-(-workers // o_ranges), vectors))
    return 1, k_ranges, max(o_ranges, min(-(-workers // k_ranges), max(O // L, 1)))


@lru_cache(maxsize=1024)
def _plan(g: ConvGeometry, dtype: Any, workers: int) -> tuple[int, Any, tuple[Any, ...]]:
    """What sizes alone decide, as `columns.Plan`: room for the work, an array of no elements, and
    what `_weight_gradient` unpacks."""
    K, pixels, L = g.kernel[0] * g.kernel[1] * g.C, g.N * g.out[0] * g.out[1], lanes(dtype)
    vectors = -(-K // L)
    parts, k_ranges, o_ranges = _division(workers, vectors, g.O, pixels, L)
    near = vectors * L * g.O <= SMALL
    dense = g.pointwise and g.stride == (1, 1)
    if near and dense:
        k_ranges = 1
    step = 2 * PIXELS if near and g.O <= 2 * PIXELS else PIXELS
    wide, tall = _odd(-(-vectors // k_ranges) * L, L), _odd(-(-g.O // o_ranges), L)
    room = step * (wide + tall) + (0 if near else tall * wide)
    ranges = parts, k_ranges, o_ranges
    fixed = (
        product_address(dtype), g.window_sizes, ranges, pixels, g.O, K, step, near, dense, workers,
        room, L,
    )  # fmt: skip
    return workers * room + parts * g.O * vectors * L, np.empty(0, dtype), fixed


def _grad_weight(x: Any, before: Before | None, gy: Any, g: ConvGeometry) -> Any:
    if 0 in gy.shape:
        return memory.zeros(g.weight_shape, x.dtype)
    room, none, fixed = _plan(g, x.dtype, num_threads())
    weight = memory.empty(g.weight_shape, x.dtype)
    _weight_gradient(
        fixed, to_nhwc(x).reshape(-1), *((none, none, none) if before is None else before),
        to_nhwc(gy).reshape(-1), weight.reshape(-1), memory.empty(room, x.dtype),
    )  # fmt: skip
    return weight


def conv2d_grad_weight(x: Any, gy: Any, g: ConvGeometry) -> Any:
    """Rows of the upstream gradient against columns, in ranges that stay in cache."""
    return _grad_weight(x, None, gy, g)


def conv2d_grad_weight_fused(x: Any, gy: Any, g: ConvGeometry, before: Before) -> Any:
    """The same for relu((x - mean) * scale + shift) as the input: the bits of the two passes.

    Raises ValueError unless C is a multiple of the lanes of a vector.
    """
    L = lanes(x.dtype)
    if g.C % L:
        raise ValueError(
            f"conv2d_grad_weight: {g.C} channels are not whole vectors of {L}; normalise x in a "
            "pass of its own"
        )
    return _grad_weight(x, before, gy, g)
