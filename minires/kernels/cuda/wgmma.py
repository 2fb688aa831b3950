"""Convolution on tensor cores by instructions of a whole warpgroup (wgmma), capability 9.0 alone.

f16 and bf16, and float32 rounded to tf32. The mathematics: src/conv_wgmma.cu and
conv_wgmma_weight.cu.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from minires.kernels.cuda.arrays import THREADS, ceil_div, grid_for, nhwc, on_16_bytes
from minires.kernels.cuda.conv import geometry_arguments, sum_parts, weight_result
from minires.kernels.cuda.launch import HOPPER, Device, device_of
from minires.kernels.cuda.mma import made
from minires.kernels.cuda.tiles import parts_of, splits
from minires.kernels.geometry import ConvGeometry

BM = 128
"""Pixels of a block of `gather`, inputs of a window of a block of `grad_weight`."""

BLOCK = 384
"""Threads: a warpgroup that copies and two that multiply."""


@dataclass(frozen=True)
class WgmmaTile:
    """A block makes BM x BN numbers; STAGES steps are copied ahead."""

    BN: int
    STAGES: int

    @property
    def definitions(self) -> dict[str, int]:
        return {"BN": self.BN, "STAGES": self.STAGES}

    @property
    def cycles(self) -> int:
        """What a step takes of shared memory at 128 bytes a cycle, which is what bounds it.

        Each of two warpgroups reads 64 rows of the first factor and BN of the second, of 128 bytes;
        BM + BN rows were written once. Products take 4 BN cycles (benchmarks/gpu_notes.md).
        """
        return 2 * (64 + self.BN) + BM + self.BN

    @property
    def shared(self) -> int:
        """Bytes of shared memory of `gather`: stages, a table of pixels, two barriers a stage."""
        return self.STAGES * ((BM + self.BN) * 128 + 16) + BM * 24

    @property
    def weight_shared(self) -> int:
        """Bytes of shared memory of `grad_weight`: stages, two tables of pixels, barriers."""
        slabs = BM // 64 + ceil_div(self.BN, 64)
        return self.STAGES * (slabs * 64 * 128 + 16) + 2 * 64 * 16


Tiles = tuple[WgmmaTile, ...]

WGMMA_TILES: Tiles = (WgmmaTile(256, 4), WgmmaTile(128, 6), WgmmaTile(64, 4), WgmmaTile(32, 5),
                      WgmmaTile(16, 6))  # fmt: skip
"""From wide to narrow. Up to 64 columns, two blocks share a multiprocessor."""

TF32_TILES: Tiles = (WgmmaTile(128, 6), WgmmaTile(64, 8), *WGMMA_TILES[3:])
"""Factors in registers leave no room for 256 columns, nor for two blocks of 64."""

WGMMA_WEIGHT_TILES: Tiles = (*WGMMA_TILES[:3], WgmmaTile(32, 4), WgmmaTile(16, 4))
"""For weight gradients, whose columns are output channels, in shared memory 64 at once."""

TF32_WEIGHT_TILES: Tiles = (WgmmaTile(128, 6), *(WgmmaTile(n, 8) for n in (64, 32, 16)))


def needed(tiles: Tiles, columns: int) -> Tiles:
    """The tiles no wider than this many columns need."""
    return tuple(t for t in tiles if 2 * columns > t.BN or t is tiles[-1])


FEW_STEPS = 4
"""So few steps are mostly beginning and end, which blocks of 64 columns overlap, being two."""


def wgmma_tile(tiles: Tiles, columns: int, rows: int, steps: int, device: Device) -> WgmmaTile:
    """The tile, of those needed, with which the busiest multiprocessor is done first.

    rows: how many blocks there are for each piece of columns. steps: of a block.
    """
    usable = needed(tiles, columns)
    if steps <= FEW_STEPS:
        usable = tuple(t for t in usable if t.BN <= 64)

    def cycles(tile: WgmmaTile) -> int:
        return ceil_div(rows * ceil_div(columns, tile.BN), device.multiprocessors) * tile.cycles

    return min(usable, key=cycles)


def _device(array: Any) -> Device:
    """The array's device. Raises ValueError if it is no Hopper."""
    device = device_of(array)
    if device.capability != HOPPER:
        major, minor = device.capability
        raise ValueError(
            f"wgmma needs compute capability 9.0, this device has {major}.{minor}; "
            "minires.kernels.cuda.tensor chooses what the device has"
        )
    return device


def most_taps(g: ConvGeometry, gradient: bool) -> int:
    """The most taps that a result of a pass is made from, over the residues of the stride."""
    if not gradient:
        return g.kernel[0] * g.kernel[1]
    steps = (s // math.gcd(s, d) for s, d in zip(g.stride, g.dilation, strict=True))
    return math.prod(ceil_div(k, step) for k, step in zip(g.kernel, steps, strict=True))


def gather(source: Any, weight: Any, result: Any, g: ConvGeometry, gradient: bool) -> None:
    """Write the outputs, or the input gradient, from the other; all arrays are channels last.

    weight: (O, KH, KW, C/G), for both. Raises ValueError on a device that is no Hopper.
    """
    device = _device(source)
    S, D = (g.O, g.C) if gradient else (g.C, g.O)
    S, D = S // g.groups, D // g.groups
    residues, pixels = made(g, gradient)
    if not pixels:
        return
    rows, places = ceil_div(pixels, BM), g.groups * residues
    tiles = TF32_TILES if source.dtype == np.float32 else WGMMA_TILES
    step, turns = 128 // source.dtype.itemsize, source.dtype.itemsize // 2
    most_steps = ceil_div(most_taps(g, gradient) * S, step * turns) * turns
    tile = wgmma_tile(tiles, D, rows * places, most_steps, device)
    pieces = ceil_div(D, tile.BN)
    packed = device.xp.empty((places, pieces, most_steps, tile.BN, step), source.dtype)
    module = device.module("conv_wgmma.cu", ELEMENT=source.dtype, **tile.definitions)
    sizes = geometry_arguments(g)
    pass_ = np.int32(gradient), np.int32(most_steps)
    chunks = packed.nbytes // 16
    pack = weight, packed, *pass_, np.int32(pieces), *sizes
    module.kernel("pack_weight")(grid_for(device, chunks), (THREADS,), pack)
    args = on_16_bytes(device, source), packed, result, *pass_, *sizes
    module.kernel("gather")((rows, pieces, places), (BLOCK,), args, tile.shared)


def grad_weight(x: Any, gy: Any, g: ConvGeometry) -> Any:
    """The sum over pixels, split over blocks and joined in order.

    Raises ValueError on a device that is no Hopper.
    """
    device = _device(x)
    x, gy = (on_16_bytes(device, nhwc(device.xp, a)) for a in (x, gy))
    D, K = g.O // g.groups, g.kernel[0] * g.kernel[1] * (g.C // g.groups)
    pixels, rows = g.N * g.out[0] * g.out[1], ceil_div(K, BM)
    tf32 = x.dtype == np.float32
    tile = needed(TF32_WEIGHT_TILES if tf32 else WGMMA_WEIGHT_TILES, D)[0]
    pieces, step = ceil_div(D, tile.BN), 128 // x.dtype.itemsize
    count = splits(rows * pieces * g.groups, pixels, device.multiprocessors, 512)
    # In units of 64 pixels: a step of 16 bits, two of tf32, which takes two at once.
    units, count = parts_of(ceil_div(pixels, 64), count)
    parts = device.xp.empty((count, g.O, K), np.float32)
    module = device.module("conv_wgmma_weight.cu", ELEMENT=x.dtype, **tile.definitions)
    if tf32:
        steps = units * 64 // step * count
        packed = device.xp.empty((g.groups, pieces, steps, tile.BN, step), x.dtype)
        pack = gy, packed, pixels, steps, *map(np.int32, (pieces, g.O, g.groups))
        module.kernel("pack_grad")(grid_for(device, packed.nbytes // 16), (THREADS,), pack)
        gy = packed
    args = x, gy, parts, units * 64, *geometry_arguments(g)
    grid = rows, pieces, g.groups * count
    module.kernel("grad_weight")(grid, (BLOCK,), args, tile.weight_shared)
    return weight_result(sum_parts(device, parts, x.dtype), g)
