"""Sums, means, variances and extremes over axes."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from minires.autograd.elementwise import as_tensor
from minires.autograd.shaping import broadcast_to
from minires.autograd.tape import Function
from minires.autograd.tensor import Axis, Tensor
from minires.kernels.arrays import arrayed


def normalise_axes(axis: Axis, ndim: int, operation: str) -> tuple[int, ...]:
    """Axes as sorted non-negative integers; None means all. Raises ValueError out of range."""
    if axis is None:
        return tuple(range(ndim))
    axes = (axis,) if isinstance(axis, int | np.integer) else tuple(axis)
    for a in axes:
        if not -ndim <= a < ndim:
            raise ValueError(f"{operation}: axis {a} is out of range for {ndim} dimensions")
    positive = sorted(a % ndim for a in axes)
    if len(set(positive)) != len(positive):
        raise ValueError(f"{operation}: axis {axis} names a dimension twice")
    return tuple(positive)


def _kept(shape: tuple[int, ...], axes: tuple[int, ...]) -> tuple[int, ...]:
    """The shape with the reduced axes as ones."""
    return tuple(1 if i in axes else n for i, n in enumerate(shape))


class Sum(Function):
    def __init__(self, axis: Axis, keepdims: bool) -> None:
        self.axis, self.keepdims = axis, keepdims

    def forward(self, x: Any) -> Any:
        self.shape = x.shape
        self.axes = normalise_axes(self.axis, x.ndim, "sum")
        return x.sum(axis=self.axes, keepdims=self.keepdims)

    def backward(self, gy: Tensor) -> Tensor:
        return broadcast_to(gy.reshape(_kept(self.shape, self.axes)), self.shape)


class Extreme(Function):
    """The largest or smallest element; elements that tie share the gradient equally."""

    def __init__(self, axis: Axis, keepdims: bool, largest: bool) -> None:
        self.axis, self.keepdims, self.largest = axis, keepdims, largest

    def forward(self, x: Any) -> Any:
        operation = "max" if self.largest else "min"
        axes = normalise_axes(self.axis, x.ndim, operation)
        if any(x.shape[a] == 0 for a in axes):
            raise ValueError(f"{operation}: no element along axis {self.axis} of shape {x.shape}")
        self.kept, self.shape = _kept(x.shape, axes), x.shape
        y = arrayed(getattr(x, operation)(axis=axes, keepdims=True))
        tied = ((x == y) | (x != x)).astype(x.dtype)  # where there is NaN, NaN is the extreme
        self.save(share=arrayed(tied / tied.sum(axis=axes, keepdims=True)))
        return y if self.keepdims else y.squeeze(axes)

    def backward(self, gy: Tensor) -> Tensor:
        return broadcast_to(gy.reshape(self.kept), self.shape) * self.saved.share


def sum(x: Any, axis: Axis = None, keepdims: bool = False) -> Tensor:
    """The sum over one axis, several, or all."""
    return Sum(axis, keepdims)(as_tensor(x))


def mean(x: Any, axis: Axis = None, keepdims: bool = False) -> Tensor:
    """The arithmetic mean over one axis, several, or all."""
    x = as_tensor(x)
    count = math.prod(x.shape[a] for a in normalise_axes(axis, x.ndim, "mean"))
    if count == 0:
        raise ValueError(f"mean: no element along axis {axis} of shape {x.shape}")
    return sum(x, axis, keepdims) * (1.0 / count)


def var(x: Any, axis: Axis = None, correction: int = 1, keepdims: bool = False) -> Tensor:
    """The variance, dividing by n - correction (1: unbiased, PyTorch's default; 0: NumPy's)."""
    x = as_tensor(x)
    count = math.prod(x.shape[a] for a in normalise_axes(axis, x.ndim, "var"))
    if count <= correction:
        raise ValueError(f"var: {count} elements along axis {axis}, needs more than {correction}")
    centred = x - mean(x, axis, keepdims=True)
    return sum(centred * centred, axis, keepdims) * (1.0 / (count - correction))


def max(x: Any, axis: Axis = None, keepdims: bool = False) -> Tensor:
    """The largest element; ties share the gradient equally."""
    return Extreme(axis, keepdims, largest=True)(as_tensor(x))


def min(x: Any, axis: Axis = None, keepdims: bool = False) -> Tensor:
    """The smallest element; ties share the gradient equally."""
    return Extreme(axis, keepdims, largest=False)(as_tensor(x))
