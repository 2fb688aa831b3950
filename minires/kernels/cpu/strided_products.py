"""The products of strided Winograd: 36 matrices, each with all the rows that share it.

Tiles of 3 have no fourth element along their short side; which tiles of a batch are tall and which
are wide is given by ranges (`tilings.ranges`). Products of a few tiles are inlined, those of
many call `product.py`. The weight gradient's sums over elements that share a matrix are one product
where all tiles are tall and wide, and one for each line of three where not.
"""

from __future__ import annotations

from numba import njit

from minires.kernels.cpu.copying import clear_run
from minires.kernels.cpu.product import product_to_memory
from minires.kernels.cpu.tile import FRESH, ONWARD
from minires.kernels.cpu.winograd_products import ROWS, ask_for, multiply

ELEMENTS = 36  # matrices: ee 25, eo 5, oe 5, oo 1
PRODUCTS = 81  # with all elements that share them
AHEAD = 3  # elements, of those that share a matrix, from what is summed to what is asked for
SPARE = ROWS - 1  # rows that `multiply_batch` may read or write beyond the last one


@njit(cache=True)
def _shared(e):
    """How many elements of a tile share matrix e."""
    return 1 if e < 25 else 4 if e < 35 else 16


@njit(cache=True)
def _begin(e, s):
    """Where they begin."""
    return e * s.single if e < 25 else 25 * s.single + (e - 25) * s.quad


@njit(cache=True)
def _rows(e, which, tiles, count):
    """The first and one behind the last of `count` tiles that have the element `which` of e."""
    tall, low, high = tiles
    if e < 25:
        i, j = e // 5, e % 5
    elif e < 30:
        i, j = e - 25, which
    elif e < 35:
        i, j = which, e - 30
    else:
        i, j = which // 4, which % 4
    first, end = (low, high) if j == 3 else (0, count)
    return first, min(end, tall) if i == 3 else end


@njit(cache=True)
def multiply_batch(
    v, C, vs, u, u_at, u_step, m, O, ms, tiles, count, L, wide, x, x_at, x_share, y, y_at, y_share,
    finish,
):  # fmt: skip
    """m[t, o] = sum_c v[t, c] * u[c, o] for `count` tiles, element by element.

    Matrices of u lie u_step apart. v and m have room for five rows more. Before each product some
    numbers of x and of y are asked for, see `winograd_products.ask_for`, and of what `finish` reads
    where y lies.
    """
    for e in range(ELEMENTS):
        a, c = _begin(e, vs), _begin(e, ms)
        for which in range(_shared(e)):
            first, end = _rows(e, which, tiles, count)
            ask_for(x, x_at, x_share, L)
            ask_for(y, y_at, y_share, L)
            if finish.x.size > 0:
                ask_for(finish.x, y_at, y_share, L)
            if finish.output.size > 0:
                ask_for(finish.output, y_at, y_share, L)
            x_at, y_at = x_at + x_share, y_at + y_share
            multiply(
                v, a + which * vs.run + first * C, C, u, u_at + e * u_step,
                m, c + which * ms.run + first * O, O, end - first, L, wide, False,
            )  # fmt: skip


@njit(cache=True)
def multiply_group(
    address, v, v_at, C, vs, u, begin, end, panel, wide, m, ms, tiles, count
):  # fmt: skip
    """m[t, o] = sum_c v[t, c] * u[c, o] for `count` tiles, a panel of outputs and the elements
    begin, ..., end - 1, whose matrices lie in u one after the other.

    A register tile's rows of v are asked for while the one before it is computed.
    """
    for e in range(begin, end):
        a, c, n = v_at + _begin(e, vs), _begin(e, ms), _shared(e)
        adjacent = n > 1 and vs.run == count * C and ms.run == count * panel
        which = 0
        while which < n:
            first, last = _rows(e, which, tiles, count)
            rows, step = last - first, 1
            if adjacent and which % 4 == 0 and rows == count:  # three that all tiles have
                rows, step = 3 * count, 3
            at = a + which * vs.run + first * C
            if rows > 0:
                product_to_memory(
                    address, v, at, C, 1, rows, u, (e - begin) * C * panel, panel, 0, panel, wide,
                    panel, m, c + which * ms.run + first * panel, panel, C, FRESH, 1, 0, 0,
                    v, at + ROWS * C, rows * C,
                )  # fmt: skip
            which += step


@njit(cache=True)
def accumulate(
    address, w, w_at, O, ws, v, v_at, C, vs, panel, wide, du, fresh, tiles, count, L,
    gy, gy_at, gy_count, x, x_at, x_count,
):  # fmt: skip
    """du[e, o, c] += sum over tiles and elements that share e  w[t, o] * v[t, c]; = if `fresh`.

    While the sums of ee are computed, gy_count numbers of gy are asked for, line after line, then
    x_count of x. If both are 0, as much of w and v is asked for as is read, AHEAD elements on.
    """
    tall, low, high = tiles
    whole = tall == count and low == 0 and high == count
    merged = whole and vs.run == count * C and ws.run == count * O
    half = 0 if gy_count + x_count > 0 else C // panel // 2 * panel
    for e in range(ELEMENTS):
        a, b, n = w_at + _begin(e, ws), v_at + _begin(e, vs), _shared(e)
        pieces = 1 if merged or n == 1 else n // 2
        if e < 25:
            source, share = gy, gy_count // 25 + 1
            ask = gy_at + e * share
        else:
            source, share = x, x_count // 14 + 1
            ask, share = x_at + (e - 25) * share, share * (4 if e == 35 else 1)
        for piece in range(pieces):
            # Elements before the fourth have the same tiles: they are lines of one sum.
            which, lines = (piece // 2 * 4 + 3, 1) if piece % 2 == 1 else (piece * 2, 3)
            first, end = _rows(e, which, tiles, count)
            if pieces == 1:
                lines, end = 1, end if n == 1 else n * count
            K, mode = end - first, FRESH if fresh and piece == 0 else ONWARD
            if K <= 0:
                if mode == FRESH:
                    clear_run(du, e * O * C, O * C, L)
                continue
            a_now, b_now = a + which * ws.run + first * O, b + which * vs.run + first * C
            if half > 0:
                product_to_memory(
                    address, w, a_now, 1, O, O, v, b_now, C, panel, panel, wide, half,
                    du, e * O * C, C, K, mode, lines, ws.run, vs.run,
                    w, a_now + AHEAD * ws.run, lines * K * O,
                )  # fmt: skip
                source, ask, share = v, b_now + AHEAD * vs.run, lines * K * C
            product_to_memory(
                address, w, a_now, 1, O, O, v, b_now + half, C, panel, panel, wide, C - half,
                du, e * O * C + half, C, K, mode, lines, ws.run, vs.run,
                source, ask, share if half > 0 or piece == 0 else 0,
            )  # fmt: skip
