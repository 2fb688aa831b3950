"""Pooling: each one is linear once the maxima are chosen, so it differentiates to its adjoint."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from minires.autograd import Function, Tensor, as_tensor, made, tape
from minires.functional.checks import floating
from minires.functional.deferred import PendingActivation, can_load
from minires.functional.norm_training import BatchNormReLUTrain, GradientMasked
from minires.kernels import operations as ops
from minires.kernels.fusing import POOLED, Before, Pooled, Rectified
from minires.kernels.geometry import Pair, PoolGeometry, pair, pool_geometry, shape_text

Size = int | Sequence[int]


class MaxPool2d(GradientMasked, Function):
    """Of a batch norm and a ReLU that are put off, it works out what it needs, and keeps x where
    the maxima are: its output is what the two make of that, and its gradient by their output is
    handed on as it comes, for theirs to spread (`kernels/fusing.py`).

    applied: what is done to x.
    """

    adds = True  # nothing, in fact; but it is told what it completes
    passes_on = True
    returns_new = True
    takes_pending = True

    def __init__(self, g: PoolGeometry) -> None:
        self.g = g
        self.applied: Before | None = None

    def forward(self, x: Any) -> Any:
        if not can_load(ops.max_pool2d, x, self.g):
            y, indices = ops.max_pool2d(made(x), self.g)
            self.save(indices=indices)
            return y
        self.applied = x.before
        largest, indices = ops.max_pool2d.chosen(x.x, self.g).fused(x.x, self.g, before=x.before)
        self.save(indices=indices, largest=largest)
        y = PendingActivation(largest, x.before)
        return y if largest.nbytes >= tape.LARGE else y.make()

    def backward(self, gy: Tensor) -> Tensor:
        indices, known, norm = self.recall_array("indices"), self.known_of(gy._data), self.completes
        if known and self.waiting is None and isinstance(norm, BatchNormReLUTrain):
            # Of the gradient's shape, to stand for it. NaN: a gradient that anybody uses is wrong.
            stand_in = np.broadcast_to(gy._data.dtype.type(np.nan), self.g.x_shape)
            norm.summed = stand_in, {**known, POOLED: Pooled(gy._data, indices, self.g)}
            return Tensor._wrap(stand_in)
        return MaxPool2dGrad(self.g, indices)(gy)

    def rectified(self) -> Rectified | None:
        edge = self.edges[0] if self.edges else None
        norm = edge[0] if isinstance(edge, tuple) else None
        if self.applied is None or not isinstance(norm, BatchNormReLUTrain) or norm.consumers > 1:
            return None
        if POOLED not in norm.gradient.chosen(norm.recall_array("x")).parts:
            return None
        largest, applied = self.before()
        return Rectified(largest, *applied)

    def before(self) -> tuple[Any, Any]:
        """x at the maxima, and what is done to it."""
        return self.recall_array("largest"), self.applied

    def can_rebuild(self) -> bool:
        return self.applied is not None

    def rebuild(self) -> Any:
        largest, applied = self.before()
        return ops.normalise(largest, *applied, None, True)


class MaxPool2dGrad(Function):
    """Each gradient back to where its maximum was."""

    def __init__(self, g: PoolGeometry, indices: Any) -> None:
        self.g, self.indices = g, indices

    def forward(self, gy: Any) -> Any:
        return ops.max_pool2d_grad(gy, self.indices, self.g)

    def backward(self, v: Tensor) -> Tensor:
        return MaxPool2dTake(self.g, self.indices)(v)


class MaxPool2dTake(Function):
    """The elements of x where the maxima were."""

    def __init__(self, g: PoolGeometry, indices: Any) -> None:
        self.g, self.indices = g, indices

    def forward(self, x: Any) -> Any:
        return ops.max_pool2d_take(x, self.indices, self.g)

    def backward(self, gy: Tensor) -> Tensor:
        return MaxPool2dGrad(self.g, self.indices)(gy)


class AvgPool2d(Function):
    def __init__(self, g: PoolGeometry) -> None:
        self.g = g

    def forward(self, x: Any) -> Any:
        return ops.avg_pool2d(x, self.g)

    def backward(self, gy: Tensor) -> Tensor:
        return AvgPool2dGrad(self.g)(gy)


class AvgPool2dGrad(Function):
    def __init__(self, g: PoolGeometry) -> None:
        self.g = g

    def forward(self, gy: Any) -> Any:
        return ops.avg_pool2d_grad(gy, self.g)

    def backward(self, v: Tensor) -> Tensor:
        return AvgPool2d(self.g)(v)


class AdaptiveAvgPool2d(Function):
    def __init__(self, out: Pair) -> None:
        self.out = out

    def forward(self, x: Any) -> Any:
        self.size = x.shape[2:]
        return ops.adaptive_avg_pool2d(x, self.out)

    def backward(self, gy: Tensor) -> Tensor:
        return AdaptiveAvgPool2dGrad(self.size)(gy)


class AdaptiveAvgPool2dGrad(Function):
    def __init__(self, size: Pair) -> None:
        self.size = size

    def forward(self, gy: Any) -> Any:
        self.out = gy.shape[2:]
        return ops.adaptive_avg_pool2d_grad(gy, self.size)

    def backward(self, v: Tensor) -> Tensor:
        return AdaptiveAvgPool2d(self.out)(v)


def _images(operation: str, x: Any) -> Tensor:
    x = as_tensor(x)
    floating(operation, x=x)
    if x.ndim != 4:
        raise ValueError(f"{operation}: expected x (N, C, H, W), got {shape_text(x.shape)}")
    return x


def _no_ceil(operation: str, ceil_mode: bool) -> None:
    if ceil_mode:
        raise ValueError(f"{operation}: ceil_mode=True is not supported; output sizes round down")


def max_pool2d(
    x: Any,
    kernel_size: Size,
    stride: Size | None = None,
    padding: Size = 0,
    dilation: Size = 1,
    ceil_mode: bool = False,
) -> Tensor:
    """The largest value in each window of x (N, C, H, W), as torch.nn.functional.max_pool2d.

    stride: defaults to the kernel size. padding: counts as -infinity, at most half the kernel.
    Returns (N, C, OH, OW), rounded down. On ties the first element gets the gradient.

    Raises ValueError for shapes and settings that do not fit, and for `ceil_mode`, which is not
    supported; TypeError for dtypes.
    """
    x = _images("max_pool2d", x)
    _no_ceil("max_pool2d", ceil_mode)
    g = pool_geometry("max_pool2d", x.shape, kernel_size, stride, padding, dilation)
    return MaxPool2d(g)(x)


def avg_pool2d(
    x: Any,
    kernel_size: Size,
    stride: Size | None = None,
    padding: Size = 0,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
) -> Tensor:
    """The mean of each window of x (N, C, H, W), as torch.nn.functional.avg_pool2d.

    stride: defaults to the kernel size. padding: zeros, at most half the kernel; they count as
    elements of the window unless `count_include_pad` is off. Returns (N, C, OH, OW), rounded down.

    Raises as `max_pool2d`.
    """
    x = _images("avg_pool2d", x)
    _no_ceil("avg_pool2d", ceil_mode)
    g = pool_geometry("avg_pool2d", x.shape, kernel_size, stride, padding, 1, count_include_pad)
    return AvgPool2d(g)(x)


def adaptive_avg_pool2d(x: Any, output_size: Size) -> Tensor:
    """Means over windows that divide x (N, C, H, W) into `output_size`; 1 is the global average.

    Window i of OH covers rows floor(i*H/OH) to ceil((i+1)*H/OH), as in PyTorch.
    Raises ValueError for an image without pixels.
    """
    x = _images("adaptive_avg_pool2d", x)
    if 0 in x.shape[2:]:
        raise ValueError(f"adaptive_avg_pool2d: x {shape_text(x.shape)} has no pixel to average")
    out = pair(output_size, "output_size", "adaptive_avg_pool2d", 1)
    return AdaptiveAvgPool2d(out)(x)
