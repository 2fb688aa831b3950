"""The statistics of a batch norm on their own, as a convolution before it may hand them on."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

norm = pytest.importorskip("minires.kernels.cpu.norm", reason="needs Numba")


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_they_are_those_of_the_training_pass(dtype: Any, rng: np.random.Generator) -> None:
    x = (3 * rng.standard_normal((2, 5, 7, 32)) + 100).astype(dtype).transpose(0, 3, 1, 2)
    found = norm.batch_norm_statistics(x, 1e-3)
    wide = x.astype(np.float64)
    mean, var = wide.mean(axis=(0, 2, 3)), wide.var(axis=(0, 2, 3))
    expected = mean, var, (var + 1e-3) ** -0.5
    for value, trained, true in zip(
        found, norm.batch_norm_train(x, None, None, 1e-3)[1:], expected, strict=True
    ):
        assert value.dtype == dtype
        np.testing.assert_array_equal(value, trained)
        np.testing.assert_allclose(value, true, rtol=1e-5 if dtype is np.float32 else 1e-11)
