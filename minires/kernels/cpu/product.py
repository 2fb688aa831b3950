"""Matrix products out of register tiles, for operands that lie in a core's cache.

`tile_product` (simd.py) computes up to 6 rows by 2 vectors. Rows are split into balanced groups,
16 as 6 + 5 + 5 and never 6 + 6 + 4 or worse 6 + 1: a tile of one row waits for its own sums.
Columns come in panels of 2 vectors, or of one where the number of columns asks for it.
"""

from __future__ import annotations

from numba import njit

from minires.kernels.cpu.simd import tile_product

ROWS = 6


@njit(cache=True)
def _tile(rows, wide, a, a_at, a_row, a_step, b, b_at, b_step, c, c_at, c_row, K, add):
    """`tile_product` for a number of rows known only now."""
    if wide:
        if rows == 6:
            tile_product(6, 2, a, a_at, a_row, a_step, b, b_at, b_step, c, c_at, c_row, K, add)
        elif rows == 5:
            tile_product(5, 2, a, a_at, a_row, a_step, b, b_at, b_step, c, c_at, c_row, K, add)
        elif rows == 4:
            tile_product(4, 2, a, a_at, a_row, a_step, b, b_at, b_step, c, c_at, c_row, K, add)
        elif rows == 3:
            tile_product(3, 2, a, a_at, a_row, a_step, b, b_at, b_step, c, c_at, c_row, K, add)
        elif rows == 2:
            tile_product(2, 2, a, a_at, a_row, a_step, b, b_at, b_step, c, c_at, c_row, K, add)
        else:
            tile_product(1, 2, a, a_at, a_row, a_step, b, b_at, b_step, c, c_at, c_row, K, add)
    elif rows == 6:
        tile_product(6, 1, a, a_at, a_row, a_step, b, b_at, b_step, c, c_at, c_row, K, add)
    elif rows == 5:
        tile_product(5, 1, a, a_at, a_row, a_step, b, b_at, b_step, c, c_at, c_row, K, add)
    elif rows == 4:
        tile_product(4, 1, a, a_at, a_row, a_step, b, b_at, b_step, c, c_at, c_row, K, add)
    elif rows == 3:
        tile_product(3, 1, a, a_at, a_row, a_step, b, b_at, b_step, c, c_at, c_row, K, add)
    elif rows == 2:
        tile_product(2, 1, a, a_at, a_row, a_step, b, b_at, b_step, c, c_at, c_row, K, add)
    else:
        tile_product(1, 1, a, a_at, a_row, a_step, b, b_at, b_step, c, c_at, c_row, K, add)


@njit(cache=True)
def product(
    a, a_at, a_row, a_step, M, b, b_at, b_step, b_panel, panel, wide, J, c, c_at, c_row, K, add
):  # fmt: skip
    """c (+)= a @ b for M rows, J columns (a multiple of `panel`) and a sum over K.

    a[i, k] lies at a_at + i*a_row + k*a_step, b[k, j] at b_at + (j // panel)*b_panel + k*b_step
    + j % panel, c[i, j] at c_at + i*c_row + j.
    """
    groups = (M + ROWS - 1) // ROWS
    for p in range(J // panel):
        b_now, c_now = b_at + p * b_panel, c_at + p * panel
        for group in range(groups):
            i = group * M // groups
            rows = (group + 1) * M // groups - i
            _tile(
                rows, wide, a, a_at + i * a_row, a_row, a_step, b, b_now, b_step,
                c, c_now + i * c_row, c_row, K, add,
            )  # fmt: skip


def panel_width(columns: int, lanes: int) -> int:
    """Two vectors, unless one leaves less of the last panel empty."""
    return 2 * lanes if -columns % (2 * lanes) < lanes else lanes
