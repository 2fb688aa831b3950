"""Winograd for many channels: with small blocks, so that few channels already make several."""

from __future__ import annotations

from typing import Any

import numpy as np
import oracles
import pytest
from drawn import normal, seeds
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
    size=st.tuples(st.integers(3, 16), st.integers(3, 16)), pad=st.integers(0, 2),
    N=st.integers(1, 3), seed=st.integers(0, 99), workers=st.sampled_from([1, 2, 3, 64]),
)  # fmt: skip
def test_all_passes(
    C: int, O: int, size: tuple[int, int], pad: int, N: int, seed: int, workers: int
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(threads, "_count", workers)
        check(C, O, size, pad, N, seed)


@given(size=st.tuples(st.integers(1, 16), st.integers(1, 16)), pad=st.integers(1, 2), seed=seeds)
def test_the_passes_are_adjoint_to_each_other(size: tuple[int, int], pad: int, seed: int) -> None:
    """<gy, conv(x, w)> = <gx, x> = <dw, w>."""
    g = conv_geometry((2, 32, *size), (48, 32, 3, 3), 1, pad)
    x, weight, gy = (
        normal(seed + k, s) for k, s in enumerate((g.x_shape, g.weight_shape, g.y_shape))
    )
    forward = float((winograd.conv2d(x, weight, g) * gy).sum())
    back = float((winograd.conv2d_grad_input(gy, weight, g) * x).sum())
    across = float((winograd.conv2d_grad_weight(x, gy, g) * weight).sum())
    scale = np.sqrt(gy.size) * g.C * 9
    assert abs(forward - back) < 1e-12 * scale
    assert abs(forward - across) < 1e-12 * scale


@pytest.mark.parametrize("size", [7, 14])
def test_tiles_of_three_err_no_more_than_tiles_of_four(size: int) -> None:
    """Largest error over largest value, float32, against four more pixels: whole tiles of 4."""
    rng, errors = np.random.default_rng(0), []
    weight = rng.standard_normal((64, 64, 3, 3)).astype(np.float32)
    for n in (size, 16):
        g = conv_geometry((4, 64, n, n), weight.shape, 1, 1)
        x = np.maximum(rng.standard_normal(g.x_shape), 0).astype(np.float32)
        gy = rng.standard_normal(g.y_shape).astype(np.float32)
        settings = ((1, 1), (1, 1), (1, 1), 1)
        wide = [a.astype(np.float64) for a in (x, weight, gy)]
        pairs = (
            (winograd.conv2d(x, weight, g), oracles.conv2d(*wide[:2], *settings)),
            (
                winograd.conv2d_grad_input(gy, weight, g),
                oracles.conv2d_grad_input(wide[2], wide[1], x.shape, *settings),
            ),
            (
                winograd.conv2d_grad_weight(x, gy, g),
                oracles.conv2d_grad_weight(wide[0], wide[2], weight.shape, *settings),
            ),
        )
        errors.append([float(np.abs(f - e).max() / np.abs(e).max()) for f, e in pairs])
    ragged, whole = np.array(errors)
    assert (ragged < 1.5 * whole).all()
    assert (ragged > 1e-8).all()
    assert (ragged < 1e-5).all()


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
