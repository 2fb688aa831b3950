"""Batch norm's numbers per channel in compiled calls: what NumPy makes of the same arrays."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

pytest.importorskip("numba")

from minires.kernels.cpu import channels

C = 7


@pytest.fixture(params=[np.float32, np.float64])
def dtype(request: pytest.FixtureRequest) -> Any:
    return np.dtype(request.param)


@pytest.mark.parametrize("counts", [[5, 9, 4], [0, 18, 0], [17, 0, 1], [18]])
def test_workers_sums_give_the_moments_of_all_rows(
    dtype: Any, counts: list[int], rng: np.random.Generator
) -> None:
    rows = (rng.standard_normal((18, C)) * 3 + 100).astype(dtype)
    parts = np.split(rows, np.cumsum(counts)[:-1])
    kept = np.zeros((len(parts), C + 4), dtype)  # and room that is not read
    sums = np.zeros((len(parts), 2, C))
    for part, origin, total in zip(parts, kept, sums, strict=True):
        if len(part):
            origin[:C] = part[0]
            d = part.astype(np.float64) - part[0]
            total[:] = d.sum(axis=0), (d * d).sum(axis=0)
    mean, var = channels.merged(kept, sums, np.array(counts))
    assert mean.dtype == var.dtype == np.float64
    np.testing.assert_allclose(mean, rows.astype(np.float64).mean(axis=0), rtol=1e-14)
    np.testing.assert_allclose(var, rows.astype(np.float64).var(axis=0), rtol=1e-11)


@pytest.mark.parametrize("affine", [True, False])
def test_the_normaliser_has_the_bits_of_numpy(
    dtype: Any, affine: bool, rng: np.random.Generator
) -> None:
    mean, var = rng.standard_normal(C), rng.random(C)
    var[2] = -1e-30  # as a difference of sums may be
    gamma = rng.standard_normal(C).astype(dtype) if affine else None
    inv_std = (1.0 / np.sqrt(np.maximum(var, 0.0) + 1e-5)).astype(dtype)
    beta = None if gamma is None else rng.standard_normal(C).astype(dtype)
    scale = inv_std if gamma is None else gamma * inv_std
    shift = np.zeros(C, dtype) if beta is None else beta
    wanted = mean.astype(dtype), np.maximum(var, 0.0).astype(dtype), inv_std, scale, shift
    found = channels.normaliser((mean, var), 1e-5, gamma, beta, dtype)
    np.testing.assert_array_equal(found, np.stack(wanted), strict=True)
    assert beta is None or not np.shares_memory(found, beta)


def test_running_statistics_move_to_the_bits_of_numpy(
    dtype: Any, rng: np.random.Generator
) -> None:
    mean, var, batch_mean, batch_var = rng.random((4, C)).astype(dtype)
    rest, part, unbiased = (dtype.type(f) for f in (1 - 0.1, 0.1, 0.1 * (9 / 8)))
    wanted = rest * mean + part * batch_mean, rest * var + unbiased * batch_var
    channels.move(mean, var, batch_mean, batch_var, 0.1, 9 / 8)
    np.testing.assert_array_equal(mean, wanted[0], strict=True)
    np.testing.assert_array_equal(var, wanted[1], strict=True)


@pytest.mark.parametrize("affine", [True, False])
def test_gradient_factors_give_the_gradient_of_the_definition(
    dtype: Any, affine: bool, rng: np.random.Generator
) -> None:
    x, gy = rng.standard_normal((2, 18, C))
    gamma = rng.standard_normal(C).astype(dtype) if affine else None
    mean, inv_std = x.mean(axis=0), (1.0 / np.sqrt(x.var(axis=0) + 1e-5)).astype(dtype)
    d = x - mean
    sums = np.stack([gy.sum(axis=0), (gy * d).sum(axis=0)])
    factors, ggamma, gbeta = channels.gradient_factors(sums, gamma, inv_std, len(x))
    assert factors.dtype == ggamma.dtype == gbeta.dtype == dtype
    xhat = d * inv_std
    wanted = gy - gy.mean(axis=0) - xhat * (gy * xhat).mean(axis=0)
    wanted = inv_std * wanted if gamma is None else gamma * inv_std * wanted
    found = factors[0] * gy - factors[1] * d - factors[2]
    close = 1e-5 if dtype == np.float32 else 1e-12
    np.testing.assert_allclose(found, wanted, atol=close)
    np.testing.assert_allclose(ggamma, (gy * xhat).sum(axis=0), rtol=close, atol=close)
    np.testing.assert_allclose(gbeta, gy.sum(axis=0), rtol=close, atol=close)
    assert not np.shares_memory(ggamma, factors)
    assert not np.shares_memory(ggamma, gbeta)
