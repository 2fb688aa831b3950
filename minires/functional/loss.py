"""Losses."""

from __future__ import annotations

from typing import Any

import numpy as np

from minires.autograd import Function, Tensor, as_tensor
from minires.functional.activation import log_softmax
from minires.functional.checks import floating
from minires.kernels.geometry import shape_text

REDUCTIONS = ("mean", "sum", "none")


class Pick(Function):
    """Minus the log-probabilities of the targets, sum_k -q[n, k] * x[n, k], for constant q."""

    def __init__(self, q: Any) -> None:
        self.q = q

    def forward(self, x: Any) -> Any:
        return -np.einsum("nk,nk->n", x, self.q)

    def backward(self, gy: Tensor) -> Tensor:
        return gy.reshape(-1, 1) * Tensor._wrap(-self.q)


def one_hot(labels: Any, num_classes: int, dtype: Any = np.float32) -> np.ndarray:
    """(N,) integers -> (N, num_classes) with a one at each label."""
    labels = np.asarray(labels)
    q = np.zeros((len(labels), num_classes), dtype)
    q[np.arange(len(labels)), labels] = 1
    return q


def cross_entropy(
    x: Any,
    target: Any,
    weight: Any = None,
    ignore_index: int = -100,
    reduction: str = "mean",
    label_smoothing: float = 0.0,
) -> Tensor:
    """Softmax cross-entropy, as torch.nn.functional.cross_entropy.

    x: logits (N, K). target: (N,) integer labels in [0, K), or (N, K) probabilities.
    weight: (K,), a weight per class. ignore_index: a label that contributes nothing.
    reduction: "mean" (weighted, over what is not ignored), "sum", or "none" for (N,).
    label_smoothing: e in [0, 1]; the target becomes (1 - e) * target + e / K.

    Raises ValueError for shapes that do not fit, labels out of range and unknown reductions.
    """
    x = as_tensor(x)
    floating("cross_entropy", x=x)
    if x.ndim != 2:
        raise ValueError(f"cross_entropy: expected logits (N, K), got {shape_text(x.shape)}")
    if reduction not in REDUCTIONS:
        raise ValueError(f"cross_entropy: reduction is one of {REDUCTIONS}, got {reduction!r}")
    if not 0.0 <= label_smoothing <= 1.0:
        raise ValueError(f"cross_entropy: label_smoothing is in [0, 1], got {label_smoothing}")
    N, K = x.shape
    target = target._data if isinstance(target, Tensor) else np.asarray(target)
    class_weight = np.ones(K, x.dtype) if weight is None else np.asarray(weight, x.dtype)
    if class_weight.shape != (K,):
        raise ValueError(f"cross_entropy: weight must have shape ({K},), got {class_weight.shape}")

    if target.dtype.kind == "f":
        if target.shape != x.shape:
            raise ValueError(
                f"cross_entropy: target probabilities have shape {shape_text(target.shape)}, "
                f"logits {shape_text(x.shape)}"
            )
        q, total = target.astype(x.dtype), float(N)
        kept = np.ones(N, x.dtype)
    else:
        labels, kept = _checked_labels(target, N, K, ignore_index)
        q = one_hot(labels, K, x.dtype)
        total = float((class_weight[labels] * kept).sum())
    smooth = x.dtype.type(label_smoothing)
    q = ((1 - smooth) * q + smooth / K) * class_weight * kept[:, None].astype(x.dtype)

    losses: Tensor = Pick(q)(log_softmax(x, axis=1))
    if reduction == "none":
        return losses
    return losses.sum() if reduction == "sum" else losses.sum() * (1.0 / total if total else np.nan)


def _checked_labels(target: Any, N: int, K: int, ignore_index: int) -> tuple[Any, Any]:
    """Labels with the ignored ones replaced by 0, and a mask of those that count."""
    if target.dtype.kind not in "iu":
        raise TypeError(f"cross_entropy: labels must be integers, got {target.dtype}")
    if target.shape != (N,):
        raise ValueError(
            f"cross_entropy: expected {N} labels for logits {N}x{K}, got shape {target.shape}"
        )
    kept = target != ignore_index
    wrong = kept & ((target < 0) | (target >= K))
    if wrong.any():
        position = int(np.argmax(wrong))
        raise ValueError(
            f"cross_entropy: label {int(target[position])} at position {position} is out of range "
            f"for {K} classes (0 to {K - 1})"
        )
    return np.where(kept, target, 0), kept


def nll_loss(log_probabilities: Any, target: Any) -> Tensor:
    """Minus the mean log-probability of the labels: `log_probabilities` (N, K), target (N,)."""
    x = as_tensor(log_probabilities)
    labels, _ = _checked_labels(np.asarray(target), x.shape[0], x.shape[1], -100)
    return Pick(one_hot(labels, x.shape[1], x.dtype))(x).mean()


def mse_loss(x: Any, target: Any) -> Tensor:
    """The mean squared difference of two tensors of one shape."""
    x, target = as_tensor(x), as_tensor(target)
    if x.shape != target.shape:
        raise ValueError(f"mse_loss: shapes {x.shape} and {target.shape} differ")
    difference = x - target
    return (difference * difference).mean()
