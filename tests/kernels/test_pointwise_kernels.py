"""ReLU, the residual join, log-softmax, cross-entropy and the fully connected layer."""

from __future__ import annotations

from typing import Any

import numpy as np
import oracles
import pytest
from oracles import LAYOUTS, laid_out

import minires as mr
from minires.kernels.reference import activation, linear
from minires.testing.compare import assert_close

DTYPES = [np.float32, np.float64]


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_relu_and_join(layout: str, dtype: Any, rng: np.random.Generator) -> None:
    a, b, gy = (
        laid_out(rng.standard_normal((2, 3, 4, 5)).astype(dtype), layout) for _ in range(3)
    )
    before = [array.copy() for array in (a, b, gy)]
    y = activation.relu(a)
    np.testing.assert_array_equal(y, np.where(a > 0, a, 0))
    joined = activation.add_relu(a, b)
    np.testing.assert_array_equal(joined, np.where(a + b > 0, a + b, 0))
    gx = activation.relu_grad(gy, joined)
    np.testing.assert_array_equal(gx, np.where(a + b > 0, gy, 0))
    for out in (y, joined, gx):
        assert out.dtype == dtype
        assert not any(np.may_share_memory(out, array) for array in (a, b, gy, joined)
                       if array is not out)  # fmt: skip
    for array, copy in zip((a, b, gy), before, strict=True):
        np.testing.assert_array_equal(array, copy)


def test_relu_of_special_values() -> None:
    x = np.array([np.nan, np.inf, -np.inf, 0.0, -0.0])
    np.testing.assert_array_equal(activation.relu(x), [np.nan, np.inf, 0, 0, 0])
    np.testing.assert_array_equal(activation.add_relu(x, np.zeros(5)), [np.nan, np.inf, 0, 0, 0])


def test_a_closed_unit_passes_nothing() -> None:
    """Neither an infinite nor a NaN gradient gets through where y is 0."""
    gy, y = np.array([np.inf, np.nan, np.inf, 3.0]), np.array([0.0, 0.0, 1.0, 2.0])
    np.testing.assert_array_equal(activation.relu_grad(gy, y), [0, 0, np.inf, 3])


def test_zero_dimensions_stay_arrays() -> None:
    zero = np.asarray(-1.0)
    for result in (
        activation.relu(zero), activation.add_relu(zero, zero), activation.relu_grad(zero, zero)
    ):  # fmt: skip
        assert isinstance(result, np.ndarray)
        assert result.shape == ()


@pytest.mark.parametrize("axis", [0, 1, -1])
@pytest.mark.parametrize("dtype", DTYPES)
def test_log_softmax(axis: int, dtype: Any, rng: np.random.Generator) -> None:
    x, gy = (rng.standard_normal((4, 5)).astype(dtype) * 3 for _ in range(2))
    y = activation.log_softmax(x, axis)
    assert y.dtype == dtype
    assert_close(y, oracles.log_softmax(x.astype(np.float64), axis).astype(dtype), rtol=1e-5)
    (expected,) = oracles.complex_step_gradients(
        lambda x: oracles.log_softmax(x, axis), [x.astype(np.float64)], gy.astype(np.float64)
    )
    gx = activation.log_softmax_grad(gy, y, axis)
    assert_close(gx, expected.astype(dtype), rtol=1e-4, atol=1e-5)
    assert_close(gx.sum(axis=axis), np.zeros(gx.sum(axis=axis).shape, dtype), atol=1e-5)


def test_log_softmax_of_extreme_numbers() -> None:
    x = np.array([[1e4, 0, -1e4], [3e38, -3e38, 0], [-np.inf, 0, 0], [-3e38, -3e38, -3e38]],
                 np.float32)  # fmt: skip
    y = activation.log_softmax(x, 1)
    half, third = np.log(2, dtype=np.float32), np.log(3, dtype=np.float32)
    expected = [[0, -1e4, -2e4], [0, -np.inf, -3e38], [-np.inf, -half, -half], [-third] * 3]
    assert_close(y, np.array(expected, np.float32))


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("rows", [0, 1, 5])
def test_linear(rows: int, bias: bool, rng: np.random.Generator) -> None:
    x, weight = rng.standard_normal((rows, 4)), rng.standard_normal((3, 4))
    b = rng.standard_normal(3) if bias else None
    expected = np.zeros((rows, 3))
    for r, o in np.ndindex(rows, 3):
        expected[r, o] = sum(x[r, i] * weight[o, i] for i in range(4)) + (b[o] if bias else 0)
    assert_close(linear.linear(x, weight, b), expected)


@pytest.mark.parametrize("kernel", ["numpy", "threads"])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_cross_entropy(kernel: str, smoothing: float, rng: np.random.Generator) -> None:
    """By the definition, row by row; ignored labels, labels out of range, scores of -infinity."""
    compute = next(k for k in mr.kernels.available("cross_entropy") if k.name == kernel).function
    x, labels = 5 * rng.standard_normal((7, 6)), rng.integers(0, 6, 7)
    labels[2], labels[3], labels[4] = -100, 6, -1
    if not smoothing:
        x[5, (labels[5] + 1) % 6] = -np.inf
    losses, gx = compute(x, labels, -100, smoothing)
    for n, label in enumerate(labels):
        if label == -100:
            assert losses[n] == 0
            assert not gx[n].any()
            continue
        p = np.exp(x[n]) / np.exp(x[n]).sum()
        q = (1 - smoothing) * (np.arange(6) == label) + smoothing / 6
        known = q > 0
        expected = -(q[known] * np.log(p[known])).sum() if 0 <= label < 6 else np.nan
        np.testing.assert_allclose(losses[n], expected, rtol=1e-12)
        np.testing.assert_allclose(gx[n], p - q, atol=1e-14)


@pytest.mark.parametrize("kernel", ["numpy", "threads"])
def test_cross_entropy_of_extreme_scores(kernel: str) -> None:
    compute = next(k for k in mr.kernels.available("cross_entropy") if k.name == kernel).function
    x = np.array([[3e38, -3e38, 0.0], [-3e38, -3e38, -3e38]], np.float32)
    losses, gx = compute(x, np.array([0, 1]), -100, 0.0)
    np.testing.assert_allclose(losses, [0.0, np.log(3)], rtol=1e-6)
    np.testing.assert_allclose(gx, [[0, 0, 0], [1 / 3, -2 / 3, 1 / 3]], rtol=1e-6)
