"""The fully connected layer and zero padding."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from minires.autograd import Function, Tensor, as_tensor, pad_axes
from minires.functional.checks import floating, same_dtype
from minires.kernels import operations as ops
from minires.kernels.geometry import shape_text


class Linear(Function):
    """y = x W^T + b, for x (N, in) and W (out, in)."""

    def forward(self, x: Any, weight: Any, bias: Any = None) -> Any:
        self.save(x=x, weight=weight)
        return ops.linear(x, weight, bias)

    def backward(self, gy: Tensor) -> tuple[Tensor | None, ...]:
        saved = self.saved
        gx = gy @ saved.weight if self.needs[0] else None
        gweight = gy.T @ saved.x if self.needs[1] else None
        if len(self.needs) == 2:
            return gx, gweight
        return gx, gweight, gy.sum(axis=0) if self.needs[2] else None


def linear(x: Any, weight: Any, bias: Any = None) -> Tensor:
    """x @ weight^T + bias, as torch.nn.functional.linear.

    x: (..., in). weight: (out, in). bias: (out,) or None. Returns (..., out).
    Raises ValueError for shapes that do not fit and TypeError for dtypes.
    """
    x, weight = as_tensor(x), as_tensor(weight)
    floating("linear", x=x)
    same_dtype("linear", x=x, weight=weight)
    if weight.ndim != 2 or x.ndim < 1 or x.shape[-1] != weight.shape[1]:
        raise ValueError(
            f"linear: expected x (..., in) and weight (out, in), got x {shape_text(x.shape)} and "
            f"weight {shape_text(weight.shape)}"
        )
    flat = x if x.ndim == 2 else x.reshape(-1, x.shape[-1])
    if bias is None:
        y: Tensor = Linear()(flat, weight)
    else:
        bias = as_tensor(bias)
        same_dtype("linear", x=x, bias=bias)
        if bias.shape != weight.shape[:1]:
            raise ValueError(f"linear: bias must have shape {weight.shape[:1]}, got {bias.shape}")
        y = Linear()(flat, weight, bias)
    return y if x.ndim == 2 else y.reshape(*x.shape[:-1], weight.shape[0])


def pad(x: Any, pad: Sequence[int], mode: str = "constant", value: float = 0.0) -> Tensor:
    """Constant padding, as torch.nn.functional.pad: (left, right, top, bottom, ...).

    The widths come in pairs, for the last axis first. mode: "constant" is the only one there is.

    Raises ValueError for an odd number of widths, more pairs than axes, negative widths, or
    another mode.
    """
    if mode != "constant":
        raise ValueError(f"pad: mode is 'constant', got {mode!r}")
    x, widths = as_tensor(x), list(pad)
    if len(widths) % 2 or len(widths) > 2 * x.ndim:
        raise ValueError(
            f"pad: expected pairs of widths for at most {x.ndim} axes, got {widths}"
        )
    pairs = [(widths[i], widths[i + 1]) for i in range(0, len(widths), 2)]
    return pad_axes(x, [(0, 0)] * (x.ndim - len(pairs)) + pairs[::-1], value)
