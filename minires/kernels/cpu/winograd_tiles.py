r"""3x3 convolution with a quarter of the multiplications: Winograd's F(4x4, 3x3).

A 4x4 piece y of the output depends on a 6x6 piece d of the input. Both, and the 3x3 kernel g, can
be seen as polynomials in two variables; the product of polynomials is the pointwise product of
their values at enough points (Cook, Toom). With five points p and infinity:

    y = A^T [ (G g G^T) . (B^T d B) ] A        "." pointwise: 36 products where 144 were

    M(x) = prod_p (x - p)
    row p of B^T: the coefficients of M(x) / (x - p)         last row: those of M(x)
    row p of G:   (1, p, p^2) / prod_{q != p} (p - q)        last row: (0, 0, 1)
    col p of A^T: (1, p, p^2, p^3)                           last column: (0, 0, 0, 1)

Summed over channels the pointwise product becomes 36 matrix products, (tiles x C) @ (C x O).
The points are 0, +-3/4 and +-3/2: with +-1 and +-2, the usual choice, the entries of B^T and A^T
spread further apart and rounding errors are some three times as large. Both the points and the
constants made of them are exact in float32.

The transforms are adjoint to each other, so the gradients use the same pieces:

    input gradient   the same convolution of gy, with the kernel rotated and its channels swapped
    weight gradient  dg = G^T [ sum over tiles (B^T d B) . (A gy A^T) ] G

Sources: Winograd, Arithmetic Complexity of Computations (1980); Lavin & Gray (2015), section 4;
Barabasz et al. (2018) on the choice of points.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numba import njit

from minires.kernels.cpu.simd import (
    fill,
    fmuladd,
    fnmuladd,
    load,
    load_where,
    positive,
    store,
    stream,
)
from minires.kernels.cpu.winograd_moments import add_tile, mask_tile

POINT_A, POINT_B = 0.75, 1.5
AA, BB = POINT_A**2, POINT_B**2


def kernel_matrix() -> np.ndarray:
    """G, (6, 3)."""
    points = [0.0, POINT_A, -POINT_A, POINT_B, -POINT_B]
    rows = []
    for p in points:
        scale = np.prod([p - q for q in points if q != p])
        rows.append([1 / scale, p / scale, p * p / scale])
    return np.array([*rows, [0.0, 0.0, 1.0]])


G = kernel_matrix()


class Constants(NamedTuple):
    """The numbers of the one-dimensional transforms, each in every lane."""

    a: Any
    b: Any
    aa: Any
    bb: Any
    aabb: Any
    aa_bb: Any
    aaa: Any
    bbb: Any


@njit(cache=True)
def constants(like):
    """`Constants` as vectors of `like`'s dtype."""
    return Constants(
        fill(like, POINT_A),
        fill(like, POINT_B),
        fill(like, AA),
        fill(like, BB),
        fill(like, AA * BB),
        fill(like, AA + BB),
        fill(like, POINT_A * AA),
        fill(like, POINT_B * BB),
    )


@njit(cache=True)
def _rest(d0, d2, d4, k):
    """The row of B^T d for the point 0 from d0, d2, d4, or for infinity from d1, d3, d5."""
    return fmuladd(k.aabb, d0, fnmuladd(k.aa_bb, d2, d4))


@njit(cache=True)
def _pair(d1, d2, d3, d4, p, qq):
    """The rows of B^T d for the points p and -p; the other two are +-q."""
    even, odd = fnmuladd(qq, d2, d4), p * fnmuladd(qq, d1, d3)
    return even + odd, even - odd


@njit(cache=True)
def b_transposed(d0, d1, d2, d3, d4, d5, k):
    """B^T d for one line of six vectors."""
    plus_a, minus_a = _pair(d1, d2, d3, d4, k.a, k.bb)
    plus_b, minus_b = _pair(d1, d2, d3, d4, k.b, k.aa)
    return _rest(d0, d2, d4, k), plus_a, minus_a, plus_b, minus_b, _rest(d1, d3, d5, k)


@njit(cache=True)
def a_transposed(m0, m1, m2, m3, m4, m5, k):
    """A^T m for one line of six vectors: four outputs."""
    sum_a, diff_a = m1 + m2, m1 - m2
    sum_b, diff_b = m3 + m4, m3 - m4
    return (
        m0 + sum_a + sum_b,
        fmuladd(k.a, diff_a, k.b * diff_b),
        fmuladd(k.aa, sum_a, k.bb * sum_b),
        fmuladd(k.aaa, diff_a, fmuladd(k.bbb, diff_b, m5)),
    )


@njit(cache=True)
def a_times(y0, y1, y2, y3, k):
    """A y for one line of four vectors: the adjoint of `_at`."""
    even_a, odd_a = fmuladd(k.aa, y2, y0), fmuladd(k.aaa, y3, k.a * y1)
    even_b, odd_b = fmuladd(k.bb, y2, y0), fmuladd(k.bbb, y3, k.b * y1)
    return y0, even_a + odd_a, even_a - odd_a, even_b + odd_b, even_b - odd_b, y3


@njit(cache=True)
def store6(out, at, step, v):
    store(out, at, v[0])
    store(out, at + step, v[1])
    store(out, at + 2 * step, v[2])
    store(out, at + 3 * step, v[3])
    store(out, at + 4 * step, v[4])
    store(out, at + 5 * step, v[5])


@njit(cache=True)
def _load_rest(x, at, row, k):
    return _rest(load(x, at), load(x, at + 2 * row), load(x, at + 4 * row), k)


@njit(cache=True)
def _load_pair(x, at, row, p, qq):
    d1, d2 = load(x, at + row), load(x, at + 2 * row)
    return _pair(d1, d2, load(x, at + 3 * row), load(x, at + 4 * row), p, qq)


@njit(cache=True, forceinline=True)
def _input_rest(x, p, row, C, out, q, step, k):
    """One row of B^T d B, for the point 0 or, one row further down in x, for infinity."""
    z0 = _load_rest(x, p, row, k)
    z1 = _load_rest(x, p + C, row, k)
    z2 = _load_rest(x, p + 2 * C, row, k)
    z3 = _load_rest(x, p + 3 * C, row, k)
    z4 = _load_rest(x, p + 4 * C, row, k)
    z5 = _load_rest(x, p + 5 * C, row, k)
    store6(out, q, step, b_transposed(z0, z1, z2, z3, z4, z5, k))


@njit(cache=True, forceinline=True)
def _input_pair(x, p, row, C, out, q, step, point, qq, k):
    """Two rows of B^T d B, for a point and its negative."""
    z0 = _load_pair(x, p, row, point, qq)
    z1 = _load_pair(x, p + C, row, point, qq)
    z2 = _load_pair(x, p + 2 * C, row, point, qq)
    z3 = _load_pair(x, p + 3 * C, row, point, qq)
    z4 = _load_pair(x, p + 4 * C, row, point, qq)
    z5 = _load_pair(x, p + 5 * C, row, point, qq)
    store6(out, q, step, b_transposed(z0[0], z1[0], z2[0], z3[0], z4[0], z5[0], k))
    store6(out, q + 6 * step, step, b_transposed(z0[1], z1[1], z2[1], z3[1], z4[1], z5[1], k))


@njit(cache=True, forceinline=True)
def _input_tile(x, at, row, C, channels, out, to, step, L, k):
    """B^T d B of one 6x6 tile: x[at + i*row + j*C + c] -> out[to + (6*i + j)*step + c].

    Row by row of the result: all 36 vectors at once do not fit the registers, reading x again does.
    """
    c = 0
    while c < channels:
        p, q = at + c, to + c
        _input_rest(x, p, row, C, out, q, step, k)
        _input_pair(x, p, row, C, out, q + 6 * step, step, k.a, k.bb, k)
        _input_pair(x, p, row, C, out, q + 18 * step, step, k.b, k.aa, k)
        _input_rest(x, p + row, row, C, out, q + 30 * step, step, k)
        c += L


@njit(cache=True)
def _output_line(m, at, step, k):
    return a_transposed(
        load(m, at),
        load(m, at + 6 * step),
        load(m, at + 12 * step),
        load(m, at + 18 * step),
        load(m, at + 24 * step),
        load(m, at + 30 * step),
        k,
    )


@njit(cache=True)
def store4(out, at, step, v):
    store(out, at, v[0])
    store(out, at + step, v[1])
    store(out, at + 2 * step, v[2])
    store(out, at + 3 * step, v[3])


@njit(cache=True, forceinline=True)
def _output_tile(m, at, step, y, to, row, O, channels, L, k):
    """A^T m A of one tile: m[at + (6*i + j)*step + o] -> y[to + i*row + j*O + o], 4x4 pixels."""
    o = 0
    while o < channels:
        p, q = at + o, to + o
        m0 = _output_line(m, p, step, k)
        m1 = _output_line(m, p + step, step, k)
        m2 = _output_line(m, p + 2 * step, step, k)
        m3 = _output_line(m, p + 3 * step, step, k)
        m4 = _output_line(m, p + 4 * step, step, k)
        m5 = _output_line(m, p + 5 * step, step, k)
        store4(y, q, O, a_transposed(m0[0], m1[0], m2[0], m3[0], m4[0], m5[0], k))
        store4(y, q + row, O, a_transposed(m0[1], m1[1], m2[1], m3[1], m4[1], m5[1], k))
        store4(y, q + 2 * row, O, a_transposed(m0[2], m1[2], m2[2], m3[2], m4[2], m5[2], k))
        store4(y, q + 3 * row, O, a_transposed(m0[3], m1[3], m2[3], m3[3], m4[3], m5[3], k))
        o += L


@njit(cache=True, forceinline=True)
def _gradient_line(gy, at, row, k):
    return a_times(
        load(gy, at), load(gy, at + row), load(gy, at + 2 * row), load(gy, at + 3 * row), k
    )  # fmt: skip


@njit(cache=True, forceinline=True)
def gradient_vector(gy, at, row, O, out, to, step, k):
    """A gy A^T of one vector of a 4x4 tile: gy[at + i*row + j*O] -> out[to + (6*i + j)*step]."""
    g0 = _gradient_line(gy, at, row, k)
    g1 = _gradient_line(gy, at + O, row, k)
    g2 = _gradient_line(gy, at + 2 * O, row, k)
    g3 = _gradient_line(gy, at + 3 * O, row, k)
    store6(out, to, step, a_times(g0[0], g1[0], g2[0], g3[0], k))
    store6(out, to + 6 * step, step, a_times(g0[1], g1[1], g2[1], g3[1], k))
    store6(out, to + 12 * step, step, a_times(g0[2], g1[2], g2[2], g3[2], k))
    store6(out, to + 18 * step, step, a_times(g0[3], g1[3], g2[3], g3[3], k))
    store6(out, to + 24 * step, step, a_times(g0[4], g1[4], g2[4], g3[4], k))
    store6(out, to + 30 * step, step, a_times(g0[5], g1[5], g2[5], g3[5], k))


@njit(cache=True, forceinline=True)
def _gradient_tile(gy, at, row, O, channels, out, to, step, L, k):
    """The same of `channels` channels."""
    o = 0
    while o < channels:
        gradient_vector(gy, at + o, row, O, out, to + o, step, k)
        o += L


@njit(cache=True, forceinline=True)
def copy_window(x, n, H, W, C, top, left, size, begin, channels, patch, L):
    """A size x size window of image n into `patch`, with zeros where it leaves the image."""
    to = 0
    for i in range(size):
        row = 0 <= top + i < H
        pixel = ((n * H + top + i) * W + left) * C + begin
        for j in range(size):
            inside = row and 0 <= left + j < W
            c = 0
            while c < channels:  # a range whose step is not constant costs a division
                store(patch, to, load_where(x, pixel + c, inside))
                to, c = to + L, c + L
            pixel += C


@njit(cache=True)
def activate_window(x, n, H, W, C, top, left, size, begin, channels, before, patch, L):
    """A window of relu((x - mean) * scale + shift), with zeros where it leaves the image."""
    i0, i1, j0, j1 = max(0, -top), min(size, H - top), max(0, -left), min(size, W - left)
    inside = i1 - i0 + j1 - j0 == 2 * size
    corner, zero, c = ((n * H + top) * W + left) * C + begin, fill(x, 0.0), 0
    while c < channels:
        at = begin + c
        mean, scale, shift = load(before, at), load(before, C + at), load(before, 2 * C + at)
        if not inside:
            for pixel in range(size * size):
                store(patch, pixel * channels + c, zero)
        for i in range(i0, i1):
            for j in range(j0, j1):
                d = load(x, corner + (i * W + j) * C + c) - mean
                value = positive(fmuladd(d, scale, shift))
                store(patch, (i * size + j) * channels + c, value)
        c += L


@njit(cache=True, forceinline=True)
def load_tile(
    x, before, shape, n, top, left, begin, channels, v, to, step, patch, L, k
):  # fmt: skip
    """Transform `channels` channels, from `begin` on, of the 6x6 pixels of image n from (top, left)
    on, to v[to + (6*i + j)*step + c].

    before: mean, scale and shift of all channels, to transform relu((x - mean) * scale + shift);
    of size 0 to transform x itself.
    """
    H, W, C = shape
    inside = top >= 0 and left >= 0 and top + 6 <= H and left + 6 <= W
    if inside and before.size == 0:
        corner = ((n * H + top) * W + left) * C + begin
        _input_tile(x, corner, W * C, C, channels, v, to, step, L, k)
    else:
        if before.size == 0:
            copy_window(x, n, H, W, C, top, left, 6, begin, channels, patch, L)
        else:
            activate_window(x, n, H, W, C, top, left, 6, begin, channels, before, patch, L)
        _input_tile(patch, 0, 6 * channels, channels, channels, v, to, step, L, k)


@njit(cache=True, forceinline=True)
def load_gradient_tile(
    gy, corner, row, O, height, width, channels, w, to, step, patch, L, k
):  # fmt: skip
    """Transform the pixels gy[corner + i*row + j*O + o], i < height, j < width, 4x4 with zeros."""
    if height == 4 and width == 4:
        _gradient_tile(gy, corner, row, O, channels, w, to, step, L, k)
        return
    p = 0
    for i in range(4):
        for j in range(4):
            inside, o = i < height and j < width, 0
            while o < channels:
                store(patch, p, load_where(gy, corner + i * row + j * O + o, inside))
                p, o = p + L, o + L
    _gradient_tile(patch, 0, 4 * channels, channels, channels, w, to, step, L, k)


@njit(cache=True, forceinline=True)
def store_tile(
    m, at, step, y, corner, row, O, height, width, begin, channels, past, opens, finish, patch, L, k
):  # fmt: skip
    """Transform m[at + (6*i + j)*step + o] into y[corner + i*row + j*O + o], i < height, j < width.

    past: whether to write y past the caches. opens: whether the tile is the part's first. finish:
    what `finishing.py` says, for one part; its shortcut may be y itself, whose numbers are added to
    then.
    """
    shift, shortcut, rectify = finish.shift, finish.shortcut, finish.rectify
    plain = shift.size == 0 and shortcut.size == 0 and finish.x.size == 0 and not past
    if height == 4 and width == 4 and plain:
        _output_tile(m, at, step, y, corner, row, O, channels, L, k)
        if finish.sums.size > 0:
            add_tile(y, corner, 4, 4, row, O, begin, channels, opens, finish, L)
        return
    line = 4 * channels
    _output_tile(m, at, step, patch, 0, line, channels, channels, L, k)
    if finish.x.size > 0:
        mask_tile(
            patch, line, channels, y, corner, height, width, row, O, begin, channels, finish, L
        )  # fmt: skip
        return
    for i in range(height):
        for j in range(width):
            to, o = corner + i * row + j * O, 0
            while o < channels:
                value = load(patch, i * line + j * channels + o)
                if shift.size > 0:
                    value = value + load(shift, begin + o)
                if shortcut.size > 0:
                    value = value + load(shortcut, to + o)
                if rectify:
                    value = positive(value)
                if past:
                    stream(y, to + o, value)
                else:
                    store(y, to + o, value)
                o += L
    if finish.sums.size > 0:  # of patch: what went past the caches is not read again
        add_tile(patch, 0, height, width, line, channels, begin, channels, opens, finish, L)
