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
from minires.kernels.fusing import Before, Pooled
from minires.kernels.reference import pool as reference

pool = pytest.importorskip("minires.kernels.cpu.pool", reason="needs Numba")
norm = pytest.importorskip("minires.kernels.cpu.norm", reason="needs Numba")
simd = pytest.importorskip("minires.kernels.cpu.simd", reason="needs Numba")


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


# -- behind a batch norm and a ReLU ----------------------------------------------------------------


def check_normalised(x: Any, gradient: Any, before: Before, g: Any) -> None:
    """The bits of normalising, pooling, and their gradients one after the other."""
    copies = x.copy(), gradient.copy()
    largest, places = pool.max_pool2d_fused(x, g, before)
    y, expected = reference.max_pool2d(norm.normalise(x, *before, None, True), g)
    assert (largest.dtype, places.dtype) == (x.dtype, np.int8)
    np.testing.assert_array_equal(places, expected)
    np.testing.assert_array_equal(largest, reference.max_pool2d_take(x, expected, g))
    assert norm.normalise(largest, *before, None, True).tobytes() == y.tobytes()

    if x.size == 0:  # what has no values has no batch norm
        return
    C = x.shape[1]
    rest = normal(3, (C,), x.dtype), None, before.mean, abs(before.scale), normal(4, (2, C))
    gy = pool.max_pool2d_grad(gradient, expected, g)
    stand_in = np.broadcast_to(x.dtype.type(np.nan), x.shape)
    found = norm.batch_norm_relu_grad_fused(stand_in, x, *rest, Pooled(gradient, places, g))
    plain = norm.batch_norm_relu_grad_fused(gy, x, *rest)  # in the memory of gy
    for a, b in zip(found, plain, strict=True):
        np.testing.assert_array_equal(a, b)
    for array, copy in zip((x, gradient), copies, strict=True):
        assert array.tobytes() == copy.tobytes()


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@given(
    case=pool_cases(), channels=st.sampled_from([16, 48]),
    kind=st.sampled_from(["numbers", "ties", "special"]), layout=layouts, seed=seeds,
    workers=st.sampled_from([1, 2, 3, 64]), streamed=st.booleans(),
)  # fmt: skip
def test_normalised_windows(
    case: PoolCase, channels: int, kind: str, layout: str, seed: int, workers: int, streamed: bool,
    dtype: Any,
) -> None:  # fmt: skip
    shape = (case.x_shape[0], channels, *case.x_shape[2:])
    g = pool_geometry("max_pool2d", shape, case.kernel, case.stride, case.padding)
    x = laid_out(values(seed, shape, kind, dtype), layout)
    mean, scale, shift = normal(seed + 2, (3, channels), dtype)
    with pytest.MonkeyPatch.context() as patch, np.errstate(invalid="ignore"):
        patch.setattr(threads, "_count", workers)
        if streamed:
            patch.setattr(pool, "streams", lambda array: simd.streams(array, least=0))
        check_normalised(
            x, laid_out(normal(seed + 1, g.y_shape, dtype), layout), Before(mean, scale, shift), g
        )


def test_everything_below_zero_is_pooled_as_its_first() -> None:
    g = pool_geometry("max_pool2d", (1, 16, 3, 3), 3, 2, 1)
    x = np.arange(16 * 9, dtype=np.float32).reshape(g.x_shape)
    one = np.ones(16, np.float32)
    largest, places = pool.max_pool2d_fused(x, g, Before(0 * one, -one, 0 * one))
    assert places[0, 1].tolist() == [[4, 3], [1, 0]]
    assert largest[0, 1].tolist() == [[9, 10], [12, 13]]
