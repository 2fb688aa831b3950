"""Writing one's own operation: what is asked of it, and what it is told when it errs."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from checks import check_operation, check_orders

import minires as mr
from minires.autograd import functions
from minires.testing.compare import assert_close


class Square(mr.Function):
    def forward(self, x: Any) -> Any:
        self.save(x=x)
        return x * x

    def backward(self, gy: Any) -> Any:
        return 2.0 * gy * self.saved.x


class Power(mr.Function):
    """x**n, with a setting."""

    def __init__(self, n: int) -> None:
        self.n = n

    def forward(self, x: Any) -> Any:
        self.save(x=x)
        return x**self.n

    def backward(self, gy: Any) -> Any:
        return gy * (self.n * Power(self.n - 1)(self.saved.x))


class SinCos(mr.Function):
    """Two outputs, which are saved themselves."""

    def forward(self, x: Any) -> Any:
        s, c = np.sin(x), np.cos(x)
        self.save(s=s)
        self.save(c=c)
        return s, c

    def backward(self, gs: Any, gc: Any) -> Any:
        return gs * self.saved.c - gc * self.saved.s


class Total(mr.Function):
    """Its result is a NumPy number, not an array."""

    def forward(self, x: Any) -> Any:
        self.shape = x.shape
        return x.sum()

    def backward(self, gy: Any) -> Any:
        return gy.expand(self.shape)


def test_the_example_of_the_docstring(rng: np.random.Generator) -> None:
    check_operation(lambda x: Square()(x), lambda x: x * x, [rng.standard_normal(3)], rng)
    check_orders(lambda x: Square()(Square()(x)), [rng.standard_normal(3)], rng)


def test_settings_and_own_functions_in_backward(rng: np.random.Generator) -> None:
    check_operation(lambda x: Power(5)(x), lambda x: x**5, [rng.standard_normal(3)], rng)
    check_orders(lambda x: Power(5)(x), [rng.standard_normal(3)], rng, order=4)


def test_several_outputs(rng: np.random.Generator) -> None:
    x = rng.standard_normal(4)
    check_operation(
        lambda x: (lambda s, c: s * s * c)(*SinCos()(x)), lambda x: np.sin(x) ** 2 * np.cos(x),
        [x], rng,
    )  # fmt: skip
    for k in (0, 1):  # the other output gets a gradient of zeros
        check_operation(
            lambda x, k=k: SinCos()(x)[k], lambda x, k=k: (np.sin, np.cos)[k](x), [x], rng
        )
    check_orders(lambda x: mr.stack(SinCos()(x)), [x], rng)


def test_gradients_with_respect_to_one_of_several_outputs() -> None:
    x = mr.Tensor(np.array([0.5]), requires_grad=True)
    s, c = SinCos()(x)
    gs, gc = mr.grad(s * c, [s, c])
    assert_close(gs, c)
    assert_close(gc, s)
    s, c = SinCos()(x)
    c.register_hook(lambda g: g * 0)
    c.retain_grad()
    (s + c * 7).backward()
    assert_close(x.grad, np.cos([0.5]))
    assert c.grad.item() == 0


def test_a_number_as_result_becomes_an_array() -> None:
    x = mr.Tensor([1.0, 2.0], requires_grad=True)
    y = Total()(x)
    assert type(y._data) is np.ndarray
    (y * 2).backward()
    assert x.grad.tolist() == [2, 2]


def test_none_is_no_gradient() -> None:
    class FirstOnly(mr.Function):
        def forward(self, a: Any, b: Any) -> Any:
            return a + b

        def backward(self, gy: Any) -> Any:
            return gy, None

    a, b = (mr.Tensor([1.0], requires_grad=True) for _ in range(2))
    FirstOnly()(a, b).backward()
    assert a.grad.tolist() == [1]
    assert b.grad is None


def test_gradients_take_the_dtype_of_the_input() -> None:
    class Wide(mr.Function):
        def forward(self, x: Any) -> Any:
            return x

        def backward(self, gy: Any) -> Any:
            return gy.double()

    x = mr.Tensor([1.0], requires_grad=True)
    Wide()(x).backward()
    assert x.grad.dtype == np.float32


def test_saved_inputs_keep_their_place_and_computed_arrays_are_constants() -> None:
    class Cube(mr.Function):
        def __init__(self, keep_input: bool) -> None:
            self.keep_input = keep_input

        def forward(self, x: Any) -> Any:
            self.save(**{"x": x} if self.keep_input else {"slope": 3 * x * x})
            return x**3

        def backward(self, gy: Any) -> Any:
            saved = self.saved
            return gy * (3.0 * saved.x * saved.x if self.keep_input else saved.slope)

    x = mr.Tensor(np.array([2.0]), requires_grad=True)
    for keep_input in (True, False):
        (g,) = mr.grad(Cube(keep_input)(x), [x], create_graph=True)
        assert g.tolist() == [12]
        assert g.requires_grad == keep_input
        if keep_input:
            assert mr.grad(g, [x])[0].tolist() == [12]


def function(forward: Any = None, backward: Any = None) -> mr.Function:
    class Mine(mr.Function):
        pass

    if forward:
        Mine.forward = lambda self, *a: forward(*a)  # type: ignore[method-assign]
    if backward:
        Mine.backward = lambda self, *g: backward(*g)  # type: ignore[method-assign]
    return Mine()


X = mr.Tensor([1.0, 2.0], requires_grad=True)


@pytest.mark.parametrize(
    ("backward", "error", "message"),
    [
        (lambda g: g.numpy(), TypeError, "Mine.backward returns Tensors or None, got ndarray"),
        (lambda g: 1.0, TypeError, "Mine.backward returns Tensors or None, got float"),
        (lambda g: (g, g), RuntimeError, "Mine.backward returned 2 gradients for 1 inputs"),
        (lambda g: (), RuntimeError, "Mine.backward returned 0 gradients for 1 inputs"),
        (lambda g: g.sum(), RuntimeError, r"returned a gradient of shape \(\) for input 0 of sha"),
        (None, TypeError, r"Mine: an operation defines backward\(self, \*gradients\)"),
    ],
)
def test_wrong_backwards(backward: Any, error: Any, message: str) -> None:
    y = function(lambda x: x * 2, backward)(X)
    with pytest.raises(error, match=message):
        y.sum().backward()


@pytest.mark.parametrize(
    ("forward", "message"),
    [
        (lambda x: [x], r"Mine.forward returns an array or a tuple of arrays, got list"),
        (lambda x: None, "got NoneType"),
        (lambda x: (x, 1.0), "got float"),
        (None, r"Mine: an operation defines forward\(self, \*arrays\)"),
    ],
)
def test_wrong_forwards(forward: Any, message: str) -> None:
    with pytest.raises(TypeError, match=message):
        function(forward)(X)


def test_it_takes_tensors() -> None:
    with pytest.raises(TypeError, match="Square: takes Tensors, got ndarray"):
        Square()(np.ones(2))


def test_one_object_is_one_call() -> None:
    square = Square()
    y = square(X)
    with pytest.raises(RuntimeError, match=r"Square: one object stands for one call; make a new"):
        square(y)


def test_asking_for_what_was_not_saved() -> None:
    y = function(lambda x: x * 2, lambda g: g)(X)
    with pytest.raises(RuntimeError, match="Mine: nothing was saved for backward"):
        _ = y.grad_fn.saved


def test_needs_is_put_back_after_an_error() -> None:
    def fail(g: Any) -> Any:
        raise KeyError("mine")

    y = function(lambda x: x * 2, fail)(X)
    with pytest.raises(KeyError, match="mine"):
        mr.grad(y.sum(), [X])
    assert y.grad_fn.needs == (True,)
    assert mr.is_grad_enabled()


def test_functions_are_listed_by_name() -> None:
    known = functions()
    assert known["minires.functional.conv.Conv2d"].__name__ == "Conv2d"
    assert known[f"{__name__}.Square"] is Square
    assert all(issubclass(f, mr.Function) for f in known.values())
    known.clear()
    assert functions()
