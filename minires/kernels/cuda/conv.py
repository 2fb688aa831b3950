"""Convolution: the definition, im2col with a product, and the implicit product in registers.

The mathematics: src/conv_direct.cu, conv_columns.cu, conv_implicit.cu. Images and weights are
brought to channels-last memory first, which copies nothing if they are there already.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np

from minires.kernels.cuda.arrays import (
    BLOCKS_PER_PROCESSOR,
    THREADS,
    accumulator,
    aligned,
    ceil_div,
    grid_for,
    nchw,
    nhwc,
    pack,
    power_of_two,
)
from minires.kernels.cuda.launch import Device, device_of
from minires.kernels.cuda.tiles import (
    TILES,
    WEIGHT_TILES,
    Product,
    Tile,
    parts_of,
    plan,
    splits,
)
from minires.kernels.geometry import ConvGeometry

COLUMNS_BYTES = 256 << 20
"""The most memory that im2col takes for columns; more images are done one part after another."""

STEP, SHORTEST = 8, 128
"""Terms of a sum that conv_implicit.cu takes at a step; terms that a part of one has at least."""


def geometry_arguments(g: ConvGeometry) -> tuple[np.int32, ...]:
    """The arguments GEOMETRY of src/geometry.cuh."""
    sizes = (g.N, g.C, g.H, g.W, g.O, *g.out, *g.kernel, *g.stride, *g.padding, *g.dilation)
    return tuple(map(np.int32, (*sizes, g.groups)))


def turned(xp: Any, weight: Any, g: ConvGeometry) -> Any:
    """The weight for the input gradient, channels last: (O, C/G, KH, KW) -> (C, KH, KW, O/G)."""
    grouped = weight.reshape(g.groups, g.O // g.groups, g.C // g.groups, *g.kernel)
    return xp.ascontiguousarray(grouped.transpose(0, 2, 3, 4, 1)).reshape(g.C, *g.kernel, -1)


def weight_result(gweight: Any, g: ConvGeometry) -> Any:
    """A weight gradient (O, KH*KW*C/G) as (O, C/G, KH, KW), in channels-last memory."""
    return nchw(gweight.reshape(g.O, *g.kernel, g.C // g.groups))


# -- by the definition -----------------------------------------------------------------------------


def direct_conv2d(x: Any, weight: Any, g: ConvGeometry) -> Any:
    """A thread per result, for every geometry."""
    xp = device_of(x).xp
    return _direct("direct_forward", nhwc(xp, x), nhwc(xp, weight), (g.N, *g.out, g.O), g)


def direct_conv2d_grad_input(gy: Any, weight: Any, g: ConvGeometry) -> Any:
    """A thread per result, for every geometry."""
    xp = device_of(gy).xp
    given = nhwc(xp, gy), nhwc(xp, weight)
    return _direct("direct_grad_input", *given, (g.N, g.H, g.W, g.C), g)


def direct_conv2d_grad_weight(x: Any, gy: Any, g: ConvGeometry) -> Any:
    """A thread per result and part of the pixels, for every geometry."""
    device = device_of(x)
    x, gy = nhwc(device.xp, x), nhwc(device.xp, gy)
    size, pixels = g.O * g.kernel[0] * g.kernel[1] * (g.C // g.groups), g.N * g.out[0] * g.out[1]
    blocks = ceil_div(size, THREADS)
    per_part, count = parts_of(pixels, splits(blocks, pixels, 8 * device.multiprocessors, 64))
    parts = device.xp.empty((count, size), accumulator(x.dtype))
    kernel = device.module("conv_direct.cu", ELEMENT=x.dtype).kernel("direct_grad_weight")
    kernel((blocks, count), (THREADS,), (x, gy, parts, per_part, *geometry_arguments(g)))
    return weight_result(sum_parts(device, parts, x.dtype), g)


def _direct(name: str, a: Any, weight: Any, shape: tuple[int, ...], g: ConvGeometry) -> Any:
    device = device_of(a)
    result = device.xp.empty(shape, a.dtype)
    if result.size:
        kernel = device.module("conv_direct.cu", ELEMENT=a.dtype).kernel(name)
        args = (a, weight, result, *geometry_arguments(g))
        kernel(grid_for(device, result.size), (THREADS,), args)
    return nchw(result)


# -- im2col ----------------------------------------------------------------------------------------


class _Columns:
    """The kernels of conv_columns.cu on one geometry, a group and some images at a time."""

    def __init__(self, first: Any, g: ConvGeometry) -> None:
        self.device, self.dtype, self.g = device_of(first), first.dtype, g
        self.xp = self.device.xp
        self.kernel = self.device.module("conv_columns.cu", ELEMENT=self.dtype).kernel
        self.C, self.O = g.C // g.groups, g.O // g.groups
        self.K = g.kernel[0] * g.kernel[1] * self.C
        self.pixels = g.out[0] * g.out[1]

    def parts(self) -> Iterator[tuple[int, int, int]]:
        """(group, first image, images): so many images that their columns take COLUMNS_BYTES."""
        per_image = self.pixels * self.K * self.dtype.itemsize
        most = max(1, COLUMNS_BYTES // per_image)
        for group in range(self.g.groups):
            for first in range(0, self.g.N, most):
                yield group, first, min(most, self.g.N - first)

    def move(self, name: str, a: Any, b: Any, items: int, part: tuple[int, int, int]) -> None:
        """Run im2col or col2im on a part."""
        group, first, images = map(np.int32, part)
        args = (a, b, first, images, group, *geometry_arguments(self.g))
        self.kernel(name)(grid_for(self.device, items), (THREADS,), args)

    def columns(self, x: Any, part: tuple[int, int, int]) -> Any:
        """The windows of a part of x (N, H, W, C), one in each row."""
        columns = self.xp.empty((part[2] * self.pixels, self.K), self.dtype)
        self.move("im2col", x, columns, columns.size, part)
        return columns

    def outputs(self, y: Any, part: tuple[int, int, int]) -> Any:
        """The rows of y (N, OH, OW, O) that belong to a part: a view if there is one group."""
        group, first, images = part
        piece = y[first : first + images, ..., group * self.O : (group + 1) * self.O]
        return self.xp.ascontiguousarray(piece).reshape(-1, self.O)

    def product(self, a: Any, b: Any, c: Any = None, turned: str = "") -> Any:
        """a @ b, + c in place if given; `turned` names the factors that are to be transposed."""
        steps_a, steps_b = (a.shape[1], 1), (b.shape[1], 1)
        (rows, K), columns = a.shape, b.shape[1]
        if "a" in turned:
            (K, rows), steps_a = a.shape, (1, a.shape[1])
        if "b" in turned:
            columns, steps_b = b.shape[0], (1, b.shape[1])
        add = c is not None
        result = c if add else self.xp.empty((rows, columns), self.dtype)
        args = (a, b, result, rows, np.int32(columns), K, *steps_a, *steps_b, columns,
                np.int32(add))  # fmt: skip
        self.kernel("product")((ceil_div(rows, 16), ceil_div(columns, 16)), (THREADS,), args)
        return result


def im2col_conv2d(x: Any, weight: Any, g: ConvGeometry) -> Any:
    """im2col and a product: Y = columns @ W^T."""
    columns = _Columns(x, g)
    x, W = nhwc(columns.xp, x), nhwc(columns.xp, weight).reshape(g.groups, columns.O, columns.K)
    y = columns.xp.empty((g.N, *g.out, g.O), x.dtype)
    for part in columns.parts():
        group, first, images = part
        Y = columns.product(columns.columns(x, part), W[group], turned="b")
        channels = slice(group * columns.O, (group + 1) * columns.O)
        y[first : first + images, ..., channels] = Y.reshape(images, *g.out, columns.O)
    return nchw(y)


def im2col_conv2d_grad_input(gy: Any, weight: Any, g: ConvGeometry) -> Any:
    """A product and col2im: dcolumns = dY @ W."""
    columns = _Columns(gy, g)
    gy, W = nhwc(columns.xp, gy), nhwc(columns.xp, weight).reshape(g.groups, columns.O, columns.K)
    gx = columns.xp.empty((g.N, g.H, g.W, g.C), gy.dtype)
    for part in columns.parts():
        dcolumns = columns.product(columns.outputs(gy, part), W[part[0]])
        columns.move("col2im", dcolumns, gx, part[2] * g.H * g.W * columns.C, part)
    return nchw(gx)


def im2col_conv2d_grad_weight(x: Any, gy: Any, g: ConvGeometry) -> Any:
    """im2col and a product: dW = dY^T @ columns, added up over parts of the images."""
    columns = _Columns(x, g)
    x, gy = nhwc(columns.xp, x), nhwc(columns.xp, gy)
    gweight = columns.xp.zeros((g.groups, columns.O, columns.K), x.dtype)
    for part in columns.parts():
        dY = columns.outputs(gy, part)
        columns.product(dY, columns.columns(x, part), gweight[part[0]], turned="a")
    return weight_result(gweight, g)


# -- the implicit product --------------------------------------------------------------------------


def implicit_conv2d(x: Any, weight: Any, g: ConvGeometry) -> Any:
    """A product whose columns are never written."""
    xp = device_of(x).xp
    y = xp.empty((g.N, *g.out, g.O), x.dtype)
    gather(nhwc(xp, x), nhwc(xp, weight), None, y, g)
    return nchw(y)


def implicit_conv2d_grad_input(gy: Any, weight: Any, g: ConvGeometry) -> Any:
    """The same product from gy, once for each residue of the stride."""
    xp = device_of(gy).xp
    gx = xp.empty((g.N, g.H, g.W, g.C), gy.dtype)
    gather(nhwc(xp, gy), turned(xp, weight, g), None, gx, g, gradient=True)
    return nchw(gx)


def gather_product(g: ConvGeometry, gradient: bool, itemsize: int) -> Product:
    """The largest product of a pass that gathers: of one residue, in batches of groups."""
    S, D = (g.O, g.C) if gradient else (g.C, g.O)
    if gradient:
        residues = g.stride[0] * g.stride[1]
        pixels = g.N * ceil_div(g.H, g.stride[0]) * ceil_div(g.W, g.stride[1])
        # Those of one residue are stride / gcd(stride, dilation) apart.
        sizes = zip(g.kernel, g.stride, g.dilation, strict=True)
        taps = math.prod(ceil_div(k, s // math.gcd(s, d)) for k, s, d in sizes)
    else:
        residues, pixels, taps = 1, g.N * g.out[0] * g.out[1], g.kernel[0] * g.kernel[1]
    G = g.groups
    return Product(pixels, D // G, taps * (S // G), G * residues, itemsize)


def gather_plan(product: Product, packed: bool, processors: int) -> tuple[Tile, int, int]:
    """The tile, how many parts each sum has, and the terms of a part."""
    usable = TILES if packed else TILES[:-1]  # the last one loads too much number by number
    chosen = plan(product, usable, SHORTEST, processors)
    steps, count = parts_of(ceil_div(product.length, STEP), chosen.splits)
    return chosen.tile, count, steps * STEP


def weight_plan(g: ConvGeometry, itemsize: int, processors: int) -> tuple[Tile, int, int]:
    """The same of a weight gradient, whose terms are pixels."""
    K, pixels = g.kernel[0] * g.kernel[1] * (g.C // g.groups), g.N * g.out[0] * g.out[1]
    product = Product(g.O // g.groups, K, pixels, g.groups, itemsize)
    chosen = plan(product, WEIGHT_TILES, 2 * SHORTEST, processors)
    per_part, count = parts_of(pixels, chosen.splits)
    return chosen.tile, count, per_part


def implicit_workspace(operation: str, g: ConvGeometry, dtype: str) -> int:
    """Bytes of the parts of split sums on 132 multiprocessors, and of a turned weight."""
    sums, weight = 8 if dtype == "float64" else 4, g.O * (g.C // g.groups) * math.prod(g.kernel)
    itemsize = 2 if dtype in ("float16", "bfloat16") else sums
    if operation == "conv2d_grad_weight":
        count = weight_plan(g, sums, 132)[1]
        return weight * sums * count if count > 1 or itemsize < sums else 0
    gradient = operation == "conv2d_grad_input"
    product, S = gather_product(g, gradient, sums), (g.O if gradient else g.C) // g.groups
    count = gather_plan(product, S % (16 // itemsize) == 0, 132)[1]
    result = math.prod(g.x_shape if gradient else g.y_shape)
    return result * sums * count * (count > 1) + weight * itemsize * gradient


def gather(
    source: Any, weight: Any, bias: Any, result: Any, g: ConvGeometry, gradient: bool = False
) -> None:
    """Launch `gather` of conv_implicit.cu; arrays channels last, the weight turned if gradient."""
    device, dtype, sums = device_of(source), source.dtype, accumulator(source.dtype)
    packed = weight.shape[-1] % pack(dtype) == 0 and aligned(device, source, weight)
    product = gather_product(g, gradient, sums.itemsize)
    if not product.rows:
        return
    tile, count, per_part = gather_plan(product, packed, device.multiprocessors)
    parts = device.xp.empty((count, *result.shape), sums) if count > 1 else None
    module = device.module(
        "conv_implicit.cu", ELEMENT=dtype, PACKED=int(packed), **tile.definitions
    )
    pieces = ceil_div(product.rows, tile.BM) * ceil_div(product.columns, tile.BN)
    grid = pieces, product.batch, count
    args = (source, weight, bias, result, parts, np.int32(per_part), np.int32(gradient),
            *geometry_arguments(g))  # fmt: skip
    module.kernel("gather")(grid, (tile.threads,), args)
    if parts is not None:
        add_parts(device, parts, bias, result)


def implicit_conv2d_grad_weight(x: Any, gy: Any, g: ConvGeometry) -> Any:
    """The columns as the other factor; the sum over pixels is split, and joined in order."""
    device = device_of(x)
    x, gy = nhwc(device.xp, x), nhwc(device.xp, gy)
    S, D = g.C // g.groups, g.O // g.groups
    K, sums = g.kernel[0] * g.kernel[1] * S, accumulator(x.dtype)
    packed = aligned(device, x, gy) and S % pack(x.dtype) == 0 and D % pack(x.dtype) == 0
    tile, count, per_part = weight_plan(g, sums.itemsize, device.multiprocessors)
    parts = device.xp.empty((count, g.O, K), sums)
    module = device.module(
        "conv_implicit.cu", ELEMENT=x.dtype, PACKED=int(packed), **tile.definitions
    )
    args = (x, gy, parts, per_part, *geometry_arguments(g))
    grid = ceil_div(D, tile.BM), ceil_div(K, tile.BN), g.groups * count
    module.kernel("grad_weight")(grid, (tile.threads,), args)
    return weight_result(sum_parts(device, parts, x.dtype), g)


def sum_parts(device: Device, parts: Any, dtype: Any) -> Any:
    """The sum over the first axis, in order, in `dtype`; the array itself if there is one part."""
    if len(parts) == 1 and parts.dtype == dtype:
        return parts[0]
    y = device.xp.empty(parts.shape[1:], dtype)
    add_parts(device, parts, None, y)
    return y


def add_parts(device: Device, parts: Any, bias: Any, y: Any) -> None:
    """Write the sum over the first axis, in order, plus the bias of y's last axis if given, to y.

    Up to 16 threads read the parts of a number side by side: a weight gradient has few numbers and
    many parts, and one thread would wait for each of them in turn.
    """
    packed = y.size % pack(parts.dtype) == 0 and aligned(device, parts, y)
    V = pack(parts.dtype) if packed else 1
    high = min(16, power_of_two(ceil_div(len(parts), 2)))
    wide = THREADS // high
    blocks = min(ceil_div(y.size, V * wide), device.multiprocessors * BLOCKS_PER_PROCESSOR)
    module = device.module("sum_parts.cu", ELEMENT=y.dtype, PACKED=int(packed))
    args = (parts, bias, y, y.size, np.int32(len(parts)), np.int32(y.shape[-1]))
    module.kernel("sum_parts")((max(1, blocks),), (wide, high), args)


# -- the fully connected layer ---------------------------------------------------------------------


def linear(x: Any, weight: Any, bias: Any) -> Any:
    """x @ weight^T + bias, for x (..., in) and weight (out, in): a 1x1 convolution."""
    xp = device_of(x).xp
    (O, C), shape = weight.shape, (*x.shape[:-1], weight.shape[0])
    flat = xp.ascontiguousarray(x).reshape(-1, C)
    y = xp.empty((len(flat), O), x.dtype)
    g = ConvGeometry(len(flat), C, 1, 1, O, (1, 1), (1, 1), (0, 0), (1, 1), 1, (1, 1))
    given = None if bias is None else xp.ascontiguousarray(bias)
    gather(flat, xp.ascontiguousarray(weight), given, y, g)
    return y.reshape(shape)
