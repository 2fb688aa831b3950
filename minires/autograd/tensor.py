"""The Tensor: an array with a gradient and a place in the graph."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from minires.autograd.buffer import Buffer
from minires.autograd.hooks import Handle, Hooks
from minires.autograd.placing import Placed
from minires.autograd.tape import Function, describe, is_grad_enabled, on_one_device
from minires.kernels.arrays import active, arrayed, is_array, is_floating, to_device, to_host

_first = threading.Lock()  # of threads that ask for a tensor's buffer, one makes it

Scalar = int | float | bool
Axis = int | Sequence[int] | None


class Tensor(Placed):
    """An n-dimensional array whose operations can be differentiated.

    data: an array, a (nested) sequence of numbers, a number or another Tensor. Arrays of NumPy
        and CuPy, and what has `__cuda_array_interface__`, are shared, not copied, and keep their
        dtype; Python floats become float32.
    requires_grad: whether `backward()` shall leave a gradient in `.grad`; floating point only.
    dtype: convert to this dtype first (a copy if it differs).

    Arithmetic, comparison, slicing and broadcasting follow NumPy; names follow PyTorch.
    """

    __slots__ = ("__weakref__", "_data", "_hooks", "_index", "_memory", "_node", "grad",
                 "requires_grad")  # fmt: skip
    __array_priority__ = 1000.0
    __array_ufunc__ = None  # so that ndarray + Tensor asks the Tensor

    _data: Any
    _memory: Buffer | None
    grad: Tensor | None
    requires_grad: bool

    def __init__(self, data: Any, requires_grad: bool = False, dtype: Any = None) -> None:
        array = convert.as_array(data, dtype)
        if requires_grad and not is_floating(array.dtype):
            raise TypeError(
                f"Tensor: only floating-point tensors can require gradients, got {array.dtype}; "
                "pass dtype=np.float32"
            )
        self._data = array
        shared = isinstance(data, Tensor) and array is data._data
        self._buffer = data._buffer if shared else Buffer(array, exposed=True)
        self.requires_grad = bool(requires_grad)
        self.grad = None
        self._node: Function | None = None
        self._index = 0
        self._hooks: Hooks | None = None

    @classmethod
    def _wrap(
        cls, array: Any, node: Function | None = None, index: int = 0, buffer: Buffer | None = None
    ) -> Tensor:
        """A tensor around an array the engine owns; the fast way in for results."""
        tensor = Tensor.__new__(Tensor)
        tensor._data = array
        tensor._memory = buffer
        tensor.requires_grad = node is not None
        tensor.grad = None
        tensor._node = node
        tensor._index = index
        tensor._hooks = None
        return tensor

    @property
    def _buffer(self) -> Buffer:
        """The memory shared with views. Most gradients are never asked for it and have none."""
        if self._memory is None:
            with _first:
                self._memory = self._memory or Buffer(self._data)
        return self._memory

    @_buffer.setter
    def _buffer(self, buffer: Buffer) -> None:
        self._memory = buffer

    def _edge(self) -> Any:
        """Where this tensor's gradient goes: itself (a leaf), (node, output index), or None."""
        if not self.requires_grad:
            return None
        return self if self._node is None else (self._node, self._index)

    # -- the array ---------------------------------------------------------------------------

    @property
    def data(self) -> Any:
        """The array itself, not a copy. Assigning replaces it (and must keep the shape)."""
        array = self._data
        self._buffer.expose()
        return array

    @data.setter
    def data(self, value: Any) -> None:
        array = convert.as_array(value)
        if array is self._data:  # `p.data -= ...` assigns the array it has just changed
            self._buffer.version += 1
            return
        if array.shape != self._data.shape:
            raise ValueError(
                f"data: expected shape {self._data.shape}, got {array.shape}; make a new Tensor "
                "to change the shape"
            )
        if self.requires_grad and not is_floating(array.dtype):
            raise TypeError(f"data: this tensor requires gradients, got dtype {array.dtype}")
        self._data = array
        self._buffer = value._buffer if isinstance(value, Tensor) else Buffer(array, exposed=True)

    def item(self) -> Any:
        """The only element as a Python number. Raises ValueError if there are more."""
        if self._data.size != 1:
            raise ValueError(f"item(): needs one element, this tensor has {describe(self._data)}")
        return self._data.item()

    def tolist(self) -> Any:
        return self._data.tolist()

    def copy_(self, source: Any) -> Tensor:
        """Overwrite the values with `source`'s (broadcast and cast); returns self."""
        self.refuse_in_place("copy_")
        array = source._data if isinstance(source, Tensor) else convert.plain_source(source)
        self._buffer.settle()
        with active(self._data):
            self._data[...] = to_device(array, self.device)
        self._buffer.version += 1
        return self

    def __setitem__(self, index: Any, value: Any) -> None:
        self.refuse_in_place("item assignment")
        data = self._data
        value = value._data if isinstance(value, Tensor) else value
        if type(data) is not np.ndarray and isinstance(value, np.ndarray | list | tuple):
            value = to_device(np.asarray(value), self.device)
        self._buffer.settle()
        with active(data):
            data[convert.plain_index(index, data)] = value
        self._buffer.version += 1

    def refuse_in_place(self, what: str) -> None:
        """Raise RuntimeError if a change of the values would have to be recorded."""
        if self.requires_grad and is_grad_enabled():
            raise RuntimeError(
                f"{what}: this tensor requires gradients and in-place changes are not recorded; "
                "use mr.where or concatenate to build a new tensor, or wrap it in mr.no_grad()"
            )

    # -- what it is --------------------------------------------------------------------------

    @property
    def shape(self) -> tuple[int, ...]:
        shape: tuple[int, ...] = self._data.shape
        return shape

    @property
    def dtype(self) -> Any:
        return self._data.dtype

    @property
    def ndim(self) -> int:
        return int(self._data.ndim)

    @property
    def size(self) -> int:
        """Number of elements (NumPy's meaning); `numel()` is PyTorch's name for it."""
        return int(self._data.size)

    def numel(self) -> int:
        return int(self._data.size)

    @property
    def is_leaf(self) -> bool:
        """Whether no recorded operation made this tensor."""
        return self._node is None

    @property
    def grad_fn(self) -> Function | None:
        """The operation that made this tensor, or None for a leaf."""
        return self._node

    def __len__(self) -> int:
        if self._data.ndim == 0:
            raise TypeError("len(): a 0-d tensor has no length")
        return len(self._data)

    def __iter__(self) -> Iterator[Tensor]:
        if self._data.ndim == 0:
            raise TypeError("iteration over a 0-d tensor")
        return (self[i] for i in range(len(self._data)))

    def __bool__(self) -> bool:
        return bool(self._data)

    def __float__(self) -> float:
        return float(self.item())

    def __int__(self) -> int:
        return int(self.item())

    def __format__(self, spec: str) -> str:
        return format(self.item(), spec) if spec else str(self)

    def __repr__(self) -> str:
        body = np.array2string(to_host(self._data), separator=", ", prefix="tensor(")
        parts = [f"tensor({body}"]
        if self._data.dtype not in (np.float32, np.int64, np.bool_):
            parts.append(f"dtype={self._data.dtype}")
        if self.device != "cpu":
            parts.append(f"device={self.device!r}")
        if self._node is not None:
            parts.append(f"grad_fn=<{self._node.name}>")
        elif self.requires_grad:
            parts.append("requires_grad=True")
        return ", ".join(parts) + ")"

    __hash__ = object.__hash__  # by identity: `==` compares elements

    # -- gradients ---------------------------------------------------------------------------

    def backward(
        self,
        gradient: Any = None,
        retain_graph: bool | None = None,
        create_graph: bool = False,
    ) -> None:
        """Accumulate d(self)/d(leaf) into `.grad` of every leaf that requires it.

        gradient: the gradient reaching this tensor, of its shape; may be left out for one element.
        retain_graph: keep what backward needs, for another call; defaults to `create_graph`.
        create_graph: record the backward pass too, so that gradients can be differentiated.

        Raises RuntimeError if nothing requires gradients, if the graph was freed by an earlier
        call, if a saved array was changed in place, or if `gradient` is missing for a non-scalar.
        """
        backward.backward([self], [gradient], retain_graph, create_graph)

    def register_hook(self, hook: Callable[[Tensor], Tensor | None]) -> Handle:
        """Call `hook(gradient)` when this tensor's gradient is complete; a result replaces it.

        The hook must not change the gradient in place. `handle.remove()` of what is returned
        removes the hook.
        """
        if not self.requires_grad:
            raise RuntimeError("register_hook: this tensor does not require gradients")
        if self._node is None:
            hooks = self._hooks = self._hooks if self._hooks is not None else {}
        else:
            if self._node.hooks is None:
                self._node.hooks = {}
            hooks = self._node.hooks.setdefault(self._index, {})
        return Handle(hooks, hook)

    def retain_grad(self) -> None:
        """Keep this tensor's gradient in `.grad` although it is not a leaf."""
        if not self.requires_grad:
            raise RuntimeError("retain_grad: this tensor does not require gradients")
        if self._node is not None:
            if self._node.retained is None:
                self._node.retained = {}
            self._node.retained[self._index] = weakref.ref(self)

    def requires_grad_(self, requires_grad: bool = True) -> Tensor:
        """Set `requires_grad` of a leaf; returns self."""
        if self._node is not None and not requires_grad:
            raise RuntimeError("requires_grad_: only a leaf can stop requiring gradients; detach()")
        if requires_grad and not is_floating(self._data.dtype):
            raise TypeError(f"requires_grad_: only floating-point tensors, got {self._data.dtype}")
        self.requires_grad = bool(requires_grad)
        return self

    def zero_grad(self) -> None:
        """Forget the gradient."""
        self.grad = None

    def detach(self) -> Tensor:
        """The same values outside the graph, sharing memory."""
        return Tensor._wrap(self._data, buffer=self._buffer)

    def clone(self) -> Tensor:
        """A copy, differentiable."""
        return shaping.Clone()(self)

    def __reduce__(self) -> tuple[Any, ...]:
        """For copy.deepcopy and pickle: values, gradient and `requires_grad`, without hooks."""
        if self._node is not None:
            raise RuntimeError(
                "only leaves can be copied or pickled: this tensor is part of a graph; detach() it"
            )
        return convert.rebuilt, (type(self), self._data, self.requires_grad, self.grad)

    def __copy__(self) -> Tensor:
        copied = convert.rebuilt(*self.__reduce__()[1])
        copied._buffer = self._buffer
        return copied

    # -- arithmetic --------------------------------------------------------------------------

    def __add__(self, other: Any) -> Tensor:
        return elementwise.add(self, other)

    def __radd__(self, other: Any) -> Tensor:
        return elementwise.add(other, self)

    def __sub__(self, other: Any) -> Tensor:
        return elementwise.sub(self, other)

    def __rsub__(self, other: Any) -> Tensor:
        return elementwise.sub(other, self)

    def __mul__(self, other: Any) -> Tensor:
        return elementwise.mul(self, other)

    def __rmul__(self, other: Any) -> Tensor:
        return elementwise.mul(other, self)

    def __truediv__(self, other: Any) -> Tensor:
        return elementwise.div(self, other)

    def __rtruediv__(self, other: Any) -> Tensor:
        return elementwise.div(other, self)

    def __pow__(self, other: Any) -> Tensor:
        return elementwise.pow(self, other)

    def __rpow__(self, other: Any) -> Tensor:
        return elementwise.pow(other, self)

    def __iadd__(self, other: Any) -> Tensor:  # inside no_grad() in place, as in PyTorch
        return elementwise.in_place(np.add, elementwise.add, self, other)

    def __isub__(self, other: Any) -> Tensor:
        return elementwise.in_place(np.subtract, elementwise.sub, self, other)

    def __imul__(self, other: Any) -> Tensor:
        return elementwise.in_place(np.multiply, elementwise.mul, self, other)

    def __itruediv__(self, other: Any) -> Tensor:
        return elementwise.in_place(np.divide, elementwise.div, self, other)

    def __neg__(self) -> Tensor:
        return elementwise.neg(self)

    def __pos__(self) -> Tensor:
        return self

    def __abs__(self) -> Tensor:
        return elementwise.abs(self)

    def __matmul__(self, other: Any) -> Tensor:
        return linalg.matmul(self, other)

    def __rmatmul__(self, other: Any) -> Tensor:
        return linalg.matmul(other, self)

    # -- comparison: boolean tensors, never differentiated ----------------------------------

    def __eq__(self, other: object) -> Any:
        return self._compare(np.equal, other)

    def __ne__(self, other: object) -> Any:
        return self._compare(np.not_equal, other)

    def __lt__(self, other: Any) -> Tensor:
        return self._compare(np.less, other)

    def __le__(self, other: Any) -> Tensor:
        return self._compare(np.less_equal, other)

    def __gt__(self, other: Any) -> Tensor:
        return self._compare(np.greater, other)

    def __ge__(self, other: Any) -> Tensor:
        return self._compare(np.greater_equal, other)

    def _compare(self, ufunc: Any, other: Any) -> Any:
        if isinstance(other, Tensor):
            if type(other._data) is not type(self._data):
                self, other = on_one_device(ufunc.__name__, (self, other))
            other = other._data
        elif isinstance(other, list | tuple):
            other = to_device(np.asarray(other), self.device)
        elif not (isinstance(other, int | float | np.generic) or is_array(other)):
            return NotImplemented
        return Tensor._wrap(arrayed(ufunc(self._data, other)))

    # -- the rest, as methods ----------------------------------------------------------------

    def exp(self) -> Tensor:
        return elementwise.exp(self)

    def log(self) -> Tensor:
        return elementwise.log(self)

    def sqrt(self) -> Tensor:
        return elementwise.sqrt(self)

    def tanh(self) -> Tensor:
        return elementwise.tanh(self)

    def sigmoid(self) -> Tensor:
        return elementwise.sigmoid(self)

    def abs(self) -> Tensor:
        return elementwise.abs(self)

    def clip(self, minimum: Scalar | None = None, maximum: Scalar | None = None) -> Tensor:
        return elementwise.clip(self, minimum, maximum)

    def sum(self, axis: Axis = None, keepdims: bool = False) -> Tensor:
        return reductions.sum(self, axis, keepdims)

    def mean(self, axis: Axis = None, keepdims: bool = False) -> Tensor:
        return reductions.mean(self, axis, keepdims)

    def var(self, axis: Axis = None, correction: int = 1, keepdims: bool = False) -> Tensor:
        return reductions.var(self, axis, correction, keepdims)

    def max(self, axis: Axis = None, keepdims: bool = False) -> Tensor:
        return reductions.max(self, axis, keepdims)

    def min(self, axis: Axis = None, keepdims: bool = False) -> Tensor:
        return reductions.min(self, axis, keepdims)

    def argmax(self, axis: int | None = None) -> Tensor:
        return Tensor._wrap(arrayed(self._data.argmax(axis)))

    def argmin(self, axis: int | None = None) -> Tensor:
        return Tensor._wrap(arrayed(self._data.argmin(axis)))

    def matmul(self, other: Any) -> Tensor:
        return linalg.matmul(self, other)

    def reshape(self, *shape: int | Sequence[int]) -> Tensor:
        return shaping.reshape(self, convert.varargs(shape))

    view = reshape

    def flatten(self, start_dim: int = 0, end_dim: int = -1) -> Tensor:
        return shaping.flatten(self, start_dim, end_dim)

    def transpose(self, *axes: int | Sequence[int]) -> Tensor:
        """Permute the axes as NumPy does; two axes alone are swapped, as PyTorch does."""
        return shaping.transpose(self, *axes)

    def permute(self, *axes: int | Sequence[int]) -> Tensor:
        return shaping.permute(self, convert.varargs(axes))

    @property
    def T(self) -> Tensor:
        return shaping.permute(self, tuple(range(self.ndim))[::-1])

    def squeeze(self, axis: int | None = None) -> Tensor:
        return shaping.squeeze(self, axis)

    def unsqueeze(self, axis: int) -> Tensor:
        return shaping.unsqueeze(self, axis)

    def expand(self, *shape: int | Sequence[int]) -> Tensor:
        return shaping.broadcast_to(self, convert.varargs(shape))

    def __getitem__(self, index: Any) -> Tensor:
        return shaping.getitem(self, index)


# The operators above are defined in terms of these modules, which in turn need Tensor.
from minires.autograd import (  # noqa: E402
    backward,
    convert,
    elementwise,
    linalg,
    reductions,
    shaping,
)
