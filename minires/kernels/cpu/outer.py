"""The weight gradient of any convolution: a sum of outer products, blocked for the caches.

    dW[o, k] = sum over pixels t  gy[t, o] * columns[t, k]        k = (u, v, c)

`PIXELS` pixels at a time are copied out, rows of gy and of columns, with a row length that is no
power of two: rows that lie 1 or 4 KB apart, as they do in the arrays of most networks, all compete
for the same few places of the first-level cache. What is multiplied stays in cache: `PIXELS` rows
of two vectors of columns in the first level, the rows of gy and the range of dW in the second.

A small dW is summed by each worker over its own pixels and added up at the end. A large one is
divided instead: each worker owns ranges of k (and of o, where there are more workers than ranges)
and sums over all pixels. No column is made twice then, and no dW is streamed through the cache.
"""

from __future__ import annotations

from typing import Any

from numba import njit, prange

from minires.kernels import memory
from minires.kernels.cpu.copying import copy_rows, copy_windows
from minires.kernels.cpu.product import product
from minires.kernels.cpu.simd import lanes
from minires.kernels.cpu.weights import taps_last
from minires.kernels.geometry import ConvGeometry
from minires.kernels.layout import to_nhwc
from minires.kernels.threads import num_threads

PIXELS = 128
RANGE = 384  # window elements in a range, at most
SMALL = 1 << 17  # elements: a dW of which each worker can keep its own


@njit(cache=True)
def _sum_range(x, gy, dw, begin, end, O, K, sizes, k0, k1, o0, o1, row, work, L):
    """dw[o*row + k] for o0 <= o < o1, k0 <= k < k1, over pixels begin, ..., end - 1.

    k0 and k1 are whole vectors; where K is less than k1, what is written beyond it is arbitrary.
    """
    panel, there = 2 * L, min(k1, K)
    wide, tall = _odd(k1 - k0, L), _odd(o1 - o0, L)
    pairs = (k1 - k0) // panel * panel
    gy_at, to = PIXELS * wide, o0 * row + k0
    for first in range(begin, end, PIXELS):
        count, add = min(PIXELS, end - first), first > begin
        copy_windows(x, first, count, k0, there, sizes, work, 0, wide, L)
        copy_rows(gy, first * O + o0, O, work, gy_at, tall, count, o1 - o0, L)
        product(
            work, gy_at, 1, tall, o1 - o0, work, 0, wide, panel, panel, True, pairs,
            dw, to, row, count, add,
        )  # fmt: skip
        product(
            work, gy_at, 1, tall, o1 - o0, work, pairs, wide, L, L, False, k1 - k0 - pairs,
            dw, to + pairs, row, count, add,
        )  # fmt: skip


@njit(cache=True, parallel=True)
def _sum_outer(x, gy, dw, pixels, O, K, sizes, k_ranges, o_ranges, row, workers, work, L):
    """dw[part, o*row + k]; `row` is K in whole vectors. Either parts or ranges are one."""
    parts, items, vectors = len(dw), k_ranges * o_ranges, row // L
    jobs = parts * items
    for worker in prange(workers):
        for job in range(worker * jobs // workers, (worker + 1) * jobs // workers):
            part, item = job // items, job % items
            k, o = item // o_ranges, item % o_ranges
            _sum_range(
                x, gy, dw[part], part * pixels // parts, (part + 1) * pixels // parts, O, K, sizes,
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


def conv2d_grad_weight(x: Any, gy: Any, g: ConvGeometry) -> Any:
    """Rows of the upstream gradient against columns, in ranges that stay in cache."""
    x, gy, L = to_nhwc(x), to_nhwc(gy), lanes(x.dtype)
    K, pixels, workers = g.kernel[0] * g.kernel[1] * g.C, g.N * g.out[0] * g.out[1], num_threads()
    vectors = -(-K // L)
    parts, k_ranges, o_ranges = _division(workers, vectors, g.O, pixels, L)
    longest = _odd(-(-vectors // k_ranges) * L, L) + _odd(-(-g.O // o_ranges), L)
    dw = memory.empty((parts, g.O * vectors * L), x.dtype)
    work = memory.empty((workers, PIXELS * longest), x.dtype)
    _sum_outer(
        x.reshape(-1), gy.reshape(-1), dw, pixels, g.O, K, g.window_sizes,
        k_ranges, o_ranges, vectors * L, workers, work, L,
    )  # fmt: skip
    return taps_last(dw, vectors * L, g.weight_shape)
