"""What convolution and batch norm put off, so that one of them does it on the other's way.

    relu(batch norm of x)     computed by the next convolution as it loads x
    a folded convolution      computed when its shift, shortcut and ReLU are known, and with them

See `autograd/pending.py` for what becomes of them if something else comes next.
"""

from __future__ import annotations

from typing import Any

from minires.autograd import Pending
from minires.kernels import operations as ops
from minires.kernels.fusing import AFTER, BEFORE, MOMENTS, After, Before
from minires.kernels.geometry import ConvGeometry, PoolGeometry
from minires.kernels.registry import Operation


class PendingActivation(Pending):
    """relu((x - mean) * scale + shift)."""

    __slots__ = ("before", "x")

    def __init__(self, x: Any, before: Before) -> None:
        super().__init__(x.shape, x.dtype)
        self.x, self.before = x, before

    def compute(self) -> Any:
        return ops.normalise(self.x, *self.before, None, True)


class PendingConvolution(Pending):
    """A convolution in front of the `FoldedNorm` that is called next."""

    __slots__ = ("g", "weight", "x")
    soon = True

    def __init__(self, x: Any, weight: Any, g: ConvGeometry) -> None:
        super().__init__(g.y_shape, weight.dtype)
        self.x, self.weight, self.g = x, weight, g

    def compute(self) -> Any:
        return convolve(self.x, self.weight, self.g)[0]

    def finished(self, shift: Any, shortcut: Any, rectify: bool) -> Any:
        """y + shift + shortcut, or its positive part, at once; None if no kernel can do that."""
        if shift is None or AFTER not in ops.conv2d.chosen(self.weight, self.g).parts:
            return None
        return convolve(self.x, self.weight, self.g, After(shift, shortcut, rectify))[0]


def convolve(
    x: Any, weight: Any, g: ConvGeometry, after: After | None = None, moments: bool = False
) -> tuple[Any, tuple[Any, Any] | None]:
    """The convolution of x, which may be pending, and the moments of the result.

    after: given only if the kernel can do it. moments: None is returned if the kernel cannot.
    """
    before = None
    if isinstance(x, Pending):
        if can_load(ops.conv2d, x, g):
            x, before = x.x, x.before  # type: ignore[attr-defined]
        else:
            x = x.make()
    kernel = ops.conv2d.chosen(x, g)
    moments = moments and MOMENTS in kernel.parts and g.N * g.out[0] * g.out[1] > 0
    if before is None and after is None and not moments:
        return kernel(x, weight, g), None
    result = kernel.fused(x, weight, g, before=before, after=after, moments=moments)
    return (result[0], (result[1], result[2])) if moments else (result, None)


def can_load(operation: Operation, x: Any, g: ConvGeometry | PoolGeometry) -> bool:
    """Whether x is an activation, still to be made, that the operation can compute itself."""
    return (
        isinstance(x, PendingActivation)
        and x.array is None
        and BEFORE in operation.chosen(x.x, g).parts
    )
