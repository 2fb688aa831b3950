"""Independent answers to compare the engine with: plain loops, closed forms, numeric derivatives.

Nothing here uses the code under test. The loops accept complex numbers, so that a derivative can
be taken by a complex step: f(x + ih) = f(x) + ih f'(x) + O(h^2) has f'(x) in its imaginary part,
without the cancellation of a difference.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

Array = np.ndarray
Pair = tuple[int, int]

# -- convolution and pooling: one tap of one window at a time -------------------------------------


def window_starts(size: int, kernel: int, stride: int, padding: int, dilation: int) -> list[int]:
    """Where windows start, found by moving a window along until it no longer fits."""
    starts, start = [], -padding
    while start + dilation * (kernel - 1) <= size - 1 + padding:
        starts.append(start)
        start += stride
    return starts


def taps(
    size: Pair, kernel: Pair, stride: Pair, padding: Pair, dilation: Pair
) -> tuple[Pair, list[tuple[int, int, int, int, int, int]]]:
    """The output size, and (i, j, u, v, h, w) for every window and real pixel in it."""
    rows, cols = (
        window_starts(*settings)
        for settings in zip(size, kernel, stride, padding, dilation, strict=True)
    )
    found = []
    for (i, top), (j, left) in itertools.product(enumerate(rows), enumerate(cols)):
        for u, v in itertools.product(range(kernel[0]), range(kernel[1])):
            h, w = top + u * dilation[0], left + v * dilation[1]
            if 0 <= h < size[0] and 0 <= w < size[1]:
                found.append((i, j, u, v, h, w))
    return (len(rows), len(cols)), found


def grouped(C: int, O: int, groups: int) -> Iterator[tuple[slice, slice]]:
    for k in range(groups):
        yield (
            slice(k * C // groups, (k + 1) * C // groups),
            slice(k * O // groups, (k + 1) * O // groups),
        )


def conv2d(
    x: Array, weight: Array, stride: Pair, padding: Pair, dilation: Pair, groups: int
) -> Array:
    O, _, *kernel = weight.shape
    out, found = taps(x.shape[2:], tuple(kernel), stride, padding, dilation)
    y = np.zeros((len(x), O, *out), np.result_type(x, weight))
    for c, o in grouped(x.shape[1], O, groups):
        for i, j, u, v, h, w in found:
            y[:, o, i, j] += x[:, c, h, w] @ weight[o, :, u, v].T
    return y


def conv2d_grad_input(
    gy: Array, weight: Array, x_shape: Sequence[int], stride: Pair, padding: Pair, dilation: Pair,
    groups: int,
) -> Array:  # fmt: skip
    O, _, *kernel = weight.shape
    _, found = taps(tuple(x_shape[2:]), tuple(kernel), stride, padding, dilation)
    gx = np.zeros(x_shape, np.result_type(gy, weight))
    for c, o in grouped(x_shape[1], O, groups):
        for i, j, u, v, h, w in found:
            gx[:, c, h, w] += gy[:, o, i, j] @ weight[o, :, u, v]
    return gx


def conv2d_grad_weight(
    x: Array, gy: Array, weight_shape: Sequence[int], stride: Pair, padding: Pair, dilation: Pair,
    groups: int,
) -> Array:  # fmt: skip
    O, _, *kernel = weight_shape
    _, found = taps(x.shape[2:], tuple(kernel), stride, padding, dilation)
    gweight = np.zeros(weight_shape, np.result_type(x, gy))
    for c, o in grouped(x.shape[1], O, groups):
        for i, j, u, v, h, w in found:
            gweight[o, :, u, v] += gy[:, o, i, j].T @ x[:, c, h, w]
    return gweight


def max_pool2d(
    x: Array, kernel: Pair, stride: Pair, padding: Pair, dilation: Pair
) -> tuple[Array, list[tuple[tuple[int, ...], tuple[int, ...] | None]]]:
    """Maxima, and for each output the input it came from: the first one, NaN before all else."""
    out, found = taps(x.shape[2:], kernel, stride, padding, dilation)
    y = np.full((*x.shape[:2], *out), -np.inf, x.dtype)
    origins = []
    for n, c, i, j in np.ndindex(*y.shape):
        pixels = [(h, w) for a, b, _, _, h, w in found if (a, b) == (i, j)]
        best = None
        for h, w in pixels:
            value = x[n, c, h, w]
            held = None if best is None else x[n, c, best[0], best[1]]
            if held is None or value > held or (np.isnan(value) and not np.isnan(held)):
                best = (h, w)
        origins.append(((n, c, i, j), None if best is None else (n, c, *best)))
        if best is not None:
            y[n, c, i, j] = x[n, c, best[0], best[1]]
    return y, origins


def avg_pool2d(
    x: Array, kernel: Pair, stride: Pair, padding: Pair, count_include_pad: bool
) -> Array:
    out, found = taps(x.shape[2:], kernel, stride, padding, (1, 1))
    y = np.zeros((*x.shape[:2], *out), x.dtype)
    counts = np.zeros(out)
    for i, j, _, _, h, w in found:
        y[:, :, i, j] += x[:, :, h, w]
        counts[i, j] += 1
    return y / (kernel[0] * kernel[1] if count_include_pad else counts)


def adaptive_avg_pool2d(x: Array, out: Pair) -> Array:
    H, W = x.shape[2:]
    y = np.zeros((*x.shape[:2], *out), x.dtype)
    for i, j in np.ndindex(*out):
        top, bottom = int(np.floor(i * H / out[0])), int(np.ceil((i + 1) * H / out[0]))
        left, right = int(np.floor(j * W / out[1])), int(np.ceil((j + 1) * W / out[1]))
        y[:, :, i, j] = x[:, :, top:bottom, left:right].sum((2, 3)) / (
            (bottom - top) * (right - left)
        )
    return y


# -- batch norm and softmax by their definitions --------------------------------------------------


def per_channel(x: Array) -> Iterator[tuple[int, tuple[Any, ...]]]:
    for c in range(x.shape[1]):
        yield c, (slice(None), c)


def batch_norm(
    x: Array,
    gamma: Array | None,
    beta: Array | None,
    eps: float,
    statistics: tuple[Array, Array] | None = None,
) -> tuple[Array, Array, Array]:
    """(y, mean, biased variance); accepts complex x: the variance squares without an absolute."""
    y = np.empty(x.shape, np.result_type(x, *(a for a in (gamma, beta) if a is not None)))
    mean, var = np.empty(x.shape[1], x.dtype), np.empty(x.shape[1], x.dtype)
    for c, channel in per_channel(x):
        values = x[channel]
        mean[c] = values.sum() / values.size
        var[c] = ((values - mean[c]) ** 2).sum() / values.size
        m, s2 = (mean[c], var[c]) if statistics is None else (statistics[0][c], statistics[1][c])
        normal = (values - m) / np.sqrt(s2 + eps)
        y[channel] = (1 if gamma is None else gamma[c]) * normal + (0 if beta is None else beta[c])
    return y, mean, var


def log_softmax(x: Array, axis: int) -> Array:
    """The definition, in numbers that do not overflow; accepts complex x."""
    x = x - x.real.max(axis=axis, keepdims=True)
    return x - np.log(np.exp(x).sum(axis=axis, keepdims=True))


# -- numeric derivatives --------------------------------------------------------------------------


def complex_step_gradients(
    function: Callable[..., Array], arrays: Sequence[Array], upstream: Array
) -> list[Array]:
    """d<upstream, function(*arrays)>/d(each element), exact to rounding for analytic functions."""
    gradients = []
    for k, array in enumerate(arrays):
        gradient = np.zeros(array.shape)
        for index in np.ndindex(*array.shape):
            moved = [a.astype(np.complex128) for a in arrays]
            moved[k][index] += 1e-20j
            gradient[index] = (upstream * function(*moved)).sum().imag / 1e-20
        gradients.append(gradient)
    return gradients


def central_gradients(
    function: Callable[..., Array], arrays: Sequence[Array], upstream: Array, step: float = 1e-6
) -> list[Array]:
    """The same by central differences, for functions that do not take complex numbers."""
    gradients = []
    for k, array in enumerate(arrays):
        gradient = np.zeros(array.shape)
        for index in np.ndindex(*array.shape):
            values = []
            for sign in (1, -1):
                moved = [a.copy() for a in arrays]
                moved[k][index] += sign * step
                values.append((upstream * function(*moved)).sum())
            gradient[index] = (values[0] - values[1]) / (2 * step)
        gradients.append(gradient)
    return gradients


# -- the same values in other memory --------------------------------------------------------------

LAYOUTS = ("C", "F", "channels_last", "reversed", "strided")


def laid_out(array: Array, layout: str) -> Array:
    """A copy with other strides: Fortran order, channels last, negative strides, gaps between."""
    if layout == "C":
        return np.array(array, order="C")
    if layout == "F":
        return np.array(array, order="F")
    if layout == "channels_last":
        axes = (0, *range(2, array.ndim), 1)
        return np.array(array.transpose(axes), order="C").transpose(np.argsort(axes))
    if layout == "reversed":
        everything_back = (slice(None, None, -1),) * array.ndim
        return array[everything_back].copy()[everything_back]
    if layout != "strided":
        raise ValueError(f"laid_out: layout is one of {', '.join(LAYOUTS)}, got {layout!r}")
    wide = np.full([2 * n + 1 for n in array.shape], np.nan, array.dtype)
    inside = tuple(slice(1, 2 * n + 1, 2) for n in array.shape)
    wide[inside] = array
    return wide[inside]
