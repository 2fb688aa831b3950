r"""Rung 8: Fourier's transform.

With X, W and Y the two-dimensional discrete transforms, each of FH x FW elements, of the padded
image, of the kernel (dilated, zeros behind it) and of the result at stride 1,

    Y[n, o](f) = sum_c X[n, c](f) * conj(W[o, c](f))         a correlation: the conjugate
    gX[n, c](f) = sum_o GY[n, o](f) * W[o, c](f)
    GW[o, c](f) = sum_n X[n, c](f) * conj(GY[n, o](f))

At each frequency f that is a matrix product over channels. A product of transforms belongs to a
circular correlation; with FH >= H + 2*ph nothing that is kept has come round. A stride keeps every
sh-th row of the result, and gy is spread out with zeros between before it is transformed.

What changed: a sum over taps became one product per frequency. What it bought: the work no longer
depends on the kernel's size: for 7x7 and larger it is the least there is. The price: transforms of
everything, complex numbers, and errors that spread over the whole image instead of staying within a
window, which is why exact=False; a NaN spreads likewise.

Source: Mathieu, Henaff & LeCun, Fast training of convolutional networks through FFTs (2014).
"""

from __future__ import annotations

from typing import Any

import numpy as np

from minires.kernels.condition import never
from minires.kernels.geometry import ConvGeometry, Pair
from minires.kernels.reference.conv import channel_groups
from minires.kernels.registry import register


def fast_size(size: int) -> int:
    """The next number without prime factors above 5: what transforms are fast for."""
    while True:
        rest = size
        for prime in (2, 3, 5):
            while rest % prime == 0:
                rest //= prime
        if rest == 1:
            return size
        size += 1


def _size(g: ConvGeometry) -> Pair:
    """FH, FW: the padded image, or more."""
    return fast_size(g.H + 2 * g.padding[0]), fast_size(g.W + 2 * g.padding[1])


def _transform(a: Any, size: Pair) -> Any:
    """(N, C, h, w) -> frequencies first: (FH, FW//2 + 1, N, C)."""
    return np.fft.rfft2(a, size).transpose(2, 3, 0, 1)


def _back(A: Any, size: Pair, dtype: Any) -> Any:
    """The inverse: (FH, FW//2 + 1, N, C) -> (N, C, FH, FW)."""
    return np.fft.irfft2(A.transpose(2, 3, 0, 1), size).astype(dtype)


def _spread(a: Any, steps: Pair) -> Any:
    """Zeros between the pixels: (N, C, h, w) -> (N, C, (h-1)*step + 1, ...)."""
    N, C, h, w = a.shape
    spread = np.zeros((N, C, (h - 1) * steps[0] + 1, (w - 1) * steps[1] + 1), a.dtype)
    spread[:, :, :: steps[0], :: steps[1]] = a
    return spread


def _padded(x: Any, g: ConvGeometry) -> Any:
    (ph, pw) = g.padding
    return np.pad(x, [(0, 0), (0, 0), (ph, ph), (pw, pw)])


def workspace(g: ConvGeometry, dtype: str) -> int:
    """The three transforms of one group, two numbers per frequency."""
    FH, FW = _size(g)
    C, O = g.C // g.groups, g.O // g.groups
    numbers = g.N * C + O * C + g.N * O
    return 2 * FH * (FW // 2 + 1) * numbers * np.dtype(dtype).itemsize


@register("conv2d", name="fft", worth=never, exact=False, workspace=workspace)
def conv2d(x: Any, weight: Any, g: ConvGeometry) -> Any:
    """A product per frequency; every stride-th row and column is kept."""
    size, (sh, sw), (OH, OW) = _size(g), g.stride, g.out
    y = np.empty(g.y_shape, x.dtype)
    for c, o in channel_groups(g):
        X = _transform(_padded(x[:, c], g), size)
        W = _transform(_spread(weight[o], g.dilation), size)
        whole = _back(X @ W.conj().swapaxes(2, 3), size, x.dtype)
        y[:, o] = whole[:, :, : sh * (OH - 1) + 1 : sh, : sw * (OW - 1) + 1 : sw]
    return y


@register("conv2d_grad_input", name="fft", worth=never, exact=False, workspace=workspace)
def conv2d_grad_input(gy: Any, weight: Any, g: ConvGeometry) -> Any:
    """A product per frequency of the spread gradient; the border is cut off."""
    size, (ph, pw) = _size(g), g.padding
    gx = np.empty(g.x_shape, gy.dtype)
    for c, o in channel_groups(g):
        GY = _transform(_spread(gy[:, o], g.stride), size)
        W = _transform(_spread(weight[o], g.dilation), size)
        whole = _back(GY @ W, size, gy.dtype)
        gx[:, c] = whole[:, :, ph : ph + g.H, pw : pw + g.W]
    return gx


@register("conv2d_grad_weight", name="fft", worth=never, exact=False, workspace=workspace)
def conv2d_grad_weight(x: Any, gy: Any, g: ConvGeometry) -> Any:
    """A product per frequency, summed over images; the taps' positions are kept."""
    size, (KH, KW), (dh, dw) = _size(g), g.kernel, g.dilation
    gweight = np.empty(g.weight_shape, x.dtype)
    for c, o in channel_groups(g):
        X = _transform(_padded(x[:, c], g), size)
        GY = _transform(_spread(gy[:, o], g.stride), size)
        whole = _back(GY.conj().swapaxes(2, 3) @ X, size, x.dtype)
        gweight[o] = whole[:, :, : dh * (KH - 1) + 1 : dh, : dw * (KW - 1) + 1 : dw]
    return gweight
