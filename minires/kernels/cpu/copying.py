"""Runs of numbers and windows of images, copied vector by vector.

Slices of arrays in compiled code cost as much as the products they serve, when runs are short.
"""

from __future__ import annotations

from numba import njit

from minires.kernels.cpu.simd import fill, load, prefetch, store, stream

AHEAD = 8  # pixels between what is copied and what is asked for


@njit(cache=True, forceinline=True)
def put(y, at, value, past):
    """Store a vector, past the caches if `past`: `streams` tells whether y is so large."""
    if past:
        stream(y, at, value)
    else:
        store(y, at, value)


@njit(cache=True)
def copy_run(x, at, out, to, count, L):
    """out[to : to + count] = x[at : at + count]: whole vectors, then what is left."""
    whole = count - count % L
    for i in range(0, whole, L):
        store(out, to + i, load(x, at + i))
    for i in range(whole, count):
        out[to + i] = x[at + i]


@njit(cache=True)
def prefetch_run(x, at, count, L):
    """Ask for x[at : at + count]: runs of a few hundred bytes are too short for the hardware."""
    for i in range(0, count, L):
        prefetch(x, at + i)


@njit(cache=True)
def clear_run(out, to, count, L):
    """out[to : to + count] = 0."""
    whole = count - count % L
    for i in range(0, whole, L):
        store(out, to + i, fill(out, 0.0))
    for i in range(whole, count):
        out[to + i] = 0


@njit(cache=True)
def add_run(x, at, out, to, count, L):
    """out[to : to + count] += x[at : at + count]."""
    whole = count - count % L
    for i in range(0, whole, L):
        store(out, to + i, load(out, to + i) + load(x, at + i))
    for i in range(whole, count):
        out[to + i] += x[at + i]


@njit(cache=True)
def copy_rows(x, at, x_row, out, to, out_row, rows, count, L):
    """`rows` runs of `count` numbers, from x_row apart to out_row apart."""
    for r in range(rows):
        prefetch_run(x, at + (r + AHEAD) * x_row, count, L)
        copy_run(x, at + r * x_row, out, to + r * out_row, count, L)


@njit(cache=True)
def copy_band(x, image, top, rows, H, run, left, right, band, L):
    """Rows top, ... of one image of H rows of `run` numbers, each between zeros; zeros outside."""
    row = left + run + right
    for r in range(rows):
        h, to = top + r, r * row
        if 0 <= h < H:
            clear_run(band, to, left, L)
            copy_run(x, (image * H + h) * run, band, to + left, run, L)
            clear_run(band, to + left + run, right, L)
        else:
            clear_run(band, to, row, L)


@njit(cache=True)
def _copy_pixels(x, first, count, k0, k1, sizes, out, to, row, L):
    """`copy_windows` of single pixels without padding: evenly spaced along a row of the output."""
    H, W, C, _, _, sh, sw, _, _, _, _, OH, OW = sizes
    line, j, end = first // OW, first % OW, to + count * row
    n, i = line // OH, line % OH
    step, turn = sw * C, (sh * W - OW * sw) * C  # to the next pixel, and more to the next row
    while to < end:
        at = ((n * H + i * sh) * W + j * sw) * C + k0
        for t in range(j, OW):
            if to == end:
                return
            prefetch_run(x, at + AHEAD * step + (turn if t + AHEAD >= OW else 0), k1 - k0, L)
            copy_run(x, at, out, to, k1 - k0, L)
            at, to = at + step, to + row
        i, j = i + 1, 0
        if i == OH:
            n, i = n + 1, 0


@njit(cache=True)
def copy_windows(x, first, count, k0, k1, sizes, out, to, row, L):
    """Elements k0 to k1 of the windows under output pixels first, ...: out[to + t*row + k - k0].

    Pixels are counted over the whole batch. A window's elements (u, v, c) are numbered
    k = (u*KW + v)*C + c; they are zero where it leaves the image. sizes: `window_sizes`.
    """
    H, W, C, KH, KW, sh, sw, ph, pw, dh, dw, OH, OW = sizes
    if KH * KW == 1 and ph == pw == 0:
        _copy_pixels(x, first, count, k0, k1, sizes, out, to, row, L)
        return
    n, rest = first // (OH * OW), first % (OH * OW)
    i, j = rest // OW, rest % OW
    line = KW * C
    u0, line0 = k0 // line, k0 % line
    for t in range(count):
        top, left = i * sh - ph, j * sw - pw
        in_one_piece = dw == 1 and left >= 0 and left + KW <= W
        k, u, e = k0, u0, line0  # e: of the window's row u
        at_t = to + t * row - k0
        while k < k1:
            h = top + u * dh
            if not 0 <= h < H:
                run = min(k1 - k, line - e)
                clear_run(out, at_t + k, run, L)
            elif in_one_piece:
                run, at = min(k1 - k, line - e), ((n * H + h) * W + left) * C + e
                prefetch_run(x, at + AHEAD * sw * C, run, L)
                copy_run(x, at, out, at_t + k, run, L)
            else:
                v = e // C
                w, c = left + v * dw, e - v * C
                run = min(k1 - k, C - c)
                if 0 <= w < W:
                    copy_run(x, ((n * H + h) * W + w) * C + c, out, at_t + k, run, L)
                else:
                    clear_run(out, at_t + k, run, L)
            k += run
            e += run
            if e == line:
                u, e = u + 1, 0
        j += 1
        if j == OW:
            i, j = i + 1, 0
            if i == OH:
                n, i = n + 1, 0
