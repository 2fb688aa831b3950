"""Convolution. Its two gradients are operations too, each the derivative of the others.

conv2d is linear in x and in the weight, so differentiating any of the three gives the other two:

    conv2d(x, w)             dx = grad_input(gy, w)     dw = grad_weight(x, gy)
    grad_input(gy, w)        dgy = conv2d(v, w)         dw = grad_weight(v, gy)     v: upstream
    grad_weight(x, gy)       dx = grad_input(gy, v)     dgy = conv2d(x, v)
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from minires.autograd import Function, Pending, Tensor, as_tensor, is_grad_enabled, pad_axes
from minires.functional.checks import floating, same_dtype
from minires.functional.deferred import PendingConvolution, can_load, convolve
from minires.functional.norm_training import BatchNormReLUTrain, GradientMasked
from minires.functional.pool import MaxPool2d
from minires.kernels import operations as ops
from minires.kernels.fusing import BEFORE, SUMS
from minires.kernels.geometry import ConvGeometry, conv_geometry, pair, same_padding

NAMED_PADDING = ("valid", "same")


class Conv2d(Function):
    """sums: whether the kernel shall sum the `moments` of the result, if it can.

    put_off: whether to leave the work to what is asked of the result first.
    """

    adds = True
    returns_new = True
    takes_pending = True

    def __init__(self, g: ConvGeometry, sums: bool = False, put_off: bool = False) -> None:
        self.g, self.sums, self.put_off = g, sums, put_off
        self.moments: tuple[Any, Any] | None = None

    def forward(self, x: Any, weight: Any) -> Any:
        if isinstance(weight, Pending):
            weight = weight.make()
        if isinstance(x, Pending) and not can_load(ops.conv2d, x, self.g):
            x = x.make()
        self.save(x=x, weight=weight)
        if self.put_off and type(weight) is np.ndarray:
            return PendingConvolution(x, weight, self.g)
        y, self.moments = convolve(x, weight, self.g, moments=self.sums)
        return y

    def backward(self, gy: Tensor) -> tuple[Tensor | None, ...]:
        g, gx, gweight = self.g, None, None
        if is_grad_enabled():  # to be differentiated again
            gx = Conv2dGradInput(g)(gy, self.recall("weight")) if self.needs[0] else None
            gweight = Conv2dGradWeight(g)(self.recall("x"), gy) if self.needs[1] else None
            return gx, gweight
        # Each asked for where it is used: x may have to be made again, and is then in the cache.
        if self.needs[0]:
            gx = Tensor._wrap(self._grad_input(gy._data))
        if self.needs[1]:
            gweight = Tensor._wrap(self._grad_weight(gy._data))
        return gx, gweight

    def _grad_weight(self, gy: Any) -> Any:
        """The gradient by the weight, from what x is made from, if x is gone and it can be."""
        kernel, maker = ops.conv2d_grad_weight.chosen(gy, self.g), self.maker_of("x")
        if BEFORE in kernel.parts and isinstance(maker, (BatchNormReLUTrain, MaxPool2d)):
            x, before = maker.before()
            return kernel.fused(x, gy, self.g, before=before)
        return kernel(self.recall_array("x"), gy, self.g)

    def _grad_input(self, gy: Any) -> Any:
        """The gradient by x, added to the one that waits for it at a join, if it can be.

        Masked and summed for the batch norm and ReLU that made x, if this completes their gradient.
        """
        g, weight, norm = self.g, self.recall_array("weight"), self.completes
        kernel = ops.conv2d_grad_input.chosen(gy, g)
        if SUMS in kernel.parts and isinstance(norm, GradientMasked):
            part = norm.rectified()
            if part is not None:
                total, self.waiting = self.waiting, None
                gx, sums = kernel.fused(gy, weight, g, rectified=part, total=total)
                norm.summed = gx, {SUMS: sums}
                return gx
        if self.waiting is not None:
            total = kernel.add_into(self.waiting, gy, weight, g)
            if total is not None:
                self.waiting = None
                return total
        return kernel(gy, weight, g)


class Conv2dGradInput(Function):
    def __init__(self, g: ConvGeometry) -> None:
        self.g = g

    def forward(self, gy: Any, weight: Any) -> Any:
        self.save(gy=gy, weight=weight)
        return ops.conv2d_grad_input(gy, weight, self.g)

    def backward(self, v: Tensor) -> tuple[Tensor | None, ...]:
        saved, g = self.saved, self.g
        ggy = Conv2d(g)(v, saved.weight) if self.needs[0] else None
        gweight = Conv2dGradWeight(g)(v, saved.gy) if self.needs[1] else None
        return ggy, gweight


class Conv2dGradWeight(Function):
    def __init__(self, g: ConvGeometry) -> None:
        self.g = g

    def forward(self, x: Any, gy: Any) -> Any:
        self.save(x=x, gy=gy)
        return ops.conv2d_grad_weight(x, gy, self.g)

    def backward(self, v: Tensor) -> tuple[Tensor | None, ...]:
        saved, g = self.saved, self.g
        gx = Conv2dGradInput(g)(saved.gy, v) if self.needs[0] else None
        ggy = Conv2d(g)(saved.x, v) if self.needs[1] else None
        return gx, ggy


def conv2d(
    x: Any,
    weight: Any,
    bias: Any = None,
    stride: int | Sequence[int] = 1,
    padding: int | Sequence[int] | str = 0,
    dilation: int | Sequence[int] = 1,
    groups: int = 1,
) -> Tensor:
    """2-D convolution (cross-correlation), as torch.nn.functional.conv2d.

    x: (N, C, H, W). weight: (O, C/groups, KH, KW). bias: (O,) or None.
    stride, padding, dilation: one integer, or two for height and width. padding may be "valid"
        (none) or "same" (keeps the size; stride 1 only).
    Returns (N, O, OH, OW), OH = (H + 2*padding - dilation*(KH - 1) - 1) // stride + 1.

    Raises ValueError for shapes that do not fit and TypeError for dtypes.
    """
    return convolution(x, weight, bias, stride, padding, dilation, groups)


def convolution(
    x: Any,
    weight: Any,
    bias: Any,
    stride: int | Sequence[int],
    padding: int | Sequence[int] | str,
    dilation: int | Sequence[int],
    groups: int,
    sums: bool = False,
    put_off: bool = False,
) -> Tensor:
    """`conv2d` for layers that know what comes next; sums, put_off: see `Conv2d`."""
    x, weight = as_tensor(x), as_tensor(weight)
    dtype = x.dtype
    if dtype.kind != "f" or weight._data.dtype is not dtype:  # not the usual case
        floating("conv2d", x=x)
        same_dtype("conv2d", x=x, weight=weight)
    pads: int | Sequence[int]
    if isinstance(padding, str):
        x, pads = _named_padding(x, weight, padding, stride, dilation)
    else:
        pads = padding
    g = conv_geometry(x.shape, weight.shape, stride, pads, dilation, groups)
    function = Conv2d(g, sums, put_off)
    y: Tensor = function(x, weight)
    if function.moments is not None:
        y._buffer.moments = function.moments
    if bias is None:
        return y
    bias = as_tensor(bias)
    same_dtype("conv2d", x=x, bias=bias)
    if bias.shape != (g.O,):
        raise ValueError(f"conv2d: bias must have shape ({g.O},), got {bias.shape}")
    return y + bias.reshape(1, -1, 1, 1)


def _named_padding(x: Tensor, weight: Tensor, name: str, stride: Any, dilation: Any) -> Any:
    if name not in NAMED_PADDING:
        raise ValueError(f"conv2d: padding is an integer, two, 'same' or 'valid', got {name!r}")
    if name == "valid" or x.ndim != 4 or weight.ndim != 4:  # the geometry reports wrong shapes
        return x, 0
    if pair(stride, "stride", "conv2d", 1) != (1, 1):
        raise ValueError(f"conv2d: padding='same' needs stride 1, got {stride!r}")
    KH, KW = weight.shape[2:]
    rows, cols = same_padding((KH, KW), pair(dilation, "dilation", "conv2d", 1))
    if rows[0] == rows[1] and cols[0] == cols[1]:
        return x, (rows[0], cols[0])
    return pad_axes(x, [(0, 0), (0, 0), rows, cols]), 0
