"""What is left after whole vectors follows the same rules: a NaN stays one in the last element."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from minires.kernels.cpu import elementwise

INPUT = np.array([np.nan, -1.0, 0.0, 2.0, np.inf, -np.inf])


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("size", [1, 7, 16, 17, 35])
def test_relu_and_the_join_in_every_element(size: int, dtype: Any) -> None:
    x = np.resize(INPUT, size).astype(dtype)
    for shift in range(len(INPUT)):  # each value comes to stand in the tail
        a = np.roll(x, shift)
        expected = np.where(np.isnan(a), a, np.maximum(a, 0))
        np.testing.assert_array_equal(elementwise.relu(a), expected)
        np.testing.assert_array_equal(elementwise.add_relu(a, np.zeros_like(a)), expected)
        mask = elementwise.relu_grad(np.ones_like(a), a)
        np.testing.assert_array_equal(mask, (a > 0).astype(dtype))
