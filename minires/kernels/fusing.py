"""What a convolution may do to its input as it loads it, and to its output before it stores it.

A batch norm and a ReLU in front of a convolution are a few operations on each number it loads
anyway; a shift, a shortcut and a ReLU behind it, or the sums that the next batch norm needs, a
few on each number it stores. Passes of their own over memory cost many times that. A kernel that
can do so is registered with a function `fused` and the parts that it takes (`registry.Kernel`):

    conv2d              fused(x, weight, g, before, after, moments) -> y, or (y, mean, var)
    conv2d_grad_weight  fused(x, gy, g, before) -> dW
    conv2d_grad_input   fused(gy, weight, g, rectified, total) -> (gx, sums)

Batch norm's kernels are registered with `moments` if they may be given: what is left then is what
`normalise` does, and a ReLU's result may be put off.

Backward through a batch norm and a ReLU needs two sums per channel before it can write, a pass over
its input and the upstream gradient. Where a convolution's input gradient is that gradient, it masks
and sums what it stores. Batch norm's kernels with `sums` are left with the other pass:

    batch_norm_relu_grad      fused(gy, x, gamma, beta, mean, inv_std, sums)
    batch_norm_add_relu_grad  fused(gy, x, y, gamma, mean, inv_std, sums)

gy is masked then, and given up: it is the shortcut's gradient, or its memory becomes gx's.

Max pooling behind a batch norm and a ReLU chooses by what they would make of x, and keeps x where
the maxima are: relu(batch norm) of that is what is pooled. Backward, the sums over the pooled
gradient are those over the whole one, which the norm spreads as it reads x:

    max_pool2d            fused(x, g, before) -> (x at the maxima, indices as int8)
    batch_norm_relu_grad  fused(gy, x, gamma, beta, mean, inv_std, sums, pooled)

The result has the bits that the kernel gives between passes of `normalise`; only the statistics and
the sums are summed in another order.
"""

from __future__ import annotations

from typing import Any, NamedTuple

BEFORE, AFTER, MOMENTS, SUMS, POOLED = "before", "after", "moments", "sums", "pooled"


class Before(NamedTuple):
    """What is convolved is relu((x - mean) * scale + shift); the padding around it is zero.

    mean, scale, shift: (C,), contiguous, of the dtype of x.
    """

    mean: Any
    scale: Any
    shift: Any


class After(NamedTuple):
    """What is returned is y + shift + shortcut, or its positive part if `rectify`.

    shift: (O,), contiguous, of the dtype of y. shortcut: (N, O, OH, OW), or None.
    """

    shift: Any
    shortcut: Any
    rectify: bool


class Rectified(NamedTuple):
    """What was convolved is y = relu((x - mean) * scale + shift), or had a shortcut added to that
    before the ReLU. Its gradient g, with `total` added, is returned where y > 0, and 0 elsewhere,
    with its `sums` per channel, (2, C) in float64: of g and of g * (x - mean).

    x: (N, C, H, W). mean, scale, shift: (C,), contiguous, of the dtype of x. y: as x, or None if it
    is what x alone makes it.
    """

    x: Any
    mean: Any
    scale: Any
    shift: Any
    y: Any = None


class Pooled(NamedTuple):
    """The upstream gradient, of which nothing but the shape is looked at, is
    max_pool2d_grad(gradient, indices, g), and `gradient` is masked.

    gradient, indices: (N, C, OH, OW). g: the pooling's PoolGeometry.
    """

    gradient: Any
    indices: Any
    g: Any
