"""Tiles of Winograd's convolution on their way from and to memory, a run of neighbours at a time.

`winograd_tiles.py` has the mathematics. What lies between the steps is to stay near the core, so
a batch of tiles is half transformed as a whole, and the other half is done for one of the six rows
of elements at a time, between which come the six products of the row:

    input     z = B^T d, six rows; then for row i, once its turn has come, v_i = z_i B
    output    z_i = m_i A in the memory of the input's z_i, which is done with; y = A^T z
    gradient  A gy A^T within registers

A tile thus takes 26 numbers of z and 6 each of v and m per channel where all of v and m took 72.

With few channels the transforms are as long as the products, and what surrounds them shows. So
tiles are taken in runs, up to RUN side by side in one row of an image, one vector of channels at a
time. A column of B^T d is made once, though two tiles share every third. Columns and rows outside
the image are zeros in z, so that tiles at the edge take no way of their own; batch norm and ReLU in
front are applied to a column as it is loaded. Pixels are stored as they are made, and what
`finishing.py` describes is done to them before. Inner loops run over pointers: see `simd.start`.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from numba import njit

from minires.kernels.cpu.simd import (
    add_wide,
    fill,
    fmuladd,
    lanes_of,
    load,
    load_where,
    positive,
    start,
    store,
    stream,
    where_positive,
)
from minires.kernels.cpu.winograd_tiles import (
    a_transposed,
    b_transposed,
    constants,
    gradient_vector,
    store4,
    store6,
)

RUN = 8  # tiles
COLUMNS = 6  # of z for a tile at most, if it is a run of its own


class Ends(NamedTuple):
    """What becomes of the pixels: `finishing.Finish` of one part with pointers, and what it asks
    for.

    sums, products: of d and d^2, or of g and g (x - mean). past: whether to write past the caches.
    """

    moments: bool
    masks: bool
    gated: bool
    added: bool
    shifted: bool
    rectify: bool
    past: bool
    shift: Any
    shortcut: Any
    kept: Any
    sums: Any
    products: Any
    x: Any
    output: Any
    norm: Any


@njit(cache=True, forceinline=True)
def ends_of(part, past):
    """`Ends` of a part (`finishing.part_of`), whose arrays must outlive them."""
    masks = part.x.size > 0
    return Ends(
        part.sums.size > 0 and not masks, masks, part.output.size > 0, part.shortcut.size > 0,
        part.shift.size > 0, part.rectify, past, start(part.shift), start(part.shortcut),
        start(part.kept), start(part.sums[0]), start(part.sums[1]), start(part.x),
        start(part.output), start(part.norm),
    )  # fmt: skip


@njit(cache=True, forceinline=True)
def _clear(z, to, count, step):
    """Zeros in `count` columns of z."""
    L, zero = lanes_of(z), fill(z, 0.0)
    for at in range(to, to + count * L, L):
        store6(z, at, step, (zero, zero, zero, zero, zero, zero))


@njit(cache=True, forceinline=True)
def _columns(x, at, line, C, count, inside, z, to, step, k):
    """B^T d of `count` columns of pixels: x[at + i*line + j*C] -> z[to + i*step + j*L].

    Rows where not `inside[i]` are zeros.
    """
    L, p0, p1, p2 = lanes_of(x), at, at + line, at + 2 * line
    p3, p4, p5 = at + 3 * line, at + 4 * line, at + 5 * line
    for j in range(0, count * C, C):
        d0, d1 = load_where(x, p0 + j, inside[0]), load_where(x, p1 + j, inside[1])
        d2, d3 = load_where(x, p2 + j, inside[2]), load_where(x, p3 + j, inside[3])
        d4, d5 = load_where(x, p4 + j, inside[4]), load_where(x, p5 + j, inside[5])
        store6(z, to, step, b_transposed(d0, d1, d2, d3, d4, d5, k))
        to += L


@njit(cache=True, forceinline=True)
def _active(x, at, inside, mean, scale, shift):
    return positive(fmuladd(load_where(x, at, inside) - mean, scale, shift))


@njit(cache=True, forceinline=True)
def _active_columns(x, at, line, C, count, inside, before, c, z, to, step, k):
    """The same of relu((x - mean) * scale + shift); where not inside, all of them are 0."""
    L, p0, p1, p2 = lanes_of(x), at, at + line, at + 2 * line
    p3, p4, p5 = at + 3 * line, at + 4 * line, at + 5 * line
    a, b = C + c, 2 * C + c
    m0, m1 = load_where(before, c, inside[0]), load_where(before, c, inside[1])
    m2, m3 = load_where(before, c, inside[2]), load_where(before, c, inside[3])
    m4, m5 = load_where(before, c, inside[4]), load_where(before, c, inside[5])
    a0, b0 = load_where(before, a, inside[0]), load_where(before, b, inside[0])
    a1, b1 = load_where(before, a, inside[1]), load_where(before, b, inside[1])
    a2, b2 = load_where(before, a, inside[2]), load_where(before, b, inside[2])
    a3, b3 = load_where(before, a, inside[3]), load_where(before, b, inside[3])
    a4, b4 = load_where(before, a, inside[4]), load_where(before, b, inside[4])
    a5, b5 = load_where(before, a, inside[5]), load_where(before, b, inside[5])
    for j in range(0, count * C, C):
        d0 = _active(x, p0 + j, inside[0], m0, a0, b0)
        d1 = _active(x, p1 + j, inside[1], m1, a1, b1)
        d2 = _active(x, p2 + j, inside[2], m2, a2, b2)
        d3 = _active(x, p3 + j, inside[3], m3, a3, b3)
        d4 = _active(x, p4 + j, inside[4], m4, a4, b4)
        d5 = _active(x, p5 + j, inside[5], m5, a5, b5)
        store6(z, to, step, b_transposed(d0, d1, d2, d3, d4, d5, k))
        to += L


@njit(cache=True, forceinline=True)
def _place(first, rows, cols):
    """Image, row and column of a tile."""
    n, rest = divmod(first, rows * cols)
    return n, rest // cols, rest % cols


@njit(cache=True, forceinline=True)
def _after(n, row, col, rows, cols):
    """Where the next run begins."""
    if col == cols:
        row, col = row + 1, 0
        if row == rows:
            n, row = n + 1, 0
    return n, row, col


@njit(cache=True)
def load_runs(x, before, active, shape, tiles, pad, first, count, z, step):
    """z = B^T d of input tiles first, ..., first + count - 1, row i from z[i*step] on: for each run
    and each vector of channels the run's columns.

    before: mean, scale and shift, to transform relu((x - mean) * scale + shift) if `active`. All
    arrays are pointers.
    """
    (H, W, C), (rows, cols), L, k = shape, tiles, lanes_of(x), constants(x)
    n, row, col = _place(first, rows, cols)
    done, to = 0, 0
    while done < count:
        run = min(RUN, cols - col, count - done)
        top, left = row * 4 - pad[0], col * 4 - pad[1]
        inside = (
            0 <= top < H, 0 <= top + 1 < H, 0 <= top + 2 < H, 0 <= top + 3 < H,
            0 <= top + 4 < H, 0 <= top + 5 < H,
        )  # fmt: skip
        width = 4 * run + 2
        j0, j1 = max(0, -left), min(width, W - left)
        at = ((n * H + top) * W + left + j0) * C
        for c in range(0, C, L):
            _clear(z, to, j0, step)
            _clear(z, to + j1 * L, width - j1, step)
            if active:
                _active_columns(
                    x, at + c, W * C, C, j1 - j0, inside, before, c, z, to + j0 * L, step, k
                )  # fmt: skip
            else:
                _columns(x, at + c, W * C, C, j1 - j0, inside, z, to + j0 * L, step, k)
            to += width * L
        done += run
        n, row, col = _after(n, row, col + run, rows, cols)


@njit(cache=True)
def input_row(z, C, tiles, first, count, v, step):
    """z B of one row of the same tiles: v[j*step + t*C + c]."""
    (rows, cols), L, k = tiles, lanes_of(z), constants(z)
    n, row, col = _place(first, rows, cols)
    done, at = 0, 0
    while done < count:
        run = min(RUN, cols - col, count - done)
        for c in range(done * C, done * C + C, L):
            for to in range(c, c + run * C, C):
                d0, d1, d2 = load(z, at), load(z, at + L), load(z, at + 2 * L)
                d3, d4, d5 = load(z, at + 3 * L), load(z, at + 4 * L), load(z, at + 5 * L)
                store6(v, to, step, b_transposed(d0, d1, d2, d3, d4, d5, k))
                at += 4 * L
            at += 2 * L
        done += run
        n, row, col = _after(n, row, col + run, rows, cols)


@njit(cache=True)
def load_gradient_runs(gy, shape, tiles, first, count, w, step, z):
    """Transform upstream gradient tiles: w[(6*i + j)*step + t*O + o]. z: room for a tile."""
    (OH, OW, O), (rows, cols), L, k = shape, tiles, lanes_of(gy), constants(gy)
    n, row, col = _place(first, rows, cols)
    done = 0
    while done < count:
        run = min(RUN, cols - col, count - done)
        top, left = row * 4, col * 4
        at, to = ((n * OH + top) * OW + left) * O, done * O
        height, width = min(4, OH - top), OW - left
        for _ in range(run):
            for o in range(0, O, L):
                if height == 4 and width >= 4:
                    gradient_vector(gy, at + o, OW * O, O, w, to + o, step, k)
                else:
                    for i in range(4):
                        for j in range(4):
                            p = at + (i * OW + j) * O + o
                            pixel = load_where(gy, p, i < height and j < width)
                            store(z, (4 * i + j) * L, pixel)
                    gradient_vector(z, 0, 4 * L, L, w, to + o, step, k)
            at, to, width = at + 4 * O, to + O, width - 4
        done += run
        n, row, col = _after(n, row, col + run, rows, cols)


@njit(cache=True)
def output_row(m, step, size, z):
    """m A of one row of tiles, each of O channels: m[j*step + p] -> z[4*p + j*L], p < size."""
    L, k = lanes_of(m), constants(m)
    for p in range(0, size, L):
        m0, m1, m2 = load(m, p), load(m, p + step), load(m, p + 2 * step)
        m3, m4, m5 = load(m, p + 3 * step), load(m, p + 4 * step), load(m, p + 5 * step)
        store4(z, 4 * p, L, a_transposed(m0, m1, m2, m3, m4, m5, k))


@njit(cache=True, forceinline=True)
def _output_column(z, at, step, k):
    """Four pixels of one column of a tile: A^T z."""
    z0, z1, z2 = load(z, at), load(z, at + step), load(z, at + 2 * step)
    z3, z4, z5 = load(z, at + 3 * step), load(z, at + 4 * step), load(z, at + 5 * step)
    return a_transposed(z0, z1, z2, z3, z4, z5, k)


@njit(cache=True, forceinline=True)
def _plain(value, y, at, origin, a, b):
    """Store a pixel; its moments."""
    store(y, at, value)
    d = value - origin
    return a + d, fmuladd(d, d, b)


@njit(cache=True, forceinline=True)
def _store_run(z, at, tile, step, run, height, last, y, to, line, O, begins, o, ends, k):
    """A run of tiles as they are, and their moments if wanted."""
    L, origin, a, b = lanes_of(y), fill(y, 0.0), fill(y, 0.0), fill(y, 0.0)
    if ends.moments:
        if begins:
            v = _output_column(z, at + ((last if run == 1 else 4) - 1) * L, step, k)
            pixel = v[0] if height == 1 else v[1] if height == 2 else v[2] if height == 3 else v[3]
            store(ends.kept, o, pixel)
        origin = load(ends.kept, o)
    for t in range(run):
        width, p = last if t == run - 1 else 4, at + t * tile
        for q in range(to, to + width * O, O):
            v0, v1, v2, v3 = _output_column(z, p, step, k)
            a, b = _plain(v0, y, q, origin, a, b)
            if height > 1:
                a, b = _plain(v1, y, q + line, origin, a, b)
            if height > 2:
                a, b = _plain(v2, y, q + 2 * line, origin, a, b)
            if height > 3:
                a, b = _plain(v3, y, q + 3 * line, origin, a, b)
            p += L
        to += 4 * O
    if ends.moments:
        add_wide(ends.sums, o, a)
        add_wide(ends.products, o, b)


@njit(cache=True, forceinline=True)
def _masked(value, y, at, ends, mean, scale, shift, a, b):
    """Store a pixel of a gradient, masked; its sums."""
    if ends.added:
        value = value + load(ends.shortcut, at)
    d = load(ends.x, at) - mean
    if ends.gated:
        value = where_positive(load(ends.output, at), value)
    else:
        value = where_positive(fmuladd(d, scale, shift), value)
    store(y, at, value)
    return a + value, fmuladd(value, d, b)


@njit(cache=True, forceinline=True)
def _mask_run(z, at, tile, step, run, height, last, y, to, line, O, o, ends, k):
    """A run of tiles of a gradient, masked and summed."""
    norm, a, b, L = ends.norm, fill(y, 0.0), fill(y, 0.0), lanes_of(y)
    mean, scale, shift = load(norm, o), load(norm, O + o), load(norm, 2 * O + o)
    for t in range(run):
        width, p = last if t == run - 1 else 4, at + t * tile
        for q in range(to, to + width * O, O):
            v0, v1, v2, v3 = _output_column(z, p, step, k)
            a, b = _masked(v0, y, q, ends, mean, scale, shift, a, b)
            if height > 1:
                a, b = _masked(v1, y, q + line, ends, mean, scale, shift, a, b)
            if height > 2:
                a, b = _masked(v2, y, q + 2 * line, ends, mean, scale, shift, a, b)
            if height > 3:
                a, b = _masked(v3, y, q + 3 * line, ends, mean, scale, shift, a, b)
            p += L
        to += 4 * O
    add_wide(ends.sums, o, a)
    add_wide(ends.products, o, b)


@njit(cache=True, forceinline=True)
def _finished(value, y, at, ends, shift):
    """Store a pixel with shift, shortcut and ReLU."""
    value = value + shift
    if ends.added:
        value = value + load(ends.shortcut, at)
    if ends.rectify:
        value = positive(value)
    if ends.past:
        stream(y, at, value)
    else:
        store(y, at, value)


@njit(cache=True, forceinline=True)
def _finish_run(z, at, tile, step, run, height, last, y, to, line, O, o, ends, k):
    """A run of tiles with shift, shortcut and ReLU."""
    L, shift = lanes_of(y), fill(y, 0.0)
    if ends.shifted:
        shift = load(ends.shift, o)
    for t in range(run):
        width, p = last if t == run - 1 else 4, at + t * tile
        for q in range(to, to + width * O, O):
            v0, v1, v2, v3 = _output_column(z, p, step, k)
            _finished(v0, y, q, ends, shift)
            if height > 1:
                _finished(v1, y, q + line, ends, shift)
            if height > 2:
                _finished(v2, y, q + 2 * line, ends, shift)
            if height > 3:
                _finished(v3, y, q + 3 * line, ends, shift)
            p += L
        to += 4 * O


@njit(cache=True)
def store_runs(z, step, shape, tiles, first, count, y, begins, ends):
    """Transform z[i*step + 4*(t*O + o) + j*L], what `output_row` made, back into pixels of y.

    begins: whether these tiles are the part's first, whose last pixel moments are summed from: not
    its corner, which in an image's first tile padding changes. All arrays are pointers.
    """
    (OH, OW, O), (rows, cols), L, k = shape, tiles, lanes_of(y), constants(y)
    finished = ends.shifted or ends.past or ends.added
    n, row, col = _place(first, rows, cols)
    done = 0
    while done < count:
        run = min(RUN, cols - col, count - done)
        top, left = row * 4, col * 4
        height, last = min(4, OH - top), min(4, OW - left - 4 * (run - 1))
        to, at = ((n * OH + top) * OW + left) * O, 4 * done * O
        for o in range(0, O, L):
            if ends.masks:
                _mask_run(
                    z, at + 4 * o, 4 * O, step, run, height, last, y, to + o, OW * O, O, o, ends, k
                )  # fmt: skip
            elif finished:
                _finish_run(
                    z, at + 4 * o, 4 * O, step, run, height, last, y, to + o, OW * O, O, o, ends, k
                )  # fmt: skip
            else:
                _store_run(
                    z, at + 4 * o, 4 * O, step, run, height, last, y, to + o, OW * O, O,
                    begins and done == 0, o, ends, k,
                )  # fmt: skip
        done += run
        n, row, col = _after(n, row, col + run, rows, cols)
