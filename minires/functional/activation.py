"""ReLU, the residual join, softmax and dropout."""

from __future__ import annotations

from typing import Any

import numpy as np

from minires.autograd import Function, Tensor, as_tensor, exp
from minires.functional.checks import floating, same_dtype
from minires.functional.random import generator
from minires.kernels import operations as ops
from minires.kernels.arrays import to_device
from minires.kernels.geometry import shape_text


class ReLU(Function):
    def forward(self, x: Any) -> Any:
        y = ops.relu(x)
        self.save(y=y)
        return y

    def backward(self, gy: Tensor) -> Tensor:
        return ReLUGrad()(gy, self.saved.y)


class ReLUGrad(Function):
    """gy where y > 0: linear in gy, and constant in y except at the kink."""

    def forward(self, gy: Any, y: Any) -> Any:
        self.save(y=y)
        return ops.relu_grad(gy, y)

    def backward(self, v: Tensor) -> tuple[Tensor, None]:
        return ReLUGrad()(v, self.saved.y), None


class AddReLU(Function):
    """relu(a + b), the end of a residual block; each side receives the same gradient."""

    def forward(self, a: Any, b: Any) -> Any:
        y = ops.add_relu(a, b)
        self.save(y=y)
        return y

    def backward(self, gy: Tensor) -> tuple[Tensor, Tensor]:
        gx = ReLUGrad()(gy, self.saved.y)
        return gx, gx


class LogSoftmax(Function):
    def __init__(self, axis: int) -> None:
        self.axis = axis

    def forward(self, x: Any) -> Any:
        y = ops.log_softmax(x, self.axis)
        self.save(y=y)
        return y

    def backward(self, gy: Tensor) -> Tensor:
        return LogSoftmaxGrad(self.axis)(gy, self.saved.y)


class LogSoftmaxGrad(Function):
    """gy - exp(y) * sum(gy)."""

    def __init__(self, axis: int) -> None:
        self.axis = axis

    def forward(self, gy: Any, y: Any) -> Any:
        self.save(gy=gy, y=y)
        return ops.log_softmax_grad(gy, y, self.axis)

    def backward(self, v: Tensor) -> tuple[Tensor | None, ...]:
        gy, p = self.saved.gy, exp(self.saved.y)
        vp = v * p
        ggy = v - vp.sum(axis=self.axis, keepdims=True) if self.needs[0] else None
        return ggy, -vp * gy.sum(axis=self.axis, keepdims=True) if self.needs[1] else None


class Dropout(Function):
    """Multiplies by a mask of zeros and 1 / (1 - p)."""

    def __init__(self, mask: Any) -> None:
        self.mask = mask

    def forward(self, x: Any) -> Any:
        return x * self.mask

    def backward(self, gy: Tensor) -> Tensor:
        return Dropout(self.mask)(gy)


def relu(x: Any) -> Tensor:
    """max(x, 0); the gradient at 0 is 0."""
    return ReLU()(as_tensor(x))


def add_relu(a: Any, b: Any) -> Tensor:
    """relu(a + b) in one pass, for two tensors of one shape: the end of a residual block.

    Raises ValueError if the shapes differ: a shortcut that does not fit wants a projection.
    """
    a, b = as_tensor(a), as_tensor(b)
    if a.shape != b.shape:
        raise ValueError(
            f"add_relu: the branch has shape {shape_text(a.shape)} and the shortcut "
            f"{shape_text(b.shape)}; they must be equal"
        )
    same_dtype("add_relu", a=a, b=b)
    return AddReLU()(a, b)


def log_softmax(x: Any, axis: int = -1) -> Tensor:
    """log(softmax(x)) along an axis, without overflow."""
    x = as_tensor(x)
    floating("log_softmax", x=x)
    if not -x.ndim <= axis < x.ndim:
        raise ValueError(f"log_softmax: axis {axis} is out of range for {x.ndim} dimensions")
    return LogSoftmax(axis)(x)


def softmax(x: Any, axis: int = -1) -> Tensor:
    """exp(x) / sum(exp(x)) along an axis, without overflow."""
    return exp(log_softmax(x, axis))


def dropout(x: Any, p: float = 0.5, training: bool = True) -> Tensor:
    """Each element zeroed with probability p and the others scaled by 1 / (1 - p); in eval, x.

    The mask is drawn on the host, from the generator that `mr.manual_seed` seeds.
    Raises ValueError unless 0 <= p <= 1.
    """
    if not 0.0 <= p <= 1.0:
        raise ValueError(f"dropout: p is a probability between 0 and 1, got {p}")
    x = as_tensor(x)
    floating("dropout", x=x)
    if not training or p == 0.0:
        return x
    keep = generator().random(x.shape, dtype=np.float32) >= p
    scale = 1.0 / (1.0 - p) if p < 1.0 else 0.0
    return Dropout(to_device(keep * x.dtype.type(scale), x.device))(x)
