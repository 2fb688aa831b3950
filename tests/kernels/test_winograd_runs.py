"""Winograd for few channels on images wider than a run of tiles, with batches of tiles that begin
and end anywhere in a row: every pass with everything that is done on the way."""

from __future__ import annotations

from typing import Any

import numpy as np
import oracles
import pytest
from drawn import normal, seeds
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("numba", reason="needs Numba")
from minires.kernels import conv_geometry, threads
from minires.kernels.cpu import winograd, winograd_runs
from minires.kernels.fusing import After, Before, Rectified

WIDER = 4 * winograd_runs.RUN + 1


def close(found: Any, expected: Any) -> None:
    largest = max(1.0, float(np.abs(expected).max()))
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-11 * largest)


@settings(max_examples=30)
@given(
    C=st.sampled_from([16, 48]), O=st.sampled_from([16, 32]), H=st.integers(1, 9),
    W=st.integers(WIDER, WIDER + 13), pad=st.tuples(st.integers(1, 2), st.integers(0, 2)),
    N=st.integers(1, 4), workers=st.sampled_from([1, 2, 3]), seed=seeds,
)  # fmt: skip
def test_all_passes(
    C: int, O: int, H: int, W: int, pad: tuple[int, int], N: int, workers: int, seed: int
) -> None:
    """Against float64 convolutions of what batch norm and ReLU make of x, and their sums."""
    g = conv_geometry((N, C, H, W), (O, C, 3, 3), 1, pad)
    how = (1, 1), pad, (1, 1), 1
    x, weight, gy, shortcut = (
        normal(seed + k, shape)
        for k, shape in enumerate((g.x_shape, g.weight_shape, g.y_shape, g.y_shape))
    )
    mean, scale, shift = normal(seed + 4, (3, C))
    before, after = Before(mean, scale, shift), After(normal(seed + 5, (O,)), shortcut, True)
    z = (x - mean[:, None, None]) * scale[:, None, None] + shift[:, None, None]
    active = np.maximum(z, 0)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(threads, "_count", workers)
        y, mean_y, var_y = winograd.conv2d_fused(x, weight, g, before, None, True)
        finished = winograd.conv2d_fused(x, weight, g, before, after, False)
        gx, sums = winograd.conv2d_grad_input_fused(gy, weight, g, Rectified(x, *before))
        gweight = winograd.conv2d_grad_weight_fused(x, gy, g, before)
    expected = oracles.conv2d(active, weight, *how)
    close(y, expected)
    close(mean_y, expected.mean(axis=(0, 2, 3)))
    close(var_y, expected.var(axis=(0, 2, 3)))
    close(finished, np.maximum(expected + after.shift[:, None, None] + shortcut, 0))
    close(gweight, oracles.conv2d_grad_weight(active, gy, weight.shape, *how))
    gradient = oracles.conv2d_grad_input(gy, weight, x.shape, *how) * (z > 0)
    close(gx, gradient)
    along = gradient * (x - mean[:, None, None])
    close(sums, np.stack([gradient.sum(axis=(0, 2, 3)), along.sum(axis=(0, 2, 3))]))
