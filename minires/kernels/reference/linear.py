"""The fully connected layer."""

from __future__ import annotations

from typing import Any

from minires.kernels.registry import register


@register("linear", name="blas")
def linear(x: Any, weight: Any, bias: Any) -> Any:
    """x @ weight^T + bias, for x (..., in) and weight (out, in)."""
    y = x @ weight.T
    if bias is not None:
        y += bias
    return y
