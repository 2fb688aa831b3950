"""Input gradients of strided 1x1 layers: pixels put in their places, zeros or a total between."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from drawn import layouts, normal, pairs, seeds
from hypothesis import given
from hypothesis import strategies as st
from oracles import conv2d_grad_input, laid_out

from minires.kernels import conv_geometry, memory, threads

columns = pytest.importorskip("minires.kernels.cpu.columns", reason="needs Numba")


def dirty(shape: Any, dtype: Any) -> Any:
    """What is not written shows."""
    return np.full(shape, np.nan, dtype)


@given(
    N=st.integers(0, 3), C=st.sampled_from([16, 48, 80]), O=st.integers(1, 40),
    size=pairs(1, 13), stride=pairs(1, 4), layout=layouts, workers=st.sampled_from([1, 2, 7]),
    dtype=st.sampled_from([np.float32, np.float64]), seed=seeds,
)  # fmt: skip
def test_drawn_layers(
    N: int, C: int, O: int, size: Any, stride: Any, layout: str, workers: int, dtype: Any, seed: int
) -> None:
    """Rows and columns of pixels that no window looks at, also at the far edges."""
    g = conv_geometry((N, C, *size), (O, C, 1, 1), stride)
    gy = laid_out(normal(seed, g.y_shape, dtype), layout)
    weight = normal(seed + 1, g.weight_shape, dtype)
    total = normal(seed + 2, (N, *size, C), dtype).transpose(0, 3, 1, 2)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(threads, "_count", workers)
        patch.setattr(memory, "empty", dirty)
        gx = columns.conv2d_grad_input(gy, weight, g)
        added = columns.add_conv2d_grad_input(total.copy(), gy, weight, g)
    expected = conv2d_grad_input(
        gy.astype(np.float64), weight.astype(np.float64), g.x_shape, stride, (0, 0), (1, 1), 1
    )
    scale = {np.float32: 1e-5, np.float64: 1e-13}[dtype]
    largest = np.abs(expected).max() if expected.size else 0
    np.testing.assert_allclose(gx, expected, rtol=0, atol=scale * largest)
    np.testing.assert_array_equal(added, total + gx)
