"""Losses."""

from __future__ import annotations

from typing import Any

import numpy as np

from minires.autograd import Function, Tensor, as_tensor, is_grad_enabled
from minires.functional.activation import log_softmax, softmax
from minires.functional.checks import floating
from minires.kernels import operations as ops
from minires.kernels.arrays import active, device_of, is_array, on_host, to_device, xp_of
from minires.kernels.geometry import shape_text

REDUCTIONS = ("mean", "sum", "none")


class CrossEntropy(Function):
    """Softmax cross-entropy of each row for its label. Its gradient comes with the loss, in the
    same pass."""

    def __init__(self, labels: Any, ignore_index: int, smoothing: float) -> None:
        self.labels, self.ignore_index, self.smoothing = labels, ignore_index, smoothing

    def forward(self, x: Any) -> Any:
        losses, gx = ops.cross_entropy(x, self.labels, self.ignore_index, self.smoothing)
        self.save(x=x, gx=gx)
        return losses

    def backward(self, gy: Tensor) -> Tensor:
        saved, gy = self.saved, gy.reshape(-1, 1)
        if not is_grad_enabled():
            return gy * saved.gx
        # To be differentiated again: softmax - q, in operations.
        q, kept = _one_hot_targets(self.labels, saved.x, self.ignore_index)
        q = _smoothed(q, self.smoothing)
        return gy * (softmax(saved.x, axis=1) - Tensor._wrap(q)) * Tensor._wrap(kept)


class Pick(Function):
    """Minus the log-probabilities of the targets, sum_k -q[n, k] * x[n, k], for constant q."""

    def __init__(self, q: Any) -> None:
        self.q = q

    def forward(self, x: Any) -> Any:
        # Where q is zero, x counts for nothing, even if it is -infinity.
        return -(np.where(self.q != 0, x, x.dtype.type(0)) * self.q).sum(axis=1)

    def backward(self, gy: Tensor) -> Tensor:
        return gy.reshape(-1, 1) * Tensor._wrap(-self.q)


def one_hot(labels: Any, num_classes: int, dtype: Any = np.float32) -> Any:
    """(N,) integers in [0, num_classes) -> (N, num_classes) with a one at each label.

    Returns an array on the labels' device, where a label out of range has a row of NaN; on the
    host it raises ValueError.
    """
    labels = _constant("one_hot", "labels", labels)
    if labels.ndim != 1:
        raise ValueError(f"one_hot: expected labels of shape (N,), got {labels.shape}")
    _check_labels("one_hot", labels, num_classes, None)
    xp = xp_of(labels)
    with active(labels):
        q = (labels[:, None] == xp.arange(num_classes)).astype(dtype)
        if xp is not np:
            known = (labels >= 0) & (labels < num_classes)
            q = xp.where(known[:, None], q, q.dtype.type(np.nan))
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

    A target that is no Tensor goes to where the logits are. Labels that lie on a device are not
    looked at, which would make the host wait: one out of range makes the loss NaN there.

    Raises ValueError for shapes that do not fit, labels out of range, unknown reductions, and a
    target that requires gradients or lives elsewhere.
    """
    x = _scores("cross_entropy", "logits", x, reduction)
    if not 0.0 <= label_smoothing <= 1.0:
        raise ValueError(f"cross_entropy: label_smoothing is in [0, 1], got {label_smoothing}")
    target = _constant("cross_entropy", "target", target, x)
    class_weight = _class_weight("cross_entropy", weight, x)
    if target.dtype.kind == "f":
        if target.shape != x.shape:
            raise ValueError(
                f"cross_entropy: target probabilities have shape {shape_text(target.shape)}, "
                f"logits {shape_text(x.shape)}"
            )
        q = _smoothed(to_device(target.astype(x.dtype), x.device), label_smoothing)
        q = q if class_weight is None else q * class_weight
        return _reduced(Pick(q)(log_softmax(x, axis=1)), float(len(q)), reduction)
    labels, total = _labels("cross_entropy", target, x, class_weight, ignore_index)
    if class_weight is None:
        losses: Tensor = CrossEntropy(labels, ignore_index, label_smoothing)(x)
    else:
        q, kept = _one_hot_targets(labels, x, ignore_index)
        q = _smoothed(q, label_smoothing) * class_weight * kept
        losses = Pick(q)(log_softmax(x, axis=1))
    return _reduced(losses, total, reduction)


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
    target = _constant("nll_loss", "target", target, x)
    class_weight = _class_weight("nll_loss", weight, x)
    labels, total = _labels("nll_loss", target, x, class_weight, ignore_index)
    q, kept = _one_hot_targets(labels, x, ignore_index)
    q = q * kept if class_weight is None else q * class_weight * kept
    return _reduced(Pick(q)(x), total, reduction)


def correct(logits: Any, labels: Any) -> Tensor:
    """How many rows of logits (N, K) are largest at their label: an integer of shape ().

    It stays on the logits' device, so that a training loop can add up without waiting for it.
    """
    logits = as_tensor(logits).detach()
    target = _constant("correct", "labels", labels, logits)
    right = logits.argmax(1)._data == to_device(target, logits.device)
    return Tensor._wrap(right).sum()


def _scores(operation: str, what: str, x: Any, reduction: str) -> Tensor:
    """The first argument as a floating-point tensor (N, K)."""
    x = as_tensor(x)
    floating(operation, x=x)
    if x.ndim != 2:
        raise ValueError(f"{operation}: expected {what} (N, K), got {shape_text(x.shape)}")
    if reduction not in REDUCTIONS:
        raise ValueError(f"{operation}: reduction is one of {REDUCTIONS}, got {reduction!r}")
    return x


def _constant(operation: str, name: str, value: Any, beside: Tensor | None = None) -> Any:
    """An array that no gradient goes to; of a Tensor, one that lives where `beside` does."""
    if not isinstance(value, Tensor):
        return value if is_array(value) else np.asarray(value)
    if value.requires_grad and is_grad_enabled():
        raise ValueError(f"{operation}: no gradient goes to {name}; pass {name}.detach()")
    if beside is not None and value.device != beside.device:
        raise ValueError(
            f"{operation}: x lives on {beside.device} and {name} on {value.device}; bring it "
            f"there with .to({beside.device!r})"
        )
    return value._data


def _class_weight(operation: str, weight: Any, x: Tensor) -> Any:
    K = x.shape[1]
    if weight is None:
        return None
    array = _constant(operation, "weight", weight, x)
    if array.shape != (K,):
        raise ValueError(f"{operation}: weight must have shape ({K},), got {array.shape}")
    return to_device(array.astype(x.dtype), x.device)


def _labels(
    operation: str, labels: Any, x: Tensor, class_weight: Any, ignore_index: int
) -> tuple[Any, Any]:
    """The labels where x is, and the weight of those that count: a number, or a device's."""
    N, K = x.shape
    if labels.shape != (N,):
        raise ValueError(
            f"{operation}: expected {N} labels for {shape_text(x.shape)}, got shape {labels.shape}"
        )
    kept = labels != ignore_index
    _check_labels(operation, labels, K, kept)
    there = to_device(labels, x.device)
    if class_weight is None:
        total = kept.sum()
    else:
        q, counted = _one_hot_targets(there, x, ignore_index)
        total = (q * class_weight * counted).sum()
    return there, float(total) if on_host(total) else total.astype(x.dtype)


def _one_hot_targets(labels: Any, x: Tensor, ignore_index: int) -> tuple[Any, Any]:
    """One-hot labels (N, K), and (N, 1) ones and zeros: which of them count."""
    kept = labels != ignore_index
    q = one_hot(np.where(kept, labels, 0), x.shape[1], x.dtype)
    return q, kept[:, None].astype(x.dtype)


def _smoothed(q: Any, smoothing: float) -> Any:
    """(1 - e) * q + e / K."""
    e = q.dtype.type(smoothing)
    return (1 - e) * q + e / q.shape[1]


def _check_labels(operation: str, labels: Any, K: int, kept: Any) -> None:
    """Raise unless the labels are integers and, on the host, those that count lie in [0, K)."""
    if labels.dtype.kind not in "iu":
        raise TypeError(f"{operation}: labels must be integers, got {labels.dtype}")
    if device_of(labels) != "cpu":
        return
    wrong = (labels < 0) | (labels >= K)
    if kept is not None:
        wrong &= kept
    if wrong.any():
        position = int(np.argmax(wrong))
        raise ValueError(
            f"{operation}: label {int(labels[position])} at position {position} is out of range "
            f"for {K} classes (0 to {K - 1})"
        )


def _reduced(losses: Tensor, total: Any, reduction: str) -> Tensor:
    if reduction == "none":
        return losses
    if reduction == "sum":
        return losses.sum()
    if isinstance(total, float):
        return losses.sum() * (1.0 / total if total else np.nan)
    return losses.sum() / Tensor._wrap(total)


def mse_loss(x: Any, target: Any) -> Tensor:
    """The mean squared difference of two tensors of one shape."""
    x, target = as_tensor(x), as_tensor(target)
    if x.shape != target.shape:
        raise ValueError(f"mse_loss: shapes {x.shape} and {target.shape} differ")
    difference = x - target
    return (difference * difference).mean()
