"""The input gradient of strided layers by phases: every pixel once, whatever the geometry."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from drawn import layouts, normal, pairs, seeds
from hypothesis import assume, given
from hypothesis import strategies as st
from oracles import conv2d_grad_input, laid_out

from minires.kernels import conv_geometry, memory, threads
from minires.kernels.cpu.tile import FRESH, ONTO

phases = pytest.importorskip("minires.kernels.cpu.phases", reason="needs Numba")


def found(gy: Any, weight: Any, g: Any, total: Any = None) -> Any:
    gx = memory.empty((g.N, g.H, g.W, g.C), gy.dtype) if total is None else total
    if total is None:
        gx.fill(np.nan)  # what is not written shows
    return phases.grad_input(gy, weight, g, gx, FRESH if total is None else ONTO)


@given(
    N=st.integers(0, 3), channels=pairs(1, 3), size=pairs(1, 12), kernel=pairs(1, 5),
    stride=pairs(1, 4), padding=pairs(0, 3), layout=layouts, workers=st.sampled_from([1, 2, 7]),
    band=st.sampled_from([1, phases.BAND]), seed=seeds,
)  # fmt: skip
def test_drawn_layers(
    N: int, channels: Any, size: Any, kernel: Any, stride: Any, padding: Any, layout: str,
    workers: int, band: int, seed: int,
) -> None:  # fmt: skip
    """band: one byte is one row at a time."""
    assume(stride != (1, 1) != kernel)
    assume(all(s + 2 * p >= k for s, p, k in zip(size, padding, kernel, strict=True)))
    C, O = 16 * channels[0], 5 * channels[1]
    g = conv_geometry((N, C, *size), (O, C, *kernel), stride, padding)
    assert phases.fits(g, 16)
    gy = laid_out(normal(seed, g.y_shape, np.float32), layout)
    weight = normal(seed + 1, g.weight_shape, np.float32)
    total = normal(seed + 2, (N, *size, C), np.float32)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(threads, "_count", workers)
        patch.setattr(phases, "BAND", band)
        gx = found(gy, weight, g)
        added = found(gy, weight, g, total.copy())
    expected = conv2d_grad_input(
        gy.astype(np.float64), weight.astype(np.float64), g.x_shape, stride, padding, (1, 1), 1
    )
    np.testing.assert_allclose(gx, expected, rtol=0, atol=1e-4 * max(np.abs(expected).max(), 1)
                               if expected.size else 0)  # fmt: skip
    np.testing.assert_array_equal(added, total.transpose(0, 3, 1, 2) + gx)


@pytest.mark.parametrize(
    ("weight", "stride", "dilation"),
    [
        ((32, 16, 3, 3), 1, 1),
        ((32, 16, 1, 1), 2, 1),
        ((32, 16, 3, 3), 2, 2),
        ((32, 24, 3, 3), 2, 1),
        ((512, 256, 3, 3), 2, 1),
    ],
)
def test_what_does_not_fit(weight: Any, stride: int, dilation: int) -> None:
    g = conv_geometry((1, weight[1], 9, 9), weight, stride, 1, dilation)
    assert not phases.fits(g, 16)
