"""Weight gradients as sums of outer products, of an input and of what a batch norm makes of it."""

from __future__ import annotations

from typing import Any

import numpy as np
import oracles
import pytest
from drawn import layouts, normal, pairs, seeds
from hypothesis import given
from hypothesis import strategies as st
from oracles import laid_out

from minires.kernels import conv_geometry, threads
from minires.kernels.fusing import Before

outer = pytest.importorskip("minires.kernels.cpu.outer", reason="needs Numba")
norm = pytest.importorskip("minires.kernels.cpu.norm", reason="needs Numba")

# N, C, H, W, O, kernel, stride, padding, dilation
LAYERS = (
    (3, 16, 9, 11, 32, 1, 1, 0, 1),
    (2, 48, 6, 5, 16, 1, 1, 1, 1),
    (2, 32, 9, 7, 48, 1, 2, 0, 1),
    (2, 32, 9, 7, 64, 3, 2, 1, 1),
    (1, 16, 8, 8, 16, 3, 1, 2, 2),
    (2, 544, 7, 7, 272, 1, 1, 0, 1),  # in ranges, as no worker keeps a dW of its own
    (5, 416, 12, 12, 16, 1, 1, 0, 1),  # several blocks of pixels, more columns than are copied
    (4, 48, 13, 13, 272, 1, 1, 0, 1),
)


def case(seed: int, layer: Any, dtype: Any, layout: str = "channels_last") -> Any:
    N, C, H, W, O, k, stride, padding, dilation = layer
    g = conv_geometry((N, C, H, W), (O, C, k, k), stride, padding, dilation)
    x, gy = (laid_out(normal(seed + i, s, dtype), layout) for i, s in ((0, g.x_shape),
                                                                    (1, g.y_shape)))  # fmt: skip
    # A shift above zero: where padding were normalised, it would show.
    shift = np.abs(normal(seed + 4, (C,), dtype)) + dtype(0.5)
    return x, gy, g, Before(normal(seed + 2, (C,), dtype), normal(seed + 3, (C,), dtype), shift)


def in_two_passes(x: Any, gy: Any, g: Any, before: Before) -> Any:
    return outer.conv2d_grad_weight(norm.normalise(x, *before, None, relu=True), gy, g)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("layer", LAYERS, ids=str)
def test_the_sum(layer: Any, dtype: Any, monkeypatch: Any) -> None:
    x, gy, g, _ = case(1, layer, dtype)
    wide = (a.astype(np.float64) for a in (x, gy))
    expected = oracles.conv2d_grad_weight(
        *wide, g.weight_shape, g.stride, g.padding, g.dilation, g.groups
    )
    for count in (1, 2, 5):
        monkeypatch.setattr(threads, "_count", count)
        found = outer.conv2d_grad_weight(x, gy, g)
        assert found.dtype == dtype
        scale = {np.float32: 1e-5, np.float64: 1e-13}[dtype] * np.abs(expected).max()
        np.testing.assert_allclose(found, expected, rtol=0, atol=scale)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("layer", LAYERS, ids=str)
def test_the_bits_of_two_passes(layer: Any, dtype: Any, monkeypatch: Any) -> None:
    arguments = case(0, layer, dtype)
    x = arguments[0]
    copy = x.copy()
    for count in (1, 2, 5):
        monkeypatch.setattr(threads, "_count", count)
        found = outer.conv2d_grad_weight_fused(*arguments)
        np.testing.assert_array_equal(found, in_two_passes(*arguments))
    np.testing.assert_array_equal(x, copy)


@given(
    N=st.integers(0, 3), channels=pairs(1, 3), size=pairs(4, 9), kernel=pairs(1, 3),
    stride=st.integers(1, 3), padding=st.integers(0, 2), layout=layouts, seed=seeds,
)  # fmt: skip
def test_drawn_layers(
    N: int, channels: Any, size: Any, kernel: Any, stride: int, padding: int, layout: str, seed: int
) -> None:
    C, O = 16 * channels[0], 16 * channels[1]
    g = conv_geometry((N, C, *size), (O, C, *kernel), stride, padding)
    x, gy, _, before = case(seed, (1, C, 1, 1, O, 1, 1, 0, 1), np.float32)
    x = laid_out(normal(seed, g.x_shape, np.float32), layout)
    gy = laid_out(normal(seed + 1, g.y_shape, np.float32), layout)
    found = outer.conv2d_grad_weight_fused(x, gy, g, before)
    np.testing.assert_array_equal(found, in_two_passes(x, gy, g, before))


def test_nan_and_infinity_go_through() -> None:
    x, gy, g, before = case(0, LAYERS[0], np.float32)
    x[0, 3, 2, 2], x[1, 5, 0, 0] = np.nan, np.inf
    found = outer.conv2d_grad_weight_fused(x, gy, g, before)
    np.testing.assert_array_equal(found, in_two_passes(x, gy, g, before))
    assert np.isnan(found[:, 3]).all()
    assert not np.isfinite(found[:, 5]).all() or before.scale[5] < 0


def test_channels_that_are_no_whole_vectors() -> None:
    x, gy, g, before = case(0, (1, 3, 5, 5, 16, 3, 1, 1, 1), np.float32)
    with pytest.raises(ValueError, match="3 channels are not whole vectors"):
        outer.conv2d_grad_weight_fused(x, gy, g, before)
