"""Sums, means, variances and extremes over any axes."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from checks import check_operation, check_orders
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes

import minires as mr
from minires.testing.compare import assert_close

shapes = array_shapes(min_dims=0, max_dims=4, min_side=1, max_side=3)


@st.composite
def shaped_axes(draw: Any) -> tuple[tuple[int, ...], Any]:
    """A shape with None, one axis, or several in any order, negative ones among them."""
    shape = draw(shapes)
    n = len(shape)
    several = st.lists(st.integers(0, max(n - 1, 0)), unique=True, max_size=n) if n else st.just([])
    axes = [a - n if draw(st.booleans()) else a for a in draw(several)]
    choices = [None, tuple(axes), *axes[:1]]
    return shape, draw(st.sampled_from(choices))


@given(shaped_axes(), st.booleans(), st.integers(0, 1000))
def test_sum_and_mean(case: Any, keepdims: bool, seed: int) -> None:
    (shape, axis), rng = case, np.random.default_rng(seed)
    x = rng.standard_normal(shape)
    for name in ("sum", "mean"):
        check_operation(
            lambda x, name=name: getattr(x, name)(axis, keepdims=keepdims),
            lambda x, name=name: getattr(x, name)(axis, keepdims=keepdims),
            [x],
            rng,
        )


@given(shaped_axes(), st.booleans(), st.integers(0, 1000))
def test_max_and_min(case: Any, keepdims: bool, seed: int) -> None:
    (shape, axis), rng = case, np.random.default_rng(seed)
    x = rng.permutation(int(np.prod(shape))).reshape(shape) * 1.0
    for name in ("max", "min"):
        check_operation(
            lambda x, name=name: getattr(x, name)(axis, keepdims=keepdims),
            lambda x, name=name: getattr(x, name)(axis=axis, keepdims=keepdims),
            [x],
            rng,
            analytic=False,
        )


@pytest.mark.parametrize("correction", [0, 1, 2])
@pytest.mark.parametrize("axis", [None, 0, (0, 2), -1])
def test_var(axis: Any, correction: int, rng: np.random.Generator) -> None:
    x = rng.standard_normal((3, 2, 4))

    def definition(x: np.ndarray) -> np.ndarray:
        deviation = x - x.mean(axis, keepdims=True)
        squares = (deviation * deviation).sum(axis)
        return squares / (x.size / squares.size - correction)

    check_operation(lambda x: x.var(axis, correction), definition, [x], rng)
    check_orders(lambda x: x.var(axis, correction), [x], rng)
    assert_close(mr.Tensor(x).var(), x.var(ddof=1))  # unbiased unless told otherwise


@pytest.mark.parametrize("name", ["sum", "mean", "max", "min"])
def test_third_order(name: str, rng: np.random.Generator) -> None:
    x = rng.permutation(12).reshape(3, 4) * 0.3
    check_orders(lambda x: getattr(x * x * x, name)(axis=0), [x], rng)


def test_ties_share_the_gradient() -> None:
    x = mr.Tensor([[1.0, 3.0, 3.0], [2.0, 2.0, 2.0]], requires_grad=True)
    (g,) = mr.grad(x.max(axis=1), [x], np.ones(2))
    assert_close(g, np.array([[0, 0.5, 0.5], [1 / 3, 1 / 3, 1 / 3]], np.float32))


def test_nan_is_the_extreme_and_takes_the_gradient() -> None:
    x = mr.Tensor([1.0, np.nan, 3.0], requires_grad=True)
    y = x.max()
    assert np.isnan(y.item())
    (g,) = mr.grad(y, [x])
    np.testing.assert_array_equal(g.numpy(), [0, 1, 0])


def test_empty_axes() -> None:
    x = mr.Tensor(np.ones((0, 3)), requires_grad=True)
    assert x.sum().item() == 0
    np.testing.assert_array_equal(x.sum(axis=0).numpy(), np.zeros(3))
    assert mr.grad(x.sum(), [x])[0].shape == (0, 3)
    assert x.max(axis=1).shape == (0,)
    for name in ("mean", "max", "min"):
        with pytest.raises(ValueError, match=rf"{name}: no element along axis 0 of shape \(0, 3\)"):
            getattr(x, name)(axis=0)
    with pytest.raises(ValueError, match="var: 1 elements along axis 0, needs more than 1"):
        mr.Tensor(np.ones((1, 3))).var(axis=0)


@pytest.mark.parametrize("name", ["sum", "mean", "max", "min", "var"])
@pytest.mark.parametrize(
    ("axis", "message"),
    [(2, "axis 2 is out of range for 2 dimensions"), (-3, "axis -3 is out of range"),
     ((0, -2), r"axis \(0, -2\) names a dimension twice")],
)  # fmt: skip
def test_axes_that_do_not_exist(name: str, axis: Any, message: str) -> None:
    with pytest.raises(ValueError, match=rf"{name}: {message}"):
        getattr(mr.Tensor(np.ones((2, 3))), name)(axis=axis)


def test_a_sum_over_no_axis_is_a_copy() -> None:
    x = mr.Tensor([1.0, 2.0])
    y = x.sum(axis=())
    assert_close(y, x)
    assert not np.shares_memory(y._data, x._data)


@pytest.mark.parametrize("axis", [None, 0, 1, -1])
def test_arg_extremes(axis: int | None, rng: np.random.Generator) -> None:
    a = rng.permutation(6).reshape(2, 3) * 1.0
    x = mr.Tensor(a, requires_grad=True)
    for found, expected in (
        (x.argmax(axis), a.argmax(axis)), (x.argmin(axis), a.argmin(axis))
    ):  # fmt: skip
        np.testing.assert_array_equal(found.numpy(), expected)
        assert found.dtype == np.int64
        assert not found.requires_grad


def test_a_long_float32_sum_keeps_its_digits() -> None:
    x = mr.Tensor(np.full(1 << 20, 0.1, np.float32))
    assert_close(x.sum(), np.float32(0.1 * (1 << 20)), rtol=1e-6)
    assert_close(x.mean(), np.float32(0.1), rtol=1e-6)
