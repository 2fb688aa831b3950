"""The strategies: what they draw, that it fits, that it shrinks, and that it finds bugs."""

from __future__ import annotations

import random
import subprocess
import sys
from typing import Any

import numpy as np
import pytest
from hypothesis import find, given, settings
from hypothesis import strategies as hyp
from planting import planted

import minires as mr
from minires import nn
from minires.kernels import ConvGeometry, PoolGeometry
from minires.kernels.reference import conv as reference_conv
from minires.testing import assert_gradients, check_conv_adjoints
from minires.testing import strategies as st


def smallest(strategy: Any, condition: Any) -> Any:
    """What Hypothesis shrinks to; the same every time."""
    quick = settings(max_examples=500, database=None)
    return find(strategy, condition, settings=quick, random=random.Random(0))


@given(st.arrays(shape=(2, 3, 4, 5), layout="contiguous"), hyp.sampled_from(st.LAYOUTS))
def test_layouts_change_strides_and_nothing_else(array: np.ndarray, layout: str) -> None:
    other = st.laid_out(array, layout)
    np.testing.assert_array_equal(other, array)
    assert (other.strides == array.strides) == (layout == "contiguous")
    with pytest.raises(ValueError, match="layout is one of"):
        st.laid_out(array, "diagonal")


@given(st.tensors(dtype=hyp.sampled_from([np.float32, np.float64])))
def test_tensors(x: mr.Tensor) -> None:
    assert x.requires_grad
    assert 1 <= x.ndim <= 4
    assert all(1 <= n <= 5 for n in x.shape)
    assert np.isfinite(x.numpy()).all()


def test_tensors_shrink_to_what_matters() -> None:
    plain = smallest(st.tensors(), lambda x: True)
    assert (plain.shape, plain.data.flags.c_contiguous) == ((1,), True)
    strided = smallest(st.tensors(), lambda x: x.ndim == 3 and not x.data.flags.c_contiguous)
    assert sorted(strided.shape)[0] == 1
    assert max(strided.shape) == 2
    by_element = smallest(
        st.arrays((3,), elements=hyp.floats(-10, 10), layout="contiguous"),
        lambda a: bool((a > 1).any()),
    )
    assert sorted(by_element)[:2] == [0, 0]


@given(st.conv_geometries())
def test_convolutions_fit(g: ConvGeometry) -> None:
    assert min(g.out) >= 1
    assert g.C % g.groups == g.O % g.groups == 0


@pytest.mark.parametrize(
    "condition",
    [
        lambda g: g.kernel[0] > g.H and g.kernel[1] > g.W,
        lambda g: g.stride[0] > g.kernel[0],
        lambda g: g.groups > 1 and g.C // g.groups == 1,
        lambda g: g.dilation[0] > 1 < g.kernel[0],
        lambda g: (g.H + 2 * g.padding[0] - g.kernel[0]) % g.stride[0] and g.dilation == (1, 1),
        lambda g: g.kernel[0] != g.kernel[1] and g.padding[0] != g.padding[1],
        lambda g: g.kernel == (1, 1) and g.H == g.W == 1,
    ],
    ids=["kernel above image", "stride above kernel", "depthwise", "dilation", "leftover rows",
         "different per axis", "one pixel"],
)  # fmt: skip
def test_every_kind_of_convolution_is_drawn(condition: Any) -> None:
    smallest(st.conv_geometries(), condition)


def test_geometries_shrink_and_settings_hold() -> None:
    g = smallest(st.conv_geometries(), lambda g: True)
    assert (g.x_shape, g.weight_shape) == ((1, 1, 1, 1), (1, 1, 1, 1))
    g = smallest(st.conv_geometries(kernel=3, stride=(1, 2), padding=1, groups=2, batch=4),
                 lambda g: True)  # fmt: skip
    assert (g.kernel, g.stride, g.padding, g.groups, g.N) == ((3, 3), (1, 2), (1, 1), 2, 4)
    p = smallest(st.pool_geometries(kernel=(3, 2), count_include_pad=False), lambda p: True)
    assert (p.kernel, p.count_include_pad, p.dilation) == ((3, 2), False, (1, 1))
    wide = smallest(st.conv_geometries(channels=hyp.just(16)), lambda g: g.groups == 1)
    assert (wide.C, wide.O) == (16, 16)


@given(st.pool_geometries(dilation=hyp.integers(1, 2)))
def test_poolings_fit(g: PoolGeometry) -> None:
    assert min(g.out) >= 1
    assert all(p <= k // 2 for p, k in zip(g.padding, g.kernel, strict=True))


@given(hyp.data(), st.conv_geometries())
def test_arrays_of_a_geometry(data: Any, g: ConvGeometry) -> None:
    x, weight, gy = data.draw(st.conv_arrays(g, np.float32))
    assert (x.shape, weight.shape, gy.shape) == (g.x_shape, g.weight_shape, g.y_shape)
    assert x.dtype == weight.dtype == gy.dtype == np.float32


@settings(max_examples=15)
@given(st.small_nets())
def test_small_nets_have_right_gradients(net: st.DrawnNet) -> None:
    state = mr.functional.random.get_rng_state()
    y = net.model(net.x)
    assert y.shape[0] == net.x.shape[0]
    assert_gradients(net.model, net.x, eps=1e-5, rtol=1e-6, second_order=False)
    assert mr.functional.random.get_rng_state() == state
    assert sum(p.size for p in net.model.parameters()) < 5000


@pytest.mark.parametrize(
    "part", ["conv3x3", "option A", "pre_act", "head"]
)
def test_small_nets_shrink_to_one_part(part: str) -> None:
    net = smallest(st.small_nets(), lambda net: part in net.text)
    assert net.text.count(" - ") <= (1 if part == "head" else 0)
    assert "training" in net.text
    assert part in repr(net)
    evaluated = smallest(st.small_nets(head=True, training=False), lambda net: True)
    assert not evaluated.model.training
    assert isinstance(evaluated.model[-1], nn.Linear)


def test_a_planted_bug_is_found_and_shrunk() -> None:
    """A dilation that is forgotten: the smallest case has one, and nothing else."""

    def forgetful(x: Any, gy: Any, g: Any) -> Any:
        right = reference_conv.conv2d_grad_weight(x, gy, g)
        return right if g.dilation == (1, 1) else right[:, :, ::-1, ::-1].copy()

    def wrong(g: ConvGeometry) -> bool:
        try:
            check_conv_adjoints(g)
        except AssertionError:
            return True
        return False

    with planted(conv2d_grad_weight=forgetful):
        g = smallest(st.conv_geometries(), wrong)
    assert sorted(g.dilation) == [1, 2]
    assert sorted(g.kernel) == [1, 2]
    assert (g.N, g.C, g.O, g.groups, g.stride) == (1, 1, 1, 1, (1, 1))


def test_without_hypothesis_the_error_says_what_to_install() -> None:
    code = (
        "import sys; sys.modules['hypothesis'] = None\n"
        "import minires as mr; mr.testing.gradcheck\n"
        "try: mr.testing.strategies\n"
        "except ImportError as error: print(error)\n"
    )
    command = [sys.executable, "-c", code]
    result = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "pip install hypothesis" in result.stdout
    assert mr.testing.strategies is st
