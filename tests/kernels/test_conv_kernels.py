"""The reference convolutions against plain loops, over drawn geometries and memory layouts."""

from __future__ import annotations

from typing import Any

import numpy as np
import oracles
import pytest
from drawn import ConvCase, conv_cases, layouts, normal, seeds
from hypothesis import given
from oracles import LAYOUTS, laid_out

from minires.kernels import conv_geometry
from minires.kernels.reference import conv as reference
from minires.testing.compare import assert_close

TOLERANCE = {np.float32: (1e-4, 1e-5), np.float64: (1e-11, 1e-12)}
DTYPES = (np.float32, np.float64)


def close(actual: Any, expected: Any, dtype: Any, name: str) -> None:
    assert actual.dtype == dtype
    rtol, atol = TOLERANCE[dtype]
    assert_close(actual, expected.astype(dtype), rtol=rtol, atol=atol, name=name)


def channels_last(y: np.ndarray) -> bool:
    return bool(y.transpose(0, 2, 3, 1).flags.c_contiguous)


@pytest.mark.parametrize("dtype", DTYPES)
@given(case=conv_cases(), layout=layouts, seed=seeds)
def test_forward_and_both_gradients(case: ConvCase, layout: str, seed: int, dtype: Any) -> None:
    g = conv_geometry(case.x_shape, case.weight_shape, *case.settings)
    x, weight, gy = (
        laid_out(normal(seed + k, shape, dtype), layout)
        for k, shape in enumerate((case.x_shape, case.weight_shape, case.y_shape))
    )
    before = [a.copy() for a in (x, weight, gy)]
    y = reference.conv2d(x, weight, g)
    gx = reference.conv2d_grad_input(gy, weight, g)
    gweight = reference.conv2d_grad_weight(x, gy, g)

    wide = [a.astype(np.float64) for a in before]
    expected = oracles.conv2d(wide[0], wide[1], *case.settings)
    close(y, expected, dtype, "y")
    expected = oracles.conv2d_grad_input(wide[2], wide[1], case.x_shape, *case.settings)
    close(gx, expected, dtype, "gx")
    expected = oracles.conv2d_grad_weight(wide[0], wide[2], case.weight_shape, *case.settings)
    close(gweight, expected, dtype, "gweight")

    for array, copy in zip((x, weight, gy), before, strict=True):
        np.testing.assert_array_equal(array, copy)  # inputs are never modified
        assert not any(np.may_share_memory(array, out) for out in (y, gx, gweight))
    assert channels_last(y)
    assert channels_last(gx)


@given(case=conv_cases(empty=False), seed=seeds)
def test_the_three_passes_are_adjoint(case: ConvCase, seed: int) -> None:
    """<conv(x, w), y> = <x, grad_input(y, w)> = <w, grad_weight(x, y)>."""
    g = conv_geometry(case.x_shape, case.weight_shape, *case.settings)
    x, weight, gy = (
        normal(seed + k, shape)
        for k, shape in enumerate((case.x_shape, case.weight_shape, case.y_shape))
    )
    products = [
        (reference.conv2d(x, weight, g) * gy).sum(),
        (x * reference.conv2d_grad_input(gy, weight, g)).sum(),
        (weight * reference.conv2d_grad_weight(x, gy, g)).sum(),
    ]
    size = np.abs(x).max() * np.abs(weight).max() * np.abs(gy).max() * g.multiply_adds
    assert np.ptp(products) <= 1e-14 * size


@given(case=conv_cases(empty=False), seed=seeds)
def test_im2col_and_col2im_are_adjoint(case: ConvCase, seed: int) -> None:
    if case.groups != 1:
        return
    g = conv_geometry(case.x_shape, case.weight_shape, *case.settings)
    x = normal(seed, (g.N, g.H, g.W, g.C))
    columns = reference.im2col(x, g)
    assert columns.shape == (g.N * g.out[0] * g.out[1], g.kernel[0] * g.kernel[1] * g.C)
    other = normal(seed + 1, columns.shape)
    back = reference.col2im(other.copy(), g.N, g)
    assert_close((columns * other).sum(), (x * back).sum(), rtol=1e-11, atol=1e-10)


@pytest.mark.parametrize("blocks", [1, 2, 3, 100])
@pytest.mark.parametrize("groups", [1, 2])
def test_images_in_several_blocks(
    blocks: int, groups: int, rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    x = rng.standard_normal((7, 4, 5, 6))
    weight = rng.standard_normal((6, 4 // groups, 3, 2))
    g = conv_geometry(x.shape, weight.shape, (1, 2), 1, 1, groups)
    gy = rng.standard_normal(g.y_shape)
    per_image = g.out[0] * g.out[1] * 6 * 4 // groups * x.itemsize
    monkeypatch.setattr(reference, "BLOCK_BYTES", per_image * blocks + 1)

    runs = list(reference.image_blocks(g, x.itemsize))
    assert len(runs) == -(-7 // blocks)
    assert [i for run in runs for i in range(7)[run]] == list(range(7))
    settings = ((1, 2), (1, 1), (1, 1), groups)
    assert_close(reference.conv2d(x, weight, g), oracles.conv2d(x, weight, *settings))
    assert_close(
        reference.conv2d_grad_input(gy, weight, g),
        oracles.conv2d_grad_input(gy, weight, x.shape, *settings),
    )
    assert_close(
        reference.conv2d_grad_weight(x, gy, g),
        oracles.conv2d_grad_weight(x, gy, weight.shape, *settings),
    )


def test_a_block_below_one_image_takes_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reference, "BLOCK_BYTES", 1)
    g = conv_geometry((3, 1, 4, 4), (1, 1, 3, 3))
    assert list(reference.image_blocks(g, 4)) == [slice(0, 1), slice(1, 2), slice(2, 3)]


@pytest.mark.parametrize(
    ("x_shape", "weight_shape", "settings"),
    [
        ((2, 3, 8, 8), (4, 3, 1, 1), (1, 0, 1, 1)),  # pointwise
        ((2, 3, 8, 8), (4, 3, 1, 1), (2, 0, 1, 1)),  # the projection of a shortcut
        ((2, 3, 8, 8), (4, 3, 1, 1), (1, 1, 1, 1)),  # 1x1 with padding
        ((2, 3, 5, 5), (4, 3, 2, 2), (5, 0, 1, 1)),  # stride above the kernel
        ((2, 3, 1, 1), (4, 3, 3, 3), (1, 1, 1, 1)),  # one pixel
        ((2, 3, 2, 3), (4, 3, 7, 7), (2, 3, 1, 1)),  # kernel above the image
        ((2, 6, 5, 5), (6, 1, 3, 3), (1, 1, 1, 6)),  # depthwise
        ((2, 6, 5, 5), (12, 1, 3, 3), (1, 1, 1, 6)),  # depthwise, two outputs per channel
        ((0, 3, 5, 5), (4, 3, 3, 3), (1, 1, 1, 1)),  # no image
        ((1, 2, 9, 9), (2, 2, 3, 3), (2, 2, 3, 1)),  # dilation, stride and padding
        ((2, 3, 7, 10), (4, 3, 3, 1), ((2, 3), (1, 0), (2, 1), 1)),  # nothing square
    ],
)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_named_cases(
    x_shape: Any, weight_shape: Any, settings: Any, layout: str, rng: np.random.Generator
) -> None:
    g = conv_geometry(x_shape, weight_shape, *settings)
    pairs = (g.stride, g.padding, g.dilation, g.groups)
    x, weight, gy = (
        laid_out(rng.standard_normal(s), layout) for s in (x_shape, weight_shape, g.y_shape)
    )
    assert_close(reference.conv2d(x, weight, g), oracles.conv2d(x, weight, *pairs))
    assert_close(
        reference.conv2d_grad_input(gy, weight, g),
        oracles.conv2d_grad_input(gy, weight, x_shape, *pairs),
    )
    assert_close(
        reference.conv2d_grad_weight(x, gy, g),
        oracles.conv2d_grad_weight(x, gy, weight_shape, *pairs),
    )


def test_a_delta_kernel_shifts_the_image() -> None:
    """Not flipped: the tap at (0, 0) of a padded 3x3 kernel moves the image down and right."""
    x = np.arange(9.0).reshape(1, 1, 3, 3)
    weight = np.zeros((1, 1, 3, 3))
    weight[0, 0, 0, 0] = 1
    y = reference.conv2d(x, weight, conv_geometry(x.shape, weight.shape, 1, 1))
    np.testing.assert_array_equal(y[0, 0], [[0, 0, 0], [0, 0, 1], [0, 3, 4]])


def test_gradients_by_complex_step(rng: np.random.Generator) -> None:
    x, weight = rng.standard_normal((2, 4, 5, 4)), rng.standard_normal((6, 2, 3, 2))
    g = conv_geometry(x.shape, weight.shape, (2, 1), (1, 1), (1, 2), 2)
    pairs = (g.stride, g.padding, g.dilation, g.groups)
    gy = rng.standard_normal(g.y_shape)
    gx, gweight = oracles.complex_step_gradients(
        lambda x, weight: oracles.conv2d(x, weight, *pairs), (x, weight), gy
    )
    assert_close(reference.conv2d_grad_input(gy, weight, g), gx)
    assert_close(reference.conv2d_grad_weight(x, gy, g), gweight)
