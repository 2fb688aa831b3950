"""Winograd for many channels: with small blocks, so that few channels already make several."""

from __future__ import annotations

from typing import Any

import numpy as np
import oracles
import pytest
from drawn import normal
from hypothesis import given
from hypothesis import strategies as st

pytest.importorskip("numba")
from minires.kernels import conv_geometry, threads
from minires.kernels.cpu import winograd, winograd_blocked

SETTINGS = ((1, 1), (1, 1), 1)  # stride, dilation, groups


def check(C: int, O: int, size: tuple[int, int], pad: int, N: int, seed: int) -> None:
    g = conv_geometry((N, C, *size), (O, C, 3, 3), 1, pad)
    stride, dilation, groups = SETTINGS
    settings = (stride, (pad, pad), dilation, groups)
    x, weight, gy = (
        normal(seed + k, s) for k, s in enumerate((g.x_shape, (O, C, 3, 3), g.y_shape))
    )
    found = (
        winograd.conv2d(x, weight, g),
        winograd.conv2d_grad_input(gy, weight, g),
        winograd.conv2d_grad_weight(x, gy, g),
    )
    expected = (
        oracles.conv2d(x, weight, *settings),
        oracles.conv2d_grad_input(gy, weight, x.shape, *settings),
        oracles.conv2d_grad_weight(x, gy, weight.shape, *settings),
    )
    for f, e in zip(found, expected, strict=True):
        np.testing.assert_allclose(f, e, rtol=0, atol=1e-12 * max(1.0, float(np.abs(e).max())))


@pytest.fixture(scope="module", autouse=True)
def small_blocks() -> Any:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(winograd, "LARGE", 0)
        patch.setattr(winograd, "LARGE_GRADIENT", 0)
        patch.setattr(winograd_blocked, "BLOCK", 32)
        yield


@given(
    C=st.sampled_from([16, 32, 48, 96]), O=st.sampled_from([16, 48, 64]),
    size=st.tuples(st.integers(3, 10), st.integers(3, 10)), pad=st.integers(0, 2),
    N=st.integers(1, 3), seed=st.integers(0, 99), workers=st.sampled_from([1, 2, 3, 64]),
)  # fmt: skip
def test_all_passes(
    C: int, O: int, size: tuple[int, int], pad: int, N: int, seed: int, workers: int
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(threads, "_count", workers)
        check(C, O, size, pad, N, seed)


def test_nothing_is_left_over_from_the_call_before(rng: np.random.Generator) -> None:
    """The same call twice, with the memory in between full of something else."""
    g = conv_geometry((2, 96, 7, 7), (64, 96, 3, 3), 1, 1)
    x, weight, gy = (
        rng.standard_normal(s).astype(np.float32) for s in (g.x_shape, (64, 96, 3, 3), g.y_shape)
    )
    calls = (
        lambda: winograd.conv2d(x, weight, g),
        lambda: winograd.conv2d_grad_input(gy, weight, g),
        lambda: winograd.conv2d_grad_weight(x, gy, g),
    )
    before = [call().tobytes() for call in calls]
    for _ in range(3):
        junk = [np.full(n, np.nan, np.float32) for n in (1 << 16, 1 << 18, 1 << 20)]
        del junk
        assert [call().tobytes() for call in calls] == before
