"""Arrays that are made when they are first needed, because who needs them may do better.

A ReLU behind a batch norm is a pass over memory whose result the next convolution reads once, as it
could compute it. So the operation may return a `Pending` in place of an array: the tensor around it
is a `Deferred`, which makes the array as soon as anything reads it and is an ordinary tensor from
then on. An operation that says `takes_pending` is handed what is pending as it is.

What a pending array is made from must not change before. It is made first if minires is about to
change that memory, or to hand it out (`Buffer.settle`); memory that is in others' hands already is
nothing to wait on.
"""

from __future__ import annotations

import math
from typing import Any, ClassVar

from minires.autograd.buffer import Buffer
from minires.autograd.tensor import Tensor


class Pending:
    """An array to be: its shape and dtype are known, and how to make it. Subclasses `compute` it.

    It is made from the first input of the operation that returned it.
    soon: whether it is needed so soon that memory in others' hands may be waited on, too.
    """

    __slots__ = ("__weakref__", "array", "buffer", "dtype", "shape")
    soon: ClassVar[bool] = False

    def __init__(self, shape: tuple[int, ...], dtype: Any) -> None:
        self.shape, self.dtype = shape, dtype
        self.array: Any = None
        self.buffer: Buffer | None = None

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * int(self.dtype.itemsize)

    def compute(self) -> Any:
        """The array, from what it is made from."""
        raise TypeError(f"{type(self).__name__}: what is pending defines compute(self)")

    def make(self) -> Any:
        """The array, computed now unless it has been before."""
        array = self.array
        if array is None:
            array = self.array = self.compute()
            if self.buffer is not None:
                self.buffer.array = array
        return array


class Deferred(Tensor):
    """A tensor whose array is pending. It becomes a plain Tensor when the array is first read."""

    __slots__ = ()

    @classmethod
    def around(cls, pending: Pending, source: Tensor) -> Tensor:
        """A tensor for what an operation has put off that is made from `source`."""
        buffer = pending.buffer = Buffer(None)
        tensor = Tensor._wrap(None, buffer=buffer)
        _array.__set__(tensor, pending)
        tensor.__class__ = cls
        source._buffer.awaited(pending)
        return tensor

    @property
    def _data(self) -> Any:
        held = _array.__get__(self)
        array = held.make() if isinstance(held, Pending) else held  # another thread was first
        _array.__set__(self, array)
        self.__class__ = Tensor  # type: ignore[assignment]
        return array

    @_data.setter
    def _data(self, array: Any) -> None:
        _array.__set__(self, array)
        self.__class__ = Tensor  # type: ignore[assignment]

    @property
    def shape(self) -> tuple[int, ...]:
        shape: tuple[int, ...] = _array.__get__(self).shape
        return shape

    @property
    def dtype(self) -> Any:
        return _array.__get__(self).dtype

    @property
    def ndim(self) -> int:
        return len(self.shape)

    @property
    def size(self) -> int:
        return math.prod(self.shape)

    def numel(self) -> int:
        return self.size

    @property
    def device(self) -> str:
        return "cpu"


_array: Any = Tensor.__dict__["_data"]  # the slot, which `Deferred._data` covers


def made(array: Any) -> Any:
    """An array that may be pending, made."""
    return array.make() if isinstance(array, Pending) else array


def array_or_pending(tensor: Tensor) -> Any:
    """A tensor's array, or what will make it if nothing has yet."""
    if type(tensor) is not Deferred:
        return tensor._data
    pending = _array.__get__(tensor)
    return pending if pending.array is None else tensor._data
