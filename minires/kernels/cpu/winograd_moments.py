"""What is summed of a convolution's output, tile by tile while its pixels are in cache.

`finishing.py` has the mathematics. A part is what is summed in a known order: the tiles of a
worker, or of a chunk where workers share the channels. The pixels of a tile are summed in the
array's own precision, tiles in float64. Tiles may stick out over the edge: only pixels count.
"""

from __future__ import annotations

from numba import njit

from minires.kernels.cpu.finishing import masked
from minires.kernels.cpu.simd import add_wide, fill, fmuladd, load, store


@njit(cache=True)
def add_tile(y, corner, height, width, row, O, begin, channels, begins, finish, L):
    """Add the pixels y[corner + i*row + j*O + o], i < height, j < width, o < channels, to a part.

    y may be the output or a copy of the tile; its first channel is the part's `begin`. begins: the
    tile is the part's first, and its last pixel what is summed from: not its corner, which in an
    image's first tile padding changes.
    """
    o = 0
    while o < channels:
        if begins:
            last = corner + (height - 1) * row + (width - 1) * O
            store(finish.kept, begin + o, load(y, last + o))
        origin, a, b = load(finish.kept, begin + o), fill(y, 0.0), fill(y, 0.0)
        for i in range(height):
            for j in range(width):
                d = load(y, corner + i * row + j * O + o) - origin
                a = a + d
                b = fmuladd(d, d, b)
        add_wide(finish.sums[0], begin + o, a)
        add_wide(finish.sums[1], begin + o, b)
        o += L


@njit(cache=True)
def mask_tile(
    patch, line, pixel, y, corner, height, width, row, O, begin, channels, finish, L
):  # fmt: skip
    """Store a tile of a gradient, patch[i*line + j*pixel + o], masked, and add it to the sums of a
    part.

    Pixels and channels lie in y as in `add_tile`. A shortcut is added first.
    """
    o, norm, added = 0, finish.norm, finish.shortcut.size > 0
    while o < channels:
        c = begin + o
        mean, scale, shift = load(norm, c), load(norm, O + c), load(norm, 2 * O + c)
        a, b = fill(y, 0.0), fill(y, 0.0)
        for i in range(height):
            for j in range(width):
                at = corner + i * row + j * O + o
                value = load(patch, i * line + j * pixel + o)
                if added:
                    value = value + load(finish.shortcut, at)
                value, d = masked(value, finish, at, mean, scale, shift)
                store(y, at, value)
                a = a + value
                b = fmuladd(value, d, b)
        add_wide(finish.sums[0], c, a)
        add_wide(finish.sums[1], c, b)
        o += L


def pixels_before(tile: int, tiles: tuple[int, int], out: tuple[int, int]) -> int:
    """Pixels of the output in all tiles before one: images, rows of tiles, tiles in a row."""
    n, rest = divmod(tile, tiles[0] * tiles[1])
    row, col = divmod(rest, tiles[1])
    height = min(4, out[0] - 4 * row)
    return n * out[0] * out[1] + 4 * row * out[1] + height * min(4 * col, out[1])
