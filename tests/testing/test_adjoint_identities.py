"""Adjoint identities at full layer size, and that they notice what they should."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from planting import planted

import minires as mr
from minires import functional as F
from minires.kernels import ConvGeometry, PoolGeometry, conv_geometry, pool_geometry
from minires.kernels.reference import conv as reference_conv
from minires.kernels.reference import pool as reference_pool
from minires.testing import (
    check_adaptive_pool_adjoint,
    check_adjoint,
    check_conv_adjoints,
    check_pool_adjoints,
)
from minires.testing import strategies as drawn
from minires.testing.kernel_inputs import CONVOLUTIONS, POOLINGS, draw_convolution

LAYERS = {
    "3x3, 64 channels": conv_geometry((8, 64, 56, 56), (64, 64, 3, 3), 1, 1),
    "3x3, 256 channels": conv_geometry((8, 256, 14, 14), (256, 256, 3, 3), 1, 1),
    "3x3 stride 2": conv_geometry((4, 64, 56, 56), (128, 64, 3, 3), 2, 1),
    "stem": conv_geometry((2, 3, 224, 224), (64, 3, 7, 7), 2, 3),
    "projection": conv_geometry((4, 256, 28, 28), (512, 256, 1, 1), 2),
    "CIFAR": conv_geometry((32, 16, 32, 32), (16, 16, 3, 3), 1, 1),
}
IM2COL = {f"conv2d{suffix}": "im2col" for suffix in ("", "_grad_input", "_grad_weight")}


@pytest.mark.parametrize("layer", LAYERS)
def test_convolutions_of_full_size(layer: str) -> None:
    with mr.kernels.use(**IM2COL):
        for result in check_conv_adjoints(LAYERS[layer]):
            assert result.passed
            assert result.bound < 1e-9 * abs(result.left)
            assert result.name.endswith(str(LAYERS[layer]))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("text", CONVOLUTIONS)
def test_every_kind_of_convolution(text: str, dtype: Any) -> None:
    for seed in range(3):
        check_conv_adjoints(CONVOLUTIONS[text], dtype, seed=seed)


@given(drawn.conv_geometries(), st.sampled_from([np.float32, np.float64]), drawn.seeds())
def test_drawn_convolutions(g: ConvGeometry, dtype: Any, seed: int) -> None:
    check_conv_adjoints(g, dtype, seed=seed)


@given(drawn.pool_geometries(), st.sampled_from([np.float32, np.float64]), drawn.seeds())
def test_drawn_poolings(g: PoolGeometry, dtype: Any, seed: int) -> None:
    check_pool_adjoints(g, dtype, seed=seed)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("text", POOLINGS)
def test_every_kind_of_pooling(text: str, dtype: Any) -> None:
    assert len(check_pool_adjoints(POOLINGS[text], dtype)) == 2


def test_pooling_of_full_size_and_with_dilation() -> None:
    check_pool_adjoints(pool_geometry("pool", (8, 64, 112, 112), 3, 2, 1))
    assert len(check_pool_adjoints(pool_geometry("pool", (2, 3, 9, 9), 3, 2, 1, 2))) == 1


@pytest.mark.parametrize("out", [(1, 1), (7, 7), (3, 5), (20, 2)])
def test_adaptive_pooling(out: tuple[int, int]) -> None:
    assert check_adaptive_pool_adjoint((4, 32, 14, 15), out).passed
    assert check_adaptive_pool_adjoint((4, 32, 14, 15), out, np.float32).passed


def test_linear_functions_of_tensors(rng: np.random.Generator) -> None:
    w = mr.Tensor(rng.standard_normal((5, 7)))
    x, y = mr.Tensor(rng.standard_normal((3, 7))), mr.Tensor(rng.standard_normal((3, 5)))
    result = check_adjoint(lambda x: F.linear(mr.Tensor(x), w), lambda y: y @ w.data, x, y)
    assert result.error <= result.bound < 1e-10


def test_what_is_not_adjoint_is_reported_with_both_sides(rng: np.random.Generator) -> None:
    a = rng.standard_normal((4, 4))
    x, y = rng.standard_normal(4), rng.standard_normal(4)
    check_adjoint(lambda x: a @ x, lambda y: a.T @ y, x, y)
    with pytest.raises(AssertionError, match=r"not adjoint: .* apart by .*, rounding explains"):
        check_adjoint(lambda x: a @ x, lambda y: a @ y, x, y)
    with pytest.raises(AssertionError, match="nan"):
        check_adjoint(lambda x: a @ x * np.nan, lambda y: a.T @ y, x, y)
    with pytest.raises(ValueError, match="adjoint\\(y\\) has shape 3, expected 4"):
        check_adjoint(lambda x: a @ x, lambda y: y[:3], x, y)


def one_pixel_wrong(gy: Any, weight: Any, g: ConvGeometry) -> Any:
    gx = reference_conv.conv2d_grad_input(gy, weight, g)
    gx[3, 17, 20, 31] *= 1 + 1e-5
    return gx


def flipped(gy: Any, weight: Any, g: ConvGeometry) -> Any:
    return reference_conv.conv2d_grad_input(gy, weight[:, :, ::-1, ::-1], g)


@pytest.mark.parametrize("kernel", [one_pixel_wrong, flipped])
def test_a_wrong_kernel_is_caught_at_full_size(kernel: Any) -> None:
    """In float64 even one pixel of 1.6 million that is off by 1e-5 stands out from rounding."""
    with (
        mr.kernels.use(conv2d="im2col"),
        planted(conv2d_grad_input=kernel),
        pytest.raises(AssertionError, match="not adjoint: <conv"),
    ):
        check_conv_adjoints(LAYERS["3x3, 64 channels"])


def forgets_the_last_row(gy: Any, g: Any) -> Any:
    gx = reference_pool.avg_pool2d_grad(gy, g).copy()
    gx[:, :, -1] = 0
    return gx


def test_a_wrong_pooling_gradient_is_caught() -> None:
    with planted(avg_pool2d_grad=forgets_the_last_row), pytest.raises(AssertionError):
        check_pool_adjoints(POOLINGS["3x3 stride 2, padded"])


def test_the_bound_is_honest(rng: np.random.Generator) -> None:
    """Rounding stays below the bound, with room, over many draws; and not absurdly far below."""
    shares = []
    for seed in range(200):
        g = draw_convolution(rng)
        # The bound is 0, and the error too, where windows see nothing but padding.
        results = check_conv_adjoints(g, np.float32, seed=seed)
        shares += [r.error / r.bound for r in results if r.left]
    assert max(shares) < 0.5
    assert max(shares) > 1e-3
