"""Checks of arguments that several operations share."""

from __future__ import annotations

from minires.autograd import Tensor
from minires.kernels.geometry import shape_text


def floating(operation: str, **tensors: Tensor) -> None:
    """Raise TypeError unless the tensors are of a floating-point dtype."""
    for name, tensor in tensors.items():
        if tensor._data.dtype.kind != "f":
            raise TypeError(
                f"{operation}: {name} must be floating point, got {tensor.dtype}; "
                f"convert it with {name}.float()"
            )


def same_dtype(operation: str, **tensors: Tensor) -> None:
    """Raise TypeError unless all tensors have the dtype of the first."""
    (first, *others) = tensors.items()
    for name, tensor in others:
        if tensor._data.dtype != first[1]._data.dtype:
            raise TypeError(
                f"{operation}: {first[0]} is {first[1].dtype} and {name} is {tensor.dtype}; "
                "convert one of them with .float() or .double()"
            )


def channels(operation: str, x: Tensor, **per_channel: Tensor | None) -> None:
    """Raise ValueError unless the tensors hold one value per channel of x (N, C, ...)."""
    C = x.shape[1]
    for name, tensor in per_channel.items():
        if tensor is not None and tensor.shape != (C,):
            raise ValueError(
                f"{operation}: {name} must have shape ({C},) for the {C} channels of x "
                f"{shape_text(x.shape)}, got {tensor.shape}"
            )
