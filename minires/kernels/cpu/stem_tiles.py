r"""A first layer's 7x7 convolution of stride 2 with a fifth of the multiplications: F(4x4, 4x4).

Rows of even and of odd numbers make two images of half the height, and so do columns: with phases
p, q in {0, 1} and a kernel filled up with zeros to 8x8,

    y[i, j] = sum over c, p, q, a, b < 4   x_pq[i + a, j + b, c] * w[2a + p, 2b + q, c]

is a 4x4 convolution of stride 1 of an image with 4C channels, the C channels of each phase. For
that there is Winograd's algorithm, as in `winograd_tiles.py`, with seven points for six: the six
p = +-3/8, +-7/8, +-7/4 and infinity. A 4x4 piece of y depends on 7x7 pixels d of four phases:

    y = A^T [ (G g G^T) . (B^T d B) ] A        "." pointwise: 49 products where 4 * 64 were

    M(x) = prod_p (x - p)
    row p of B^T: the coefficients of M(x) / (x - p)           last row: those of M(x)
    row p of G:   (1, p, p^2, p^3) / prod_{q != p} (p - q)     last row: (0, 0, 0, 1)
    col p of A^T: (1, p, p^2, p^3)                             last column: (0, 0, 0, 1)

The sum of the products over the 4C channels is a small matrix product per element of the 7x7.
An odd phase of a kernel of 7 has only three taps, and a polynomial of degree 2 is zero at infinity:
the last row needs the even rows' phases only, (0,0) and (0,1), which come first, and the last
column (0,0) and (1,0), which lie side by side there. That leaves 169 of 4 * 49 products per channel
for 16 pixels with 49 taps: 10.6 multiplications each instead of 49.

The points were searched among pairs of eighths, and zero with two pairs and a single one: rounding
errors are 1.5 times those of the points 0, +-3/4, +-3/2 for tiles of 3x3, and 0.7 times those of
0, +-1, +-2, 1/2. All constants are exact in float32. The transforms are adjoint to each other,
hence the weight gradient:

    dg = G^T [ sum over tiles (B^T d B) . (A gy A^T) ] G

Sources: as in `winograd_tiles.py`; space to depth is folklore.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numba import njit

from minires.kernels.cpu.copying import clear_run, copy_run
from minires.kernels.cpu.simd import fill, fmuladd, fnmuladd, load, load_where, store

POINT_A, POINT_B, POINT_C = 3 / 8, 7 / 8, 7 / 4
AA, BB, CC = POINT_A**2, POINT_B**2, POINT_C**2
SIZE = 7  # of a tile of the input: points


def kernel_matrix() -> np.ndarray:
    """G, (7, 4)."""
    points = np.array([POINT_A, -POINT_A, POINT_B, -POINT_B, POINT_C, -POINT_C])
    scales = [np.prod([p - q for q in points if q != p]) for p in points]
    finite = points[:, None] ** np.arange(4) / np.array(scales)[:, None]
    return np.vstack([finite, [0.0, 0.0, 0.0, 1.0]])


class Pair(NamedTuple):
    """What the rows of p and -p need, in every lane: p, its powers, and the other points'.

    s, m: sum and product of the squares of the two others.
    """

    p: Any
    pp: Any
    ppp: Any
    s: Any
    m: Any


class Constants(NamedTuple):
    """The numbers of the one-dimensional transforms; of M(x) = x^6 - s4 x^4 + s2 x^2 - s0."""

    a: Pair
    b: Pair
    c: Pair
    s4: Any
    s2: Any
    s0: Any


@njit(cache=True)
def _pair_constants(like, p, pp, s, m):
    return Pair(fill(like, p), fill(like, pp), fill(like, p * pp), fill(like, s), fill(like, m))


@njit(cache=True)
def constants(like):
    """`Constants` as vectors of `like`'s dtype."""
    return Constants(
        _pair_constants(like, POINT_A, AA, BB + CC, BB * CC),
        _pair_constants(like, POINT_B, BB, AA + CC, AA * CC),
        _pair_constants(like, POINT_C, CC, AA + BB, AA * BB),
        fill(like, AA + BB + CC),
        fill(like, AA * BB + AA * CC + BB * CC),
        fill(like, AA * BB * CC),
    )


@njit(cache=True)
def _bt_pair(d0, d1, d2, d3, d4, d5, k):
    """The rows of B^T d for a point and its negative."""
    even = fmuladd(k.m, d0, fnmuladd(k.s, d2, d4))
    odd = fmuladd(k.m, d1, fnmuladd(k.s, d3, d5))
    return fmuladd(k.p, even, odd), fnmuladd(k.p, even, odd)


@njit(cache=True)
def _load_bt(x, at, step, k):
    """B^T d for one line of seven vectors."""
    d0, d1, d2, d3 = load(x, at), load(x, at + step), load(x, at + 2 * step), load(x, at + 3 * step)
    d4, d5, d6 = load(x, at + 4 * step), load(x, at + 5 * step), load(x, at + 6 * step)
    a, b = _bt_pair(d0, d1, d2, d3, d4, d5, k.a), _bt_pair(d0, d1, d2, d3, d4, d5, k.b)
    last = fnmuladd(k.s0, d0, fmuladd(k.s2, d2, fnmuladd(k.s4, d4, d6)))
    return a, b, _bt_pair(d0, d1, d2, d3, d4, d5, k.c), last


@njit(cache=True)
def _load_at(m, at, step, k):
    """A^T m for one line of seven vectors: four outputs."""
    m0, m1, m2, m3 = load(m, at), load(m, at + step), load(m, at + 2 * step), load(m, at + 3 * step)
    m4, m5, m6 = load(m, at + 4 * step), load(m, at + 5 * step), load(m, at + 6 * step)
    sum_a, diff_a = m0 + m1, m0 - m1
    sum_b, diff_b = m2 + m3, m2 - m3
    sum_c, diff_c = m4 + m5, m4 - m5
    return (
        sum_a + sum_b + sum_c,
        fmuladd(k.a.p, diff_a, fmuladd(k.b.p, diff_b, k.c.p * diff_c)),
        fmuladd(k.a.pp, sum_a, fmuladd(k.b.pp, sum_b, k.c.pp * sum_c)),
        fmuladd(k.a.ppp, diff_a, fmuladd(k.b.ppp, diff_b, fmuladd(k.c.ppp, diff_c, m6))),
    )


@njit(cache=True)
def _a_pair(y0, y1, y2, y3, k):
    """The rows of A y for a point and its negative."""
    even, odd = fmuladd(k.pp, y2, y0), fmuladd(k.ppp, y3, k.p * y1)
    return even + odd, even - odd


@njit(cache=True)
def _store_a(y0, y1, y2, y3, out, at, step, k):
    """A y for one line of four vectors: seven."""
    a, b = _a_pair(y0, y1, y2, y3, k.a), _a_pair(y0, y1, y2, y3, k.b)
    c = _a_pair(y0, y1, y2, y3, k.c)
    store(out, at, a[0])
    store(out, at + step, a[1])
    store(out, at + 2 * step, b[0])
    store(out, at + 3 * step, b[1])
    store(out, at + 4 * step, c[0])
    store(out, at + 5 * step, c[1])
    store(out, at + 6 * step, y3)


@njit(cache=True)
def transform_rows(x, shape, pad, n, top, band, length, L, k):
    """B^T d down the columns of 14 rows, from row `top` of image n on: those of both phases.

    band[(2*i + p)*length + w*C + c], padding included in w.
    """
    H, W, C = shape
    border = pad[1] * C
    for i in range(2 * SIZE):
        h, to = top + i, i * length
        whole = min(W * C, length - border) if 0 <= h < H else 0
        clear_run(band, to, length, L)
        copy_run(x, (n * H + h) * W * C, band, to + border, whole, L)
    row = 2 * length
    for at in range(0, row, L):  # the two phases lie side by side
        a, b, c, last = _load_bt(band, at, row, k)
        store(band, at, a[0])
        store(band, at + row, a[1])
        store(band, at + 2 * row, b[0])
        store(band, at + 3 * row, b[1])
        store(band, at + 4 * row, c[0])
        store(band, at + 5 * row, c[1])
        store(band, at + 6 * row, last)


@njit(cache=True)
def load_tiles(work, length, C, first, count, v, step, near, L, k):
    """Transform tiles first, ... of a row: work[v + (7*i + j)*step + t*4C + p*2C + q*C + c].

    In the last column (j = 6) there is p*near in place of p*2C. `work` begins with the rows that
    `transform_rows` made.
    """
    pixel = 2 * C
    for t in range(count):
        for i in range(2 * SIZE):
            p, at = i % 2, i * length + (first + t) * 4 * pixel
            to = v + i // 2 * SIZE * step + 2 * t * pixel
            for lane in range(0, pixel, L):  # what comes next overwrites what is too much
                a, b, c, last = _load_bt(work, at + lane, pixel, k)
                store(work, to + 6 * step + p * near + lane, last)
                q = to + p * pixel + lane
                store(work, q, a[0])
                store(work, q + step, a[1])
                store(work, q + 2 * step, b[0])
                store(work, q + 3 * step, b[1])
                store(work, q + 4 * step, c[0])
                store(work, q + 5 * step, c[1])


@njit(cache=True)
def load_gradient_tiles(gy, corner, line, O, rows, columns, channels, w, begin, step, patch, L, k):
    """Transform 4x4 tiles of the upstream gradient: w[begin + (7*i + j)*step + t*channels + o].

    Their pixels: `rows` by `columns`, at most 4 rows, from `corner` on; further ones are zero.
    patch: where in w there is room for 28 vectors.
    """
    for t in range((columns + 3) // 4):
        for o in range(0, channels, L):
            at, to = corner + 4 * t * O + o, begin + t * channels + o
            for j in range(4):
                there, pixel = 4 * t + j < columns, at + j * O
                y0 = load_where(gy, pixel, there)
                y1 = load_where(gy, pixel + line, there and rows > 1)
                y2 = load_where(gy, pixel + 2 * line, there and rows > 2)
                y3 = load_where(gy, pixel + 3 * line, there and rows > 3)
                _store_a(y0, y1, y2, y3, w, patch + j * L, 4 * L, k)
            for i in range(SIZE):
                p = patch + 4 * i * L
                y0, y1, y2 = load(w, p), load(w, p + L), load(w, p + 2 * L)
                _store_a(y0, y1, y2, load(w, p + 3 * L), w, to + i * SIZE * step, step, k)


@njit(cache=True)
def store_tiles(m, begin, step, y, corner, line, O, rows, columns, channels, patch, L, k):
    """Transform products m[begin + (7*i + j)*step + t*channels + o] back into pixels of y."""
    for t in range((columns + 3) // 4):
        for o in range(0, channels, L):
            at, to = begin + t * channels + o, corner + 4 * t * O + o
            for j in range(SIZE):
                v, p = _load_at(m, at + j * step, SIZE * step, k), patch + j * L
                store(m, p, v[0])
                store(m, p + SIZE * L, v[1])
                store(m, p + 2 * SIZE * L, v[2])
                store(m, p + 3 * SIZE * L, v[3])
            for i in range(rows):
                v, pixel = _load_at(m, patch + i * SIZE * L, L, k), to + i * line
                store(y, pixel, v[0])
                if columns > 4 * t + 1:
                    store(y, pixel + O, v[1])
                if columns > 4 * t + 2:
                    store(y, pixel + 2 * O, v[2])
                if columns > 4 * t + 3:
                    store(y, pixel + 3 * O, v[3])
