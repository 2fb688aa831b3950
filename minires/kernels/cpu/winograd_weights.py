"""The weight's side of Winograd's F(4x4, 3x3): U = G g G^T, and its adjoint dg = G^T dU G.

`winograd_tiles.py` has the mathematics. A weight (O, C, 3, 3) is transformed with output channels
in the lanes, in panels as `tile_product` reads them; its gradient comes back with input channels
in the lanes. Nine numbers of one filter lie together in memory, the lanes do not: squares of
numbers are transposed in registers, on their way through a small buffer. Nine is no number of whole
vectors, so what is read and written around the ninth is more, and comes right with the next filter.

The input gradient is the convolution with the weight rotated and its channels exchanged: `swap`.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numba import njit

from minires.kernels.cpu.copying import copy_run
from minires.kernels.cpu.simd import fill, fmuladd, load, store, transpose
from minires.kernels.cpu.team import parallel
from minires.kernels.cpu.winograd_products import ask_for
from minires.kernels.cpu.winograd_tiles import G

GROUP = 16  # input channels gathered at a time; channels come in multiples of 16
BEYOND = 7  # numbers, or rows, beyond nine that transpositions in whole vectors reach at most
GATHERED = 9 * GROUP + BEYOND + 10  # rows of a panel that `gather_taps` needs room for
TRANSFORMED = GATHERED + 18  # and `transform_block`
SCATTERED = 9 + BEYOND + 10  # rows of channels that `scatter_taps` needs room for


class Factors(NamedTuple):
    """Entries of G: of the point 0 the only one, of the points a and b the three of the row.

    The rows of -a and -b differ in the sign of the middle one, the last row is (0, 0, 1).
    """

    zero: Any
    a0: Any
    a1: Any
    a2: Any
    b0: Any
    b1: Any
    b2: Any


@njit(cache=True)
def _factors(like):
    return Factors(
        fill(like, G[0, 0]),
        fill(like, G[1, 0]),
        fill(like, G[1, 1]),
        fill(like, G[1, 2]),
        fill(like, G[3, 0]),
        fill(like, G[3, 1]),
        fill(like, G[3, 2]),
    )


@njit(cache=True, forceinline=True)
def _transform_line(x, at, step, y, to, y_step, k):
    """y_i = sum_t G[i, t] x_t for vectors at + t*step, to + i*y_step."""
    x0, x1, x2 = load(x, at), load(x, at + step), load(x, at + 2 * step)
    even_a, odd_a = fmuladd(k.a2, x2, k.a0 * x0), k.a1 * x1
    even_b, odd_b = fmuladd(k.b2, x2, k.b0 * x0), k.b1 * x1
    store(y, to, k.zero * x0)
    store(y, to + y_step, even_a + odd_a)
    store(y, to + 2 * y_step, even_a - odd_a)
    store(y, to + 3 * y_step, even_b + odd_b)
    store(y, to + 4 * y_step, even_b - odd_b)
    store(y, to + 5 * y_step, x2)


@njit(cache=True, forceinline=True)
def gather_taps(weight, C, swap, o, panel, c, buffer, L):
    """buffer[(i*9 + tap)*panel + j] for output channel o + j and GROUP input channels c + i.

    If `swap` the taps come in reverse order. The buffer has room for GATHERED * panel numbers.
    """
    if swap:
        copy = (9 * GROUP + BEYOND) * panel
        for i in range(GROUP):
            for j in range(0, panel, L):
                source, at = weight, ((c + i) * C + o + j) * 9
                if at + 9 * L + BEYOND > weight.size:
                    copy_run(weight, at, buffer, copy, 9 * L, L)
                    source, at = buffer, copy
                for tap in range(0, 9, L):  # rows beyond the ninth are those of i + 1, made later
                    transpose(source, at + tap, 9, buffer, (i * 9 + tap) * panel + j, panel)
    else:
        for j in range(0, panel, L):
            for row in range(0, 9 * GROUP, L):
                at = ((o + j) * C + c) * 9 + row
                transpose(weight, at, C * 9, buffer, row * panel + j, panel)


@njit(cache=True, forceinline=True)
def ask_for_taps(weight, C, swap, o, panel, c, channels, part, parts, L):
    """Ask for one of so many parts of the taps that `transform_block` reads."""
    rows, run = (channels, panel) if swap else (panel, channels)
    corner = c * C + o if swap else o * C + c
    for row in range(part * rows // parts, (part + 1) * rows // parts):
        ask_for(weight, (corner + row * C) * 9, run * 9, L)


@njit(cache=True)
def transform_block(weight, C, swap, o, panel, c, channels, u, at, step, buffer, L):
    """U of output channels o, ..., o + panel - 1 and input channels c, ..., c + channels - 1.

    u[at + e*step + i*panel + j] for the element e of the transform, input channel c + i, output
    channel o + j. C: the weight's second dimension. buffer: TRANSFORMED * panel numbers.
    """
    k = _factors(weight)
    half = GATHERED * panel
    corner, tap = (8 * panel, -panel) if swap else (0, panel)
    for group in range(0, channels, GROUP):
        gather_taps(weight, C, swap, o, panel, c + group, buffer, L)
        for i in range(GROUP):
            j = 0
            while j < panel:
                to = at + (group + i) * panel + j
                for column in range(3):
                    line = i * 9 * panel + corner + column * tap + j
                    _transform_line(
                        buffer, line, 3 * tap, buffer, half + column * panel + j, 3 * panel, k
                    )
                for row in range(6):
                    line = half + row * 3 * panel + j
                    _transform_line(buffer, line, panel, u, to + row * 6 * step, step, k)
                j += L


@parallel
def transform_weight(worker, weight, C, swap, inputs, outputs, panel, workers, u, L):
    """All of U, in panels of output channels: u[e, o // panel, c, o % panel]."""
    transform_panels(weight, C, swap, inputs, outputs, panel, worker, workers, u, 0, L)


@njit(cache=True)
def transform_panels(weight, C, swap, inputs, outputs, panel, worker, workers, u, start, L):
    """One worker's panels of U, which begins at `start`."""
    buffer = np.empty(TRANSFORMED * panel, weight.dtype)
    panels = outputs // panel
    for p in range(worker * panels // workers, (worker + 1) * panels // workers):
        at, step = start + p * inputs * panel, inputs * outputs
        transform_block(
            weight, C, swap, p * panel, panel, 0, inputs, u, at, step, buffer, L
        )  # fmt: skip


@njit(cache=True, forceinline=True)
def scatter_taps(buffer, channels, weight, to, L):
    """weight[to + c*9 + tap] = buffer[tap*channels + c].

    The buffer has room for SCATTERED * channels numbers.
    """
    out, last = (9 + BEYOND) * channels, 9 // L * L
    for c in range(0, channels, L):
        for tap in range(last, -1, -L):  # what lies beyond a filter's nine taps is written again
            transpose(buffer, tap * channels + c, channels, buffer, out + c * 9 + tap, 9)
    copy_run(buffer, out, weight, to, 9 * channels, L)


@njit(cache=True, forceinline=True)
def total_of(du, at, size, parts):
    """The sum of the vectors at, at + size, ...: one per part."""
    total = load(du, at)
    for part in range(1, parts):
        total = total + load(du, at + part * size)
    return total


@njit(cache=True, forceinline=True)
def _adjoint_line(u0, u1, u2, u3, u4, u5, k):
    """G^T u for one line of six vectors."""
    sum_a, diff_a = u1 + u2, u1 - u2
    sum_b, diff_b = u3 + u4, u3 - u4
    return (
        fmuladd(k.zero, u0, fmuladd(k.a0, sum_a, k.b0 * sum_b)),
        fmuladd(k.a1, diff_a, k.b1 * diff_b),
        fmuladd(k.a2, sum_a, fmuladd(k.b2, sum_b, u5)),
    )


@njit(cache=True)
def inverse_block(du, at, step, size, parts, channels, weight, to, buffer, L):
    """G^T dU G for one output channel and `channels` input channels.

    du[at + part*size + e*step + c], summed over the parts; weight[to + c*9 + tap].
    buffer: 27 * channels numbers.
    """
    k = _factors(weight)
    half, c = 9 * channels, 0
    while c < channels:
        for j in range(6):
            p, row = at + j * step + c, 6 * step
            line = _adjoint_line(
                total_of(du, p, size, parts), total_of(du, p + row, size, parts),
                total_of(du, p + 2 * row, size, parts), total_of(du, p + 3 * row, size, parts),
                total_of(du, p + 4 * row, size, parts), total_of(du, p + 5 * row, size, parts), k,
            )  # fmt: skip
            store(buffer, half + j * channels + c, line[0])
            store(buffer, half + (6 + j) * channels + c, line[1])
            store(buffer, half + (12 + j) * channels + c, line[2])
        for i in range(3):
            p = half + i * 6 * channels + c
            line = _adjoint_line(
                load(buffer, p), load(buffer, p + channels), load(buffer, p + 2 * channels),
                load(buffer, p + 3 * channels), load(buffer, p + 4 * channels),
                load(buffer, p + 5 * channels), k,
            )  # fmt: skip
            store(buffer, i * 3 * channels + c, line[0])
            store(buffer, (i * 3 + 1) * channels + c, line[1])
            store(buffer, (i * 3 + 2) * channels + c, line[2])
        c += L
    scatter_taps(buffer, channels, weight, to, L)


@parallel
def inverse_weight(worker, du, O, C, workers, weight, L):
    """dg = G^T [sum over parts du] G, from du[part, e, o, c] to (O, C, 3, 3)."""
    inverse_rows(du, O, C, worker, workers, weight, L)


@njit(cache=True)
def inverse_rows(du, O, C, worker, workers, weight, L):
    """One worker's output channels of dg."""
    buffer = np.empty(27 * C, weight.dtype)
    size = 36 * O * C
    for o in range(worker * O // workers, (worker + 1) * O // workers):
        inverse_block(
            du, o * C, O * C, size, du.size // size, C, weight, o * C * 9, buffer, L
        )  # fmt: skip
