"""Pooling against loops: padding, ties, NaN, infinities, and windows of any size."""

from __future__ import annotations

from typing import Any

import numpy as np
import oracles
import pytest
from drawn import PoolCase, layouts, normal, pool_cases, seeds
from hypothesis import given
from hypothesis import strategies as st
from oracles import laid_out

from minires.kernels import pool_geometry
from minires.kernels.reference import pool as reference
from minires.testing.compare import assert_close


def geometry(case: PoolCase, name: str = "max_pool2d", **settings: Any) -> Any:
    return pool_geometry(
        name, case.x_shape, case.kernel, case.stride, case.padding, case.dilation, **settings
    )


def draw_values(seed: int, shape: tuple[int, ...], kind: str) -> np.ndarray:
    """Images of distinct values, of many ties, or with NaN and infinities among them."""
    rng = np.random.default_rng(seed)
    if kind == "distinct":
        return rng.permutation(int(np.prod(shape))).reshape(shape) - 5.0
    if kind == "ties":
        return rng.integers(-1, 2, shape).astype(float)
    return rng.choice([-np.inf, np.nan, np.inf, 0.0, -1.0], shape, p=[0.5, 0.1, 0.1, 0.2, 0.1])


@given(
    case=pool_cases(dilated=True),
    kind=st.sampled_from(["distinct", "ties", "special"]),
    layout=layouts,
    seed=seeds,
)
def test_max_pool(case: PoolCase, kind: str, layout: str, seed: int) -> None:
    g = geometry(case)
    x = laid_out(draw_values(seed, case.x_shape, kind), layout)
    before = x.copy()
    y, indices = reference.max_pool2d(x, g)
    expected, origins = oracles.max_pool2d(
        x, case.kernel, case.stride, case.padding, case.dilation
    )
    assert_close(y, expected, equal_nan=True)
    assert y.dtype == x.dtype
    assert y.transpose(0, 2, 3, 1).flags.c_contiguous
    np.testing.assert_array_equal(x, before)
    assert not np.may_share_memory(y, x)

    gy = laid_out(normal(seed, g.y_shape), layout)
    gx = np.zeros(case.x_shape)
    v = normal(seed + 1, case.x_shape)
    taken = np.zeros(g.y_shape)
    for output, origin in origins:
        if origin is not None:
            gx[origin] += gy[output]
            taken[output] = v[origin]
    assert_close(reference.max_pool2d_grad(gy, indices, g), gx, name="grad")
    assert_close(reference.max_pool2d_take(laid_out(v, layout), indices, g), taken, name="take")


def test_the_first_of_equal_values_gets_the_gradient() -> None:
    g = pool_geometry("max_pool2d", (1, 1, 3, 3), 3)
    y, indices = reference.max_pool2d(np.zeros((1, 1, 3, 3)), g)
    np.testing.assert_array_equal(y, np.zeros((1, 1, 1, 1)))
    gx = reference.max_pool2d_grad(np.ones((1, 1, 1, 1)), indices, g)
    np.testing.assert_array_equal(gx[0, 0], [[1, 0, 0], [0, 0, 0], [0, 0, 0]])


def test_a_window_of_minus_infinity_points_at_a_real_pixel() -> None:
    g = pool_geometry("max_pool2d", (1, 1, 2, 2), 3, 2, 1)
    y, indices = reference.max_pool2d(np.full((1, 1, 2, 2), -np.inf), g)
    assert y.item() == -np.inf
    gx = reference.max_pool2d_grad(np.ones((1, 1, 1, 1)), indices, g)
    np.testing.assert_array_equal(gx[0, 0], [[1, 0], [0, 0]])


def test_padding_never_wins() -> None:
    g = pool_geometry("max_pool2d", (1, 1, 2, 2), 2, 2, 1)
    y, _ = reference.max_pool2d(np.full((1, 1, 2, 2), -3.0), g)
    np.testing.assert_array_equal(y, np.full((1, 1, 2, 2), -3.0))


def test_a_bad_gradient_stays_with_its_maximum() -> None:
    """An infinite gradient must not turn into NaN in the losers of its window."""
    g = pool_geometry("max_pool2d", (1, 1, 1, 2), (1, 2))
    _, indices = reference.max_pool2d(np.array([[[[1.0, 2.0]]]]), g)
    gx = reference.max_pool2d_grad(np.array([[[[np.inf]]]]), indices, g)
    np.testing.assert_array_equal(gx, [[[[0, np.inf]]]])


@given(case=pool_cases(), include=st.booleans(), layout=layouts, seed=seeds)
def test_avg_pool(case: PoolCase, include: bool, layout: str, seed: int) -> None:
    g = geometry(case, "avg_pool2d", count_include_pad=include)
    x = laid_out(normal(seed, case.x_shape), layout)
    before = x.copy()
    y = reference.avg_pool2d(x, g)
    settings = (case.kernel, case.stride, case.padding, include)
    assert_close(y, oracles.avg_pool2d(x, *settings))
    assert y.transpose(0, 2, 3, 1).flags.c_contiguous
    gy = laid_out(normal(seed + 1, g.y_shape), layout)
    gx = reference.avg_pool2d_grad(gy, g)
    assert gx.shape == case.x_shape
    assert_close((gx * x).sum(), (gy * y).sum(), rtol=1e-10, atol=1e-10, name="adjoint")
    np.testing.assert_array_equal(x, before)
    assert not np.may_share_memory(y, x)


def test_what_the_average_divides_by() -> None:
    x = np.ones((1, 1, 2, 2))
    counted = pool_geometry("avg_pool2d", x.shape, 2, 2, 1)
    real = pool_geometry("avg_pool2d", x.shape, 2, 2, 1, 1, False)
    np.testing.assert_array_equal(reference.avg_pool2d(x, counted), np.full((1, 1, 2, 2), 0.25))
    np.testing.assert_array_equal(reference.avg_pool2d(x, real), np.ones((1, 1, 2, 2)))


@given(
    N=st.integers(0, 2),
    size=st.tuples(st.integers(1, 7), st.integers(1, 7)),
    out=st.tuples(st.integers(1, 9), st.integers(1, 9)),
    layout=layouts,
    seed=seeds,
)
def test_adaptive_avg_pool_to_any_size(
    N: int, size: tuple[int, int], out: tuple[int, int], layout: str, seed: int
) -> None:
    x = laid_out(normal(seed, (N, 3, *size)), layout)
    before = x.copy()
    y = reference.adaptive_avg_pool2d(x, out)
    assert_close(y, oracles.adaptive_avg_pool2d(x, out))
    gy = laid_out(normal(seed + 1, y.shape), layout)
    gx = reference.adaptive_avg_pool2d_grad(gy, size)
    assert gx.shape == x.shape
    assert_close((gx * x).sum(), (gy * y).sum(), rtol=1e-10, atol=1e-10, name="adjoint")
    np.testing.assert_array_equal(x, before)
    assert not np.may_share_memory(y, x)
    assert not np.may_share_memory(gx, gy)
    assert y.transpose(0, 2, 3, 1).flags.c_contiguous


def test_an_infinite_pixel_stays_in_its_adaptive_windows() -> None:
    x = np.ones((1, 1, 4, 4), np.float32)
    x[0, 0, 0, 0] = np.inf
    y = reference.adaptive_avg_pool2d(x, (2, 2))
    np.testing.assert_array_equal(y[0, 0], [[np.inf, 1], [1, 1]])


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_dtypes_are_kept(dtype: Any, rng: np.random.Generator) -> None:
    x = rng.standard_normal((2, 3, 5, 5)).astype(dtype)
    for g in (
        pool_geometry("max_pool2d", x.shape, 3, 2, 1),
        pool_geometry("avg_pool2d", x.shape, 3, 2, 1, 1, False),
    ):
        y, indices = reference.max_pool2d(x, g)
        for array in (
            y,
            reference.max_pool2d_grad(y, indices, g),
            reference.max_pool2d_take(x, indices, g),
            reference.avg_pool2d(x, g),
            reference.avg_pool2d_grad(y, g),
        ):
            assert array.dtype == dtype
    for out in ((1, 1), (2, 3)):
        y = reference.adaptive_avg_pool2d(x, out)
        assert y.dtype == dtype
        assert reference.adaptive_avg_pool2d_grad(y, (5, 5)).dtype == dtype
