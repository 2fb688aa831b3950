"""Arithmetic and other operations that act on each element, with NumPy's broadcasting.

The gradient of a broadcast input is summed over the axes it was broadcast along.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

import numpy as np

from minires.autograd.tape import Function, is_grad_enabled, on_one_device
from minires.autograd.tensor import Scalar, Tensor
from minires.kernels.arrays import active, arrayed, is_array, is_floating, xp_of


def as_tensor(value: Any, like: Tensor | None = None) -> Tensor:
    """`value` as a Tensor. Python numbers, and lists of them, take dtype and device of `like`."""
    if isinstance(value, Tensor):
        return value
    if like is not None:
        array = like._data
        dtype = array.dtype
        if isinstance(value, int | float):
            if is_floating(dtype) or (dtype.kind in "iu" and isinstance(value, int)):
                if type(array) is np.ndarray:
                    return Tensor._wrap(np.asarray(value, dtype))
                with active(array):
                    return Tensor._wrap(xp_of(array).full((), value, dtype))
        elif isinstance(value, list | tuple):
            return Tensor(value, dtype=dtype if is_floating(dtype) else None).to(like.device)
    if isinstance(value, np.generic | int | float | list | tuple) or is_array(value):
        return Tensor(value)
    raise TypeError(f"expected a Tensor, an array or a number, got {type(value).__name__}")


def _pair(a: Any, b: Any) -> tuple[Tensor, Tensor]:
    if isinstance(a, Tensor):
        return a, as_tensor(b, a)
    return (as_tensor(a, b), b) if isinstance(b, Tensor) else (as_tensor(a), as_tensor(b))


def sum_to(gradient: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Sum a gradient over the axes along which an input of this shape was broadcast."""
    if gradient._data.shape == shape:
        return gradient
    return SumTo(shape)(gradient)


class SumTo(Function):
    """The adjoint of broadcasting: sums until the shape is `shape`."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        self.shape = shape

    def forward(self, x: Any) -> Any:
        self.x_shape = x.shape
        extra = x.ndim - len(self.shape)
        axes = tuple(range(extra)) + tuple(
            extra + i for i, n in enumerate(self.shape) if n == 1 and x.shape[extra + i] != 1
        )
        return x.sum(axis=axes).reshape(self.shape)

    def backward(self, gy: Tensor) -> Tensor:
        from minires.autograd.shaping import broadcast_to

        return broadcast_to(gy, self.x_shape)


class _Binary(Function):
    """Keeps the two input shapes, and hands each side what is its due."""

    def forward(self, a: Any, b: Any) -> Any:
        self.a_shape, self.b_shape = a.shape, b.shape
        try:
            return self.compute(a, b)
        except ValueError as error:
            if "broadcast" not in str(error):
                raise
            raise ValueError(
                f"{self.name.lower()}: shapes {a.shape} and {b.shape} do not broadcast: compared "
                "from the last axis, sizes must be equal or one of them 1"
            ) from None

    def compute(self, a: Any, b: Any) -> Any:
        raise TypeError(f"{self.name} defines compute(self, a, b)")


class Add(_Binary):
    def compute(self, a: Any, b: Any) -> Any:
        return a + b

    def backward(self, gy: Tensor) -> tuple[Tensor | None, ...]:
        return sum_to(gy, self.a_shape), sum_to(gy, self.b_shape)


class Sub(_Binary):
    def compute(self, a: Any, b: Any) -> Any:
        return a - b

    def backward(self, gy: Tensor) -> tuple[Tensor | None, ...]:
        gb = sum_to(-gy, self.b_shape) if self.needs[1] else None
        return sum_to(gy, self.a_shape), gb


class Mul(_Binary):
    def compute(self, a: Any, b: Any) -> Any:
        self.save(a=a, b=b)
        return a * b

    def backward(self, gy: Tensor) -> tuple[Tensor | None, ...]:
        saved = self.saved
        ga = sum_to(gy * saved.b, self.a_shape) if self.needs[0] else None
        gb = sum_to(gy * saved.a, self.b_shape) if self.needs[1] else None
        return ga, gb


class Div(_Binary):
    def compute(self, a: Any, b: Any) -> Any:
        self.save(a=a, b=b)
        return a / b

    def backward(self, gy: Tensor) -> tuple[Tensor | None, ...]:
        a, b = self.saved.a, self.saved.b
        ga = sum_to(gy / b, self.a_shape) if self.needs[0] else None
        gb = sum_to(-gy * (a / b) / b, self.b_shape) if self.needs[1] else None
        return ga, gb


class Maximum(_Binary):
    """The larger of two; where they tie, each side gets half of the gradient."""

    choose: ClassVar[Any] = np.maximum
    wins: ClassVar[Any] = np.greater

    def compute(self, a: Any, b: Any) -> Any:
        y = self.choose(a, b)
        share = self.wins(a, b) + 0.5 * (a == b)
        self.save(share=arrayed(share.astype(y.dtype)))
        return y

    def backward(self, gy: Tensor) -> tuple[Tensor | None, ...]:
        share = self.saved.share
        return sum_to(gy * share, self.a_shape), sum_to(gy * (1.0 - share), self.b_shape)


class Minimum(Maximum):
    """The smaller of two; where they tie, each side gets half of the gradient."""

    choose, wins = np.minimum, np.less


class Pow(Function):
    """x**exponent for a constant exponent."""

    def __init__(self, exponent: float) -> None:
        self.exponent = exponent

    def forward(self, x: Any) -> Any:
        self.save(x=x)
        return x**self.exponent

    def backward(self, gy: Tensor) -> Tensor:
        if self.exponent == 0:
            return gy * 0.0
        return gy * (self.exponent * pow(self.saved.x, self.exponent - 1))


class PowTensor(_Binary):
    """a**b for two tensors; a must be positive where b needs a gradient."""

    def compute(self, a: Any, b: Any) -> Any:
        self.save(a=a, b=b)
        return a**b

    def backward(self, gy: Tensor) -> tuple[Tensor | None, ...]:
        a, b = self.saved.a, self.saved.b
        ga = sum_to(gy * b * pow(a, b - 1.0), self.a_shape) if self.needs[0] else None
        gb = None
        if self.needs[1]:  # the logarithm in the precision of the result
            gb = sum_to(gy * pow(a, b) * log(a.astype(gy.dtype)), self.b_shape)
        return ga, gb


class Neg(Function):
    def forward(self, x: Any) -> Any:
        return -x

    def backward(self, gy: Tensor) -> Tensor:
        return -gy


class Exp(Function):
    def forward(self, x: Any) -> Any:
        y = arrayed(np.exp(x))
        self.save(y=y)
        return y

    def backward(self, gy: Tensor) -> Tensor:
        return gy * self.saved.y


class Log(Function):
    def forward(self, x: Any) -> Any:
        self.save(x=x)
        return np.log(x)

    def backward(self, gy: Tensor) -> Tensor:
        return gy / self.saved.x


class Sqrt(Function):
    def forward(self, x: Any) -> Any:
        y = arrayed(np.sqrt(x))
        self.save(y=y)
        return y

    def backward(self, gy: Tensor) -> Tensor:
        return gy * 0.5 / self.saved.y


class Tanh(Function):
    def forward(self, x: Any) -> Any:
        y = arrayed(np.tanh(x))
        self.save(y=y)
        return y

    def backward(self, gy: Tensor) -> Tensor:
        y = self.saved.y
        return gy * (1.0 - y * y)


class Sigmoid(Function):
    """1 / (1 + exp(-x)), with exp(-|x|) so that nothing overflows and no digits are lost."""

    def forward(self, x: Any) -> Any:
        e = np.exp(-np.abs(x))
        y = arrayed(np.where(x >= 0, 1, e) / (1 + e))
        self.save(y=y)
        return y

    def backward(self, gy: Tensor) -> Tensor:
        y = self.saved.y
        return gy * (y * (1.0 - y))


class Abs(Function):
    """|x|, with gradient 0 at 0."""

    def forward(self, x: Any) -> Any:
        self.save(sign=arrayed(np.sign(x)))
        return np.abs(x)

    def backward(self, gy: Tensor) -> Tensor:
        return gy * self.saved.sign


class Clip(Function):
    """x held between two numbers; the gradient passes where nothing was cut."""

    def __init__(self, minimum: Scalar | None, maximum: Scalar | None) -> None:
        if minimum is None and maximum is None:
            raise ValueError("clip: give a minimum, a maximum, or both")
        self.minimum, self.maximum = minimum, maximum

    def forward(self, x: Any) -> Any:
        y = np.clip(x, self.minimum, self.maximum)
        self.save(mask=arrayed((x == y).astype(x.dtype)))
        return y

    def backward(self, gy: Tensor) -> Tensor:
        return gy * self.saved.mask


class Where(Function):
    """a where the condition holds, else b."""

    def __init__(self, condition: Any) -> None:
        self.condition = condition

    def forward(self, a: Any, b: Any) -> Any:
        self.a_shape, self.b_shape = a.shape, b.shape
        return np.where(self.condition, a, b)

    def backward(self, gy: Tensor) -> tuple[Tensor | None, ...]:
        zero, condition = Tensor._wrap(np.zeros((), gy.dtype)), self.condition
        ga = sum_to(Where(condition)(gy, zero), self.a_shape) if self.needs[0] else None
        gb = sum_to(Where(condition)(zero, gy), self.b_shape) if self.needs[1] else None
        return ga, gb


def in_place(ufunc: Any, recorded: Callable[..., Tensor], a: Tensor, b: Any) -> Tensor:
    """`a += b` and its like: changes a's values, or is a new tensor where it must be recorded.

    Raises RuntimeError for a leaf that requires gradients, unless inside no_grad().
    """
    if a.is_leaf:
        a.refuse_in_place(f"in-place {ufunc.__name__}")
    other = as_tensor(b, a)
    if is_grad_enabled() and (a.requires_grad or other.requires_grad):
        return recorded(a, other)
    a._buffer.settle()
    ufunc(a._data, other._data, out=a._data)
    a._buffer.version += 1
    return a


def add(a: Any, b: Any) -> Tensor:
    """a + b."""
    return Add()(*_pair(a, b))


def sub(a: Any, b: Any) -> Tensor:
    """a - b."""
    return Sub()(*_pair(a, b))


def mul(a: Any, b: Any) -> Tensor:
    """a * b."""
    return Mul()(*_pair(a, b))


def div(a: Any, b: Any) -> Tensor:
    """a / b."""
    return Div()(*_pair(a, b))


def pow(a: Any, b: Any) -> Tensor:
    """a**b, for a number or a tensor b."""
    if isinstance(a, Tensor) and isinstance(b, int | float):
        return Pow(float(b) if isinstance(b, float) else int(b))(a)  # NumPy's float64 is a float
    return PowTensor()(*_pair(a, b))


def maximum(a: Any, b: Any) -> Tensor:
    """The larger of a and b, element by element."""
    return Maximum()(*_pair(a, b))


def minimum(a: Any, b: Any) -> Tensor:
    """The smaller of a and b, element by element."""
    return Minimum()(*_pair(a, b))


def where(condition: Any, a: Any, b: Any) -> Tensor:
    """a where `condition` (a boolean tensor or array) holds, else b."""
    mask = as_tensor(condition)
    if mask.dtype != np.bool_:
        raise TypeError(f"where: the condition must be boolean, got {mask.dtype}")
    mask, a, b = on_one_device("where", (mask, *_pair(a, b)))
    # A copy: the caller's may change before backward.
    return Where(mask._data.copy())(a, b)


def neg(x: Tensor) -> Tensor:
    """-x."""
    return Neg()(x)


def exp(x: Any) -> Tensor:
    """e**x."""
    return Exp()(as_tensor(x))


def log(x: Any) -> Tensor:
    """The natural logarithm."""
    return Log()(as_tensor(x))


def sqrt(x: Any) -> Tensor:
    """The square root."""
    return Sqrt()(as_tensor(x))


def tanh(x: Any) -> Tensor:
    """The hyperbolic tangent."""
    return Tanh()(as_tensor(x))


def sigmoid(x: Any) -> Tensor:
    """1 / (1 + exp(-x))."""
    return Sigmoid()(as_tensor(x))


def abs(x: Any) -> Tensor:
    """|x|; the gradient at 0 is 0."""
    return Abs()(as_tensor(x))


def clip(x: Any, minimum: Scalar | None = None, maximum: Scalar | None = None) -> Tensor:
    """x held between `minimum` and `maximum`."""
    return Clip(minimum, maximum)(as_tensor(x))
