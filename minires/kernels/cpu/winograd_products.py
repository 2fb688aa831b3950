"""The 36 matrix products of Winograd's convolution, one element of the transform at a time.

Everything here is inlined where it is used: a call costs some fifty cycles, as much as a product of
16 channels and two register tiles, and the callers make one per element and batch of tiles.
"""

from __future__ import annotations

from numba import njit

from minires.kernels.cpu.simd import prefetch
from minires.kernels.cpu.tile import tile_product

ELEMENTS = 36  # of a transformed tile
ROWS = 6  # of a register tile


@njit(cache=True, forceinline=True)
def multiply(v, v_at, C, u, u_at, m, m_at, O, count, L, wide, add):
    """m[t, o] (+)= sum_c v[t, c] * u[c, o]; u comes in panels.

    Rows are done six at a time: the buffers have room for `count` rounded up.
    """
    panel = 2 * L if wide else L
    for o in range(0, O, panel):
        for t in range(0, count, ROWS):
            a, c = v_at + t * C, m_at + t * O + o
            if wide:
                tile_product(6, 2, v, a, C, 1, u, u_at + o * C, panel, m, c, O, C, add)
            else:
                tile_product(6, 1, v, a, C, 1, u, u_at + o * C, panel, m, c, O, C, add)


@njit(cache=True, forceinline=True)
def accumulate(w, w_at, O, v, v_at, C, du, du_at, count, L, wide, add):
    """du[o, c] (+)= sum_t w[t, o] * v[t, c].

    O is even and at least 4: rows of six, and one or two of four.
    """
    panel = 2 * L if wide else L
    fours = O - (2 if O % ROWS == 2 else O % ROWS // 4) * 4
    for c in range(0, C, panel):
        o = 0
        while o < fours:
            at = du_at + o * C + c
            if wide:
                tile_product(6, 2, w, w_at + o, 1, O, v, v_at + c, C, du, at, C, count, add)
            else:
                tile_product(6, 1, w, w_at + o, 1, O, v, v_at + c, C, du, at, C, count, add)
            o += 6
        while o < O:
            at = du_at + o * C + c
            if wide:
                tile_product(4, 2, w, w_at + o, 1, O, v, v_at + c, C, du, at, C, count, add)
            else:
                tile_product(4, 1, w, w_at + o, 1, O, v, v_at + c, C, du, at, C, count, add)
            o += 4


@njit(cache=True, forceinline=True)
def ask_for(x, at, length, L):
    """Prefetch x[at : at + length], or what of it there is.

    Called between products, a 36th of a batch at a time, it keeps the memory busy while the core
    multiplies. All at once the requests would queue up, and the core with them.
    """
    for i in range(at, at + length, L):
        prefetch(x, i)
