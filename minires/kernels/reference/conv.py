r"""Convolution as a matrix product: im2col and its adjoint, col2im.

    y[n, o, i, j] = sum_{c, u, v} x[n, c, i*s + u*d - p, j*s + v*d - p] * weight[o, c, u, v]

(a cross-correlation, as everywhere in deep learning; x is zero outside its borders). Written out
for all pixels at once it is one product. Let row (n, i, j) of the matrix `columns` hold the
window's KH*KW*C inputs; then

    Y = columns @ W^T         (pixels x K) @ (K x O),  K = KH*KW*C
    dW = dY^T @ columns       same columns, summed over pixels
    dcolumns = dY @ W         and dx adds every entry of dcolumns back where it came from: col2im

im2col and col2im are adjoint, <im2col(x), c> = <x, col2im(c)>, which is why the second is the
gradient of the first. With channels-last memory a window row is KW*C numbers in one piece, and
the product leaves y in channels-last memory again: nothing is transposed.

Groups split channels into G independent convolutions. Chellapilla et al. (2006) is the source.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.lib.stride_tricks import as_strided

from minires.kernels.geometry import ConvGeometry
from minires.kernels.layout import to_nchw, to_nhwc
from minires.kernels.registry import register

BLOCK_BYTES = 8 << 20
"""Columns are made for a few images at a time, about this many bytes: they stay near the cache."""


def pad_nhwc(x: Any, g: ConvGeometry) -> Any:
    """(N, H, W, C) -> with the zero border of the convolution around each image."""
    ph, pw = g.padding
    if ph == pw == 0:
        return x
    N, H, W, C = x.shape
    padded = np.zeros((N, H + 2 * ph, W + 2 * pw, C), x.dtype)
    padded[:, ph : ph + H, pw : pw + W] = x
    return padded


def windows(padded: Any, g: ConvGeometry) -> Any:
    """A view (N, OH, OW, KH, KW, C) of a padded (N, H, W, C) array: window by window."""
    (KH, KW), (sh, sw), (dh, dw), (OH, OW) = g.kernel, g.stride, g.dilation, g.out
    n, h, w, c = padded.strides
    N, _, _, C = padded.shape
    return as_strided(
        padded,
        (N, OH, OW, KH, KW, C),
        (n, h * sh, w * sw, h * dh, w * dw, c),
        writeable=False,
    )


def im2col(x: Any, g: ConvGeometry) -> Any:
    """(N, H, W, C) -> columns (N*OH*OW, KH*KW*C)."""
    if g.pointwise and g.stride == (1, 1):
        return x.reshape(-1, x.shape[3])
    view = windows(pad_nhwc(x, g), g)
    return view.reshape(-1, g.kernel[0] * g.kernel[1] * x.shape[3])


def col2im(columns: Any, N: int, g: ConvGeometry) -> Any:
    """Columns (N*OH*OW, KH*KW*C) -> (N, H, W, C), adding up what overlaps: im2col's adjoint."""
    (KH, KW), (sh, sw), (ph, pw), (dh, dw), (OH, OW) = (
        g.kernel, g.stride, g.padding, g.dilation, g.out,
    )  # fmt: skip
    C = columns.shape[1] // (KH * KW)
    if g.pointwise and g.stride == (1, 1):
        return columns.reshape(N, g.H, g.W, C)
    columns = columns.reshape(N, OH, OW, KH, KW, C)
    padded = np.zeros((N, g.H + 2 * ph, g.W + 2 * pw, C), columns.dtype)
    for u in range(KH):
        for v in range(KW):
            rows = slice(u * dh, u * dh + sh * (OH - 1) + 1, sh)
            cols = slice(v * dw, v * dw + sw * (OW - 1) + 1, sw)
            padded[:, rows, cols] += columns[:, :, :, u, v]
    return np.ascontiguousarray(padded[:, ph : ph + g.H, pw : pw + g.W])


def flat_weight(weight: Any) -> Any:
    """(O, C, KH, KW) -> (KH*KW*C, O), in the order of a window's elements."""
    return weight.transpose(2, 3, 1, 0).reshape(-1, weight.shape[0])


def image_blocks(g: ConvGeometry, itemsize: int) -> Iterator[slice]:
    """Runs of images whose columns take about BLOCK_BYTES."""
    KH, KW = g.kernel
    per_image = g.out[0] * g.out[1] * KH * KW * (g.C // g.groups) * itemsize
    step = max(1, BLOCK_BYTES // max(per_image, 1))
    for start in range(0, g.N, step):
        yield slice(start, min(start + step, g.N))


def channel_groups(g: ConvGeometry) -> Iterator[tuple[slice, slice]]:
    """Input and output channels of each group."""
    C, O = g.C // g.groups, g.O // g.groups
    for i in range(g.groups):
        yield slice(i * C, (i + 1) * C), slice(i * O, (i + 1) * O)


@register("conv2d", name="im2col")
def conv2d(x: Any, weight: Any, g: ConvGeometry) -> Any:
    """im2col and one matrix product per block of images."""
    x = to_nhwc(x)
    y = np.empty((g.N, *g.out, g.O), x.dtype)
    for c, o in channel_groups(g):
        w = flat_weight(weight[o])
        for n in image_blocks(g, x.itemsize):
            y[n, ..., o] = (im2col(x[n, ..., c], g) @ w).reshape(-1, *g.out, w.shape[1])
    return to_nchw(y)


@register("conv2d_grad_input", name="im2col")
def conv2d_grad_input(gy: Any, weight: Any, g: ConvGeometry) -> Any:
    """One matrix product per block of images, then col2im."""
    gy = to_nhwc(gy)
    gx = np.empty((g.N, g.H, g.W, g.C), gy.dtype)
    for c, o in channel_groups(g):
        w = flat_weight(weight[o]).T
        for n in image_blocks(g, gy.itemsize):
            part = gy[n, ..., o]
            gx[n, ..., c] = col2im(part.reshape(-1, part.shape[3]) @ w, len(part), g)
    return to_nchw(gx)


@register("conv2d_grad_weight", name="im2col")
def conv2d_grad_weight(x: Any, gy: Any, g: ConvGeometry) -> Any:
    """The columns again, times the upstream gradient, summed over blocks of images."""
    x, gy = to_nhwc(x), to_nhwc(gy)
    KH, KW = g.kernel
    gweight = np.empty(g.weight_shape, x.dtype)
    for c, o in channel_groups(g):
        total = np.zeros((KH * KW * (g.C // g.groups), g.O // g.groups), x.dtype)
        for n in image_blocks(g, x.itemsize):
            part = gy[n, ..., o]
            total += im2col(x[n, ..., c], g).T @ part.reshape(-1, part.shape[3])
        gweight[o] = total.reshape(KH, KW, -1, total.shape[1]).transpose(3, 2, 0, 1)
    return gweight
