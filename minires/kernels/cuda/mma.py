"""Convolution on tensor cores by warp-wide instructions (mma.sync), for compute capability 8.0 on.

f16 and bf16, and float32 rounded to tf32. The mathematics: src/conv_tensor.cu and
conv_tensor_weight.cu.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from minires.kernels.cuda.arrays import ceil_div, nchw, nhwc, on_16_bytes
from minires.kernels.cuda.conv import geometry_arguments, sum_parts, turned, weight_result
from minires.kernels.cuda.launch import device_of
from minires.kernels.cuda.tiles import parts_of, splits, warp_tile, weight_warp_tile
from minires.kernels.geometry import ConvGeometry


def made(g: ConvGeometry, gradient: bool) -> tuple[int, int]:
    """(residues of the stride, pixels of the largest) that a pass makes: one residue forward."""
    if not gradient:
        return 1, g.N * g.out[0] * g.out[1]
    (sh, sw), pixels = g.stride, g.N * ceil_div(g.H, g.stride[0]) * ceil_div(g.W, g.stride[1])
    return sh * sw, pixels


def gather(source: Any, weight: Any, result: Any, g: ConvGeometry, gradient: bool) -> None:
    """Write the outputs, or the input gradient, from the other; all arrays are channels last.

    weight: (O, KH, KW, C/G), for both.
    """
    device = device_of(source)
    tile = warp_tile((g.C if gradient else g.O) // g.groups)
    residues, pixels = made(g, gradient)
    if not pixels:
        return
    module = device.module("conv_tensor.cu", ELEMENT=source.dtype, **tile.definitions)
    columns = (g.C if gradient else g.O) // g.groups
    grid = ceil_div(pixels, tile.BM), ceil_div(columns, tile.BN), g.groups * residues
    if gradient:
        weight = turned(device.xp, nchw(weight), g)
    given = on_16_bytes(device, source), on_16_bytes(device, weight)
    args = (*given, result, np.int32(gradient), *geometry_arguments(g))
    module.kernel("gather")(grid, (tile.threads,), args, tile.shared)


def grad_weight(x: Any, gy: Any, g: ConvGeometry) -> Any:
    """The sum over pixels by matrix instructions, split over blocks and joined in order."""
    device = device_of(x)
    x, gy = (on_16_bytes(device, nhwc(device.xp, a)) for a in (x, gy))
    D, K = g.O // g.groups, g.kernel[0] * g.kernel[1] * (g.C // g.groups)
    tile, pixels = weight_warp_tile(D), g.N * g.out[0] * g.out[1]
    pieces = ceil_div(D, tile.BM), ceil_div(K, tile.BN)
    count = splits(pieces[0] * pieces[1] * g.groups, pixels, device.multiprocessors, 512)
    per_part, count = parts_of(pixels, count)
    parts = device.xp.empty((count, g.O, K), np.float32)
    module = device.module("conv_tensor_weight.cu", ELEMENT=x.dtype, **tile.definitions)
    args = (x, gy, parts, per_part, *geometry_arguments(g))
    grid = (*pieces, g.groups * count)
    module.kernel("grad_weight")(grid, (tile.threads,), args, tile.shared)
    return weight_result(sum_parts(device, parts, x.dtype), g)
