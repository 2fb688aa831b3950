"""The weight gradient of any convolution: a sum of outer products, blocked for the caches.

    dW[o, k] = sum over pixels t  gy[t, o] * columns[t, k]        k = (u, v, c)

`PIXELS` pixels at a time are copied out, rows of gy and of columns, with a row length that is no
power of two: rows that lie 1 or 4 KB apart, as they do in the arrays of most networks, all compete
for the same few places of the first-level cache. What is multiplied stays in cache: `PIXELS` rows
of two vectors of columns in the first level, the rows of gy and the range of dW in the second.

A small dW is summed by each worker over its own pixels and added up at the end. A large one is
divided instead: each worker owns ranges of k (and of o, where there are more workers than ranges)
and sums over all pixels. No column is made twice then, and no dW is streamed through the cache.

What a batch norm and a ReLU would make of x can be made of the columns instead, a few of them at a
time, while they are in the first-level cache; only padding stays what it is, zero.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit, prange

from minires.kernels import memory
from minires.kernels.cpu.copying import copy_rows, copy_windows
from minires.kernels.cpu.product import product, product_address
from minires.kernels.cpu.simd import fmuladd, lanes, load, positive, store
from minires.kernels.cpu.tile import FRESH, ONWARD
from minires.kernels.cpu.weights import taps_last
from minires.kernels.fusing import Before
from minires.kernels.geometry import ConvGeometry
from minires.kernels.layout import to_nhwc
from minires.kernels.threads import num_threads

PIXELS = 128
FEW = 16  # pixels whose columns are normalised at a time
RANGE = 384  # window elements in a range, at most
SMALL = 1 << 17  # elements: a dW of which each worker can keep its own


@njit(cache=True)
def _normalise_windows(
    columns, to, row, first, count, k0, k1, sizes, mean, scale, shift, L
):  # fmt: skip
    """relu((v - mean) * scale + shift) of copied windows, where they lie within the image.

    C is a multiple of L. The operations, and so the bits, are those of `norm.normalise`.
    """
    H, W, C, _, KW, sh, sw, ph, pw, dh, dw, OH, OW = sizes
    i, j = first // OW % OH, first % OW
    for t in range(count):
        k, tap, c0 = k0, k0 // C, k0 % C
        while k < k1:
            h, w = i * sh - ph + tap // KW * dh, j * sw - pw + tap % KW * dw
            run, at = min(k1 - k, C - c0), to + t * row + k - k0 - c0
            if 0 <= h < H and 0 <= w < W:
                for c in range(c0, c0 + run, L):
                    d = load(columns, at + c) - load(mean, c)
                    value = fmuladd(d, load(scale, c), load(shift, c))
                    store(columns, at + c, positive(value))
            k, tap, c0 = k + run, tap + 1, 0
        j += 1
        if j == OW:
            i, j = (i + 1) % OH, 0


@njit(cache=True)
def _copy_columns(x, first, count, k0, k1, sizes, before, columns, row, L):
    """Elements k0 to k1 of the windows under `count` pixels, normalised if `before` says how."""
    mean, scale, shift = before
    if mean.size == 0:
        copy_windows(x, first, count, k0, k1, sizes, columns, 0, row, L)
        return
    for t in range(0, count, FEW):
        few = min(FEW, count - t)
        copy_windows(x, first + t, few, k0, k1, sizes, columns, t * row, row, L)
        _normalise_windows(
            columns, t * row, row, first + t, few, k0, k1, sizes, mean, scale, shift, L
        )  # fmt: skip


@njit(cache=True)
def _sum_range(
    address, x, before, gy, dw, begin, end, O, K, sizes, k0, k1, o0, o1, row, work, L
):  # fmt: skip
    """dw[o*row + k] for o0 <= o < o1, k0 <= k < k1, over pixels begin, ..., end - 1.

    k0 and k1 are whole vectors; where K is less than k1, what is written beyond it is arbitrary.
    """
    panel, there = 2 * L, min(k1, K)
    wide, tall = _odd(k1 - k0, L), _odd(o1 - o0, L)
    pairs = (k1 - k0) // panel * panel
    gy_at, to = PIXELS * wide, o0 * row + k0
    for first in range(begin, end, PIXELS):
        count, add = min(PIXELS, end - first), ONWARD if first > begin else FRESH
        _copy_columns(x, first, count, k0, there, sizes, before, work, wide, L)
        copy_rows(gy, first * O + o0, O, work, gy_at, tall, count, o1 - o0, L)
        product(
            address, work, gy_at, 1, tall, o1 - o0, work, 0, wide, panel, panel, True, pairs,
            dw, to, row, count, add,
        )  # fmt: skip
        product(
            address, work, gy_at, 1, tall, o1 - o0, work, pairs, wide, L, L, False, k1 - k0 - pairs,
            dw, to + pairs, row, count, add,
        )  # fmt: skip


@njit(cache=True, parallel=True)
def _sum_outer(
    address, x, before, gy, dw, pixels, O, K, sizes, k_ranges, o_ranges, row, workers, work, L
):  # fmt: skip
    """dw[part, o*row + k]; `row` is K in whole vectors. Either parts or ranges are one."""
    parts, items, vectors = len(dw), k_ranges * o_ranges, row // L
    jobs = parts * items
    for worker in prange(workers):
        for job in range(worker * jobs // workers, (worker + 1) * jobs // workers):
            part, item = job // items, job % items
            k, o = item // o_ranges, item % o_ranges
            _sum_range(
                address, x, before, gy, dw[part],
                part * pixels // parts, (part + 1) * pixels // parts, O, K, sizes,
                k * vectors // k_ranges * L, (k + 1) * vectors // k_ranges * L,
                o * O // o_ranges, (o + 1) * O // o_ranges, row, work[worker], L,
            )  # fmt: skip


@njit(cache=True)
def _odd(count, L):
    """A row length of at least `count`: an odd number of vectors."""
    return (count + L - 1) // L // 2 * 2 * L + L


def _division(workers: int, vectors: int, O: int, pixels: int, L: int) -> tuple[int, int, int]:
    """Into how many parts the pixels are divided, and into how many ranges k and o."""
    k_ranges = -(-vectors * L // RANGE)
    if vectors * L * O <= SMALL:
        return min(workers, -(-pixels // PIXELS)), k_ranges, 1
    k_ranges = min(-(-k_ranges // workers) * workers, vectors)
    return 1, k_ranges, min(-(-workers // k_ranges), max(O // L, 1))


def _grad_weight(x: Any, before: tuple[Any, Any, Any], gy: Any, g: ConvGeometry) -> Any:
    x, gy, L = to_nhwc(x), to_nhwc(gy), lanes(x.dtype)
    K, pixels, workers = g.kernel[0] * g.kernel[1] * g.C, g.N * g.out[0] * g.out[1], num_threads()
    if pixels == 0:
        return memory.zeros(g.weight_shape, x.dtype)
    vectors = -(-K // L)
    parts, k_ranges, o_ranges = _division(workers, vectors, g.O, pixels, L)
    longest = _odd(-(-vectors // k_ranges) * L, L) + _odd(-(-g.O // o_ranges), L)
    dw = memory.empty((parts, g.O * vectors * L), x.dtype)
    work = memory.empty((workers, PIXELS * longest), x.dtype)
    _sum_outer(
        product_address(x.dtype), x.reshape(-1), before, gy.reshape(-1), dw, pixels, g.O, K,
        g.window_sizes, k_ranges, o_ranges, vectors * L, workers, work, L,
    )  # fmt: skip
    return taps_last(dw, vectors * L, g.weight_shape)


def conv2d_grad_weight(x: Any, gy: Any, g: ConvGeometry) -> Any:
    """Rows of the upstream gradient against columns, in ranges that stay in cache."""
    nothing = np.empty(0, x.dtype)
    return _grad_weight(x, (nothing, nothing, nothing), gy, g)


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
    return _grad_weight(x, tuple(before), gy, g)
