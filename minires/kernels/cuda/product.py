"""Matrix products in float32 and float64 registers: 1x1 convolutions, and Winograd's places.

The mathematics: src/product.cu. A 1x1 convolution without stride and padding is a plain product of
the pixels with the weight, whatever the image's shape.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from minires.kernels.cuda.arrays import aligned, ceil_div, nchw, nhwc
from minires.kernels.cuda.conv import sum_parts, weight_result
from minires.kernels.cuda.launch import Device, device_of
from minires.kernels.cuda.tiles import PRODUCT_STEP, PRODUCT_TILES, Product, Tile, parts_of, plan
from minires.kernels.geometry import ConvGeometry

SHORTEST = 16
"""Steps of 64 bytes that a part of a split sum adds up at least: shorter ones spend their time on
filling the pipeline."""


def on_16_bytes(device: Device, array: Any) -> Any:
    """The array, copied if it does not begin at a multiple of 16 bytes, as packs must."""
    return array if aligned(device, array) else array.copy()


def split_of(product: Product, processors: int) -> tuple[Tile, int, int]:
    """The tile of a product, how many parts its sum has, and the terms of each."""
    step = PRODUCT_STEP // product.itemsize
    chosen = plan(product, PRODUCT_TILES, SHORTEST * step, processors)
    per_part, count = parts_of(ceil_div(product.length, step), chosen.splits)
    return chosen.tile, count, per_part * step


def by_rows(a: Any, b: Any, *, split: bool = True) -> Any:
    """a (batch, I, K), b (batch, J, K) -> parts (splits, batch, I, J) of a @ b^T."""
    (batch, I, K), J = a.shape, b.shape[1]
    device, product = device_of(a), Product(I, J, K, batch, int(a.dtype.itemsize))
    if split:
        tile, count, per_part = split_of(product, device.multiprocessors)
    else:
        tile = plan(product, PRODUCT_TILES, K + 1, device.multiprocessors).tile
        count, per_part = 1, K
    parts = device.xp.empty((count, batch, I, J), a.dtype)
    return _launch("by_rows", a, b, parts, product, tile, per_part, add=False)


def by_columns(a: Any, b: Any, parts: Any = None) -> Any:
    """a (batch, K, I), b (batch, K, J) -> parts (splits, batch, I, J) of a^T @ b.

    Parts of an earlier call, of the same batch, I and J, are added to, in place.
    """
    (batch, K, I), J = a.shape, b.shape[2]
    device, product = device_of(a), Product(I, J, K, batch, int(a.dtype.itemsize))
    tile, count, per_part = split_of(product, device.multiprocessors)
    add = parts is not None
    if parts is None:
        parts = device.xp.empty((count, batch, I, J), a.dtype)
    elif len(parts) != count:
        step = PRODUCT_STEP // product.itemsize
        per_part = ceil_div(ceil_div(K, step), len(parts)) * step
    return _launch("by_columns", a, b, parts, product, tile, per_part, add)


def _launch(
    name: str, a: Any, b: Any, parts: Any, p: Product, tile: Tile, per_part: int, add: bool
) -> Any:
    module = device_of(a).module("product.cu", ELEMENT=a.dtype, **tile.definitions)
    pieces = ceil_div(p.rows, tile.BM) * ceil_div(p.columns, tile.BN)
    args = (a, b, parts, p.rows, np.int32(p.columns), p.length, per_part, np.int32(p.batch),
            np.int32(add))  # fmt: skip
    grid = pieces, p.batch * len(parts)
    module.kernel(name)(grid, (tile.threads,), args, tile.product_shared)
    return parts


def workspace(operation: str, g: ConvGeometry, dtype: str) -> int:
    """Bytes of the parts of split sums on 132 multiprocessors, and of a turned weight."""
    itemsize, pixels, weight = np.dtype(dtype).itemsize, g.N * g.out[0] * g.out[1], g.O * g.C
    I, J, K = {"conv2d": (pixels, g.O, g.C), "conv2d_grad_input": (pixels, g.C, g.O),
               "conv2d_grad_weight": (g.O, g.C, pixels)}[operation]  # fmt: skip
    count = split_of(Product(I, J, K, 1, itemsize), 132)[1]
    turned = weight * itemsize if operation == "conv2d_grad_input" else 0
    return I * J * count * itemsize * (count > 1) + turned


def product_conv2d(x: Any, weight: Any, g: ConvGeometry) -> Any:
    """Y = X @ W^T, a row per pixel."""
    device = device_of(x)
    weight = weight.reshape(g.O, g.C)
    return _images(device, nhwc(device.xp, x), weight, (g.N, *g.out, g.O))


def product_conv2d_grad_input(gy: Any, weight: Any, g: ConvGeometry) -> Any:
    """dX = dY @ W, a row per pixel."""
    device = device_of(gy)
    weight = weight.reshape(g.O, g.C).T
    return _images(device, nhwc(device.xp, gy), weight, (g.N, g.H, g.W, g.C))


def _images(device: Device, images: Any, weight: Any, shape: tuple[int, ...]) -> Any:
    xp = device.xp
    if not images.size:
        return nchw(xp.empty(shape, images.dtype))
    rows = on_16_bytes(device, images).reshape(1, -1, images.shape[-1])
    parts = by_rows(rows, on_16_bytes(device, xp.ascontiguousarray(weight))[None])
    return nchw(sum_parts(device, parts, images.dtype).reshape(shape))


def product_conv2d_grad_weight(x: Any, gy: Any, g: ConvGeometry) -> Any:
    """dW = dY^T @ X, the sum over pixels split over blocks and joined in order."""
    device = device_of(x)
    x, gy = (on_16_bytes(device, nhwc(device.xp, a)) for a in (x, gy))
    parts = by_columns(gy.reshape(1, -1, g.O), x.reshape(1, -1, g.C))
    return weight_result(sum_parts(device, parts, x.dtype), g)
