"""What a convolution may do to its input as it loads it, and to its output before it stores it.

A batch norm and a ReLU in front of a convolution are a few operations on each number it loads
anyway; a shift, a shortcut and a ReLU behind it, or the sums that the next batch norm needs, a
few on each number it stores. Passes of their own over memory cost many times that. A kernel that
can do so is registered with a function `fused` and the parts that it takes (`registry.Kernel`):

    conv2d              fused(x, weight, g, before, after, moments) -> y, or (y, mean, var)
    conv2d_grad_weight  fused(x, gy, g, before) -> dW

Batch norm's kernels are registered with `moments` if they may be given: what is left then is what
`normalise` does, and a ReLU's result may be put off.

The result has the bits that the kernel gives between passes of `normalise`; only the statistics are
summed in another order.
"""

from __future__ import annotations

from typing import Any, NamedTuple

BEFORE, AFTER, MOMENTS = "before", "after", "moments"


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
