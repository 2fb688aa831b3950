"""How large a piece of a product one block makes, and over how many blocks a long sum is split."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

from minires.kernels.cuda.arrays import ceil_div


@dataclass(frozen=True)
class Tile:
    """A block makes BM x BN numbers, a thread TM x TN of them."""

    BM: int
    BN: int
    TM: int
    TN: int

    @property
    def threads(self) -> int:
        return (self.BM // self.TM) * (self.BN // self.TN)

    @property
    def definitions(self) -> dict[str, int]:
        return {"BM": self.BM, "BN": self.BN, "TM": self.TM, "TN": self.TN}

    @property
    def product_shared(self) -> int:
        """Bytes of shared memory of product.cu: 64 of each row, for three steps."""
        return 3 * (self.BM + self.BN) * PRODUCT_STEP

    @property
    def reuse(self) -> float:
        """Multiply-adds per number that a thread reads from shared memory."""
        return self.TM * self.TN / (self.TM + self.TN)


PRODUCT_STEP = 64
"""Bytes of each row of a factor that product.cu takes at a step."""

PRODUCT_TILES = (Tile(128, 128, 8, 8), Tile(128, 64, 8, 8), Tile(64, 64, 8, 8), Tile(64, 64, 4, 8),
                 Tile(32, 64, 4, 8), Tile(128, 32, 8, 4))  # fmt: skip
"""For product.cu; those of 32 numbers a thread serve float64 too."""


@dataclass(frozen=True)
class Product:
    """The sizes of `batch` products (rows x length) @ (length x columns)."""

    rows: int
    columns: int
    length: int
    batch: int
    itemsize: int


@dataclass(frozen=True)
class Plan:
    """A tile, and over how many blocks each sum is split."""

    tile: Tile
    splits: int


@cache
def plan(product: Product, tiles: tuple[Tile, ...], shortest: int, processors: int) -> Plan:
    """The tile and the split with which the busiest multiprocessor ends first.

    Blocks are dealt out evenly, and the last of them may run alone: 196 blocks take 132
    multiprocessors as long as 264. A part of a sum has `shortest` terms at least.
    """
    p, usable = product, [t for t in tiles if product.itemsize < 8 or t.TM * t.TN <= 32]

    def time(choice: Plan) -> float:
        """In multiply-adds of one multiprocessor at its full rate."""
        t, parts = choice.tile, choice.splits
        blocks = ceil_div(p.rows, t.BM) * ceil_div(p.columns, t.BN) * p.batch * parts
        terms = ceil_div(p.length, parts) + FILLING
        product = ceil_div(blocks, processors) * t.BM * t.BN * terms * 4 / t.reuse
        written = p.rows * p.columns * p.batch * p.itemsize * (2 * parts if parts > 1 else 0)
        return product + written * ADDS_PER_BYTE / processors

    counts = [n for n in SPLITS if n == 1 or p.length >= n * shortest]
    return min((Plan(t, n) for t in usable for n in counts), key=time)


SPLITS = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512)
FILLING = 32
"""A block's start and end, in terms of its sum: the pipeline fills, the results are written."""
ADDS_PER_BYTE = 8
"""Multiply-adds in float32 that an H100 does while its memory moves a byte: 30 T/s, 3.35 TB/s."""

WEIGHT_TILES = (Tile(128, 128, 8, 8), Tile(64, 64, 4, 4), Tile(32, 64, 4, 4), Tile(16, 64, 4, 4))
"""For weight gradients: rows are output channels, columns the inputs of a window."""

TILES = (Tile(128, 128, 8, 8), Tile(128, 64, 8, 4), Tile(64, 64, 4, 4), Tile(128, 32, 4, 4),
         Tile(128, 16, 4, 4), Tile(256, 4, 4, 4))  # fmt: skip
"""For results: from wide to narrow; 4 columns are the 3 of a stem's input gradient."""


@dataclass(frozen=True)
class WarpTile:
    """A block makes BM x BN numbers, a warp WM x WN of them; STAGES steps are copied ahead."""

    BM: int
    BN: int
    WM: int
    WN: int
    STAGES: int = 4

    @property
    def threads(self) -> int:
        return (self.BM // self.WM) * (self.BN // self.WN) * 32

    @property
    def definitions(self) -> dict[str, int]:
        return {name: getattr(self, name) for name in ("BM", "BN", "WM", "WN", "STAGES")}

    @property
    def shared(self) -> int:
        """Bytes of shared memory: 64 of each row, for every stage."""
        return self.STAGES * (self.BM + self.BN) * 64


WARP_TILES = (WarpTile(128, 128, 64, 32), WarpTile(128, 64, 32, 32), WarpTile(128, 32, 32, 16),
              WarpTile(128, 16, 16, 16))  # fmt: skip


def warp_tile(columns: int) -> WarpTile:
    """The tile for a product on tensor cores with this many columns."""
    return next((t for t in reversed(WARP_TILES) if columns <= t.BN), WARP_TILES[0])


WEIGHT_WARP_TILES = (WarpTile(128, 128, 64, 32), WarpTile(64, 128, 32, 32),
                     WarpTile(32, 128, 16, 32), WarpTile(16, 128, 16, 16))  # fmt: skip


def weight_warp_tile(rows: int) -> WarpTile:
    """The tile for a weight gradient on tensor cores with this many output channels."""
    return next((t for t in reversed(WEIGHT_WARP_TILES) if rows <= t.BM), WEIGHT_WARP_TILES[0])


def splits(pieces: int, length: int, multiprocessors: int, shortest: int) -> int:
    """Over how many blocks to split each of `pieces` sums of `length` terms.

    Enough to give every multiprocessor two blocks, while each still adds up `shortest` terms.
    """
    wanted = ceil_div(2 * multiprocessors, pieces)
    return max(1, min(wanted, length // shortest))


def parts_of(length: int, count: int) -> tuple[int, int]:
    """(terms per part, parts), none of them empty, for a sum split over at most `count` parts."""
    per_part = max(1, ceil_div(length, count))
    return per_part, max(1, ceil_div(length, per_part))
