"""Convolution of few channels: stems, and the widths 16 and 32 of CIFAR's nets.

The mathematics: src/conv_window.cu and conv_window_weight.cu. The whole filter and a window of the
image stand in shared memory; this file says how large a window is, and how many blocks there are.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from minires.kernels.cuda.arrays import accumulator, aligned, ceil_div, nchw, nhwc
from minires.kernels.cuda.conv import sum_parts, weight_result
from minires.kernels.cuda.launch import Device, device_of
from minires.kernels.cuda.tiles import Tile
from minires.kernels.geometry import ConvGeometry, Pair

TILES = (Tile(112, 64, 7, 8), Tile(128, 64, 8, 8), Tile(64, 32, 4, 8), Tile(128, 16, 8, 4))
"""BM pixels by BN channels. 112 is a row of ImageNet's stem, 128 four rows of CIFAR's images."""

SHARED, HELD = 163 << 10, 227 << 10
"""Bytes of shared memory that a block may use on compute capability 8.0 and later, and that a
multiprocessor of 9.0 has for all of its blocks."""

GAP = 4
"""Numbers between the pixels of a window, at most."""

WEIGHT_THREADS, WEIGHT_PIXELS, WEIGHT_COLUMNS = 384, 128, 8
"""Of the weight gradient: threads of a block, pixels of a window, inputs that a thread keeps."""


@dataclass(frozen=True)
class Gather:
    """A pass that gathers, from images (N, H, W, S) to (N, *out, D)."""

    N: int
    S: int
    D: int
    size: Pair
    out: Pair
    kernel: Pair
    stride: Pair
    padding: Pair
    dilation: Pair

    @property
    def K(self) -> int:
        """Terms of each sum."""
        return self.kernel[0] * self.kernel[1] * self.S

    def window(self, pixels: int) -> Pair:
        """Rows and columns of outputs that a block makes at once: as many as `pixels` at most.

        Whole rows if they fit; and all windows about as large.
        """
        OH, OW = self.out
        columns = ceil_div(OW, ceil_div(OW, pixels))
        return ceil_div(OH, ceil_div(OH, pixels // columns)), columns

    def windows(self, pixels: int) -> int:
        """How many windows there are."""
        rows, columns = self.window(pixels)
        return self.N * ceil_div(self.out[0], rows) * ceil_div(self.out[1], columns)

    def read(self, pixels: int) -> int:
        """Numbers of the image that a window takes in shared memory, at most."""
        high, wide = (
            (n - 1) * s + (k - 1) * d + 1
            for n, s, k, d in zip(
                self.window(pixels), self.stride, self.kernel, self.dilation, strict=True
            )
        )
        return high * wide * (self.S + GAP)

    def shared(self, tile: Tile) -> int:
        """Numbers in shared memory: the filter of a tile's channels, and a window."""
        return self.K * tile.BN + self.read(tile.BM)

    def sizes(self) -> tuple[int, ...]:
        """The sizes of a launch, in its order."""
        window = *self.kernel, *self.stride, *self.padding, *self.dilation
        return self.N, self.S, *self.size, self.D, *self.out, *window


def forward(g: ConvGeometry) -> Gather:
    """The forward pass, and the sizes of the weight gradient's windows."""
    return Gather(g.N, g.C, g.O, (g.H, g.W), g.out, g.kernel, g.stride, g.padding, g.dilation)


def backward(g: ConvGeometry) -> Gather:
    """The input gradient of stride 1: a gather from gy."""
    sizes = zip(g.kernel, g.dilation, g.padding, strict=True)
    top, left = ((k - 1) * d - p for k, d, p in sizes)
    return Gather(g.N, g.O, g.C, g.out, (g.H, g.W), g.kernel, (1, 1), (top, left), g.dilation)


def usable(gather: Gather, itemsize: int) -> list[Tile]:
    """The tiles whose filter and window fit into shared memory."""
    return [t for t in TILES if gather.shared(t) * itemsize <= SHARED]


def blocks_at_once(gather: Gather, tile: Tile, itemsize: int) -> int:
    """How many blocks a multiprocessor holds: by shared memory, and 16 warps of them."""
    by_memory = HELD // (gather.shared(tile) * itemsize + 1024)
    return max(1, min(by_memory, 512 // tile.threads))


def tile_of(gather: Gather, itemsize: int, processors: int) -> Tile:
    """The tile with which the busiest multiprocessor ends first, of those that fit."""

    def time(tile: Tile) -> float:
        """In multiply-adds; a number that is brought to shared memory costs 8."""
        windows = gather.windows(tile.BM) * ceil_div(gather.D, tile.BN)
        each = ceil_div(windows, processors)
        product = tile.BM * tile.BN * gather.K * 4 / tile.reuse
        filters = min(each, blocks_at_once(gather, tile, itemsize)) * gather.K * tile.BN
        return each * (product + 8 * gather.read(tile.BM)) + 8 * filters

    return min(usable(gather, itemsize), key=time)


def fits(operation: str, g: ConvGeometry) -> bool:
    """Whether shared memory has room for a pass, even of float64."""
    if g.groups != 1 or not (g.N and g.C and g.O):
        return False
    if operation == "conv2d":
        return bool(usable(forward(g), 8))
    if operation == "conv2d_grad_input":
        return g.stride == (1, 1) and bool(usable(backward(g), 8))
    return weight_shared(g, 8) <= SHARED


def window_conv2d(x: Any, weight: Any, g: ConvGeometry) -> Any:
    """The filter and a window of x in shared memory."""
    return _gather(x, weight, forward(g), turn=False)


def window_conv2d_grad_input(gy: Any, weight: Any, g: ConvGeometry) -> Any:
    """The same from gy, with the filter turned by 180 degrees."""
    return _gather(gy, weight, backward(g), turn=True)


def _gather(source: Any, weight: Any, gather: Gather, turn: bool) -> Any:
    device = device_of(source)
    source, weight = nhwc(device.xp, source), nhwc(device.xp, weight)
    result = device.xp.empty((gather.N, *gather.out, gather.D), source.dtype)
    itemsize = accumulator(source.dtype).itemsize
    tile = tile_of(gather, itemsize, device.multiprocessors)
    packed = _packed(device, gather.S, source, *([] if turn else [weight]))
    blocks = device.multiprocessors * blocks_at_once(gather, tile, itemsize)
    pieces = ceil_div(gather.D, tile.BN)
    grid = min(gather.windows(tile.BM), ceil_div(blocks, pieces)), pieces
    sizes = *gather.sizes(), int(turn), *gather.window(tile.BM)
    module = device.module(
        "conv_window.cu", ELEMENT=source.dtype, PACKED=int(packed), **tile.definitions
    )
    args = (source, weight, result, *map(np.int32, sizes))
    module.kernel("window")(grid, (tile.threads,), args, gather.shared(tile) * itemsize)
    return nchw(result)


def _packed(device: Device, channels: int, *arrays: Any) -> bool:
    """Whether arrays of images can be read in packs that are 16 bytes wide in arithmetic."""
    V = 16 // accumulator(arrays[0].dtype).itemsize
    return channels % V == 0 and aligned(device, *arrays)


@dataclass(frozen=True)
class WeightBlock:
    """A block's threads: `across` for k, `down` for o, in groups; and how many pieces K has."""

    across: int
    down: int
    groups: int
    pieces: int

    @property
    def threads(self) -> int:
        """Whole warps."""
        return ceil_div(self.groups * self.across * self.down, 32) * 32


def weight_block(g: ConvGeometry, itemsize: int) -> WeightBlock:
    """Every number of the gradient in one thread, 32 / itemsize by 8 in each; K in equal pieces."""
    K = g.kernel[0] * g.kernel[1] * g.C
    down = ceil_div(g.O, 32 // itemsize)
    pieces = ceil_div(ceil_div(K, WEIGHT_COLUMNS) * down, WEIGHT_THREADS)
    across = ceil_div(ceil_div(K, pieces), WEIGHT_COLUMNS)
    return WeightBlock(across, down, max(1, min(32, WEIGHT_THREADS // (across * down))), pieces)


def weight_shared(g: ConvGeometry, itemsize: int) -> int:
    """Bytes of shared memory: a window of x and of gy, or, at the end, the sums."""
    block, gather = weight_block(g, itemsize), forward(g)
    if block.across * block.down > WEIGHT_THREADS:
        return SHARED + 1
    rows, columns = gather.window(WEIGHT_PIXELS)
    grads = block.down * (32 // itemsize)
    window = rows * columns * grads + gather.read(WEIGHT_PIXELS)
    return max(window, grads * block.across * WEIGHT_COLUMNS) * itemsize


def workspace(operation: str, g: ConvGeometry, dtype: str) -> int:
    """Bytes of a weight gradient's parts, one of each block on 132 multiprocessors; else none."""
    if operation != "conv2d_grad_weight":
        return 0
    gather, sums = forward(g), 8 if dtype == "float64" else 4
    return min(gather.windows(WEIGHT_PIXELS), 132) * g.O * gather.K * sums


def window_conv2d_grad_weight(x: Any, gy: Any, g: ConvGeometry) -> Any:
    """The whole gradient in registers; the sum over windows split over blocks, joined in order."""
    device = device_of(x)
    x, gy = nhwc(device.xp, x), nhwc(device.xp, gy)
    gather, sums = forward(g), accumulator(x.dtype)
    block = weight_block(g, sums.itemsize)
    blocks = min(gather.windows(WEIGHT_PIXELS), device.multiprocessors)
    parts = device.xp.empty((blocks, g.O, gather.K), sums)
    module = device.module(
        "conv_window_weight.cu", ELEMENT=x.dtype, PACKED=int(_packed(device, g.C, x)),
        PACKED_GRADS=int(_packed(device, g.O, gy)),
    )  # fmt: skip
    sizes = *gather.sizes(), *gather.window(WEIGHT_PIXELS), block.across, block.groups
    args = (x, gy, parts, *map(np.int32, sizes))
    shared = weight_shared(g, sums.itemsize)
    kernel = module.kernel("window_grad_weight")
    kernel((blocks, block.pieces), (block.threads,), args, shared)
    return weight_result(sum_parts(device, parts, x.dtype), g)
