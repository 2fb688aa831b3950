"""The weight's side of Winograd's F(4x4, 3x3): U = G g G^T, and its adjoint dg = G^T dU G.

`winograd_tiles.py` has the mathematics. A weight (O, C, 3, 3) is transformed with output channels
in the lanes, in panels as `tile_product` reads them; its gradient comes back with input channels
in the lanes. Both change the order of the elements one number at a time through a small buffer:
nine numbers of one filter lie together in memory, the lanes do not.

The input gradient is the convolution with the weight rotated and its channels exchanged: `swap`.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numba import njit

from minires.kernels.cpu.simd import fill, fmuladd, load, store
from minires.kernels.cpu.team import parallel
from minires.kernels.cpu.winograd_tiles import G

GROUP = 4  # input channels gathered at a time; channels come in multiples of 16


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
def gather_taps(weight, C, swap, o, panel, c, buffer):
    """buffer[(i*9 + tap)*panel + j] for output channel o + j and GROUP input channels c + i."""
    for j in range(panel):
        for i in range(GROUP):
            if swap:
                taps = ((c + i) * C + o + j) * 9
                for e in range(9):
                    buffer[(i * 9 + 8 - e) * panel + j] = weight[taps + e]
            else:
                taps = ((o + j) * C + c + i) * 9
                for e in range(9):
                    buffer[(i * 9 + e) * panel + j] = weight[taps + e]


@njit(cache=True)
def transform_block(weight, C, swap, o, panel, c, channels, u, at, step, buffer, L):
    """U of output channels o, ..., o + panel - 1 and input channels c, ..., c + channels - 1.

    u[at + e*step + i*panel + j] for the element e of the transform, input channel c + i, output
    channel o + j. C: the weight's second dimension. buffer: 27 * GROUP * panel numbers.
    """
    k = _factors(weight)
    half = 9 * GROUP * panel
    for group in range(0, channels, GROUP):
        gather_taps(weight, C, swap, o, panel, c + group, buffer)
        for i in range(GROUP):
            j = 0
            while j < panel:
                to = at + (group + i) * panel + j
                for column in range(3):
                    line = (i * 9 + column) * panel + j
                    _transform_line(
                        buffer, line, 3 * panel, buffer, half + column * panel + j, 3 * panel, k
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
    buffer = np.empty(27 * GROUP * panel, weight.dtype)
    panels = outputs // panel
    for p in range(worker * panels // workers, (worker + 1) * panels // workers):
        at, step = start + p * inputs * panel, inputs * outputs
        transform_block(
            weight, C, swap, p * panel, panel, 0, inputs, u, at, step, buffer, L
        )  # fmt: skip


@njit(cache=True, forceinline=True)
def scatter_taps(buffer, channels, weight, to):
    """weight[to + c*9 + tap] = buffer[tap*channels + c]."""
    for c in range(channels):
        for tap in range(9):
            weight[to + c * 9 + tap] = buffer[tap * channels + c]


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
    scatter_taps(buffer, channels, weight, to)


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
