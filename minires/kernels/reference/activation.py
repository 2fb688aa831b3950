"""ReLU, the residual join, log-softmax, and its cross-entropy with labels."""

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


@register("cross_entropy", name="numpy")
def cross_entropy(
    x: Any, labels: Any, ignore_index: int, label_smoothing: float
) -> tuple[Any, Any]:
    """-sum_k q_k log_softmax(x)_k, and its gradient softmax - q, q = (1 - e) [k = label] + e / K.

    16-bit numbers are summed in float32.
    """
    K = x.shape[1]
    sums = x.dtype if x.dtype.itemsize > 2 else np.dtype(np.float32)
    y = log_softmax(x.astype(sums, copy=False), 1)
    kept = labels != ignore_index
    smooth = sums.type(label_smoothing)
    q = (1 - smooth) * (labels[:, None] == np.arange(K)) + smooth / K
    losses = -(np.where(q != 0, y, sums.type(0)) * q).sum(axis=1)
    losses = np.where((labels >= 0) & (labels < K), losses, sums.type(np.nan))
    losses = np.where(kept, losses, sums.type(0))
    return losses, ((np.exp(y) - q) * kept[:, None]).astype(x.dtype)
