"""Arithmetic, functions and comparisons against NumPy; gradients against numeric derivatives."""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from checks import check_operation, check_orders
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import mutually_broadcastable_shapes

import minires as mr
from minires.testing.compare import assert_close

BINARY = {
    "add": operator.add,
    "sub": operator.sub,
    "mul": operator.mul,
    "div": operator.truediv,
    "pow": operator.pow,
}


def positive(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    return rng.uniform(0.5, 2.0, shape)


@pytest.mark.parametrize("name", BINARY)
@given(data=st.data())
def test_binary_operators_broadcast(name: str, data: Any) -> None:
    shapes = data.draw(mutually_broadcastable_shapes(num_shapes=2, max_dims=3, max_side=3))
    rng = np.random.default_rng(data.draw(st.integers(0, 1000)))
    a, b = (positive(rng, s) for s in shapes.input_shapes)
    check_operation(BINARY[name], BINARY[name], (a, b), rng)


@pytest.mark.parametrize("name", BINARY)
@pytest.mark.parametrize("number", [2, 0.5, True, np.float32(1.5), np.float64(1.5)])
def test_numbers_on_either_side(name: str, number: Any, rng: np.random.Generator) -> None:
    f, x = BINARY[name], positive(rng, (2, 3))
    plain = float(number)
    check_operation(lambda x: f(x, number), lambda x: f(x, plain), [x], rng)
    check_operation(lambda x: f(number, x), lambda x: f(plain, x), [x], rng)


@pytest.mark.parametrize("name", BINARY)
def test_arrays_and_lists_on_either_side(name: str, rng: np.random.Generator) -> None:
    f, x = BINARY[name], positive(rng, (2, 3))
    array = positive(rng, (3,))
    check_operation(lambda x: f(x, array), lambda x: f(x, array), [x], rng)
    check_operation(lambda x: f(array, x), lambda x: f(array, x), [x], rng)
    numbers = [0.1, 2.0, 4.0]
    check_operation(lambda x: f(numbers, x), lambda x: f(np.array(numbers), x), [x], rng)


def test_both_sides_may_be_one_tensor(rng: np.random.Generator) -> None:
    x = positive(rng, (3,))
    for f in BINARY.values():
        check_operation(lambda x, f=f: f(x, x), lambda x, f=f: f(x, x), [x], rng)
    check_operation(lambda x: mr.maximum(x, x), lambda x: x, [x], rng)


UNARY: dict[str, tuple[Callable[..., Any], Callable[..., Any]]] = {
    "neg": (operator.neg, operator.neg),
    "pos": (lambda x: +x + 0.0, lambda x: +x),
    "exp": (lambda x: x.exp(), np.exp),
    "log": (lambda x: x.log(), np.log),
    "sqrt": (lambda x: x.sqrt(), np.sqrt),
    "tanh": (lambda x: x.tanh(), np.tanh),
    "sigmoid": (lambda x: x.sigmoid(), lambda x: 1 / (1 + np.exp(-x))),
    "square": (lambda x: x**2, lambda x: x**2),
    "cube": (lambda x: x**3, lambda x: x**3),
    "inverse root": (lambda x: x**-0.5, lambda x: x**-0.5),
    "to the one": (lambda x: x**1, lambda x: x**1),
    "to the zero": (lambda x: x**0, lambda x: x**0),
    "2 to the x": (lambda x: 2**x, lambda x: 2**x),
    "where": (
        lambda x: mr.where(np.array([True, False, True]), x * 2, x * x),
        lambda x: np.where([True, False, True], x * 2, x * x),
    ),
    "functions": (
        lambda x: mr.exp(mr.tanh(mr.log(mr.sqrt(mr.sigmoid(x))))),
        lambda x: np.exp(np.tanh(np.log(np.sqrt(1 / (1 + np.exp(-x)))))),
    ),
}


@pytest.mark.parametrize("name", UNARY)
@pytest.mark.parametrize("shape", [(), (3,), (2, 3), (2, 0, 3)])
def test_functions(name: str, shape: tuple[int, ...], rng: np.random.Generator) -> None:
    if name == "where" and shape == ():
        shape = (1,)
    operation, reference = UNARY[name]
    check_operation(operation, reference, [positive(rng, shape)], rng)


@pytest.mark.parametrize("name", [*UNARY, *BINARY])
def test_up_to_third_order(name: str, rng: np.random.Generator) -> None:
    if name in BINARY:
        check_orders(BINARY[name], [positive(rng, (2, 3)), positive(rng, (3,))], rng)
    else:
        check_orders(UNARY[name][0], [positive(rng, (3,))], rng)


KINKED: dict[str, tuple[Callable[..., Any], Callable[..., Any]]] = {
    "abs": (abs, np.abs),
    "clip": (lambda x: x.clip(-0.5, 0.7), lambda x: np.clip(x, -0.5, 0.7)),
    "clip below": (lambda x: mr.clip(x, minimum=0.1), lambda x: np.maximum(x, 0.1)),
    "clip above": (lambda x: mr.clip(x, maximum=0.1), lambda x: np.minimum(x, 0.1)),
    "maximum": (lambda x: mr.maximum(x, 0.2), lambda x: np.maximum(x, 0.2)),
    "minimum": (lambda x: mr.minimum(0.2, x), lambda x: np.minimum(x, 0.2)),
    "maximum of two": (lambda x: mr.maximum(x, x[::-1]), lambda x: np.maximum(x, x[::-1])),
    "minimum of two": (lambda x: mr.minimum(x[1:], x[0]), lambda x: np.minimum(x[1:], x[0])),
}


@pytest.mark.parametrize("name", KINKED)
def test_functions_with_kinks(name: str, rng: np.random.Generator) -> None:
    # An even number of distinct values in steps of 0.3, none of them near a kink.
    x = rng.permutation(np.arange(-5, 5) * 0.3 + 0.05)
    operation, reference = KINKED[name]
    check_operation(operation, reference, [x], rng, analytic=False)
    check_orders(operation, [x], rng, order=2)


def gradient(operation: Callable[..., Any], *arrays: Any) -> list[np.ndarray]:
    tensors = [mr.Tensor(np.asarray(a, np.float64), requires_grad=True) for a in arrays]
    y = operation(*tensors)
    return [g.numpy() for g in mr.grad(y, tensors, np.ones(y.shape))]


def test_gradients_at_kinks() -> None:
    np.testing.assert_array_equal(gradient(abs, [0.0, -0.0])[0], [0, 0])
    same = [1.0, np.inf, -np.inf]
    for f in (mr.maximum, mr.minimum):  # a tie is shared
        np.testing.assert_array_equal(gradient(f, same, same), np.full((2, 3), 0.5))
    np.testing.assert_array_equal(gradient(lambda x: x.clip(0, 1), [0.0, 1.0, 2.0])[0], [1, 1, 0])
    np.testing.assert_array_equal(gradient(lambda x: x**2, [0.0])[0], [0])
    np.testing.assert_array_equal(gradient(lambda x: x**0, [0.0])[0], [0])


def test_sigmoid_keeps_its_digits_far_out() -> None:
    x = np.array([-80.0, -20.0, 0.0, 20.0, 1000.0, -1000.0], np.float32)
    exact = [np.exp(-80.0), 1 / (1 + np.exp(20.0)), 0.5, 1 / (1 + np.exp(-20.0)), 1, 0]
    assert_close(mr.sigmoid(x), np.array(exact, np.float32), rtol=1e-6, atol=0)


def test_division_of_tiny_numbers_has_a_finite_gradient() -> None:
    a, b = (mr.Tensor(np.float32(1e-25), requires_grad=True) for _ in range(2))
    (gb,) = mr.grad(a / b, [b])
    assert_close(gb, np.float32(-1e25), rtol=1e-6)


@pytest.mark.parametrize("compare", [operator.eq, operator.ne, operator.lt, operator.le,
                                     operator.gt, operator.ge])  # fmt: skip
def test_comparisons(compare: Any) -> None:
    a, b = np.array([1.0, 2.0, 3.0]), np.array([2.0, 2.0, 2.0])
    expected = compare(a, b)
    x = mr.Tensor(a, requires_grad=True)
    for result in (compare(x, mr.Tensor(b)), compare(x, b), compare(x, 2), compare(x, [2, 2, 2])):
        assert result.dtype == np.bool_
        assert not result.requires_grad
        np.testing.assert_array_equal(result.numpy(), expected)
    np.testing.assert_array_equal(compare(b, x).numpy(), compare(b, a))


def test_comparison_with_something_else() -> None:
    x = mr.Tensor([1.0])
    assert (x == None) is False  # noqa: E711
    assert (x != "text") is True
    with pytest.raises(TypeError):
        x < "text"  # noqa: B015


# -- dtypes ---------------------------------------------------------------------------------------

FLOATS = [np.float32, np.float64]


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("number", [2, 2.5, True, np.float64(2.5), float("inf")])
def test_a_number_does_not_change_a_floating_dtype(dtype: Any, number: Any) -> None:
    x = mr.Tensor(np.ones(2, dtype), requires_grad=True)
    for y in (x + number, number + x, x - number, number - x, x * number, number * x, x / number,
              number / x, x**number, number**x, mr.maximum(x, number), mr.minimum(number, x),
              mr.where(x > 0, x, number), x.clip(0, 2), x.mean(), x.var()):  # fmt: skip
        assert y.dtype == dtype
        if np.isfinite(y.numpy()).all() and y.requires_grad:
            assert mr.grad(y.sum(), [x])[0].dtype == dtype


@pytest.mark.parametrize("kind", [np.uint8, np.int32, np.int64])
def test_integers_follow_numpy(kind: Any) -> None:
    a = np.array([1, 2, 3], kind)
    x = mr.Tensor(a)
    for f in (lambda x: x + 1, lambda x: 2 * x, lambda x: x * 0.5, lambda x: x / 2, lambda x: x**2,
              lambda x: x - True, lambda x: x + np.int32(1), lambda x: x.sum(), lambda x: x.mean(),
              lambda x: x + np.ones(3, np.float32)):  # fmt: skip
        expected = f(a)
        actual = f(x)
        assert not actual.requires_grad
        if expected.dtype.kind != "f":
            assert actual.dtype == expected.dtype
        assert_close(actual, expected, rtol=1e-6, check_dtype=False)


def test_a_python_integer_that_does_not_fit_is_refused() -> None:
    with pytest.raises(OverflowError):
        mr.Tensor(np.array([1], np.uint8)) + 300


def test_booleans() -> None:
    mask = mr.Tensor([True, False])
    assert (mask * 2.0).dtype == np.float32
    assert (mask + 1).dtype == np.int64
    assert mask.sum().item() == 1
    np.testing.assert_array_equal(mr.maximum(mask, [False, False]).numpy(), [True, False])


def test_mixed_floating_dtypes_promote_and_gradients_come_back() -> None:
    a = mr.Tensor(np.ones(2, np.float32), requires_grad=True)
    b = mr.Tensor(np.ones(2, np.float64), requires_grad=True)
    y = a * b
    assert y.dtype == np.float64
    ga, gb = mr.grad(y.sum(), [a, b])
    assert (ga.dtype, gb.dtype) == (np.float32, np.float64)


# -- errors ---------------------------------------------------------------------------------------


def test_shapes_that_do_not_broadcast() -> None:
    a, b = mr.Tensor(np.ones((2, 3))), mr.Tensor(np.ones((2, 4)))
    for f, name in ((operator.add, "add"), (operator.truediv, "div"), (mr.maximum, "maximum")):
        message = rf"{name}: shapes \(2, 3\) and \(2, 4\) do not broadcast: compared from the last"
        with pytest.raises(ValueError, match=message):
            f(a, b)


def test_other_arguments_that_are_refused() -> None:
    x = mr.Tensor([1.0])
    with pytest.raises(TypeError, match="expected a Tensor, an array or a number, got str"):
        x + "1"
    with pytest.raises(TypeError, match="expected a Tensor, an array or a number, got NoneType"):
        mr.exp(None)
    with pytest.raises(ValueError, match="clip: give a minimum, a maximum, or both"):
        x.clip()
    with pytest.raises(TypeError, match="where: the condition must be boolean, got float32"):
        mr.where(x, x, x)


# -- in place -------------------------------------------------------------------------------------


def test_in_place_operators_change_the_tensor_where_nothing_is_recorded() -> None:
    p = mr.nn.Parameter(np.array([1.0, 2.0], np.float32))
    same = p
    with mr.no_grad():
        p += 1
        p *= np.array([2.0, 3.0])
        p -= mr.Tensor([1.0, 1.0])
        p /= 2
    assert p is same
    assert p.requires_grad
    assert_close(p, np.array([1.5, 4.0], np.float32))


def test_in_place_operators_are_recorded_as_new_tensors() -> None:
    x = mr.Tensor([1.0, 2.0], requires_grad=True)
    h = x * 2
    y = h
    y += x
    y *= y
    total = mr.Tensor(0.0)
    total += y.sum()
    assert_close(h, np.array([2.0, 4.0], np.float32))  # what was computed before is untouched
    (gx,) = mr.grad(total, [x])
    assert_close(gx, np.array([18.0, 36.0], np.float32))


def test_in_place_on_a_leaf_that_requires_gradients_is_refused() -> None:
    x = mr.Tensor([1.0], requires_grad=True)
    with pytest.raises(RuntimeError, match=r"in-place subtract: .* wrap it in mr.no_grad\(\)"):
        x -= 1.0


def test_in_place_keeps_shape_and_dtype() -> None:
    x = mr.Tensor([1, 2])
    with pytest.raises(TypeError):
        x += 0.5
    with pytest.raises(ValueError, match="broadcast"):
        x += np.ones((3, 2), np.int64)
    assert x.tolist() == [1, 2]
