"""ReLU, the residual join, and log-softmax."""

from __future__ import annotations

from typing import Any

import numpy as np

from minires.kernels.registry import register


@register("relu", name="numpy")
def relu(x: Any) -> Any:
    """max(x, 0); NaN stays NaN."""
    return np.asarray(np.maximum(x, x.dtype.type(0)))


@register("relu_grad", name="numpy")
def relu_grad(gy: Any, y: Any) -> Any:
    """gy where y > 0, else 0: the mask is read off the output, nothing else need be kept."""
    return np.where(y > 0, gy, gy.dtype.type(0))


@register("add", name="numpy")
def add(a: Any, b: Any) -> Any:
    """a + b, of equal shapes: two gradients that meet."""
    return np.asarray(a + b)


@register("add_relu", name="numpy")
def add_relu(a: Any, b: Any) -> Any:
    """max(a + b, 0) in one buffer: the end of a residual block."""
    y = np.asarray(a + b)
    return np.maximum(y, y.dtype.type(0), out=y)


@register("log_softmax", name="numpy")
def log_softmax(x: Any, axis: int) -> Any:
    """x - log(sum(exp(x))), shifted by the maximum so that no exponential overflows."""
    with np.errstate(over="ignore"):  # a distance beyond the largest number is -infinity: right
        shifted = x - x.max(axis=axis, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=axis, keepdims=True))


@register("log_softmax_grad", name="numpy")
def log_softmax_grad(gy: Any, y: Any, axis: int) -> Any:
    """gy - softmax * sum(gy), with softmax = exp(y)."""
    return gy - np.exp(y) * gy.sum(axis=axis, keepdims=True)
