"""What users hand in, made into arrays, tensors, indices and shapes."""

from __future__ import annotations

from typing import Any

import numpy as np

from minires.autograd.buffer import Buffer
from minires.autograd.tensor import Tensor


def as_array(data: Any, dtype: Any = None) -> Any:
    """`data` as an array of numbers: not copied if it is one; Python floats become float32, or
    what `dtype` asks for.

    Raises TypeError for what is no number, ValueError for rows of unequal length.
    """
    if isinstance(data, Tensor):
        data = data._data
    if isinstance(data, np.ndarray | np.generic):
        array = np.asarray(data)
    else:
        if isinstance(data, list | tuple) and any(isinstance(d, Tensor) for d in data):
            raise TypeError("Tensor: cannot hold a sequence of Tensors; use mr.stack(tensors)")
        try:
            array = np.asarray(data)
        except ValueError as error:
            raise ValueError(f"Tensor: rows of unequal length make no array: {error}") from None
        if array.dtype == np.float64 and dtype is None:
            array = array.astype(np.float32)
    if array.dtype.kind not in "fiub":
        raise TypeError(f"Tensor: needs numbers, got {type(data).__name__} of dtype {array.dtype}")
    return array if dtype is None else array.astype(dtype, copy=False)


def tensor(data: Any, requires_grad: bool = False, dtype: Any = None) -> Tensor:
    """A Tensor holding a copy of `data` (`Tensor(...)` shares a NumPy array instead)."""
    copied = Tensor(np.array(as_array(data, dtype)), requires_grad)
    copied._buffer.exposed = False  # nobody else holds the copy yet
    return copied


def plain_index(index: Any) -> Any:
    """An index with Tensors replaced by their arrays."""
    if isinstance(index, Tensor):
        return index._data
    if isinstance(index, tuple):
        return tuple(plain_index(i) for i in index)
    return index


def kept_index(index: Any) -> Any:
    """A plain index that stays as it is, whatever becomes of the arrays it was made of."""
    if isinstance(index, tuple):
        return tuple(kept_index(i) for i in index)
    return index.copy() if isinstance(index, np.ndarray) else index


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
