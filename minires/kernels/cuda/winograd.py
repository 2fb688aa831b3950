"""Winograd's convolution F(2x2, 3x3) and F(4x4, 3x3), all three passes.

The mathematics: src/conv_winograd.cu. What is between the transforms, V and M, is 2.25 (or 4) times
as large as the images. So images are taken some at a time, such that V and M stay in the cache of
the device and never travel to its memory, and the workspace does not grow with the batch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from minires.kernels.cuda.arrays import THREADS, ceil_div, nchw, nhwc, pack
from minires.kernels.cuda.conv import weight_result
from minires.kernels.cuda.launch import device_of
from minires.kernels.cuda.product import by_columns, by_rows, on_16_bytes, split_of
from minires.kernels.cuda.tiles import Product
from minires.kernels.geometry import ConvGeometry, Pair

WORKSPACE = 32 << 20
"""Bytes of V and M together, unless a single image takes more: two thirds of an H100's cache."""


def winograd2_conv2d(x: Any, weight: Any, g: ConvGeometry) -> Any:
    """F(2x2, 3x3): 2.25 times fewer multiplications."""
    return _forward(2, x, weight, g)


def winograd4_conv2d(x: Any, weight: Any, g: ConvGeometry) -> Any:
    """F(4x4, 3x3): 4 times fewer multiplications."""
    return _forward(4, x, weight, g)


def winograd2_conv2d_grad_input(gy: Any, weight: Any, g: ConvGeometry) -> Any:
    """The forward pass from gy, with the weight turned by 180 degrees: F(2x2, 3x3)."""
    return _backward(2, gy, weight, g)


def winograd4_conv2d_grad_input(gy: Any, weight: Any, g: ConvGeometry) -> Any:
    """The forward pass from gy, with the weight turned by 180 degrees: F(4x4, 3x3)."""
    return _backward(4, gy, weight, g)


def winograd2_conv2d_grad_weight(x: Any, gy: Any, g: ConvGeometry) -> Any:
    """The adjoint of the forward pass in the weight: F(2x2, 3x3)."""
    return _grad_weight(2, x, gy, g)


def winograd4_conv2d_grad_weight(x: Any, gy: Any, g: ConvGeometry) -> Any:
    """The adjoint of the forward pass in the weight: F(4x4, 3x3)."""
    return _grad_weight(4, x, gy, g)


@dataclass(frozen=True)
class Tiling:
    """Images of C channels, and results of O channels and this size, cut into tiles."""

    tile: int
    N: int
    C: int
    O: int
    out: Pair

    @property
    def places(self) -> int:
        return (self.tile + 2) ** 2

    @property
    def rows(self) -> int:
        return ceil_div(self.out[0], self.tile)

    @property
    def columns(self) -> int:
        return ceil_div(self.out[1], self.tile)

    def bytes_of(self, images: int, itemsize: int) -> int:
        """V and M of so many images."""
        tiles = images * self.rows * self.columns
        return tiles * self.places * (self.C + self.O) * itemsize

    def images_at_once(self, itemsize: int) -> int:
        """How many images' V and M stay within WORKSPACE; all parts about as large."""
        most = max(1, WORKSPACE // max(1, self.bytes_of(1, itemsize)))
        return ceil_div(self.N, ceil_div(self.N, most))

    def parts(self, itemsize: int) -> Iterator[slice]:
        at_once = self.images_at_once(itemsize)
        return (slice(n, min(n + at_once, self.N)) for n in range(0, self.N, at_once))


def forward_tiling(tile: int, g: ConvGeometry) -> Tiling:
    """Of the forward pass, and of the weight gradient, which has the same V and M."""
    return Tiling(tile, g.N, g.C, g.O, g.out)


def backward_tiling(tile: int, g: ConvGeometry) -> Tiling:
    """Of the input gradient, whose results have the size of x."""
    return Tiling(tile, g.N, g.O, g.C, (g.H, g.W))


def workspace(operation: str, tile: int, g: ConvGeometry, dtype: str) -> int:
    """Bytes of V and M of the images at once, and of the weight's transforms.

    The weight gradient's are as many as its sum is split into on 132 multiprocessors.
    """
    itemsize = np.dtype(dtype).itemsize
    tiling = (backward_tiling if operation == "conv2d_grad_input" else forward_tiling)(tile, g)
    images, transforms = tiling.images_at_once(itemsize), 1
    if operation == "conv2d_grad_weight":
        tiles = images * tiling.rows * tiling.columns
        transforms = split_of(Product(g.O, g.C, tiles, tiling.places, itemsize), 132)[1]
    return tiling.bytes_of(images, itemsize) + transforms * tiling.places * g.O * g.C * itemsize


class _Transforms:
    """The kernels of conv_winograd.cu on one tiling."""

    def __init__(self, tiling: Tiling, first: Any) -> None:
        self.device, self.dtype, self.tiling = device_of(first), first.dtype, tiling
        self.xp = self.device.xp
        module = self.device.module("conv_winograd.cu", ELEMENT=self.dtype, TILE=tiling.tile)
        self.kernel: Callable[[str], Any] = module.kernel

    def images(self, array: Any) -> Any:
        """(N, C, H, W) -> (N, H, W, C), beginning at a multiple of 16 bytes."""
        return on_16_bytes(self.device, nhwc(self.xp, array))

    def run(self, name: str, items: int, *args: Any) -> None:
        """A thread for each item, 16 bytes of channels."""
        grid = (ceil_div(items // pack(self.dtype), THREADS),)
        given = tuple(np.int32(a) if isinstance(a, int) else a for a in args)
        self.kernel(name)(grid, (THREADS,), given)

    def places(self, images: int, channels: int) -> Any:
        """Fresh memory for V or M: (places, tiles, channels)."""
        t = self.tiling
        return self.xp.empty((t.places, images * t.rows * t.columns, channels), self.dtype)

    def over_tiles(self, name: str, images: Any, places: Any, *args: int) -> None:
        """Run transform_input, _grad or _output; args as between W and rows."""
        n, H, W, channels = images.shape
        t = self.tiling
        given = (places, images) if name == "transform_output" else (images, places)
        self.run(name, places.shape[1] * channels, *given, n, channels, H, W, *args, t.rows,
                 t.columns)  # fmt: skip

    def input(self, x: Any, padding: Pair) -> Any:
        """V of images (n, H, W, C)."""
        V = self.places(len(x), x.shape[3])
        self.over_tiles("transform_input", x, V, *padding)
        return V


def _forward(tile: int, x: Any, weight: Any, g: ConvGeometry) -> Any:
    return _convolve(forward_tiling(tile, g), x, weight, g, g.padding, turn=False)


def _backward(tile: int, gy: Any, weight: Any, g: ConvGeometry) -> Any:
    padding = 2 - g.padding[0], 2 - g.padding[1]
    return _convolve(backward_tiling(tile, g), gy, weight, g, padding, turn=True)


def _convolve(
    tiling: Tiling, x: Any, weight: Any, g: ConvGeometry, padding: Pair, turn: bool
) -> Any:
    transforms = _Transforms(tiling, x)
    x, weight = transforms.images(x), transforms.images(weight)
    y = transforms.xp.empty((tiling.N, *tiling.out, tiling.O), x.dtype)
    if not y.size:
        return nchw(y)
    U = transforms.xp.empty((tiling.places, tiling.O, tiling.C), x.dtype)
    transforms.run("transform_weight", g.O * g.C, weight, U, g.O, g.C, int(turn))
    for images in tiling.parts(x.dtype.itemsize):
        V = transforms.input(x[images], padding)
        (M,) = by_rows(V, U, split=False)
        transforms.over_tiles("transform_output", y[images], M)
        del V, M  # before the next are reserved
    return nchw(y)


def _grad_weight(tile: int, x: Any, gy: Any, g: ConvGeometry) -> Any:
    tiling = forward_tiling(tile, g)
    transforms = _Transforms(tiling, x)
    x, gy = transforms.images(x), transforms.images(gy)
    if not gy.size:
        return weight_result(transforms.xp.zeros((g.O, 9 * g.C), x.dtype), g)
    parts: Any = None
    for images in tiling.parts(x.dtype.itemsize):
        V = transforms.input(x[images], g.padding)
        M = transforms.places(images.stop - images.start, g.O)
        transforms.over_tiles("transform_grad", gy[images], M)
        parts = by_columns(M, V, parts)
        del V, M
    gweight = transforms.xp.empty((g.O, 9 * g.C), x.dtype)
    transforms.run("transform_weight_grad", g.O * g.C, parts, gweight, g.O, g.C, len(parts))
    return weight_result(gweight, g)
