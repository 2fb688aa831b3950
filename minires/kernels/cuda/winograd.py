"""Winograd's convolution F(2x2, 3x3) and F(4x4, 3x3). The mathematics: src/conv_winograd.cu."""

from __future__ import annotations

from typing import Any

import numpy as np

from minires.kernels.cuda.arrays import THREADS, ceil_div, grid_for, nchw, nhwc
from minires.kernels.cuda.conv import gather, turned
from minires.kernels.cuda.launch import device_of
from minires.kernels.geometry import ConvGeometry, Pair


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


def _forward(tile: int, x: Any, weight: Any, g: ConvGeometry) -> Any:
    xp = device_of(x).xp
    return _convolve(tile, nhwc(xp, x), nhwc(xp, weight), g.padding, g.out, turn=False)


def _backward(tile: int, gy: Any, weight: Any, g: ConvGeometry) -> Any:
    xp = device_of(gy).xp
    padding = 2 - g.padding[0], 2 - g.padding[1]
    return _convolve(tile, nhwc(xp, gy), turned(xp, weight, g), padding, (g.H, g.W), turn=True)


def _convolve(tile: int, x: Any, weight: Any, padding: Pair, out: Pair, turn: bool) -> Any:
    """x (N, H, W, C) with weight (O, 3, 3, C), to (N, O, *out)."""
    device, (N, H, W, C), O = device_of(x), x.shape, len(weight)
    xp, dtype, places = device.xp, x.dtype, (tile + 2) ** 2
    rows, columns = (ceil_div(size, tile) for size in out)
    tiles = N * rows * columns
    y = xp.empty((N, *out, O), dtype)
    if not y.size:
        return nchw(y)
    kernel = device.module("conv_winograd.cu", ELEMENT=dtype, TILE=tile).kernel

    def over(name: str, items: int, *args: Any) -> None:
        given = (np.int32(a) if isinstance(a, int) else a for a in args)
        kernel(name)(grid_for(device, items), (THREADS,), tuple(given))

    V, U = xp.empty((tiles, places, C), dtype), xp.empty((places, O, C), dtype)
    over("transform_input", tiles * C, x, V, N, C, H, W, *padding, rows, columns)
    over("transform_weight", O * C, weight, U, O, C, int(turn))
    M = xp.empty((tiles, places, O), dtype)
    product = ConvGeometry(tiles, places * C, 1, 1, places * O, (1, 1), (1, 1), (0, 0), (1, 1),
                           places, (1, 1))  # fmt: skip
    gather(V, U, None, M, product)
    over("transform_output", tiles * O, M, y, N, O, *out, rows, columns)
    return nchw(y)
