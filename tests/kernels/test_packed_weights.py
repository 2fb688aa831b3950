"""Weights in panels hold what the matrix of weights holds, and zeros beyond its last column."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from minires.kernels.cpu.weights import packed, packed_transposed


@pytest.mark.parametrize("panel", [16, 32])
@pytest.mark.parametrize(
    "shape",
    [
        (48, 32, 3, 3), (17, 48, 1, 1), (16, 3, 7, 7), (1, 5, 2, 2),
        (273, 499, 1, 1), (256, 58, 3, 3),  # large enough for all threads
    ],
)  # fmt: skip
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_packed_weights(shape: Any, panel: int, dtype: str, rng: np.random.Generator) -> None:
    """Rows (u, v, c) and columns o in panels; transposed, rows o and columns (u, v, c)."""
    weight = rng.standard_normal(shape).astype(dtype)
    matrix = weight.transpose(2, 3, 1, 0).reshape(-1, shape[0])
    for found, expected in (
        (packed(weight, panel), matrix),
        (packed_transposed(weight, panel), matrix.T),
    ):
        rows, width = expected.shape
        whole = np.zeros((rows, -(-width // panel) * panel), dtype)
        whole[:, :width] = expected
        panels = whole.reshape(rows, -1, panel).transpose(1, 0, 2)
        np.testing.assert_array_equal(found.reshape(panels.shape), panels)
