"""Checks of arguments that several operations share."""

from __future__ import annotations

from minires.autograd import Tensor
from minires.kernels.arrays import is_floating
from minires.kernels.geometry import shape_text


def floating(operation: str, **tensors: Tensor) -> None:
    """Raise TypeError unless the tensors are of a floating-point dtype."""
    for name, tensor in tensors.items():
        dtype = tensor.dtype
        if dtype.kind != "f" and not is_floating(dtype):
            raise TypeError(
                f"{operation}: {name} must be floating point, got {tensor.dtype}; "
                f"convert it with {name}.float()"
            )


def same_dtype(operation: str, **tensors: Tensor) -> None:
    """Raise TypeError unless all tensors have the dtype of the first."""
    first, dtype = "", None
    for name, tensor in tensors.items():
        if dtype is None:
            first, dtype = name, tensor.dtype
        elif tensor.dtype != dtype:
            raise TypeError(
                f"{operation}: {first} is {dtype} and {name} is {tensor.dtype}; "
                "convert one of them with .float() or .double()"
            )


def channels(operation: str, x: Tensor, **per_channel: Tensor | None) -> None:
    """Raise ValueError unless the tensors hold one value per channel of x (N, C, ...) and live
    on its device."""
    C = x.shape[1]
    expected = (C,)
    for name, tensor in per_channel.items():
        if tensor is None:
            continue
        if tensor._data.shape != expected:
            raise ValueError(
                f"{operation}: {name} must have shape ({C},) for the {C} channels of x "
                f"{shape_text(x.shape)}, got {tensor.shape}"
            )
        if tensor.device != x.device:
            raise ValueError(
                f"{operation}: x lives on {x.device} and {name} on {tensor.device}; bring them "
                "together with .to(device) of the tensor or of the whole model"
            )
