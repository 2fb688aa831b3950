"""The table of differentiable operations; see `cases`."""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import numpy as np

from minires import functional as F
from minires.autograd import Tensor, pad_axes, sum_to
from minires.autograd.elementwise import abs as absolute
from minires.autograd.elementwise import clip
from minires.autograd.shaping import Cast, PutItem, Transfer, broadcast_to, concatenate, stack
from minires.functional.activation import LogSoftmaxGrad, ReLUGrad
from minires.functional.casting import CastAll
from minires.functional.conv import Conv2dGradInput, Conv2dGradWeight
from minires.functional.norm import batch_norm, batch_norm_add_relu, batch_norm_relu, bias_relu
from minires.functional.pool import (
    AdaptiveAvgPool2dGrad,
    AvgPool2dGrad,
    MaxPool2dGrad,
    MaxPool2dTake,
)
from minires.kernels import conv_geometry, pool_geometry
from minires.testing.cases import Input, add_case, given, normal, positive

# -- elementwise -----------------------------------------------------------------------------------

BROADCASTS: dict[str, tuple[tuple[int, ...], tuple[int, ...]]] = {
    "same shape": ((3, 4), (3, 4)),
    "row and column": ((3, 1), (1, 4)),
    "fewer axes": ((2, 3, 4), (4,)),
    "scalar": ((), (2, 3)),
    "one element": ((1, 1), (2, 1, 3)),
}
BINARY = {
    "add": lambda a, b: a + b,
    "sub": lambda a, b: a - b,
    "mul": lambda a, b: a * b,
    "maximum": F.maximum,
    "minimum": F.minimum,
    "where": lambda a, b: F.where(np.array([[True], [False], [True]]), a, b),
}
for name, operator in BINARY.items():
    for text, (left, right) in BROADCASTS.items():
        if name != "where" or text in ("same shape", "row and column"):
            add_case(name, text, operator, left, right)
for text, (left, right) in BROADCASTS.items():
    add_case("div", text, lambda a, b: a / b, left, positive(*right))
    add_case("pow", f"two tensors, {text}", lambda a, b: a**b, positive(*left), right)
for name in ("add", "sub", "mul", "maximum"):
    add_case(name, "one tensor twice", lambda a, f=BINARY[name]: f(a, a * a), (5,))
add_case("add", "a number", lambda a: 2.5 + a + 1, (2, 3))
add_case("sub", "from a number", lambda a: 1.5 - a, (2, 3))
add_case("mul", "a number", lambda a: -3 * a, (2, 3))
add_case("div", "a number", lambda a: a / 4 + 2 / a, positive(2, 3))
add_case("pow", "square", lambda a: a**2, (3, 4))
add_case("pow", "cube root", lambda a: a ** (1 / 3), positive(5))
add_case("pow", "negative", lambda a: a**-1.5, positive(2, 3))
add_case("pow", "zero", lambda a: a**0 * a, (4,))
add_case("pow", "of a number", lambda a: 2.0**a, (3, 2))
add_case("neg", "matrix", lambda a: -a, (3, 4))
add_case("exp", "matrix", F.exp, (3, 4))
add_case("log", "matrix", F.log, positive(3, 4))
add_case("sqrt", "matrix", F.sqrt, positive(3, 4))
add_case("tanh", "matrix", F.tanh, (3, 4))
add_case("sigmoid", "matrix", F.sigmoid, (3, 4))
add_case("sigmoid", "far out", lambda a: F.sigmoid(8.0 * a), (6,))
add_case("abs", "matrix", absolute, (3, 4))
add_case("clip", "both sides", partial(clip, minimum=-0.5, maximum=0.7), (4, 5))
add_case("clip", "below", partial(clip, minimum=0.0), (6,))
add_case("clip", "above", partial(clip, maximum=0.2), (6,))
add_case("abs", "at zero", absolute, given([-1.0, 0.0, 2.0]), second_order=False)
add_case("clip", "at a bound", partial(clip, maximum=1.0), given([0.0, 1.0, 2.0]),
         second_order=False)  # fmt: skip
add_case("maximum", "ties", F.maximum, given([1.0, 2.0]), given([1.0, 3.0]), second_order=False)

# -- shapes and indices ----------------------------------------------------------------------------

add_case("sum_to", "two axes", lambda a: sum_to(a, (3, 1)), (2, 3, 4))
add_case("sum_to", "scalar", lambda a: sum_to(a, ()), (2, 3))
add_case("broadcast_to", "new and stretched axes", lambda a: broadcast_to(a, (2, 3, 4)), (3, 1))
add_case("broadcast_to", "kept sizes", lambda a: a.expand(2, -1, -1), (3, 4))
add_case("reshape", "matrix", lambda a: a.reshape(4, -1), (2, 3, 2))
add_case("reshape", "flatten", lambda a: a.flatten(1, -2), (2, 3, 2, 2))
add_case("reshape", "of a transpose", lambda a: a.T.reshape(-1), (2, 3))
add_case("reshape", "squeeze, unsqueeze", lambda a: a.squeeze(1).unsqueeze(-1), (3, 1, 2))
add_case("permute", "three axes", lambda a: a.permute(2, 0, -2), (2, 3, 4))
add_case("permute", "two swapped", lambda a: a.transpose(-1, 0), (2, 3, 4))
add_case("getitem", "slices", lambda a: a[1:, ::-2], (3, 5))
add_case("getitem", "integers and new axes", lambda a: a[-1, None, ..., 0], (3, 4, 2))
add_case("getitem", "repeated indices", lambda a: a[[0, 2, 2, 0, 0]], (3, 2))
add_case("getitem", "pairs", lambda a: a[np.array([0, 1, 1]), np.array([2, 0, 0])], (2, 3))
add_case("getitem", "mask", lambda a: a[np.array([True, False, True])], (3, 2))
add_case("put_item", "slice", lambda a: PutItem((slice(0, 2),), (4, 3))(a), (2, 3))
add_case("put_item", "repeated", lambda a: PutItem(np.array([1, 1, 3]), (4, 2))(a), (3, 2))
add_case("concatenate", "negative axis", lambda a, b: concatenate([a, b, a], -1), (2, 3), (2, 1))
add_case("concatenate", "first axis", lambda a, b: concatenate([a, b]), (2, 3), (4, 3))
add_case("concatenate", "stack", lambda a, b: stack([a, b], 1), (2, 3), (2, 3))
add_case("pad", "images", partial(F.pad, pad=(1, 2, 0, 3)), (2, 1, 2, 3))
add_case("pad", "with a value", lambda a: pad_axes(a, [(2, 0), (0, 1)], -1.5), (2, 3))
add_case("cast", "float64", lambda a: Cast(np.float64)(a), (2, 3))
add_case("cast_all", "two", lambda a, b: math.prod(CastAll(np.float64)(a, b)), (2, 3), (2, 3))
add_case("clone", "matrix", lambda a: a.clone() * a, (2, 3))
add_case("transfer", "to the host", lambda a: Transfer("cpu")(a) * a, (2, 3))

# -- reductions ------------------------------------------------------------------------------------

for axis, keepdims in ((None, False), (0, False), (-1, True), ((0, -1), False), ((1,), True)):
    text = f"axis {axis}" + (", kept" if keepdims else "")
    add_case("sum", text, lambda a, s=(axis, keepdims): a.sum(*s), (2, 3, 4))
    add_case("mean", text, lambda a, s=(axis, keepdims): a.mean(*s), (2, 3, 4))
    add_case("max", text, lambda a, s=(axis, keepdims): a.max(*s), (2, 3, 4))
    add_case("min", text, lambda a, s=(axis, keepdims): a.min(*s), (2, 3, 4))
add_case("var", "all", lambda a: a.var(), (3, 4))
add_case("var", "biased, one axis", lambda a: a.var(0, 0, True), (3, 4))
add_case("max", "ties", lambda a: a.max(), given([1.0, 3.0, 3.0]), second_order=False)

# -- products --------------------------------------------------------------------------------------

for left, right in (((2, 3), (3, 4)), ((3,), (3,)), ((2, 3), (3,)), ((3,), (3, 2)),
                    ((2, 1, 2, 3), (4, 3, 2))):  # fmt: skip
    add_case("matmul", f"{left} @ {right}", lambda a, b: a @ b, left, right)
add_case("linear", "with bias", F.linear, (4, 3), (5, 3), (5,))
add_case("linear", "without bias", F.linear, (4, 3), (2, 3))
add_case("linear", "more axes", F.linear, (2, 2, 3), (4, 3), (4,))
add_case("linear", "one vector", F.linear, (3,), (4, 3), (4,))

CONVOLUTIONS: dict[str, tuple[tuple[Input, ...], dict[str, Any]]] = {
    "3x3, padded": (((2, 3, 5, 4), (4, 3, 3, 3)), {"padding": 1}),
    "with bias": (((2, 2, 4, 4), (3, 2, 3, 3), (3,)), {}),
    "stride 2, leftover rows": (((2, 2, 6, 5), (3, 2, 3, 3)), {"stride": 2, "padding": 1}),
    "stride above the kernel": (((1, 2, 7, 8), (2, 2, 2, 2)), {"stride": 3}),
    "different per axis": (((1, 2, 4, 7), (2, 2, 1, 3)), {"stride": (1, 2), "padding": (0, 2)}),
    "dilation": (((1, 2, 7, 6), (2, 2, 3, 2)), {"dilation": 2, "padding": (2, 0)}),
    "groups": (((2, 4, 4, 4), (6, 2, 3, 3)), {"groups": 2, "padding": 1}),
    "depthwise, stride 2": (((1, 3, 5, 5), (3, 1, 3, 3)), {"groups": 3, "stride": 2}),
    "1x1": (((2, 3, 3, 2), (4, 3, 1, 1)), {}),
    "1x1, stride 2": (((2, 3, 4, 5), (2, 3, 1, 1)), {"stride": 2}),
    "kernel above the image": (((2, 2, 1, 2), (2, 2, 3, 3)), {"padding": 1}),
    "same padding, even kernel": (((1, 2, 4, 3), (2, 2, 2, 4)), {"padding": "same"}),
}
for text, (shapes, settings) in CONVOLUTIONS.items():
    add_case("conv2d", text, partial(F.conv2d, **settings), *shapes)


def channels_last(*shape: int) -> Any:
    """(N, C, H, W) in channels-last memory."""
    N, C, H, W = shape
    return lambda rng: Tensor(
        rng.standard_normal((N, H, W, C)).transpose(0, 3, 1, 2), requires_grad=True
    )


add_case("conv2d", "channels-last input", partial(F.conv2d, padding=1),
         channels_last(2, 3, 4, 5), (2, 3, 3, 3))  # fmt: skip
for text, g in {
    "stride 2": conv_geometry((2, 3, 5, 6), (2, 3, 3, 3), 2, 1),
    "groups, dilation": conv_geometry((1, 4, 6, 6), (4, 2, 2, 3), 1, 1, 2, 2),
}.items():
    add_case("conv2d_grad_input", text, lambda gy, w, g=g: Conv2dGradInput(g)(gy, w),
             g.y_shape, g.weight_shape)  # fmt: skip
    add_case("conv2d_grad_weight", text, lambda x, gy, g=g: Conv2dGradWeight(g)(x, gy),
             g.x_shape, g.y_shape)  # fmt: skip

# -- normalisation ---------------------------------------------------------------------------------


def _statistics(C: int) -> tuple[Tensor, Tensor]:
    return Tensor(np.linspace(-0.5, 0.5, C)), Tensor(np.linspace(0.5, 2.0, C))


def _train(x: Tensor, *affine: Tensor) -> Tensor:
    weight, bias = affine or (None, None)
    return batch_norm(x, None, None, weight, bias, training=True)


def _train_relu(x: Tensor, *affine: Tensor) -> Tensor:
    weight, bias = affine or (None, None)
    return batch_norm_relu(x, None, None, weight, bias, training=True)


def _train_join(x: Tensor, shortcut: Tensor, *affine: Tensor) -> Tensor:
    weight, bias = affine or (None, None)
    return batch_norm_add_relu(x, shortcut, None, None, weight, bias, training=True)


def _eval(x: Tensor, *affine: Tensor) -> Tensor:
    weight, bias = affine or (None, None)
    return batch_norm(x, *_statistics(x.shape[1]), weight, bias, eps=1e-3)


for text, x_shape in (("images", (3, 2, 3, 2)), ("rows", (6, 3)), ("one pixel", (5, 2, 1, 1))):
    C = (x_shape[1],)
    add_case("batch_norm", f"training, {text}", _train, x_shape, C, C)
    add_case("batch_norm", f"training, {text}, not affine", _train, x_shape)
    add_case("batch_norm", f"evaluation, {text}", _eval, x_shape, C, C)
    add_case("batch_norm_relu", f"training, {text}", _train_relu, x_shape, C, C)
    add_case("batch_norm_relu", f"training, {text}, not affine", _train_relu, x_shape)
    add_case("batch_norm_add_relu", f"training, {text}", _train_join, x_shape, x_shape, C, C)
    add_case("batch_norm_add_relu", f"training, {text}, not affine", _train_join, x_shape, x_shape)
add_case("batch_norm", "evaluation, not affine", _eval, (3, 2, 3, 2))
add_case("batch_norm_relu", "evaluation", lambda x: batch_norm_relu(x, *_statistics(2)),
         (3, 2, 3, 2))  # fmt: skip
add_case("bias_relu", "all", lambda x, r: bias_relu(x, Tensor(np.array([0.3, -0.2])), r),
         (3, 2, 3, 2), (3, 2, 3, 2))  # fmt: skip
add_case("bias_relu", "a bias that is learned", bias_relu, (4, 3), (3,), (4, 3))
add_case("bias_relu", "no ReLU", lambda x: bias_relu(x, None, None, False), (4, 3))
add_case("batch_norm_add_relu", "evaluation", lambda x, r: batch_norm_add_relu(
    x, r, *_statistics(2)), (3, 2, 3, 2), (3, 2, 3, 2))  # fmt: skip
add_case("batch_norm", "large mean", lambda x, g, b: _train(x + 50.0, g, b), (4, 2, 2, 2), (2,),
         (2,))  # fmt: skip

# -- activations -----------------------------------------------------------------------------------

add_case("relu", "images", F.relu, (2, 3, 4, 3))
add_case("relu", "twice", lambda x: F.relu(F.relu(x) - 0.5), (3, 5))
add_case("relu", "at zero", F.relu, given([-1.0, 0.0, 2.0]), second_order=False)
add_case("relu_grad", "vector", lambda gy, y: ReLUGrad()(gy, y), (6,), normal((6,), False))
add_case("add_relu", "images", F.add_relu, (2, 3, 4, 3), (2, 3, 4, 3))
add_case("add_relu", "both sides one tensor", lambda x: F.add_relu(x, x * x), (3, 4))
for axis in (0, 1, -1):
    add_case("log_softmax", f"axis {axis}", partial(F.log_softmax, axis=axis), (3, 4, 2))
    add_case("softmax", f"axis {axis}", partial(F.softmax, axis=axis), (3, 4, 2))
add_case("log_softmax_grad", "rows", lambda gy, y: LogSoftmaxGrad(1)(gy, y), (3, 4), (3, 4))
add_case("dropout", "half", partial(F.dropout, p=0.5), (4, 5))
add_case("dropout", "evaluation", partial(F.dropout, p=0.5, training=False), (2, 3))

# -- pooling ---------------------------------------------------------------------------------------

POOLINGS: dict[str, tuple[tuple[int, ...], dict[str, Any]]] = {
    "2x2": ((2, 2, 4, 6), {"kernel_size": 2}),
    "3x3 stride 2, padded": ((2, 3, 5, 4), {"kernel_size": 3, "stride": 2, "padding": 1}),
    "overlapping": ((1, 2, 4, 5), {"kernel_size": 3, "stride": 1}),
    "stride above the window": ((1, 2, 7, 6), {"kernel_size": 2, "stride": 3}),
    "different per axis": ((1, 2, 3, 7), {"kernel_size": (1, 3), "stride": (2, 1)}),
    "window above the image": ((2, 2, 1, 2), {"kernel_size": 3, "stride": 1, "padding": 1}),
}
for text, (shape, settings) in POOLINGS.items():
    add_case("max_pool2d", text, partial(F.max_pool2d, **settings), shape)
    add_case("avg_pool2d", text, partial(F.avg_pool2d, **settings), shape)
add_case("max_pool2d", "dilation", partial(F.max_pool2d, kernel_size=2, stride=1, dilation=2),
         (1, 2, 5, 6))  # fmt: skip
add_case("max_pool2d", "ties", partial(F.max_pool2d, kernel_size=2), given(np.ones((1, 1, 2, 4))),
         second_order=False)  # fmt: skip
add_case("avg_pool2d", "borders not counted",
         partial(F.avg_pool2d, kernel_size=3, stride=2, padding=1, count_include_pad=False),
         (1, 2, 5, 4))  # fmt: skip
for size in (1, (2, 3), (3, 1)):
    add_case("adaptive_avg_pool2d", f"to {size}", partial(F.adaptive_avg_pool2d, output_size=size),
             (2, 3, 4, 5))  # fmt: skip

POOL = pool_geometry("pool", (2, 3, 5, 4), 3, 2, 1)
PLACES = np.full(POOL.y_shape, 4, np.int32)  # the middle of each window: always a real pixel
add_case("max_pool2d_grad", "3x3 stride 2", lambda gy: MaxPool2dGrad(POOL, PLACES)(gy),
         POOL.y_shape)  # fmt: skip
add_case("max_pool2d_take", "3x3 stride 2", lambda x: MaxPool2dTake(POOL, PLACES)(x), POOL.x_shape)
add_case("avg_pool2d_grad", "3x3 stride 2", lambda gy: AvgPool2dGrad(POOL)(gy), POOL.y_shape)
add_case("adaptive_avg_pool2d_grad", "from 2x3", lambda gy: AdaptiveAvgPool2dGrad((5, 4))(gy),
         (2, 3, 2, 3))  # fmt: skip

# -- losses ----------------------------------------------------------------------------------------

LABELS = np.array([2, 0, 3, 2, 1])
PROBABILITIES = np.array([[0.1, 0.2, 0.7], [0.0, 1.0, 0.0]])
LOSSES: dict[str, dict[str, Any]] = {
    "mean": {},
    "sum": {"reduction": "sum"},
    "none": {"reduction": "none"},
    "smoothing": {"label_smoothing": 0.1},
    "weights": {"weight": np.array([0.5, 2.0, 1.0, 3.0])},
    "ignored label, weights, smoothing": {
        "ignore_index": 3, "weight": np.array([0.5, 2.0, 1.0, 3.0]), "label_smoothing": 0.2,
    },
}  # fmt: skip
for text, settings in LOSSES.items():
    add_case("cross_entropy", text, partial(F.cross_entropy, target=LABELS, **settings), (5, 4))
add_case("cross_entropy", "probabilities", partial(F.cross_entropy, target=PROBABILITIES), (2, 3))
add_case("nll_loss", "mean", partial(F.nll_loss, target=LABELS), (5, 4))
add_case("mse_loss", "matrices", F.mse_loss, (3, 4), (3, 4))
