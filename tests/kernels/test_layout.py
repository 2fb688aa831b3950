"""Conversions between NCHW and channels-last memory."""

from __future__ import annotations

import numpy as np
import pytest
from oracles import LAYOUTS, laid_out

from minires.kernels.layout import from_rows, rows, to_nchw, to_nhwc


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("shape", [(2, 3, 4, 5), (1, 1, 1, 1), (0, 3, 2, 2)])
def test_round_trips(shape: tuple[int, ...], layout: str, rng: np.random.Generator) -> None:
    x = laid_out(rng.standard_normal(shape), layout)
    last = to_nhwc(x)
    assert last.flags.c_contiguous
    np.testing.assert_array_equal(last, x.transpose(0, 2, 3, 1))
    np.testing.assert_array_equal(to_nchw(last), x)
    np.testing.assert_array_equal(from_rows(rows(x), shape), x)


def test_a_row_is_a_pixel() -> None:
    x = np.arange(2 * 3 * 2 * 2).reshape(2, 3, 2, 2)
    np.testing.assert_array_equal(rows(x)[5], x[1, :, 0, 1])
    table = np.arange(6.0).reshape(2, 3)
    np.testing.assert_array_equal(rows(table), table)


def test_channels_last_memory_is_not_copied() -> None:
    x = to_nchw(np.zeros((2, 4, 5, 3)))
    assert np.shares_memory(to_nhwc(x), x)
    assert np.shares_memory(rows(x), x)
    assert not np.shares_memory(to_nhwc(x.copy(order="C")), x)
