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
    GATHERED,
    GROUP,
    gather_taps,
    scatter_taps,
    total_of,
)

AROUND = GATHERED - 9 * GROUP  # rows of a panel that `gather_panel` needs beyond the taps
GROUPS = 7  # of elements that are transformed together, see `transform_group`
TOGETHER = 6  # of them at most


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
def gather_panel(weight, C, swap, o, panel, channels, taps, L):
    """taps[(c*9 + tap)*panel + j] for output channel o + j and all input channels c.

    If `swap` the taps come in reverse order. Room for `channels` * 9 + AROUND rows of a panel.
    """
    for c in range(0, channels, GROUP):
        gather_taps(weight, C, swap, o, panel, c, taps[c * 9 * panel :], L)


@njit(cache=True)
def transform_group(taps, swap, panel, channels, group, u, at, step, L):
    """U of a group of elements from `gather_panel`'s taps: u[at + e*step + c*panel + j].

    Groups are the five rows of ee, then eo, then oe and oo; e counts from the group's first, see
    `group_range`.
    """
    corner, tap = (8 * panel, -panel) if swap else (0, panel)
    row = 3 * tap
    near, far, a, b = fill(taps, 1.0), fill(taps, 0.0), corner, corner + 2 * row
    if group == 1 or group == 2:
        near, far = fill(taps, 1 / 2), fill(taps, 1 / 2 if group == 1 else -1 / 2)
    elif group == 3:
        near, far = fill(taps, 1 / 6), fill(taps, 1 / 3)
    elif group == 4:
        near, far = far, near
    for c in range(channels):
        for j in range(0, panel, L):
            p, to = c * 9 * panel + j, at + c * panel + j
            if group < 5:
                left = fmuladd(near, load(taps, p + a), far * load(taps, p + b))
                p += 2 * tap
                right = fmuladd(near, load(taps, p + a), far * load(taps, p + b))
            elif group == 5:
                left, right = load(taps, p + a + tap), load(taps, p + b + tap)
            else:
                p += a + row
                left, right = load(taps, p), load(taps, p + 2 * tap)
                store(u, to + 5 * step, load(taps, p + tap))
            _store5(u, to, step, _g(left, right, taps))


@njit(cache=True)
def group_range(group):
    """The first element of a group, and one behind the last."""
    return 5 * group, 36 if group == 6 else 5 * group + 5


@njit(cache=True)
def transform_panels(weight, C, swap, inputs, outputs, panel, worker, workers, u, buffer, L):
    """One worker's panels of all of U: u[e, o // panel, c, o % panel]."""
    panels = outputs // panel
    for p in range(worker * panels // workers, (worker + 1) * panels // workers):
        gather_panel(weight, C, swap, p * panel, panel, inputs, buffer, L)
        for group in range(GROUPS):
            begin, _ = group_range(group)
            at = (begin * outputs + p * panel) * inputs
            transform_group(buffer, swap, panel, inputs, group, u, at, inputs * outputs, L)


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
