"""What users hand in, made into arrays, tensors, indices and shapes."""

from __future__ import annotations

from typing import Any

import numpy as np

from minires.autograd.buffer import Buffer
from minires.autograd.tensor import Tensor
from minires.kernels.arrays import (
    DL_CPU,
    DL_CUDA,
    DL_CUDA_HOST,
    DL_CUDA_MANAGED,
    as_dtype,
    device_of,
    is_array,
    is_floating,
    numbered,
    shared,
    to_device,
)


def as_array(data: Any, dtype: Any = None) -> Any:
    """`data` as an array of numbers: not copied if it is one; Python floats become float32, or
    what `dtype` asks for. A device's arrays stay there, `__cuda_array_interface__` among them.

    Raises TypeError for what is no number, ValueError for rows of unequal length.
    """
    if isinstance(data, Tensor):
        data = data._data
    if isinstance(data, np.ndarray | np.generic):
        array = np.asarray(data)
    elif is_array(data):
        array = data
    elif hasattr(data, "__cuda_array_interface__"):
        array = shared(data)
    else:
        if isinstance(data, list | tuple) and any(isinstance(d, Tensor) for d in data):
            raise TypeError("Tensor: cannot hold a sequence of Tensors; use mr.stack(tensors)")
        try:
            array = np.asarray(data)
        except ValueError as error:
            raise ValueError(f"Tensor: rows of unequal length make no array: {error}") from None
        if array.dtype == np.float64 and dtype is None:
            array = array.astype(np.float32)
    if array.dtype.kind not in "fiub" and not is_floating(array.dtype):
        raise TypeError(f"Tensor: needs numbers, got {type(data).__name__} of dtype {array.dtype}")
    return array if dtype is None else array.astype(as_dtype(dtype), copy=False)


def tensor(
    data: Any, requires_grad: bool = False, dtype: Any = None, device: str | None = None
) -> Tensor:
    """A Tensor holding a copy of `data` (`Tensor(...)` shares an array instead).

    device: where the copy lives; by default where `data` does.
    """
    array = as_array(data, dtype)
    there = array if device is None else to_device(array, device)
    copied = Tensor(there.copy(order="K") if there is array else there, requires_grad)
    copied._buffer.exposed = False  # nobody else holds the copy yet
    return copied


def from_dlpack(source: Any) -> Tensor:
    """A Tensor in the memory of another library's array or tensor, which both see from here on.

    source: anything with `__dlpack__` and `__dlpack_device__`, on the host or a CUDA device: of
        PyTorch, NumPy, CuPy, JAX and others.

    Raises TypeError for anything else, ValueError for another kind of device.
    """
    if not hasattr(source, "__dlpack__") or not hasattr(source, "__dlpack_device__"):
        raise TypeError(f"from_dlpack: {type(source).__name__} has no __dlpack__")
    kind, number = source.__dlpack_device__()
    if kind in (DL_CPU, DL_CUDA_HOST):
        return Tensor(np.from_dlpack(source))
    if kind in (DL_CUDA, DL_CUDA_MANAGED):
        return Tensor(numbered(int(number)).xp.from_dlpack(source))
    raise ValueError(
        f"from_dlpack: memory of kind {int(kind)} is neither on the host nor on a CUDA device; "
        "bring it to one of them first"
    )


def plain_source(values: Any) -> Any:
    """Values to be written somewhere, as an array of wherever they are."""
    return values if is_array(values) else np.asarray(values)


def plain_index(index: Any, array: Any) -> Any:
    """An index with Tensors replaced by their arrays, on the device of the array to be indexed."""
    if isinstance(index, tuple):
        return tuple(plain_index(i, array) for i in index)
    if isinstance(index, Tensor):
        index = index._data
    if type(array) is np.ndarray:
        if is_array(index) and device_of(index) != "cpu":
            raise ValueError(
                f"indexing: the index lives on {device_of(index)}, the tensor on cpu; bring the "
                "index here with .cpu()"
            )
        return index
    if isinstance(index, list):
        index = np.asarray(index)
    return to_device(index, device_of(array)) if is_array(index) else index


def kept_index(index: Any) -> Any:
    """A plain index that stays as it is, whatever becomes of the arrays it was made of."""
    if isinstance(index, tuple):
        return tuple(kept_index(i) for i in index)
    return index.copy() if is_array(index) else index


def varargs(values: tuple[Any, ...]) -> tuple[int, ...]:
    """`f(2, 3)` and `f((2, 3))` mean the same."""
    if len(values) == 1 and not isinstance(values[0], int | np.integer):
        return tuple(values[0])
    return values


def rebuilt(kind: type[Tensor], array: Any, requires_grad: bool, grad: Tensor | None) -> Tensor:
    """A leaf from what `Tensor.__reduce__` tells about it."""
    tensor = kind.__new__(kind)
    tensor._data, tensor._buffer = array, Buffer(array)
    tensor._node, tensor._index, tensor._hooks = None, 0, None
    tensor.requires_grad, tensor.grad = requires_grad, grad
    return tensor
