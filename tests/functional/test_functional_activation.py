"""ReLU, the residual join, softmax and dropout."""

from __future__ import annotations

from typing import Any

import numpy as np
import oracles
import pytest

import minires as mr
from minires import functional as F
from minires.testing.compare import assert_close


def distinct(rng: np.random.Generator, *shape: int) -> np.ndarray:
    """Values in steps of 0.25, none of them at zero."""
    size = int(np.prod(shape))
    return (rng.permutation(size).reshape(shape) - size // 2 + 0.5) * 0.25


def test_relu(rng: np.random.Generator) -> None:
    array, u = distinct(rng, 2, 3, 4), rng.standard_normal((2, 3, 4))
    x = mr.Tensor(array, requires_grad=True)
    y = F.relu(x)
    np.testing.assert_array_equal(y.numpy(), array * (array > 0))
    np.testing.assert_array_equal(mr.grad(y, [x], u)[0].numpy(), np.where(array > 0, u, 0))
    (g,) = mr.grad(F.relu(x * x * x), [x], u, create_graph=True)
    assert_close(g, u * 3 * array**2 * (array > 0))
    (g,) = mr.grad(g.sum(), [x], create_graph=True)
    assert_close(g, u * 6 * array * (array > 0))
    assert_close(mr.grad(g.sum(), [x])[0], u * 6 * (array > 0))


def test_relu_at_the_kink_and_beyond_numbers() -> None:
    x = mr.Tensor(np.array([0.0, -0.0, np.inf, -np.inf]), requires_grad=True)
    y = F.relu(x)
    np.testing.assert_array_equal(y.numpy(), [0, 0, np.inf, 0])
    np.testing.assert_array_equal(mr.grad(y, [x], np.ones(4))[0].numpy(), [0, 0, 1, 0])
    assert np.isnan(F.relu([np.nan]).item())


def test_add_relu_is_relu_of_the_sum(rng: np.random.Generator) -> None:
    arrays = distinct(rng, 2, 3, 2, 2), rng.integers(-3, 4, (2, 3, 2, 2)) * 0.25
    u = rng.standard_normal((2, 3, 2, 2))
    a, b = (mr.Tensor(array, requires_grad=True) for array in arrays)
    fused, plain = F.add_relu(a, b), F.relu(a + b)
    np.testing.assert_array_equal(fused.numpy(), plain.numpy())
    for x, y in zip(mr.grad(fused, [a, b], u), mr.grad(plain, [a, b], u), strict=True):
        np.testing.assert_array_equal(x.numpy(), y.numpy())
    ga, gb = mr.grad(F.add_relu(a * a, b * b * b), [a, b], u, create_graph=True)
    open_ = arrays[0] ** 2 + arrays[1] ** 3 > 0
    (second,) = mr.grad(ga.sum() + gb.sum(), [b], create_graph=True)
    assert_close(second, u * 6 * arrays[1] * open_)
    assert_close(mr.grad(second.sum(), [b])[0], u * 6 * open_)


def test_add_relu_refusals() -> None:
    with pytest.raises(ValueError, match="add_relu: the branch has shape 2x3 and the shortcut 1x3"):
        F.add_relu(np.ones((2, 3)), np.ones((1, 3)))
    with pytest.raises(TypeError, match="add_relu: a is float64 and b is float32"):
        F.add_relu(np.ones(2), np.ones(2, np.float32))


@pytest.mark.parametrize("axis", [0, 1, -1])
@pytest.mark.parametrize("log", [True, False])
def test_softmax(axis: int, log: bool, rng: np.random.Generator) -> None:
    def definition(x: Any) -> Any:
        y = oracles.log_softmax(x, axis)
        return y if log else np.exp(y)

    function = F.log_softmax if log else F.softmax
    array, u = rng.standard_normal((3, 4)), rng.standard_normal((3, 4))
    x = mr.Tensor(array, requires_grad=True)
    y = function(x, axis)
    assert_close(y, definition(array))
    (g,) = mr.grad(y, [x], u, create_graph=True)
    assert_close(g, oracles.complex_step_gradients(definition, [array], u)[0])

    # Second and third order along a direction, each against differences of the one before.
    v, step = rng.standard_normal((3, 4)), 1e-5

    def slope(array: np.ndarray, order: int) -> float:
        x = mr.Tensor(array, requires_grad=True)
        f = (function(x, axis) * u).sum()
        for _ in range(order):
            (g,) = mr.grad(f, [x], create_graph=True)
            f = (g * v).sum()
        return f.item()

    for order in (1, 2, 3):
        ends = [slope(array + s * step * v, order - 1) for s in (1, -1)]
        assert_close(slope(array, order), (ends[0] - ends[1]) / (2 * step), rtol=1e-6, atol=1e-7)


def test_softmax_is_a_distribution_for_any_logits() -> None:
    x = np.array([[1e4, 0, -1e4], [3e38, -3e38, 0], [-np.inf, 0, 0]], np.float32)
    p = F.softmax(x, axis=1)
    assert_close(p, np.array([[1, 0, 0], [1, 0, 0], [0, 0.5, 0.5]], np.float32))


def test_softmax_refusals() -> None:
    for function in (F.softmax, F.log_softmax):
        with pytest.raises(ValueError, match="log_softmax: axis 2 is out of range for 2 dimensio"):
            function(np.ones((2, 2)), 2)
        with pytest.raises(TypeError, match="log_softmax: x must be floating point, got int64"):
            function([1, 2])


# -- dropout --------------------------------------------------------------------------------------


@pytest.mark.parametrize("p", [0.1, 0.5, 0.9])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_dropout_scales_what_it_keeps(p: float, dtype: Any) -> None:
    mr.manual_seed(1)
    x = mr.Tensor(np.full((100, 100), 3.0, dtype), requires_grad=True)
    y = F.dropout(x, p)
    assert y.dtype == dtype
    kept = y.numpy() != 0
    assert_close(y.numpy()[kept], np.full(kept.sum(), 3 / (1 - p), dtype), rtol=1e-6)
    assert abs(kept.mean() - (1 - p)) < 5 * np.sqrt(p * (1 - p)) / 100  # five deviations
    u = np.random.default_rng(0).standard_normal(y.shape).astype(dtype)
    (g,) = mr.grad(y, [x], u, create_graph=True)
    assert_close(g, (u * kept / (1 - p)).astype(dtype), rtol=1e-6)


def test_dropout_draws_from_the_seeded_generator() -> None:
    x = np.ones((8, 8), np.float32)
    mr.manual_seed(3)
    first, second = F.dropout(x).numpy(), F.dropout(x).numpy()
    assert not np.array_equal(first, second)
    mr.manual_seed(3)
    np.testing.assert_array_equal(F.dropout(x).numpy(), first)
    np.testing.assert_array_equal(F.dropout(x).numpy(), second)


def test_dropout_at_its_ends() -> None:
    x = mr.Tensor(np.ones(4), requires_grad=True)
    assert F.dropout(x, 0.5, training=False) is x
    assert F.dropout(x, 0.0) is x
    y = F.dropout(x, 1.0)
    np.testing.assert_array_equal(y.numpy(), np.zeros(4))
    np.testing.assert_array_equal(mr.grad(y.sum(), [x])[0].numpy(), np.zeros(4))


def test_dropout_refusals() -> None:
    for p in (-0.1, 1.5, float("nan")):
        with pytest.raises(ValueError, match="dropout: p is a probability between 0 and 1, got"):
            F.dropout(np.ones(2), p)
    with pytest.raises(TypeError, match="dropout: x must be floating point, got int64"):
        F.dropout([1, 2])


def test_dropout_to_third_order() -> None:
    """The mask is constant: (mask * x^3) differentiates like mask * x^3."""
    mr.manual_seed(0)
    x = mr.Tensor(np.full(6, 2.0), requires_grad=True)
    y = F.dropout(x * x * x)
    mask = y.numpy() / 8
    for expected in (12, 12, 6):
        (y,) = mr.grad(y.sum(), [x], create_graph=True)
        assert_close(y, mask * expected)
