"""Operations that move elements without changing them: shapes, axes, slices, joins."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from minires.autograd.convert import kept_index, plain_index
from minires.autograd.elementwise import as_tensor, sum_to
from minires.autograd.tape import Function
from minires.autograd.tensor import Tensor
from minires.kernels.arrays import device_of, empty_ordered, is_array, to_device, to_host


class Reshape(Function):
    view = True

    def __init__(self, shape: tuple[int, ...]) -> None:
        self.shape = shape

    def forward(self, x: Any) -> Any:
        self.x_shape = x.shape
        try:
            return x.reshape(self.shape)
        except ValueError:
            raise ValueError(
                f"reshape: {x.size} elements of shape {x.shape} do not fit {self.shape}"
            ) from None

    def backward(self, gy: Tensor) -> Tensor:
        return gy.reshape(self.x_shape)


class Permute(Function):
    view = True

    def __init__(self, axes: tuple[int, ...]) -> None:
        self.axes = axes

    def forward(self, x: Any) -> Any:
        if sorted(a % x.ndim if x.ndim else a for a in self.axes) != list(range(x.ndim)):
            raise ValueError(f"permute: axes {self.axes} do not permute {x.ndim} dimensions")
        return x.transpose(self.axes)

    def backward(self, gy: Tensor) -> Tensor:
        inverse = np.argsort([a % gy.ndim for a in self.axes])
        return gy.permute([int(a) for a in inverse])


class BroadcastTo(Function):
    view = True

    def __init__(self, shape: tuple[int, ...]) -> None:
        self.shape = shape

    def forward(self, x: Any) -> Any:
        self.x_shape = x.shape
        try:
            return np.broadcast_to(x, self.shape)
        except ValueError:
            raise ValueError(
                f"broadcast_to: {x.shape} does not broadcast to {self.shape}"
            ) from None

    def backward(self, gy: Tensor) -> Tensor:
        return sum_to(gy, self.x_shape)


class GetItem(Function):
    """x[index] for NumPy's basic and advanced indices."""

    view = True

    def __init__(self, index: Any) -> None:
        self.index = index

    def forward(self, x: Any) -> Any:
        self.shape = x.shape
        return x[self.index]

    def backward(self, gy: Tensor) -> Tensor:
        return PutItem(self.index, self.shape)(gy)


class PutItem(Function):
    """The adjoint of slicing: zeros with y added at an index, repeated indices adding up."""

    def __init__(self, index: Any, shape: tuple[int, ...]) -> None:
        self.index, self.shape = index, shape

    def forward(self, y: Any) -> Any:
        if _selects_once(self.index):
            # In y's order of axes: channels-last stays so.
            x = empty_ordered(y, self.shape)
            x.fill(0)
            x[self.index] = y
            return x
        # A device would add in an order that changes from run to run: this is done by the host.
        host = to_host(y)
        total = np.zeros_like(host, shape=self.shape)
        np.add.at(total, _on_host(self.index), host)
        return to_device(total, device_of(y))

    def backward(self, gx: Tensor) -> Tensor:
        return gx[self.index]


def _selects_once(index: Any) -> bool:
    """Whether no element can be selected twice: slices, integers and boolean masks."""
    parts = index if isinstance(index, tuple) else (index,)
    return all(
        part is None
        or part is Ellipsis
        or isinstance(part, slice | int | np.integer)
        or (is_array(part) and part.dtype == np.bool_)
        for part in parts
    )


def _on_host(index: Any) -> Any:
    """A plain index with its arrays on the host."""
    if isinstance(index, tuple):
        return tuple(_on_host(part) for part in index)
    return to_host(index) if is_array(index) else index


class Concatenate(Function):
    def __init__(self, axis: int) -> None:
        self.axis = axis

    def forward(self, *arrays: Any) -> Any:
        self.sizes = [a.shape[self.axis] for a in arrays]
        return np.concatenate(arrays, axis=self.axis)

    def backward(self, gy: Tensor) -> tuple[Tensor, ...]:
        ends = np.cumsum(self.sizes)
        before: tuple[slice, ...] = (slice(None),) * (self.axis % gy.ndim)
        return tuple(
            gy[(*before, slice(int(end - size), int(end)))]
            for size, end in zip(self.sizes, ends, strict=True)
        )


class Pad(Function):
    """Constant padding; `widths` gives (before, after) per axis."""

    def __init__(self, widths: tuple[tuple[int, int], ...], value: float) -> None:
        self.widths, self.value = widths, value

    def forward(self, x: Any) -> Any:
        shape = tuple(n + a + b for n, (a, b) in zip(x.shape, self.widths, strict=True))
        self.inside = tuple(
            slice(a, a + n) for n, (a, _) in zip(x.shape, self.widths, strict=True)
        )
        y = empty_ordered(x, shape)
        y.fill(self.value)
        y[self.inside] = x
        return y

    def backward(self, gy: Tensor) -> Tensor:
        return gy[self.inside]


class Cast(Function):
    def __init__(self, dtype: Any) -> None:
        self.dtype = dtype

    def forward(self, x: Any) -> Any:
        self.x_dtype = x.dtype
        return x.astype(self.dtype)

    def backward(self, gy: Tensor) -> Tensor:
        return gy.astype(self.x_dtype)


class Transfer(Function):
    """The same values on another device; the gradient goes back to where they came from."""

    def __init__(self, device: str) -> None:
        self.device = device

    def forward(self, x: Any) -> Any:
        self.home = device_of(x)
        return to_device(x, self.device)

    def backward(self, gy: Tensor) -> Tensor:
        return gy.to(self.home)


class Clone(Function):
    def forward(self, x: Any) -> Any:
        return x.copy(order="K")

    def backward(self, gy: Tensor) -> Tensor:
        return gy


def reshape(x: Any, shape: Sequence[int]) -> Tensor:
    """The same elements in another shape; one size may be -1."""
    return Reshape(tuple(shape))(as_tensor(x))


def flatten(x: Any, start_dim: int = 0, end_dim: int = -1) -> Tensor:
    """Axes `start_dim` to `end_dim` (inclusive) joined into one."""
    x = as_tensor(x)
    if x.ndim == 0:
        return x.reshape(1)
    for name, axis in (("start_dim", start_dim), ("end_dim", end_dim)):
        if not -x.ndim <= axis < x.ndim:
            raise ValueError(f"flatten: {name} {axis} is out of range for {x.ndim} dimensions")
    first, last = start_dim % x.ndim, end_dim % x.ndim
    if first > last:
        raise ValueError(f"flatten: start_dim {start_dim} lies behind end_dim {end_dim}")
    joined = math.prod(x.shape[first : last + 1])
    return x.reshape(*x.shape[:first], joined, *x.shape[last + 1 :])


def permute(x: Any, axes: Sequence[int]) -> Tensor:
    """The axes in another order."""
    return Permute(tuple(axes))(as_tensor(x))


def transpose(x: Any, *axes: int | Sequence[int]) -> Tensor:
    """No axes: all reversed. Two: swapped, as in PyTorch. A full permutation: as in NumPy."""
    x = as_tensor(x)
    if not axes:
        return permute(x, range(x.ndim)[::-1])
    order = axes[0] if len(axes) == 1 and not isinstance(axes[0], int) else axes
    order = [int(a) for a in order]  # type: ignore[arg-type]
    if len(order) == 2 and (x.ndim != 2 or isinstance(axes[0], int)):
        for axis in order:
            if not -x.ndim <= axis < x.ndim:
                raise ValueError(f"transpose: axis {axis} is out of range for {x.ndim} dimensions")
        swapped = list(range(x.ndim))
        i, j = order
        swapped[i], swapped[j] = swapped[j], swapped[i]
        order = swapped
    return permute(x, order)


def broadcast_to(x: Any, shape: Sequence[int]) -> Tensor:
    """x repeated, without copying, to `shape`; -1 keeps a size."""
    x = as_tensor(x)
    target = tuple(shape)
    if -1 in target:
        missing = len(target) - x.ndim
        if missing < 0 or -1 in target[:missing]:
            raise ValueError(f"broadcast_to: {x.shape} has no size to keep for each -1 in {target}")
        target = tuple(x.shape[i - missing] if n == -1 else n for i, n in enumerate(target))
    return BroadcastTo(target)(x)


def squeeze(x: Any, axis: int | None = None) -> Tensor:
    """Without axes of size one: all of them, or the given one (kept if its size is not one)."""
    x = as_tensor(x)
    if axis is None:
        return x.reshape(tuple(n for n in x.shape if n != 1))
    if not -x.ndim <= axis < x.ndim:
        raise ValueError(f"squeeze: axis {axis} is out of range for {x.ndim} dimensions")
    axis %= x.ndim
    return x if x.shape[axis] != 1 else x.reshape(x.shape[:axis] + x.shape[axis + 1 :])


def unsqueeze(x: Any, axis: int) -> Tensor:
    """With a new axis of size one at `axis`."""
    x = as_tensor(x)
    if not -x.ndim - 1 <= axis <= x.ndim:
        raise ValueError(f"unsqueeze: axis {axis} is out of range for {x.ndim} dimensions")
    axis %= x.ndim + 1
    return x.reshape((*x.shape[:axis], 1, *x.shape[axis:]))


def getitem(x: Tensor, index: Any) -> Tensor:
    """x[index] for NumPy's basic and advanced indices; Tensors may serve as indices."""
    try:
        return GetItem(kept_index(plain_index(index, x._data)))(x)
    except IndexError as error:
        raise IndexError(f"indexing a tensor of shape {x.shape}: {error}") from None


def concatenate(tensors: Sequence[Any], axis: int = 0) -> Tensor:
    """Tensors joined along an existing axis. Raises ValueError if other axes differ in size."""
    parts = [as_tensor(t) for t in tensors]
    if not parts:
        raise ValueError("concatenate: needs at least one tensor")
    for part in parts:
        if not -part.ndim <= axis < part.ndim:
            raise ValueError(
                f"concatenate: axis {axis} is out of range for {part.ndim} dimensions"
            )
    return Concatenate(axis)(*parts)


def stack(tensors: Sequence[Any], axis: int = 0) -> Tensor:
    """Tensors of one shape joined along a new axis."""
    return concatenate([unsqueeze(t, axis) for t in tensors], axis)


def pad_axes(x: Any, widths: Sequence[tuple[int, int]], value: float = 0.0) -> Tensor:
    """Constant padding, (before, after) per axis. Raises ValueError for negative widths."""
    x = as_tensor(x)
    pairs = tuple((int(a), int(b)) for a, b in widths)
    if len(pairs) != x.ndim:
        raise ValueError(f"pad: {len(pairs)} pairs of widths for {x.ndim} dimensions")
    if any(w < 0 for pair in pairs for w in pair):
        raise ValueError(f"pad: widths must not be negative, got {pairs}; slice to crop")
    return Pad(pairs, value)(x)
