"""The loops behind `limits`: products in registers, on as many threads as asked for.

A compiled function has to stand in a module of its own to be found again in Numba's cache; this
one imports Numba, so it is imported when limits are measured.
"""

from __future__ import annotations

from typing import Any

from numba import njit

from minires.kernels.cpu.tile import tile_product

ROWS, VECTORS, STEPS = 6, 2, 128
"""The tile of every fast convolution; `STEPS` such that its operands stay in the L1 cache."""


@njit(cache=True, nogil=True)
def tile_products(a: Any, b: Any, c: Any, steps: int, columns: int, repeats: int) -> None:
    """c += a @ b for c (6, columns), `repeats` times; columns = 2 vectors."""
    for _ in range(repeats):
        tile_product(6, 2, a, 0, steps, 1, b, 0, columns, c, 0, columns, steps, True)
