r"""3x3 convolution of stride 2 with 9/16 of the multiplications: Winograd of the phases.

Along one dimension, with x padded,

    y[i] = w0 x[2i] + w1 x[2i+1] + w2 x[2i+2]

even samples meet two taps, in a convolution of stride 1, odd samples meet one. Of the first kind,
four outputs come from five products by Winograd's F(4, 2), of the second from four: nine where
twelve were, and in two dimensions 81 where 144 were. With points 0, 1, -1, 2 and infinity
(see `winograd_tiles.py` for the general rule), for even samples d0, ..., d4 and e = d3 - d1:

    B^T d                       G w               A^T m
    d0 - d2 + e/2               w0                m0 + m1 + m2 +   m3
    d1 + d2 - e                 (w0 + w2)/2            m1 - m2 + 2 m3
    d2 - d1 - e/3               (w0 - w2)/2            m1 + m2 + 4 m3
    e                           (w0 + 2 w2)/6          m1 - m2 + 8 m3 + m4
    d4 - d2 - 2e                w2

Three outputs take seven products, points 0, 1, -1 and infinity, with the same G but for the fourth
row, which is missing: the corrections by e fall away, and m4, of e itself, belongs to the third
output. So tiles of 4 and of 3 may be mixed, at the price of their products: an image of 7 is cut
into 4 + 3, one of 14 into 4 + 4 + 3 + 3, none with a rest.

In two dimensions every row and column is even or odd, and a 4x4 piece of y is

    y = A^T [ee A + eo] + [oe A + oo]         ee 5x5, eo 5x4, oe 4x5, oo 4x4 products

where an odd index, of samples that are taken as they are, has one tap: of the 81 matrices that
samples are multiplied with only 36 differ. Elements that share one lie together; with T tiles

    ee[i, j]   25 of T rows      eo[i, :]   5 of 4T      oe[:, j]   5 of 4T      oo   1 of 16T

The input gradient is of the same kind. Where h + padding is even, gx[h] meets two taps of
neighbours in gy, where it is odd, one: from 5x5 pixels of gy come 8x8 pixels of gx, phase by phase,

    A^T ee A    A^T eo      two taps down, and across two or one
    oe A        oo          one tap down

with the kernel rotated and its channels swapped. All three transforms have adjoints, hence

    dg = G^T [ sum over tiles (B^T d B) . (A gy A^T) ] G          summed over what shares a tap

Sources: as in `winograd_tiles.py`; that a strided convolution is one of its phases is folklore.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numba import njit

from minires.kernels.cpu.simd import load, positive, store
from minires.kernels.cpu.strided_transforms import (
    gradient_tile,
    input_tile,
    output_tile,
    phases_tile,
)
from minires.kernels.cpu.tilings import place
from minires.kernels.cpu.winograd_moments import add_tile, mask_tile
from minires.kernels.cpu.winograd_tiles import activate_window, copy_window

FOUR, THREE = 0, 6  # where the coefficients of a tile of 4, of 3 begin; see `coefficients`
PATCH = 64  # vectors of a tile of gx, what `store_tiles` needs room for


def coefficients(dtype: Any) -> Any:
    """Factors of e in the rows of B^T, of d4 - d2 in its last one, of m4 in the third output."""
    return np.array([1 / 2, -1, -1 / 3, -2, 1, 0, 0, 0, 0, 1, 0, 1], dtype)


class Steps(NamedTuple):
    """Where the elements of transformed tiles lie: a tile's channels after the other's.

    run: from one element to the next that shares its tap. single, quad: from ee[i, j] to the next,
    from eo[i] or oe[j] to the next, with a vector between: distances of a power of two would
    compete for the same places of the cache. size: of all.
    """

    run: int
    single: int
    quad: int
    size: int


@njit(cache=True)
def steps_of(tiles, channels, L):
    """The `Steps` for a number of tiles and channels."""
    run = tiles * channels
    return Steps(run, run + L, 4 * run + L, 81 * run + 35 * L)


class View(NamedTuple):
    """Which pixels a tile is made of, for input tiles or those of the upstream gradient.

    size: of its window. stride: from one output, or pair of pixels of gx, to the next. top, left:
    where the first tile's window begins. down, along: where its first odd sample lies. every: from
    one even sample to the next.
    """

    size: int
    stride: int
    every: int
    top: int
    left: int
    down: int
    along: int


def input_view(padding: tuple[int, int]) -> View:
    """Windows of x, for the forward pass and for the weight gradient."""
    return View(9, 2, 2, -padding[0], -padding[1], 1, 1)


def gradient_view(padding: tuple[int, int]) -> View:
    """Windows of the upstream gradient, for the input gradient."""
    tops, odd = [(p + 1) // 2 - 1 for p in padding], [1 - p % 2 for p in padding]
    return View(5, 1, 1, *tops, *odd)


@njit(cache=True)
def load_tiles(
    x, before, shape, view, tiling, first, count, begin, channels, v, at, s, patch, coef, L
):  # fmt: skip
    """Transform `channels` channels, from `begin` on, of tiles first, ..., first + count - 1.

    Element by element, as `Steps` says, from v[at] on. before: as in `winograd_tiles.load_tile`.
    """
    H, W, C = shape
    size = view.size
    for t in range(count):
        n, top, left, tall, wide = place(first + t, tiling)
        top, left = view.stride * top + view.top, view.stride * left + view.left
        inside = top >= 0 and left >= 0 and top + size <= H and left + size <= W
        rows, cols, to = FOUR if tall else THREE, FOUR if wide else THREE, at + t * channels
        if inside and before.size == 0:
            source_is_patch = False
        else:
            source_is_patch = True
            if before.size == 0:
                copy_window(x, n, H, W, C, top, left, size, begin, channels, patch, L)
            else:
                activate_window(x, n, H, W, C, top, left, size, begin, channels, before, patch, L)
        pixel = channels if source_is_patch else C
        row = size * pixel if source_is_patch else W * pixel
        source = patch if source_is_patch else x
        corner = 0 if source_is_patch else ((n * H + top) * W + left) * C + begin
        down, odd_down = view.every * row, view.down * row
        along, odd_along, c = view.every * pixel, view.along * pixel, 0
        while c < channels:
            input_tile(
                source, corner + c, v, to + c, coef, rows, cols,
                (down, odd_down, along, odd_along, s.run, s.single, s.quad),
            )  # fmt: skip
            c += L


@njit(cache=True)
def load_gradient_tiles(
    gy, shape, tiling, first, count, begin, channels, w, at, s, coef, L
):  # fmt: skip
    """Transform upstream gradient tiles for the weight gradient: A gy A^T."""
    OH, OW, O = shape
    for t in range(count):
        n, top, left, tall, wide = place(first + t, tiling)
        high, across = min(4 if tall else 3, OH - top), min(4 if wide else 3, OW - left)
        rows, cols = FOUR if tall else THREE, FOUR if wide else THREE
        corner, to, o = ((n * OH + top) * OW + left) * O + begin, at + t * channels, 0
        while o < channels:
            gradient_tile(
                gy, corner + o, w, to + o, coef, rows, cols,
                (OW * O, O, high, across, s.run, s.single, s.quad),
            )  # fmt: skip
            o += L


@njit(cache=True)
def store_tiles(
    m, s, shape, view, phases, tiling, first, count, begin, channels, y, begins, finish, patch,
    coef, L,
):  # fmt: skip
    """Transform products back into pixels of y, or if `phases` of gx; returns their number.

    begins: whether these tiles are the part's first. finish: as `finishing.py` describes it, for
    one part; its shortcut may be y itself, whose numbers are added to then.
    """
    OH, OW, O = shape
    shift, shortcut, rectify = finish.shift, finish.shortcut, finish.rectify
    scale, size, pixels = 2 if phases else 1, 8 if phases else 4, 0
    for t in range(count):
        n, top, left, tall, wide = place(first + t, tiling)
        rows, cols = FOUR if tall else THREE, FOUR if wide else THREE
        top, left = scale * top, scale * left
        high = min(scale * (4 if tall else 3), OH - top)
        across = min(scale * (4 if wide else 3), OW - left)
        corner = ((n * OH + top) * OW + left) * O + begin
        o = 0
        while o < channels:
            at = t * channels + o
            if phases:
                phases_tile(
                    m, at, patch, 0, coef, rows, cols,
                    (view.down, view.along, tall, wide, s.run, s.single, s.quad),
                )  # fmt: skip
            else:
                output_tile(
                    m, at, patch, 0, coef, rows, cols, (tall, wide, s.run, s.single, s.quad)
                )  # fmt: skip
            if finish.x.size > 0:
                mask_tile(
                    patch, size * L, L, y, corner + o, high, across, OW * O, O, begin + o, L,
                    finish, L,
                )  # fmt: skip
                o += L
                continue
            for i in range(high):
                to, p = corner + i * OW * O + o, i * size * L
                for _ in range(across):
                    value = load(patch, p)
                    if shift.size > 0:
                        value = value + load(shift, begin + o)
                    if shortcut.size > 0:
                        value = value + load(shortcut, to)
                    store(y, to, positive(value) if rectify else value)
                    to, p = to + O, p + L
            o += L
        if finish.sums.size > 0 and finish.x.size == 0:
            opens = begins and t == 0
            add_tile(y, corner, high, across, OW * O, O, begin, channels, opens, finish, L)
        pixels += high * across
    return pixels
