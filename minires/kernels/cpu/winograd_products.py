"""The 36 matrix products of Winograd's convolution, one element of the transform at a time.

Everything here is inlined where it is used: a call costs some fifty cycles, as much as a product of
16 channels and two register tiles, and the callers make one per element and batch of tiles.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from numba import njit

from minires.kernels.cpu.simd import prefetch
from minires.kernels.cpu.tile import tile_product

ELEMENTS = 36  # of a transformed tile
ROWS = 6  # of a register tile


@njit(cache=True, forceinline=True)
def ask_for(x, at, length, L):
    """Prefetch x[at : at + length], or what of it there is.

    Called between products, a few lines at a time, it keeps the memory busy while the core
    multiplies. All at once the requests would queue up, and the core with them.
    """
    for i in range(at, at + length, L):
        prefetch(x, i)


class Request(NamedTuple):
    """What to ask for during the products of a batch: `share` numbers for each register tile."""

    x: Any
    at: Any
    share: Any


@njit(cache=True, forceinline=True)
def _ask(request, tile, L):
    ask_for(request.x, request.at + tile * request.share, request.share, L)


@njit(cache=True, forceinline=True)
def multiply(v, v_at, C, u, u_at, m, m_at, O, count, L, wide, add, requests=None, tile=0):
    """m[t, o] (+)= sum_c v[t, c] * u[c, o]; u comes in panels. requests: none, or five.

    Rows are done six at a time: the buffers have room for `count` rounded up. tile: the number of
    the first register tile among those of the batch. Returns the next one's.
    """
    panel = 2 * L if wide else L
    for o in range(0, O, panel):
        for t in range(0, count, ROWS):
            a, c = v_at + t * C, m_at + t * O + o
            if requests is not None:
                _ask(requests[0], tile, L)
                _ask(requests[1], tile, L)
                _ask(requests[2], tile, L)
                _ask(requests[3], tile, L)
                _ask(requests[4], tile, L)
            tile += 1
            if wide:
                tile_product(6, 2, v, a, C, 1, u, u_at + o * C, panel, m, c, O, C, add)
            else:
                tile_product(6, 1, v, a, C, 1, u, u_at + o * C, panel, m, c, O, C, add)
    return tile


@njit(cache=True)
def multiplied(count, O, L, wide):
    """Register tiles of a batch in `multiply`, all elements."""
    return ELEMENTS * (count // ROWS) * (O // (2 * L if wide else L))


@njit(cache=True, forceinline=True)
def _fours(O):
    """Register tiles of four rows: what is left is a number of sixes."""
    return 2 if O % ROWS == 2 else O % ROWS // 4


@njit(cache=True, forceinline=True)
def accumulate(w, w_at, O, v, v_at, C, du, du_at, count, L, wide, add, requests, tile):
    """du[o, c] (+)= sum_t w[t, o] * v[t, c]; two requests; tile: as in `multiply`.

    O is even and at least 4: rows of six, and one or two of four.
    """
    panel = 2 * L if wide else L
    fours = O - 4 * _fours(O)
    for c in range(0, C, panel):
        o = 0
        while o < O:
            at = du_at + o * C + c
            _ask(requests[0], tile, L)
            _ask(requests[1], tile, L)
            tile += 1
            if o < fours:
                if wide:
                    tile_product(6, 2, w, w_at + o, 1, O, v, v_at + c, C, du, at, C, count, add)
                else:
                    tile_product(6, 1, w, w_at + o, 1, O, v, v_at + c, C, du, at, C, count, add)
                o += 6
            else:
                if wide:
                    tile_product(4, 2, w, w_at + o, 1, O, v, v_at + c, C, du, at, C, count, add)
                else:
                    tile_product(4, 1, w, w_at + o, 1, O, v, v_at + c, C, du, at, C, count, add)
                o += 4
    return tile


@njit(cache=True)
def accumulated(C, O, L, wide):
    """Register tiles of a batch in `accumulate`, all elements."""
    fours = _fours(O)
    return ELEMENTS * ((O - 4 * fours) // ROWS + fours) * (C // (2 * L if wide else L))


@njit(cache=True)
def share(numbers, tiles, L):
    """What each of so many register tiles asks for of `numbers`: whole vectors."""
    return -(-numbers // (tiles * L)) * L
