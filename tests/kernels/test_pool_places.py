"""Every place of a window as the maximum, in turn: windows wider than high, dilated, in padding."""

from __future__ import annotations

import numpy as np
import pytest

from minires.kernels import pool_geometry
from minires.kernels.reference import pool as reference


@pytest.mark.parametrize("kernel", [(1, 3), (3, 1), (2, 3), (3, 2), (2, 4), (4, 3)])
def test_each_place_of_the_window(kernel: tuple[int, int]) -> None:
    """A place is u * KW + v: with KH for KW, places of wide windows coincide."""
    KH, KW = kernel
    g = pool_geometry("max_pool2d", (1, 1, KH, KW), kernel)
    for u, v in np.ndindex(KH, KW):
        x = np.zeros((1, 1, KH, KW))
        x[0, 0, u, v] = 1.0
        _, indices = reference.max_pool2d(x, g)
        assert indices.item() == u * KW + v
        np.testing.assert_array_equal(
            reference.max_pool2d_grad(np.full((1, 1, 1, 1), 2.0), indices, g), 2.0 * x
        )
        assert reference.max_pool2d_take(x, indices, g).item() == 1.0


@pytest.mark.parametrize("dilation", [1, 2, 3])
def test_windows_of_minus_infinity_point_at_their_first_real_pixel(dilation: int) -> None:
    """With a dilation, the padding is passed in fewer, longer steps."""
    g = pool_geometry("max_pool2d", (1, 1, 12, 11), 5, 1, 2, dilation)
    _, indices = reference.max_pool2d(np.full(g.x_shape, -np.inf), g)
    for i, j in np.ndindex(*g.out):
        u, v = divmod(int(indices[0, 0, i, j]), 5)
        top, left = i - 2, j - 2
        rows = [k for k in range(5) if 0 <= top + k * dilation < 12]
        columns = [k for k in range(5) if 0 <= left + k * dilation < 11]
        assert (u, v) == (rows[0], columns[0])
