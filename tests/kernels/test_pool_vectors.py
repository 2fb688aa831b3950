"""The fast max pooling against the reference, bit by bit: it compares and adds in its order."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from drawn import PoolCase, layouts, normal, pool_cases, seeds
from hypothesis import given
from hypothesis import strategies as st
from oracles import laid_out

from minires.kernels import pool_geometry, threads
from minires.kernels.reference import pool as reference

pool = pytest.importorskip("minires.kernels.cpu.pool", reason="needs Numba")


def values(seed: int, shape: tuple[int, ...], kind: str, dtype: Any) -> Any:
    """Numbers, or many ties, or NaN, infinities and both zeros among them."""
    rng = np.random.default_rng(seed)
    if kind == "ties":
        return rng.integers(-1, 2, shape).astype(dtype)
    x = rng.standard_normal(shape).astype(dtype)
    if kind == "special":
        some = rng.random(shape) < 0.5
        x[some] = rng.choice(np.array([-np.inf, np.nan, np.inf, 0.0, -0.0], dtype), some.sum())
    return x


def check(x: Any, gy: Any, g: Any) -> None:
    copies = x.copy(), gy.copy()
    y, places = pool.max_pool2d(x, g)
    expected, expected_places = reference.max_pool2d(x, g)
    assert (y.dtype, places.dtype) == (x.dtype, np.int32)
    # The first of equal zeros is chosen, whatever their signs.
    np.testing.assert_array_equal(places, expected_places)
    assert y.tobytes() == expected.tobytes()
    gx = pool.max_pool2d_grad(gy, places, g)
    assert gx.tobytes() == reference.max_pool2d_grad(gy, places, g).tobytes()
    for array, copy in zip((x, gy), copies, strict=True):
        assert array.tobytes() == copy.tobytes()


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@given(
    case=pool_cases(dilated=True), channels=st.sampled_from([1, 3, 8, 16, 19, 48]),
    kind=st.sampled_from(["numbers", "ties", "special"]), layout=layouts, seed=seeds,
)  # fmt: skip
def test_drawn_windows(
    case: PoolCase, channels: int, kind: str, layout: str, seed: int, dtype: Any
) -> None:
    shape = (case.x_shape[0], channels, *case.x_shape[2:])
    g = pool_geometry("max_pool2d", shape, case.kernel, case.stride, case.padding, case.dilation)
    x = laid_out(values(seed, shape, kind, dtype), layout)
    check(x, laid_out(normal(seed + 1, g.y_shape, dtype), layout), g)


@pytest.mark.parametrize("count", [1, 2, 3, 64])
def test_any_number_of_threads(count: int, monkeypatch: Any) -> None:
    monkeypatch.setattr(threads, "_count", count)
    g = pool_geometry("max_pool2d", (2, 20, 9, 7), 3, 2, 1)
    check(values(0, g.x_shape, "ties", np.float32), normal(1, g.y_shape, np.float32), g)


def test_a_place_beyond_a_byte() -> None:
    """Places are kept as numbers of the array's own kind on the way."""
    g = pool_geometry("max_pool2d", (1, 16, 40, 50), (33, 41), 3, 2)
    check(values(0, g.x_shape, "numbers", np.float32), normal(1, g.y_shape, np.float32), g)
