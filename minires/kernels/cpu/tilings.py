"""How an image is cut into tiles of 4 and of 3 outputs, so that none is left with a rest.

A tile of 3 takes one product less along its short side, with the same transformed weight. So tiles
are ordered by kind: all that take part in a product follow one another, or nearly so.
"""

from __future__ import annotations

from typing import NamedTuple

from numba import njit


class Tiling(NamedTuple):
    """How many rows of tiles are tall (4) or short (3) and columns wide (4) or narrow (3).

    Tiles are counted by kind, then by image, row and column: tall and narrow, tall and wide, short
    and wide, short and narrow, so that all that are tall, or wide, follow one another.
    """

    N: int
    tall: int
    short: int
    wide: int
    narrow: int

    @classmethod
    def of(cls, N: int, rows: int, cols: int) -> Tiling:
        """As few tiles as there are fours in the image, as many threes as that allows."""
        down, across = -(-rows // 4), -(-cols // 4)
        short, narrow = min(down, 4 * down - rows), min(across, 4 * across - cols)
        return cls(N, down - short, short, across - narrow, narrow)

    @property
    def tiles(self) -> int:
        return self.N * (self.tall + self.short) * (self.wide + self.narrow)


@njit(cache=True)
def ranges(tiling, first, count):
    """Of `count` tiles from `first` on: the first tall one and one behind the last; of the wide."""
    a = tiling.N * tiling.tall * tiling.narrow
    b = a + tiling.N * tiling.tall * tiling.wide
    c = b + tiling.N * tiling.short * tiling.wide
    tall, low, high = min(b - first, count), min(a - first, count), min(c - first, count)
    return max(tall, 0), max(low, 0), max(high, 0)


@njit(cache=True)
def place(t, tiling):
    """Image, first row and column, and whether the tile is tall and wide."""
    rows, cols, top, left = tiling.tall, tiling.narrow, 0, 4 * tiling.wide
    size = tiling.N * rows * cols
    if t >= size:
        t, cols, left = t - size, tiling.wide, 0
        size = tiling.N * rows * cols
        if t >= size:
            t, rows, top = t - size, tiling.short, 4 * tiling.tall
            size = tiling.N * rows * cols
            if t >= size:
                t, cols, left = t - size, tiling.narrow, 4 * tiling.wide
    n, rest = divmod(t, rows * cols)
    row, col = divmod(rest, cols)
    tall, wide = top == 0 and rows == tiling.tall, left == 0 and cols == tiling.wide
    return n, top + row * (4 if tall else 3), left + col * (4 if wide else 3), tall, wide
