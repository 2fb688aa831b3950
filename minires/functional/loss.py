"""Losses."""

from __future__ import annotations

from typing import Any

import numpy as np

from minires.autograd import Function, Tensor, as_tensor, is_grad_enabled
from minires.functional.activation import log_softmax
from minires.functional.checks import floating
from minires.kernels.geometry import shape_text

REDUCTIONS = ("mean", "sum", "none")


class Pick(Function):
    """Minus the log-probabilities of the targets, sum_k -q[n, k] * x[n, k], for constant q."""

    def __init__(self, q: Any) -> None:
        self.q = q

    def forward(self, x: Any) -> Any:
        # Where q is zero, x counts for nothing, even if it is -infinity.
        return -np.multiply(x, self.q, where=self.q != 0, out=np.zeros_like(x)).sum(axis=1)

    def backward(self, gy: Tensor) -> Tensor:
        return gy.reshape(-1, 1) * Tensor._wrap(-self.q)


def one_hot(labels: Any, num_classes: int, dtype: Any = np.float32) -> np.ndarray:
    """(N,) integers in [0, num_classes) -> (N, num_classes) with a one at each label."""
    labels = np.asarray(labels)
    if labels.ndim != 1:
        raise ValueError(f"one_hot: expected labels of shape (N,), got {labels.shape}")
    _check_labels("one_hot", labels, num_classes, np.ones(len(labels), bool))
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

    x: logits (N, K). target: (N,) integer labels in [0, K), or (N, K) probabilities; a constant.
    weight: (K,), a weight per class. ignore_index: a label that contributes nothing.
    reduction: "mean" (weighted, over what is not ignored), "sum", or "none" for (N,).
    label_smoothing: e in [0, 1]; the target becomes (1 - e) * target + e / K.

    Raises ValueError for shapes that do not fit, labels out of range, unknown reductions, and a
    target that requires gradients.
    """
    x = _scores("cross_entropy", "logits", x, reduction)
    if not 0.0 <= label_smoothing <= 1.0:
        raise ValueError(f"cross_entropy: label_smoothing is in [0, 1], got {label_smoothing}")
    N, K = x.shape
    target = _constant("cross_entropy", "target", target)
    class_weight = _class_weight("cross_entropy", weight, x)
    if target.dtype.kind == "f":
        if target.shape != x.shape:
            raise ValueError(
                f"cross_entropy: target probabilities have shape {shape_text(target.shape)}, "
                f"logits {shape_text(x.shape)}"
            )
        q, total = target.astype(x.dtype), float(N)
        kept = np.ones(N, bool)
    else:
        q, total, kept = _label_targets("cross_entropy", target, x, class_weight, ignore_index)
    smooth = x.dtype.type(label_smoothing)
    q = ((1 - smooth) * q + smooth / K) * class_weight * kept[:, None]
    return _reduced(Pick(q)(log_softmax(x, axis=1)), total, reduction)


def nll_loss(
    log_probabilities: Any,
    target: Any,
    weight: Any = None,
    ignore_index: int = -100,
    reduction: str = "mean",
) -> Tensor:
    """Minus the log-probability of the labels, as torch.nn.functional.nll_loss.

    log_probabilities: (N, K). target: (N,) integer labels in [0, K). The rest as in cross_entropy.
    """
    x = _scores("nll_loss", "log-probabilities", log_probabilities, reduction)
    labels = _constant("nll_loss", "target", target)
    class_weight = _class_weight("nll_loss", weight, x)
    q, total, kept = _label_targets("nll_loss", labels, x, class_weight, ignore_index)
    return _reduced(Pick(q * class_weight * kept[:, None])(x), total, reduction)


def _scores(operation: str, what: str, x: Any, reduction: str) -> Tensor:
    """The first argument as a floating-point tensor (N, K)."""
    x = as_tensor(x)
    floating(operation, x=x)
    if x.ndim != 2:
        raise ValueError(f"{operation}: expected {what} (N, K), got {shape_text(x.shape)}")
    if reduction not in REDUCTIONS:
        raise ValueError(f"{operation}: reduction is one of {REDUCTIONS}, got {reduction!r}")
    return x


def _constant(operation: str, name: str, value: Any) -> Any:
    """An array that no gradient goes to."""
    if not isinstance(value, Tensor):
        return np.asarray(value)
    if value.requires_grad and is_grad_enabled():
        raise ValueError(f"{operation}: no gradient goes to {name}; pass {name}.detach()")
    return value._data


def _class_weight(operation: str, weight: Any, x: Tensor) -> Any:
    K = x.shape[1]
    if weight is None:
        return np.ones(K, x.dtype)
    array = _constant(operation, "weight", weight).astype(x.dtype)
    if array.shape != (K,):
        raise ValueError(f"{operation}: weight must have shape ({K},), got {array.shape}")
    return array


def _label_targets(
    operation: str, labels: Any, x: Tensor, class_weight: Any, ignore_index: int
) -> tuple[Any, float, Any]:
    """One-hot labels, the weight of those that count, and which do: (N, K), a number, (N,)."""
    N, K = x.shape
    if labels.shape != (N,):
        raise ValueError(
            f"{operation}: expected {N} labels for {shape_text(x.shape)}, got shape {labels.shape}"
        )
    kept = labels != ignore_index
    _check_labels(operation, labels, K, kept)
    labels = np.where(kept, labels, 0)
    return one_hot(labels, K, x.dtype), float((class_weight[labels] * kept).sum()), kept


def _check_labels(operation: str, labels: Any, K: int, kept: Any) -> None:
    """Raise unless the labels are integers and those that count lie in [0, K)."""
    if labels.dtype.kind not in "iu":
        raise TypeError(f"{operation}: labels must be integers, got {labels.dtype}")
    wrong = kept & ((labels < 0) | (labels >= K))
    if wrong.any():
        position = int(np.argmax(wrong))
        raise ValueError(
            f"{operation}: label {int(labels[position])} at position {position} is out of range "
            f"for {K} classes (0 to {K - 1})"
        )


def _reduced(losses: Tensor, total: float, reduction: str) -> Tensor:
    if reduction == "none":
        return losses
    return losses.sum() if reduction == "sum" else losses.sum() * (1.0 / total if total else np.nan)


def mse_loss(x: Any, target: Any) -> Tensor:
    """The mean squared difference of two tensors of one shape."""
    x, target = as_tensor(x), as_tensor(target)
    if x.shape != target.shape:
        raise ValueError(f"mse_loss: shapes {x.shape} and {target.shape} differ")
    difference = x - target
    return (difference * difference).mean()
