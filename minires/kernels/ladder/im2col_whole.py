r"""Rung 3: im2col and one matrix product.

    columns[(n, i, j), (u, v, c)] = x[n, c, i*sh + u*dh - ph, j*sw + v*dw - pw]

    Y = columns @ W          (N*OH*OW x KH*KW*C) @ (KH*KW*C x O)
    dW = columns^T @ dY
    dcolumns = dY @ W^T      and every entry is added back to where it came from (col2im)

What changed: a window is copied into a row, so that the sum over its elements is a row of a matrix
product. What it bought: a product of matrices is the one routine that somebody else has already
made as fast as the machine allows (BLAS), and it reads each number from cache many times. The price
is the matrix: KH*KW times the size of the image, written to memory and read back.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from minires.kernels.condition import never
from minires.kernels.geometry import ConvGeometry
from minires.kernels.layout import to_nchw, to_nhwc
from minires.kernels.reference.conv import channel_groups, col2im, flat_weight, im2col
from minires.kernels.registry import register


def workspace(g: ConvGeometry, dtype: str) -> int:
    """The columns of one group."""
    KH, KW = g.kernel
    return g.N * g.out[0] * g.out[1] * KH * KW * g.C // g.groups * np.dtype(dtype).itemsize


@register("conv2d", name="im2col-whole", worth=never, workspace=workspace)
def conv2d(x: Any, weight: Any, g: ConvGeometry) -> Any:
    """All columns at once, one product."""
    x = to_nhwc(x)
    y = np.empty((g.N * g.out[0] * g.out[1], g.O), x.dtype)
    for c, o in channel_groups(g):
        y[:, o] = im2col(x[..., c], g) @ flat_weight(weight[o])
    return to_nchw(y.reshape(g.N, *g.out, g.O))


@register("conv2d_grad_input", name="im2col-whole", worth=never, workspace=workspace)
def conv2d_grad_input(gy: Any, weight: Any, g: ConvGeometry) -> Any:
    """One product, then col2im."""
    gy = to_nhwc(gy).reshape(-1, g.O)
    gx = np.empty((g.N, g.H, g.W, g.C), gy.dtype)
    for c, o in channel_groups(g):
        gx[..., c] = col2im(gy[:, o] @ flat_weight(weight[o]).T, g.N, g)
    return to_nchw(gx)


@register("conv2d_grad_weight", name="im2col-whole", worth=never, workspace=workspace)
def conv2d_grad_weight(x: Any, gy: Any, g: ConvGeometry) -> Any:
    """The columns once more, transposed."""
    x, gy = to_nhwc(x), to_nhwc(gy).reshape(-1, g.O)
    gweight = np.empty(g.weight_shape, x.dtype)
    for c, o in channel_groups(g):
        product = im2col(x[..., c], g).T @ gy[:, o]
        gweight[o] = product.reshape(*g.kernel, -1, product.shape[1]).transpose(3, 2, 0, 1)
    return gweight
