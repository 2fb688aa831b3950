r"""Batch normalisation (Ioffe & Szegedy, 2015) over rows: a row per pixel, a column per channel.

With m rows, mean mu = 1/m sum_r x_r, biased variance s2 = 1/m sum_r (x_r - mu)^2,
inverse deviation i = (s2 + eps)^(-1/2) and xhat = (x - mu) * i:

    y = gamma * xhat + beta

Backward, in training mode: mu and s2 depend on x too, so two means are taken out of the upstream
gradient, one along each direction in which xhat cannot move (its mean and its length):

    dbeta  = sum_r dy
    dgamma = sum_r dy * xhat
    dx     = gamma * i * (dy - dbeta/m - xhat * dgamma/m)

The mean is taken in two steps, first roughly and then of what is left, so that a large mean with
a small deviation (1e4 and 1 in float32) does not cancel the variance away.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from minires.kernels.layout import from_rows, rows
from minires.kernels.reference.activation import add_relu, relu, relu_grad
from minires.kernels.registry import register


def column_mean(x: Any) -> Any:
    """The mean of each column, as a product with a constant row: BLAS sums in several streams."""
    return np.full(len(x), 1.0 / len(x), x.dtype) @ x


def column_dot(a: Any, b: Any) -> Any:
    """sum_r a_r * b_r for each column, in blocks whose sums are added up in float64."""
    blocks = range(0, len(a), 2048)
    parts = [np.einsum("rc,rc->c", a[i : i + 2048], b[i : i + 2048]) for i in blocks]
    return np.sum(parts, axis=0, dtype=np.float64).astype(a.dtype)


def _centred(flat: Any, eps: float) -> tuple[Any, Any, Any, Any]:
    """x - mean, and mean, biased variance and inverse deviation of each column."""
    mean = column_mean(flat)
    centred = flat - mean
    correction = column_mean(centred)
    centred -= correction
    mean = mean + correction
    var = column_dot(centred, centred) / flat.dtype.type(len(flat))
    return centred, mean, var, 1.0 / np.sqrt(var + flat.dtype.type(eps))


@register("batch_norm_train", name="numpy")
def batch_norm_train(x: Any, gamma: Any, beta: Any, eps: float) -> tuple[Any, Any, Any, Any]:
    """Normalise by the batch's own mean and biased variance."""
    centred, mean, var, inv_std = _centred(rows(x), eps)
    centred *= inv_std if gamma is None else gamma * inv_std
    if beta is not None:
        centred += beta
    return from_rows(centred, x.shape), mean, var, inv_std


@register("batch_norm_statistics", name="numpy")
def batch_norm_statistics(x: Any, eps: float) -> tuple[Any, Any, Any]:
    """The batch's mean, biased variance and inverse deviation."""
    _, mean, var, inv_std = _centred(rows(x), eps)
    return mean, var, inv_std


@register("batch_norm_eval", name="numpy")
def batch_norm_eval(x: Any, gamma: Any, beta: Any, mean: Any, var: Any, eps: float) -> Any:
    """Normalise by given statistics: a scale and a shift per channel."""
    inv_std = 1.0 / np.sqrt(var + x.dtype.type(eps))
    y = rows(x) - mean
    y *= inv_std if gamma is None else gamma * inv_std
    if beta is not None:
        y += beta
    return from_rows(y, x.shape)


@register("normalise", name="numpy")
def normalise(x: Any, mean: Any, scale: Any, shift: Any, r: Any, relu: bool) -> Any:
    """(x - mean) * scale + shift + r, or its positive part; what is None is left out."""
    y = rows(x).copy()
    if mean is not None:
        y -= mean
    if scale is not None:
        y *= scale
    if shift is not None:
        y += shift
    if r is not None:
        y += rows(r)
    return from_rows(np.maximum(y, y.dtype.type(0), out=y) if relu else y, x.shape)


@register("batch_norm_grad", name="numpy")
def batch_norm_grad(gy: Any, x: Any, gamma: Any, mean: Any, inv_std: Any) -> tuple[Any, Any, Any]:
    """The three gradients of the training-mode batch norm."""
    dy = rows(gy)
    xhat = rows(x) - mean
    xhat *= inv_std
    ggamma = column_dot(dy, xhat)
    gbeta = column_mean(dy) * len(dy)
    dx = xhat
    dx *= -ggamma / len(dy)
    dx += dy
    dx -= gbeta / len(dy)
    dx *= inv_std if gamma is None else gamma * inv_std
    return from_rows(dx, x.shape), ggamma, gbeta


@register("batch_norm_relu_train", name="numpy")
def batch_norm_relu_train(x: Any, gamma: Any, beta: Any, eps: float) -> tuple[Any, Any, Any, Any]:
    """max(batch norm, 0): the one after the other."""
    y, mean, var, inv_std = batch_norm_train(x, gamma, beta, eps)
    return relu(y), mean, var, inv_std


@register("batch_norm_relu_grad", name="numpy")
def batch_norm_relu_grad(
    gy: Any, x: Any, gamma: Any, beta: Any, mean: Any, inv_std: Any
) -> tuple[Any, Any, Any]:
    """The gradients of both: the ReLU's mask is computed again, which saves keeping its output."""
    y = rows(x) - mean
    y *= inv_std if gamma is None else gamma * inv_std
    if beta is not None:
        y += beta
    return batch_norm_grad(relu_grad(gy, from_rows(y, x.shape)), x, gamma, mean, inv_std)


@register("batch_norm_add_relu_train", name="numpy")
def batch_norm_add_relu_train(
    x: Any, r: Any, gamma: Any, beta: Any, eps: float
) -> tuple[Any, Any, Any, Any]:
    """max(batch norm + r, 0): the one after the other."""
    y, mean, var, inv_std = batch_norm_train(x, gamma, beta, eps)
    return add_relu(y, r), mean, var, inv_std


@register("batch_norm_add_relu_grad", name="numpy")
def batch_norm_add_relu_grad(
    gy: Any, x: Any, y: Any, gamma: Any, mean: Any, inv_std: Any
) -> tuple[Any, Any, Any, Any]:
    """The gradients of the three: gr, of the shortcut, is gy where y > 0."""
    gr = relu_grad(gy, y)
    gx, ggamma, gbeta = batch_norm_grad(gr, x, gamma, mean, inv_std)
    return gx, gr, ggamma, gbeta
