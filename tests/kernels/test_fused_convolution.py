"""Convolutions that normalise what they load and finish what they store: two passes' bits."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from drawn import layouts, normal, pairs, seeds
from hypothesis import given
from hypothesis import strategies as st
from oracles import laid_out

from minires.kernels import available, conv_geometry, threads
from minires.kernels.fusing import AFTER, BEFORE, MOMENTS, After, Before

columns = pytest.importorskip("minires.kernels.cpu.columns", reason="needs Numba")
direct = pytest.importorskip("minires.kernels.cpu.direct", reason="needs Numba")
norm = pytest.importorskip("minires.kernels.cpu.norm", reason="needs Numba")

# module, then N, C, H, W, O, kernel, stride, padding
POINTWISE = (
    (columns, (3, 16, 9, 11, 32, 1, 1, 0)),
    (columns, (2, 48, 7, 7, 80, 1, 1, 0)),
    (columns, (1, 32, 1, 1, 16, 1, 1, 0)),
)
LAYERS = (
    *POINTWISE,
    (columns, (2, 32, 9, 7, 48, 1, 2, 0)),
    (columns, (2, 16, 9, 7, 64, 3, 2, 1)),
    (columns, (1, 3, 6, 5, 16, 3, 1, 2)),
    (direct, (3, 3, 9, 8, 16, 3, 1, 1)),
    (direct, (2, 3, 17, 15, 64, 7, 2, 3)),
    (direct, (1, 5, 3, 40, 48, 3, 1, 0)),
)
DTYPES = (np.float32, np.float64)
WORKERS = (1, 2, 5, 64)


def case(seed: int, layer: Any, dtype: Any, layout: str = "channels_last") -> Any:
    N, C, H, W, O, k, stride, padding = layer
    g = conv_geometry((N, C, H, W), (O, C, k, k), stride, padding)
    x = laid_out(normal(seed, g.x_shape, dtype), layout)
    return x, normal(seed + 1, g.weight_shape, dtype), g


def before_of(seed: int, C: int, dtype: Any) -> Before:
    return Before(*(normal(seed + i, (C,), dtype) for i in range(3)))


def name(value: Any) -> str:
    return value.__name__.rsplit(".", 1)[-1] if hasattr(value, "__name__") else str(value)


@pytest.mark.parametrize("workers", WORKERS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("module", "layer"), POINTWISE, ids=name)
def test_normalised_as_it_is_loaded(
    module: Any, layer: Any, dtype: Any, workers: int, monkeypatch: Any
) -> None:
    monkeypatch.setattr(threads, "_count", workers)
    x, weight, g = case(0, layer, dtype)
    before, copy = before_of(2, g.C, dtype), x.copy()
    expected = module.conv2d(norm.normalise(x, *before, None, relu=True), weight, g)
    np.testing.assert_array_equal(module.conv2d_fused(x, weight, g, before, None, False), expected)
    np.testing.assert_array_equal(x, copy)


@pytest.mark.parametrize("rectify", [False, True])
@pytest.mark.parametrize("joined", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("module", "layer"), LAYERS, ids=name)
def test_finished_before_it_is_stored(
    module: Any, layer: Any, dtype: Any, joined: bool, rectify: bool, monkeypatch: Any
) -> None:
    x, weight, g = case(0, layer, dtype)
    shift = normal(5, (g.O,), dtype)
    shortcut = normal(6, g.y_shape, dtype) if joined else None
    for workers in WORKERS:
        monkeypatch.setattr(threads, "_count", workers)
        plain = module.conv2d(x, weight, g)
        expected = norm.normalise(plain, None, None, shift, shortcut, rectify)
        after = After(shift, shortcut, rectify)
        found = module.conv2d_fused(x, weight, g, None, after, False)
        np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("module", "layer"), LAYERS, ids=name)
def test_moments(module: Any, layer: Any, dtype: Any, monkeypatch: Any) -> None:
    x, weight, g = case(0, layer, dtype)
    for workers in WORKERS:
        monkeypatch.setattr(threads, "_count", workers)
        y, mean, var = module.conv2d_fused(x, weight, g, None, None, True)
        np.testing.assert_array_equal(y, module.conv2d(x, weight, g))
        assert mean.dtype == var.dtype == np.float64
        wide = y.astype(np.float64)
        tolerance = 1e-5 if dtype is np.float32 else 1e-13
        np.testing.assert_allclose(mean, wide.mean(axis=(0, 2, 3)), atol=tolerance)
        true = wide.var(axis=(0, 2, 3))
        np.testing.assert_allclose(var, true, rtol=tolerance, atol=tolerance**2)


@pytest.mark.parametrize(("module", "kernel"), [(columns, 1), (direct, 3)], ids=name)
def test_moments_far_from_zero(module: Any, kernel: int, monkeypatch: Any) -> None:
    """Mean 1e4, deviation 1: sums of squares in float32 would know nothing of the deviation."""
    g = conv_geometry((2, 16, 40, 40), (16, 16, kernel, kernel), 1, 0)
    x = laid_out(normal(0, g.x_shape, np.float32), "channels_last")
    x[:, 0] += 1e4
    weight = np.zeros(g.weight_shape, np.float32)
    weight[np.arange(16), np.arange(16), 0, 0] = 1
    weight[:, 0, 0, 0] = 1  # all see the mean
    for workers in (1, 3):
        monkeypatch.setattr(threads, "_count", workers)
        y, mean, var = module.conv2d_fused(x, weight, g, None, None, True)
        wide = y.astype(np.float64)
        np.testing.assert_allclose(mean, wide.mean(axis=(0, 2, 3)), rtol=1e-7)
        np.testing.assert_allclose(var, wide.var(axis=(0, 2, 3)), rtol=1e-5)


@given(
    N=st.integers(1, 3), channels=pairs(1, 3), size=pairs(1, 9), layout=layouts, seed=seeds,
    last=st.sampled_from(["nothing", "after", "moments"]),
)  # fmt: skip
def test_drawn_pointwise_layers(
    N: int, channels: Any, size: Any, layout: str, seed: int, last: str
) -> None:
    """`before` together with each of the others."""
    C, O = 16 * channels[0], 16 * channels[1]
    g = conv_geometry((N, C, *size), (O, C, 1, 1))
    x = laid_out(normal(seed, g.x_shape, np.float32), layout)
    weight, before = normal(seed + 1, g.weight_shape, np.float32), before_of(seed, C, np.float32)
    shortcut = laid_out(normal(seed + 4, g.y_shape, np.float32), layout)
    after = After(normal(seed + 3, (O,), np.float32), shortcut, True) if last == "after" else None
    expected = columns.conv2d(norm.normalise(x, *before, None, relu=True), weight, g)
    if after is not None:
        expected = norm.normalise(expected, None, None, *after)
    found = columns.conv2d_fused(x, weight, g, before, after, last == "moments")
    if last == "moments":
        found, mean, _ = found
        true = expected.astype(np.float64).mean(axis=(0, 2, 3))
        np.testing.assert_allclose(mean, true, atol=1e-4)
    np.testing.assert_array_equal(found, expected)


def test_nan_goes_through() -> None:
    x, weight, g = case(0, POINTWISE[0][1], np.float32)
    x[0, 3, 2, 2] = np.nan
    before, shift = before_of(2, g.C, np.float32), normal(5, (g.O,), np.float32)
    found = columns.conv2d_fused(x, weight, g, before, After(shift, None, True), False)
    assert np.isnan(found[0, :, 2, 2]).all()
    assert np.isfinite(found[1]).all()


def test_they_are_registered_for_what_they_can_do() -> None:
    kernels = {k.name: k for k in available("conv2d") if k.backend == "cpu"}
    for module, layer in LAYERS:
        kernel, g = kernels[name(module)], case(0, layer, np.float32)[2]
        assert kernel.can_fuse(BEFORE, g) == ((module, layer) in POINTWISE)
        assert kernel.can_fuse(AFTER, g)
        assert kernel.can_fuse(MOMENTS, g)


def test_what_cannot_be_fused() -> None:
    x, weight, g = case(0, LAYERS[4][1], np.float32)
    before = before_of(2, g.C, np.float32)
    after = After(normal(5, (g.O,), np.float32), None, True)
    with pytest.raises(ValueError, match="1x1 kernel of stride 1"):
        columns.conv2d_fused(x, weight, g, before, None, False)
    with pytest.raises(ValueError, match="1x1 kernel of stride 1"):
        direct.conv2d_fused(x, weight, g, before, None, False)
    with pytest.raises(ValueError, match="not both"):
        columns.conv2d_fused(x, weight, g, None, after, True)
    empty = conv_geometry((0, *g.x_shape[1:]), g.weight_shape, 2, 1)
    with pytest.raises(ValueError, match="no pixels"):
        columns.conv2d_fused(x[:0], weight, empty, None, None, True)
