"""What a convolution does to rows of its input or output while they are in cache.

    before     out = relu((x - mean) * scale + shift)
    after      y   = y + shift + shortcut, and its positive part if rectified
    moments    mean and biased variance of y per channel
    rectified  g   = g where the ReLU's output is positive, else 0; sums of g and g (x - mean)

A row is one pixel, its C or O channels side by side, in whole vectors. The operations, and so the
bits, of the first two are those of `norm.normalise`, and the mask is that of the same.

Moments: a worker sums d = y - r and d^2 with r the first pixel it computed, so that a mean of 1e4
with a deviation of 1 does not cancel; over a block of rows in the array's own precision, over
blocks in float64. The workers' sums are merged in order (Chan, Golub and LeVeque 1979, eq. 2.1):

    delta = mean_b - mean_a
    mean  = mean_a + delta * n_b / (n_a + n_b)
    M2    = M2_a + M2_b + delta^2 * n_a * n_b / (n_a + n_b)         M2 = n * var
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
from numba import njit

from minires.kernels.cpu import channels
from minires.kernels.cpu.copying import copy_run
from minires.kernels.cpu.simd import (
    add_wide,
    fill,
    fmuladd,
    lanes,
    load,
    positive,
    store,
    where_positive,
)
from minires.kernels.fusing import After, Before, Rectified
from minires.kernels.layout import to_nhwc


class Finish(NamedTuple):
    """What becomes of rows of y; arrays of no elements for what is not asked for.

    shift: (O,). shortcut: flat, as y. sums: (workers, 2, O) of d and d^2, in float64.
    kept: (workers, O + 2*L), the pixel that each worker sums from, and room for two vectors.
    x, output, norm: of `Rectified` if y is a gradient, x and y flat, then mean, scale and shift in
    one array; the sums are then those of the gradient.
    """

    shift: Any
    shortcut: Any
    rectify: bool
    kept: Any
    sums: Any
    x: Any
    output: Any
    norm: Any


@njit(cache=True)
def part_of(finish, part):
    """The same with what belongs to one worker, or chunk."""
    return Finish(
        finish.shift, finish.shortcut, finish.rectify, finish.kept[part], finish.sums[part],
        finish.x, finish.output, finish.norm,
    )  # fmt: skip


@njit(cache=True, forceinline=True)
def masked(gradient, finish, at, mean, scale, shift):
    """A vector of the gradient at `at`, masked, and x - mean there."""
    d = load(finish.x, at) - mean
    if finish.output.size:
        return where_positive(load(finish.output, at), gradient), d
    return where_positive(fmuladd(d, scale, shift), gradient), d


@njit(cache=True)
def normalise_rows(x, at, rows, C, before, out, to, L):
    """out = relu((x - mean) * scale + shift) for rows of x; before: mean, scale, shift, flat."""
    for r in range(0, rows * C, C):
        for c in range(0, C, L):
            d = load(x, at + r + c) - load(before, c)
            value = fmuladd(d, load(before, C + c), load(before, 2 * C + c))
            store(out, to + r + c, positive(value))


@njit(cache=True)
def _add_moments(y, at, rows, O, kept, sums, L):
    """Add the rows' sums of d and d^2 to those of a worker.

    Every second row has sums of its own, so that no sum waits for itself.
    """
    end = at + rows * O
    for o in range(0, O, L):
        first = load(kept, o)
        a, b = fill(y, 0.0), fill(y, 0.0)
        a2, b2 = fill(y, 0.0), fill(y, 0.0)
        for r in range(at + o, end - O, 2 * O):
            d, d2 = load(y, r) - first, load(y, r + O) - first
            a, a2 = a + d, a2 + d2
            b, b2 = fmuladd(d, d, b), fmuladd(d2, d2, b2)
        if rows % 2 == 1:
            d = load(y, end - O + o) - first
            a, b = a + d, fmuladd(d, d, b)
        add_wide(sums[0], o, a + a2)
        add_wide(sums[1], o, b + b2)


@njit(cache=True)
def _shift_rows(y, at, rows, O, shift, shortcut, rectify, L):
    """y + shift + shortcut, in place."""
    for r in range(at, at + rows * O, O):
        for o in range(0, O, L):
            value = load(y, r + o) + load(shift, o)
            if shortcut.size:
                value = value + load(shortcut, r + o)
            store(y, r + o, positive(value) if rectify else value)


@njit(cache=True)
def finish_rows(y, at, rows, O, shift, shortcut, rectify, kept, sums, begins, L):
    """The rows of y from `at` on, just computed by the owner of kept and sums; `begins`: its first.
    """
    if shift.size:
        _shift_rows(y, at, rows, O, shift, shortcut, rectify, L)
    if sums.size:
        if begins:
            copy_run(y, at, kept, 0, O, L)
        _add_moments(y, at, rows, O, kept, sums, L)


@njit(cache=True)
def mask_rows(gradient, at, rows, C, finish, L):
    """Mask rows of the gradient, just computed, in place, and add them to the sums of a part.

    Row by row, as x and the output lie in memory: they come from there.
    """
    norm = finish.norm
    for row in range(at, at + rows * C, C):
        for c in range(0, C, L):
            mean, scale, shift = load(norm, c), load(norm, C + c), load(norm, 2 * C + c)
            p = row + c
            value, d = masked(load(gradient, p), finish, p, mean, scale, shift)
            store(gradient, p, value)
            add_wide(finish.sums[0], c, value)
            add_wide(finish.sums[1], c, value * d)


@njit(cache=True)
def _joined(mean, scale, shift):
    # NumPy's takes 20 us here, as its code is in no cache.
    C = len(mean)
    norm = np.empty(3 * C, mean.dtype)
    norm[:C], norm[C : 2 * C], norm[2 * C :] = mean, scale, shift
    return norm


def flat_before(before: Before | None, dtype: Any) -> Any:
    """Mean, scale and shift in one array; of no elements where there is nothing to do."""
    return np.empty(0, dtype) if before is None else _joined(*before)


@lru_cache
def nothing(workers: int, dtype: Any) -> Finish:
    """A result that is stored as it is."""
    empty = np.empty(0, dtype)
    kept, sums = np.empty((workers, 0), dtype), np.empty((workers, 2, 0))
    return Finish(empty, empty, False, kept, sums, empty, empty, empty)


def finish_of(
    after: After | None, moments: bool, O: int, workers: int, dtype: Any, total: Any = None
) -> Finish:
    """The parts that are asked for, with room for the sums. total: flat, what is added to.

    Raises ValueError for both: the moments of which, before the shift or after it?
    """
    shift, shortcut, rectify, kept, sums, *none = nothing(workers, dtype)
    check_after(after, moments)
    if moments:
        kept, sums = np.empty((workers, O + 2 * lanes(dtype)), dtype), np.zeros((workers, 2, O))
    if total is not None:
        shortcut = total
    if after is not None:
        shift, rectify = after.shift, after.rectify
        if after.shortcut is not None:
            shortcut = to_nhwc(after.shortcut).reshape(-1)
    return Finish(shift, shortcut, rectify, kept, sums, *none)


def masking(rectified: Rectified, workers: int, total: Any = None) -> Finish:
    """What `rectified` makes of a gradient, with room for the sums. total: flat, what is added."""
    x, *norm, y = rectified
    shift, shortcut, _, kept, _, _, output, _ = nothing(workers, x.dtype)
    if y is not None:
        output = to_nhwc(y).reshape(-1)
    if total is not None:
        shortcut = total
    sums = np.zeros((workers, 2, x.shape[1]))
    x = to_nhwc(x).reshape(-1)
    return Finish(shift, shortcut, False, kept, sums, x, output, _joined(*norm))


@njit(cache=True)
def clear_sums(sums):
    """Zeros, before a worker's first row."""
    for i in range(len(sums)):
        for o in range(sums.shape[1]):
            sums[i, o] = 0


@njit(cache=True)
def add_parts(sums):
    """The sums of all parts, in order, become those of the first."""
    total = sums[0]
    for part in range(1, len(sums)):
        for i in range(2):
            for o in range(sums.shape[2]):
                total[i, o] += sums[part, i, o]


def added_sums(finish: Finish) -> Any:
    """The sums of all parts, in order; in the memory of the first."""
    # NumPy's reduction takes 30 us here: after a kernel its code is in no cache.
    add_parts(finish.sums)
    return finish.sums[0]


def merged_moments(finish: Finish, counts: Any) -> tuple[Any, Any]:
    """Mean and biased variance of all rows; counts: each worker's.

    Raises ValueError if there are none.
    """
    counts = np.asarray(counts, np.int64)
    check_pixels(sum(counts.tolist()))
    return channels.merged(finish.kept, finish.sums, counts)


def check_before(before: Before | None, possible: bool) -> None:
    """Raises ValueError for a `before` where it is not possible."""
    if before is not None and not possible:
        raise ValueError(
            "conv2d: `before` needs a 1x1 kernel of stride 1 without padding and channels in whole "
            "vectors; normalise x in a pass of its own"
        )


def check_after(after: After | None, moments: bool) -> None:
    """Raises ValueError for both `after` and `moments`."""
    if after is not None and moments:
        raise ValueError("conv2d: either `after` or `moments`, not both: call it without one")


def check_pixels(count: int) -> None:
    """Raises ValueError if there are none whose mean could be taken."""
    if count == 0:
        raise ValueError("conv2d: no pixels, so they have no mean; the batch is empty")
