"""What an operation costs by its definition: arithmetic, and bytes that have to move.

The count is of the direct algorithm, whatever computes it: a product of sums is 2 operations per
multiply-add, padding included, as the field counts convolutions. A Winograd kernel, which needs
fewer multiplications, can therefore reach more than the machine's rate. Comparisons, additions,
exponentials and logarithms count 1 each.

The bytes are the least there can be: every input read once, every output written once. A kernel
that reads twice moves more, and its share of the limit shows it.

    cost("relu", (x,)).intensity                  operations per byte
    bound(cost("relu", (x,)), limits(), x.dtype)  seconds that it must take on this machine

An operation of one's own gets its count with `@cost_of("name")`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from minires._names import unknown
from minires.kernels.geometry import ConvGeometry, PoolGeometry, adaptive_windows

if TYPE_CHECKING:
    from minires.bench.limits import Limits


@dataclass(frozen=True)
class Cost:
    """flops: arithmetic operations; bytes: what must be read and written."""

    flops: int
    bytes: int

    @property
    def intensity(self) -> float:
        """Operations per byte: what decides which of the two limits holds."""
        if self.bytes == 0:
            return math.inf if self.flops else 0.0
        return self.flops / self.bytes

    def __add__(self, other: Cost) -> Cost:
        return Cost(self.flops + other.flops, self.bytes + other.bytes)


Count = Callable[..., Cost]
_counts: dict[str, Count] = {}


def cost(operation: str, args: tuple[Any, ...]) -> Cost:
    """What a call of the operation with these arguments costs, by definition.

    args: as the operation takes them; only shapes, dtypes and geometries are looked at.
    Raises ValueError for an operation whose cost is not known.
    """
    if operation not in _counts:
        raise ValueError(
            f"cost: {unknown('operation', operation, _counts)}. "
            'Add one with @minires.bench.costs.cost_of("name")'
        )
    return _counts[operation](*args)


def bound(cost: Cost, limits: Limits, dtype: Any) -> float:
    """Seconds that this must take on a machine with these limits: the larger of the two.

    dtype: in which it computes. Raises ValueError if the machine's rate in it was not measured.
    """
    return max(cost.flops / (limits.rate(dtype) * 1e9), cost.bytes / (limits.copy_gbs * 1e9))


def cost_of(*operations: str) -> Callable[[Count], Count]:
    """Make a function of an operation's arguments its cost; a name used again is replaced."""

    def add(function: Count) -> Count:
        _counts.update(dict.fromkeys(operations, function))
        return function

    return add


def counted_operations() -> list[str]:
    """The operations whose cost is known."""
    return sorted(_counts)


def _bytes(*arrays: Any) -> int:
    """Of arrays, None counting nothing."""
    return sum(a.size * a.dtype.itemsize for a in arrays if a is not None)


# -- products ------------------------------------------------------------------------------------


@cost_of("conv2d", "conv2d_grad_input", "conv2d_grad_weight")
def _convolution(a: Any, b: Any, g: ConvGeometry) -> Cost:
    """All three passes read two of x, weight and y and write the third."""
    numbers = sum(map(math.prod, (g.x_shape, g.weight_shape, g.y_shape)))
    return Cost(2 * g.multiply_adds, numbers * a.dtype.itemsize)


@cost_of("linear")
def _linear(x: Any, weight: Any, bias: Any) -> Cost:
    outputs = x.size // x.shape[-1] * weight.shape[0]
    flops = 2 * outputs * x.shape[-1] + (0 if bias is None else outputs)
    return Cost(flops, _bytes(x, weight, bias) + outputs * x.dtype.itemsize)


# -- batch norm ----------------------------------------------------------------------------------
# Per number, forward: 1 for the mean, 3 for the variance, 2 for scale and shift (gamma * inv_std
# and what goes with beta are made once per channel). Backward: 2 for the normalised x, 3 for the
# two sums, 4 for a * gy + b * x + c. Backward, a ReLU adds its mask.


def _batch_norm_forward(x: Any, *per_channel: Any, flops: int, statistics: int) -> Cost:
    written = x.size + statistics * x.shape[1]
    return Cost(flops * x.size, _bytes(x, *per_channel) + written * x.dtype.itemsize)


@cost_of("batch_norm_train")
def _batch_norm_train(x: Any, gamma: Any, beta: Any, eps: float) -> Cost:
    return _batch_norm_forward(x, gamma, beta, flops=6, statistics=3)


@cost_of("batch_norm_relu_train")
def _batch_norm_relu_train(x: Any, gamma: Any, beta: Any, eps: float) -> Cost:
    return _batch_norm_forward(x, gamma, beta, flops=7, statistics=3)


@cost_of("batch_norm_add_relu_train")
def _batch_norm_add_relu_train(x: Any, r: Any, gamma: Any, beta: Any, eps: float) -> Cost:
    return _batch_norm_forward(x, gamma, beta, flops=8, statistics=3) + Cost(0, _bytes(r))


@cost_of("batch_norm_statistics")
def _batch_norm_statistics(x: Any, eps: float) -> Cost:
    return Cost(4 * x.size, _bytes(x) + 3 * x.shape[1] * x.dtype.itemsize)


@cost_of("batch_norm_eval")
def _batch_norm_eval(x: Any, gamma: Any, beta: Any, mean: Any, var: Any, eps: float) -> Cost:
    return _batch_norm_forward(x, gamma, beta, mean, var, flops=2, statistics=0)


@cost_of("normalise")
def _normalise(x: Any, mean: Any, scale: Any, shift: Any, r: Any, relu: bool) -> Cost:
    terms = sum(given is not None for given in (mean, scale, shift, r)) + relu
    return Cost(terms * x.size, 2 * _bytes(x) + _bytes(mean, scale, shift, r))


def _batch_norm_backward(flops: int, x: Any, *others: Any) -> Cost:
    written = x.size + 2 * x.shape[1]
    return Cost(flops * x.size, _bytes(x, *others) + written * x.dtype.itemsize)


@cost_of("batch_norm_grad")
def _batch_norm_grad(gy: Any, x: Any, gamma: Any, mean: Any, inv_std: Any) -> Cost:
    return _batch_norm_backward(9, x, gy, gamma, mean, inv_std)


@cost_of("batch_norm_relu_grad")
def _batch_norm_relu_grad(
    gy: Any, x: Any, gamma: Any, beta: Any, mean: Any, inv_std: Any
) -> Cost:
    return _batch_norm_backward(10, x, gy, gamma, beta, mean, inv_std)


@cost_of("batch_norm_add_relu_grad")
def _batch_norm_add_relu_grad(
    gy: Any, x: Any, y: Any, gamma: Any, mean: Any, inv_std: Any
) -> Cost:
    """The shortcut's gradient is a second output."""
    return _batch_norm_backward(10, x, gy, y, gamma, mean, inv_std) + Cost(0, _bytes(gy))


# -- element by element --------------------------------------------------------------------------


@cost_of("relu")
def _relu(x: Any) -> Cost:
    return Cost(x.size, 2 * _bytes(x))


@cost_of("relu_grad")
def _relu_grad(gy: Any, y: Any) -> Cost:
    return Cost(gy.size, 2 * _bytes(gy) + _bytes(y))


@cost_of("add")
def _add(a: Any, b: Any) -> Cost:
    return Cost(a.size, 2 * _bytes(a) + _bytes(b))


@cost_of("add_relu")
def _add_relu(a: Any, b: Any) -> Cost:
    return Cost(2 * a.size, 2 * _bytes(a) + _bytes(b))


# -- pooling -------------------------------------------------------------------------------------


def _window(g: PoolGeometry) -> int:
    return g.kernel[0] * g.kernel[1]


@cost_of("max_pool2d")
def _max_pool2d(x: Any, g: PoolGeometry) -> Cost:
    """The places of the maxima are int32."""
    outputs = math.prod(g.y_shape)
    moved = _bytes(x) + outputs * (x.dtype.itemsize + np.dtype(np.int32).itemsize)
    return Cost((_window(g) - 1) * outputs, moved)


@cost_of("max_pool2d_grad")
def _max_pool2d_grad(gy: Any, indices: Any, g: PoolGeometry) -> Cost:
    return Cost(gy.size, _bytes(gy, indices) + math.prod(g.x_shape) * gy.dtype.itemsize)


@cost_of("max_pool2d_take")
def _max_pool2d_take(x: Any, indices: Any, g: PoolGeometry) -> Cost:
    """Nothing is computed."""
    return Cost(0, _bytes(x, indices) + math.prod(g.y_shape) * x.dtype.itemsize)


@cost_of("avg_pool2d")
def _avg_pool2d(x: Any, g: PoolGeometry) -> Cost:
    """Additions and one division per window."""
    outputs = math.prod(g.y_shape)
    return Cost(_window(g) * outputs, _bytes(x) + outputs * x.dtype.itemsize)


@cost_of("avg_pool2d_grad")
def _avg_pool2d_grad(gy: Any, g: PoolGeometry) -> Cost:
    """One division per window, then an addition per position of it."""
    moved = _bytes(gy) + math.prod(g.x_shape) * gy.dtype.itemsize
    return Cost((_window(g) + 1) * gy.size, moved)


def _window_area(image: tuple[int, int], out: tuple[int, int]) -> int:
    """Positions in all windows of an adaptive pooling of one channel."""
    high, wide = (
        sum(end - start for start, end in adaptive_windows(size, count))
        for size, count in zip(image, out, strict=True)
    )
    return high * wide


@cost_of("adaptive_avg_pool2d")
def _adaptive_avg_pool2d(x: Any, out: tuple[int, int]) -> Cost:
    N, C, H, W = x.shape
    outputs = N * C * out[0] * out[1]
    flops = N * C * _window_area((H, W), out)
    return Cost(flops, _bytes(x) + outputs * x.dtype.itemsize)


@cost_of("adaptive_avg_pool2d_grad")
def _adaptive_avg_pool2d_grad(gy: Any, image: tuple[int, int]) -> Cost:
    N, C, OH, OW = gy.shape
    flops = gy.size + N * C * _window_area(image, (OH, OW))
    return Cost(flops, _bytes(gy) + N * C * image[0] * image[1] * gy.dtype.itemsize)


# -- softmax -------------------------------------------------------------------------------------


@cost_of("log_softmax")
def _log_softmax(x: Any, axis: int) -> Cost:
    """Per number: the maximum, less it, exp, the sum, less its logarithm (one per row)."""
    return Cost(5 * x.size + x.size // max(x.shape[axis], 1), 2 * _bytes(x))


@cost_of("log_softmax_grad")
def _log_softmax_grad(gy: Any, y: Any, axis: int) -> Cost:
    """Per number: the sum of gy, exp(y), times the sum, subtracted."""
    return Cost(4 * gy.size, 2 * _bytes(gy) + _bytes(y))


@cost_of("cross_entropy")
def _cross_entropy(x: Any, labels: Any, ignore_index: int, label_smoothing: float) -> Cost:
    """Per number: those of log-softmax, times q, summed, exp, less q; loss and gradient go out."""
    losses = len(x) * x.dtype.itemsize
    return Cost(9 * x.size + x.size // max(x.shape[1], 1), 2 * _bytes(x) + _bytes(labels) + losses)
