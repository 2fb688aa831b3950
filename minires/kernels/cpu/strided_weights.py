r"""The weight's side of strided Winograd: the 36 U made of a 3x3 kernel g, and dg of their sums.

`strided_tiles.py` has the mathematics. With G the 5x2 matrix there, g02 the rows (columns) 0 and 2
of g and g1 the middle one,

    ee = G g[02, 02] G^T  (5x5)     eo = G g[02, 1]  (5)     oe = g[1, 02] G^T  (5)     oo = g[1, 1]

The order in memory, and the reasons for it, are those of `winograd_weights.py`.
"""

from __future__ import annotations

from numba import njit

from minires.kernels.cpu.simd import fill, fmuladd, load, store
from minires.kernels.cpu.winograd_weights import (
    GROUP,
    gather_taps,
    scatter_taps,
    total_of,
)


@njit(cache=True)
def _g(w0, w2, like):
    """G w for one line: two taps, five vectors."""
    half, sixth = fill(like, 1 / 2), fill(like, 1 / 6)
    a, b = half * w0, half * w2
    return w0, a + b, a - b, sixth * (w0 + (w2 + w2)), w2


@njit(cache=True)
def _store5(u, at, step, v):
    store(u, at, v[0])
    store(u, at + step, v[1])
    store(u, at + 2 * step, v[2])
    store(u, at + 3 * step, v[3])
    store(u, at + 4 * step, v[4])


@njit(cache=True)
def transform_block(weight, C, swap, o, panel, c, channels, u, at, step, buffer, L):
    """U of output channels o, ..., o + panel - 1 and input channels c, ..., c + channels - 1.

    u[at + e*step + i*panel + j] for element e, input channel c + i, output channel o + j. C: the
    weight's second dimension. buffer: GATHERED * panel numbers.
    """
    corner, tap = (8 * panel, -panel) if swap else (0, panel)
    row = 3 * tap
    for group in range(0, channels, GROUP):
        gather_taps(weight, C, swap, o, panel, c + group, buffer, L)
        for i in range(GROUP):
            for j in range(0, panel, L):
                first, q = i * 9 * panel + corner + j, at + (group + i) * panel + j
                left = _g(load(buffer, first), load(buffer, first + 2 * row), weight)
                p = first + tap
                _store5(
                    u, q + 25 * step, step, _g(load(buffer, p), load(buffer, p + 2 * row), weight)
                )  # fmt: skip
                p += tap
                right = _g(load(buffer, p), load(buffer, p + 2 * row), weight)
                _store5(u, q, step, _g(left[0], right[0], weight))
                _store5(u, q + 5 * step, step, _g(left[1], right[1], weight))
                _store5(u, q + 10 * step, step, _g(left[2], right[2], weight))
                _store5(u, q + 15 * step, step, _g(left[3], right[3], weight))
                _store5(u, q + 20 * step, step, _g(left[4], right[4], weight))
                p = first + row
                _store5(
                    u, q + 30 * step, step, _g(load(buffer, p), load(buffer, p + 2 * tap), weight)
                )  # fmt: skip
                store(u, q + 35 * step, load(buffer, p + tap))


@njit(cache=True)
def transform_panels(weight, C, swap, inputs, outputs, panel, worker, workers, u, buffer, L):
    """One worker's panels of all of U: u[e, o // panel, c, o % panel]."""
    panels = outputs // panel
    for p in range(worker * panels // workers, (worker + 1) * panels // workers):
        transform_block(
            weight, C, swap, p * panel, panel, 0, inputs, u, p * inputs * panel, inputs * outputs,
            buffer, L,
        )  # fmt: skip


@njit(cache=True)
def _adjoint(u0, u1, u2, u3, u4, like):
    """G^T u for one line of five vectors: the sums of taps 0 and 2."""
    half, sixth = fill(like, 1 / 2), fill(like, 1 / 6)
    third = sixth + sixth
    return (
        fmuladd(half, u1 + u2, fmuladd(sixth, u3, u0)),
        fmuladd(half, u1 - u2, fmuladd(third, u3, u4)),
    )


@njit(cache=True)
def _adjoint_line(du, p, step, size, parts):
    return _adjoint(
        total_of(du, p, size, parts), total_of(du, p + step, size, parts),
        total_of(du, p + 2 * step, size, parts), total_of(du, p + 3 * step, size, parts),
        total_of(du, p + 4 * step, size, parts), du,
    )  # fmt: skip


@njit(cache=True)
def inverse_block(du, at, step, size, parts, channels, weight, to, buffer, L):
    """dg for one output channel and `channels` input channels.

    du[at + part*size + e*step + c], summed over the parts; weight[to + c*9 + tap].
    buffer: SCATTERED * channels numbers.
    """
    for c in range(0, channels, L):
        p = at + c
        r0 = _adjoint_line(du, p, step, size, parts)
        r1 = _adjoint_line(du, p + 5 * step, step, size, parts)
        r2 = _adjoint_line(du, p + 10 * step, step, size, parts)
        r3 = _adjoint_line(du, p + 15 * step, step, size, parts)
        r4 = _adjoint_line(du, p + 20 * step, step, size, parts)
        left = _adjoint(r0[0], r1[0], r2[0], r3[0], r4[0], du)
        right = _adjoint(r0[1], r1[1], r2[1], r3[1], r4[1], du)
        middle = _adjoint_line(du, p + 25 * step, step, size, parts)
        across = _adjoint_line(du, p + 30 * step, step, size, parts)
        store(buffer, c, left[0])
        store(buffer, channels + c, middle[0])
        store(buffer, 2 * channels + c, right[0])
        store(buffer, 3 * channels + c, across[0])
        store(buffer, 4 * channels + c, total_of(du, p + 35 * step, size, parts))
        store(buffer, 5 * channels + c, across[1])
        store(buffer, 6 * channels + c, left[1])
        store(buffer, 7 * channels + c, middle[1])
        store(buffer, 8 * channels + c, right[1])
    scatter_taps(buffer, channels, weight, to, L)
