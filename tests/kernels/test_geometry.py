"""Output sizes against windows counted one by one, and the errors for what does not fit."""

from __future__ import annotations

import itertools
import pickle
from typing import Any

import numpy as np
import pytest
from drawn import ConvCase, PoolCase, conv_cases, pool_cases
from hypothesis import given
from hypothesis import strategies as st
from oracles import window_starts

from minires.kernels import conv_geometry, pool_geometry
from minires.kernels.geometry import adaptive_windows, output_size, pair, same_padding, shape_text


@given(
    st.integers(1, 12), st.integers(1, 5), st.integers(1, 6), st.integers(0, 4), st.integers(1, 4)
)
def test_output_size_counts_the_windows_that_fit(
    size: int, kernel: int, stride: int, padding: int, dilation: int
) -> None:
    starts = window_starts(size, kernel, stride, padding, dilation)
    assert max(output_size(size, kernel, stride, padding, dilation), 0) == len(starts)


@pytest.mark.parametrize(
    ("size", "kernel", "stride", "padding", "expected"),
    [(32, 3, 2, 1, 16), (32, 1, 2, 0, 16), (224, 7, 2, 3, 112), (7, 7, 1, 0, 1), (5, 3, 7, 0, 1)],
)
def test_output_sizes_of_residual_networks(
    size: int, kernel: int, stride: int, padding: int, expected: int
) -> None:
    assert output_size(size, kernel, stride, padding) == expected


@given(conv_cases())
def test_conv_geometry_of_drawn_cases(case: ConvCase) -> None:
    g = conv_geometry(case.x_shape, case.weight_shape, *case.settings)
    assert g.x_shape == case.x_shape
    assert g.weight_shape == case.weight_shape
    assert g.y_shape == case.y_shape
    N, O, OH, OW = case.y_shape
    assert g.multiply_adds == N * O * OH * OW * int(np.prod(case.weight_shape[1:]))
    assert g.pointwise == (
        case.weight_shape[2:] == (1, 1) and case.padding == (0, 0) and case.groups == 1
    )


@given(pool_cases(dilated=True))
def test_pool_geometry_of_drawn_cases(case: PoolCase) -> None:
    g = pool_geometry(
        "max_pool2d", case.x_shape, case.kernel, case.stride, case.padding, case.dilation
    )
    settings = zip(
        case.x_shape[2:], case.kernel, case.stride, case.padding, case.dilation, strict=True
    )
    assert g.out == tuple(len(window_starts(*s)) for s in settings)
    assert g.y_shape == (*case.x_shape[:2], *g.out)
    assert g.x_shape == case.x_shape


def test_one_number_stands_for_both_directions() -> None:
    both = conv_geometry((1, 2, 8, 8), (4, 2, 3, 3), 2, 1, 2)
    assert both == conv_geometry((1, 2, 8, 8), (4, 2, 3, 3), [2, 2], (1, 1), (2,), groups=1)
    assert pool_geometry("avg_pool2d", (1, 1, 6, 6), 2) == pool_geometry(
        "avg_pool2d", (1, 1, 6, 6), [2, 2], (2, 2), [0, 0]
    )


def test_geometry_is_a_value() -> None:
    g = conv_geometry((1, 2, 8, 8), (4, 2, 3, 3), 2, 1)
    assert pickle.loads(pickle.dumps(g)) == g
    assert len({g, conv_geometry((1, 2, 8, 8), (4, 2, 3, 3), 2, 1)}) == 1
    with pytest.raises(AttributeError):
        g.N = 3  # type: ignore[misc]


def test_geometry_reads_as_text() -> None:
    assert str(conv_geometry((8, 3, 32, 32), (16, 3, 3, 3))) == "8x3x32x32 * 16x3x3x3"
    text = str(conv_geometry((8, 4, 32, 32), (16, 2, 3, 5), (2, 1), (1, 2), 2, 2))
    assert text == "8x4x32x32 * 16x2x3x5 stride 2x1 padding 1x2 dilation 2x2 groups 2"
    assert shape_text(()) == "scalar"


SHAPES = ((8, 3, 32, 32), (32, 16, 3, 3))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (SHAPES, "weight expects 16 input channels, x has 3 (x 8x3x32x32, weight 32x16x3x3)"),
        (((3, 32, 32), (8, 3, 3, 3)), "expected x of shape (N, C, H, W)"),
        (((8, 3, 32, 32), (8, 3, 3)), "weight (O, C/groups, KH, KW)"),
        (((8, 3, 2, 9), (8, 3, 3, 3)), "does not fit: 3x3 with dilation, on 2x9 with padding"),
        (((8, 3, 9, 4), (8, 3, 3, 3), 1, 0, 2), "5x5 with dilation, on 9x4"),
        (((8, 3, 0, 4), (8, 3, 1, 1)), "does not fit"),
        (((8, 3, 9, 9), (8, 3, 3, 0)), "weight has a size of zero"),
        (((8, 3, 9, 9), (8, 1, 3, 3), 1, 0, 1, 2), "groups=2 must divide the 3 input and 8 output"),
        (((8, 4, 9, 9), (7, 2, 3, 3), 1, 0, 1, 2), "groups=2 must divide the 4 input and 7 output"),
        (((8, 3, 9, 9), (8, 3, 3, 3), 0), "stride must be at least 1, got 0"),
        (((8, 3, 9, 9), (8, 3, 3, 3), (1, -1)), "stride must be at least 1, got (1, -1)"),
        (((8, 3, 9, 9), (8, 3, 3, 3), 1, -1), "padding must be at least 0"),
        (((8, 3, 9, 9), (8, 3, 3, 3), 1, 0, 0), "dilation must be at least 1"),
        (((8, 3, 9, 9), (8, 3, 3, 3), 1, 0, 1, 0), "groups must be at least 1, got 0"),
        (((8, 3, 9, 9), (8, 3, 3, 3), (1, 1, 1)), "stride takes one integer or two"),
    ],
)
def test_convolutions_that_do_not_fit(arguments: tuple[Any, ...], message: str) -> None:
    with pytest.raises(ValueError, match=r"^conv2d: ") as caught:
        conv_geometry(*arguments)
    assert message in str(caught.value)


@pytest.mark.parametrize("bad", [1.0, "2", (1, 2.0), None, np.float32(1), np.array([1, 1])])
@pytest.mark.parametrize("setting", ["stride", "padding", "dilation"])
def test_settings_are_integers(setting: str, bad: Any) -> None:
    conv_geometry((1, 1, 4, 4), (1, 1, 1, 1), **{setting: 1})  # the same as 1.0 to a cache
    with pytest.raises(TypeError, match=f"conv2d: {setting} takes integers, got"):
        conv_geometry((1, 1, 4, 4), (1, 1, 1, 1), **{setting: bad})


@pytest.mark.parametrize("setting", ["stride", "padding", "dilation"])
def test_settings_that_only_equal_right_ones_are_refused(setting: str) -> None:
    shapes, right = ((1, 2, 8, 8), (2, 2, 3, 3)), pair(1, setting, "conv2d", 1)
    assert conv_geometry(*shapes, **{setting: right}) is conv_geometry(*shapes, **{setting: right})
    with pytest.raises(TypeError, match=f"conv2d: {setting} takes integers, got"):
        conv_geometry(*shapes, **{setting: (1.0, 1.0)})


def test_a_setting_that_is_changed_counts() -> None:
    shapes, stride = ((1, 2, 8, 8), (2, 2, 3, 3)), [1, 1]
    before = conv_geometry(*shapes, stride)
    stride[:] = 2, 2
    assert conv_geometry(*shapes, stride).stride == (2, 2) != before.stride


def test_groups_is_an_integer() -> None:
    shapes = ((1, 2, 4, 4), (2, 1, 1, 1))
    assert conv_geometry(*shapes, groups=np.int64(2)).groups == 2
    with pytest.raises(TypeError, match=r"conv2d: groups takes an integer, got 2\.0"):
        conv_geometry(*shapes, groups=2.0)  # type: ignore[arg-type]


def test_numpy_integers_are_integers() -> None:
    assert pair(np.int64(3), "stride", "conv2d", 1) == (3, 3)
    values = pair((np.uint8(3), np.int32(2)), "stride", "conv2d", 1)
    assert values == (3, 2)
    assert all(type(v) is int for v in values)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (((3, 4, 4), 2), "expected x (N, C, H, W), got 3x4x4"),
        (((1, 3, 4, 4), 5), "the 5x5 window does not fit x 1x3x4x4"),
        (((1, 3, 4, 4), 2, 1, 2), "padding 2x2 is more than half of the kernel 2x2"),
        (((1, 3, 4, 4), 0), "kernel_size must be at least 1"),
        (((1, 3, 4, 4), 2, 0), "stride must be at least 1"),
        (((1, 3, 4, 4), 3, 1, 0, 2), "dilation 2x2"),
    ],
)
def test_poolings_that_do_not_fit(arguments: tuple[Any, ...], message: str) -> None:
    with pytest.raises(ValueError, match=r"^max_pool2d: ") as caught:
        pool_geometry("max_pool2d", *arguments)
    assert message in str(caught.value)


def test_pool_settings_are_integers() -> None:
    pool_geometry("max_pool2d", (1, 1, 4, 4), 2)
    with pytest.raises(TypeError, match="max_pool2d: kernel_size takes integers"):
        pool_geometry("max_pool2d", (1, 1, 4, 4), 2.0)  # type: ignore[arg-type]


@given(st.integers(1, 20), st.integers(1, 25))
def test_adaptive_windows_cover_everything_in_order(size: int, out: int) -> None:
    found = adaptive_windows(size, out)
    assert len(found) == out
    assert found[0][0] == 0
    assert found[-1][1] == size
    for i, (start, end) in enumerate(found):
        assert start == int(np.floor(i * size / out))
        assert end == int(np.ceil((i + 1) * size / out))
        assert start < end
    assert all(a[1] >= b[0] for a, b in itertools.pairwise(found))


@given(st.integers(1, 9), st.integers(1, 7), st.integers(1, 4))
def test_same_padding_keeps_the_size(size: int, kernel: int, dilation: int) -> None:
    (before, after), _ = same_padding((kernel, 1), (dilation, 1))
    assert 0 <= after - before <= 1
    padded = size + before + after
    assert output_size(padded, kernel, 1, 0, dilation) == size
