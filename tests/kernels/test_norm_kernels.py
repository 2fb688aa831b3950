"""Batch norm against its definition, where rounding is dangerous too."""

from __future__ import annotations

from typing import Any

import numpy as np
import oracles
import pytest
from drawn import layouts, normal, seeds
from hypothesis import given
from hypothesis import strategies as st
from oracles import laid_out

from minires.kernels.reference import norm as reference
from minires.testing.compare import assert_close

EPS = 1e-5
TOLERANCE = {np.float32: (1e-4, 1e-5), np.float64: (1e-10, 1e-10)}
shapes = st.one_of(
    st.tuples(st.integers(2, 5), st.integers(1, 4)),
    st.tuples(st.integers(2, 3), st.integers(1, 4), st.integers(1, 4), st.integers(1, 4)),
    st.tuples(st.just(1), st.integers(1, 3), st.integers(2, 4), st.integers(1, 4)),
)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@given(shape=shapes, affine=st.booleans(), layout=layouts, seed=seeds)
def test_training_and_evaluation(
    shape: Any, affine: bool, layout: str, seed: int, dtype: Any
) -> None:
    rtol, atol = TOLERANCE[dtype]
    # A deviation well above sqrt(eps): below it, float32 input loses digits to the condition.
    x = laid_out(normal(seed, shape, dtype) * 3 + dtype(0.5), layout)
    gamma, beta = (normal(seed + k, shape[1:2], dtype) if affine else None for k in (1, 2))
    before = x.copy()
    y, mean, var, inv_std = reference.batch_norm_train(x, gamma, beta, EPS)

    wide = x.astype(np.float64)
    wide_gamma, wide_beta = (a if a is None else a.astype(np.float64) for a in (gamma, beta))
    expected_y, expected_mean, expected_var = oracles.batch_norm(wide, wide_gamma, wide_beta, EPS)
    spread = 1 / np.sqrt(expected_var + EPS)
    tolerance = {"rtol": rtol, "atol": atol * max(1.0, float(spread.max()))}
    for name, actual, expected in (
        ("y", y, expected_y), ("mean", mean, expected_mean), ("var", var, expected_var),
        ("inv_std", inv_std, spread),
    ):  # fmt: skip
        assert_close(actual, expected.astype(dtype), name=name, **tolerance)
    assert not np.may_share_memory(y, x)

    given_mean, given_var = (
        normal(seed + 3, shape[1:2], dtype),
        normal(seed + 4, shape[1:2], dtype) ** 2 + dtype(0.1),
    )
    y = reference.batch_norm_eval(x, gamma, beta, given_mean, given_var, EPS)
    statistics = given_mean.astype(np.float64), given_var.astype(np.float64)
    expected_y, _, _ = oracles.batch_norm(wide, wide_gamma, wide_beta, EPS, statistics)
    assert_close(y, expected_y.astype(dtype), rtol=rtol, atol=atol * 10, name="eval")
    assert not np.may_share_memory(y, x)
    np.testing.assert_array_equal(x, before)
    if len(shape) == 4:
        assert y.transpose(0, 2, 3, 1).flags.c_contiguous


@pytest.mark.parametrize("shape", [(4, 2), (2, 3, 2, 3), (2, 1, 1, 1), (1, 2, 1, 5)])
@pytest.mark.parametrize("affine", [True, False])
def test_gradients_by_complex_step(
    shape: tuple[int, ...], affine: bool, rng: np.random.Generator
) -> None:
    x, gy = rng.standard_normal(shape), rng.standard_normal(shape)
    gamma, beta = rng.standard_normal((2, shape[1]))
    scaled = (gamma, beta) if affine else (np.ones(shape[1]), np.zeros(shape[1]))
    expected = oracles.complex_step_gradients(
        lambda x, gamma, beta: oracles.batch_norm(x, gamma, beta, EPS)[0], (x, *scaled), gy
    )
    _, mean, _, inv_std = reference.batch_norm_train(x, None, None, EPS)
    before = [a.copy() for a in (gy, x, mean, inv_std)]
    found = reference.batch_norm_grad(gy, x, gamma if affine else None, mean, inv_std)
    for name, actual, wanted in zip(("gx", "ggamma", "gbeta"), found, expected, strict=True):
        # With two values per channel, xhat is +-1 and gx nearly cancels.
        assert_close(actual, wanted, rtol=1e-9, atol=1e-9, name=name)
        assert not any(np.may_share_memory(actual, a) for a in (gy, x, mean, inv_std))
    for array, copy in zip((gy, x, mean, inv_std), before, strict=True):
        np.testing.assert_array_equal(array, copy)


def test_a_large_mean_does_not_cancel_the_variance(rng: np.random.Generator) -> None:
    """Mean 1e4 and deviation 1: in float32, E[x^2] - E[x]^2 would leave nothing of the variance."""
    x = (rng.standard_normal((8, 3, 16, 16)) + 1e4).astype(np.float32)
    y, mean, var, _ = reference.batch_norm_train(x, None, None, EPS)
    expected, expected_mean, expected_var = oracles.batch_norm(
        x.astype(np.float64), None, None, EPS
    )
    assert_close(var, expected_var.astype(np.float32), rtol=1e-5)
    assert_close(mean, expected_mean.astype(np.float32), rtol=1e-7)
    assert_close(y, expected.astype(np.float32), rtol=1e-5, atol=1e-5)
    flat = y.transpose(1, 0, 2, 3).reshape(3, -1).astype(np.float64)
    assert np.abs(flat.mean(axis=1)).max() < 1e-6


def test_many_rows_keep_their_digits() -> None:
    """A naive float32 sum over this many rows would be off in the fourth digit."""
    rows = 1 << 18
    x = np.resize(np.array([0.0, 0.2], np.float32), (rows, 1))
    _, mean, var, _ = reference.batch_norm_train(x, None, None, EPS)
    assert_close(mean, np.array([0.1], np.float32), rtol=2e-6)
    assert_close(var, np.array([0.01], np.float32), rtol=2e-5)
    ones = np.ones_like(x)
    _, ggamma, gbeta = reference.batch_norm_grad(ones, x, None, mean, np.ones(1, np.float32))
    assert_close(gbeta, np.array([rows], np.float32), rtol=2e-6)
    assert abs(ggamma[0]) < 0.5


@pytest.mark.parametrize("value", [0.0, 1.0, 0.1, 1e4, -1e6])
def test_a_constant_channel_becomes_beta(value: float) -> None:
    x = np.full((2, 1, 5, 7), value, np.float32)
    beta = np.array([0.25], np.float32)
    y, mean, var, inv_std = reference.batch_norm_train(x, np.ones(1, np.float32), beta, EPS)
    assert_close(mean, np.array([value], np.float32), rtol=1e-6, atol=1e-7)
    assert np.abs(var).max() <= 1e-10 * max(1.0, value * value) * 1e-3
    assert_close(y, np.full_like(x, 0.25), atol=2e-4 * max(1.0, abs(value) * 1e-4))
    gx, _, _ = reference.batch_norm_grad(np.ones_like(x), x, None, mean, inv_std)
    assert np.isfinite(gx).all()


def test_one_row_has_no_deviation() -> None:
    x = np.array([[3.0, -2.0]])
    y, mean, var, inv_std = reference.batch_norm_train(x, None, None, EPS)
    np.testing.assert_array_equal(y, [[0, 0]])
    np.testing.assert_array_equal(mean, x[0])
    np.testing.assert_array_equal(var, [0, 0])
    assert_close(inv_std, np.full(2, EPS**-0.5))
    gx, ggamma, gbeta = reference.batch_norm_grad(np.array([[1.0, 2.0]]), x, None, mean, inv_std)
    assert_close(gx, np.zeros((1, 2)), atol=1e-10)
    assert_close(ggamma, np.zeros(2))
    assert_close(gbeta, np.array([1.0, 2.0]))


def test_the_gradient_has_no_part_along_the_mean_or_the_values(rng: np.random.Generator) -> None:
    """xhat cannot move along 1 or along itself (eps aside), so neither can the gradient."""
    x, gy = rng.standard_normal((2, 64, 3)) * 10
    _, mean, _, inv_std = reference.batch_norm_train(x, None, None, 0.0)
    gx, _, _ = reference.batch_norm_grad(gy, x, None, mean, inv_std)
    xhat = (x - mean) * inv_std
    assert np.abs(gx.sum(axis=0)).max() < 1e-10
    assert np.abs((gx * xhat).sum(axis=0)).max() < 1e-10
    assert np.abs(gx).max() > 1e-2
