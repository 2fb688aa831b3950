"""Large results written past the caches have the same bits as those that are not."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from minires.kernels import conv_geometry
from minires.kernels.fusing import After

norm = pytest.importorskip("minires.kernels.cpu.norm", reason="needs Numba")
simd = pytest.importorskip("minires.kernels.cpu.simd", reason="needs Numba")
winograd = pytest.importorskip("minires.kernels.cpu.winograd", reason="needs Numba")


def images(rng: np.random.Generator, shape: tuple[int, ...], dtype: Any) -> Any:
    N, C, H, W = shape
    return rng.standard_normal((N, H, W, C)).astype(dtype).transpose(0, 3, 1, 2)


@pytest.fixture
def streamed(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """Everything goes past the caches; what was asked for."""
    asked: list[bool] = []

    def always(array: Any, least: int = 0) -> bool:
        asked.append(array.ctypes.data % simd.VECTOR_BYTES == 0)
        return asked[-1]

    monkeypatch.setattr(norm, "streams", always)
    monkeypatch.setattr(winograd, "streams", always)
    return asked


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("shortcut", [False, True])
def test_winograd(
    shortcut: bool, dtype: Any, rng: np.random.Generator, request: pytest.FixtureRequest
) -> None:
    g = conv_geometry((2, 16, 9, 6), (32, 16, 3, 3), 1, 1)  # tiles that stick out over both edges
    x, weight = images(rng, g.x_shape, dtype), rng.standard_normal(g.weight_shape).astype(dtype)
    r = images(rng, g.y_shape, dtype) if shortcut else None
    after = After(rng.standard_normal(32).astype(dtype), r, True)
    stored = winograd.conv2d_fused(x, weight, g, None, after, False)
    asked = request.getfixturevalue("streamed")
    found = winograd.conv2d_fused(x, weight, g, None, after, False)
    assert asked == [True]
    np.testing.assert_array_equal(found, stored)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_batch_norm(dtype: Any, rng: np.random.Generator, request: pytest.FixtureRequest) -> None:
    shape = (3, 32, 5, 7)
    x, r, gy = (images(rng, shape, dtype) for _ in range(3))
    gamma, beta = (rng.standard_normal(32).astype(dtype) for _ in range(2))

    def everything() -> list[Any]:
        y, mean, _, inv_std = norm.batch_norm_add_relu_train(x, r, gamma, beta, 1e-5)
        plain = norm.batch_norm_relu_train(x, gamma, beta, 1e-5)[0]
        return [y, plain, *norm.batch_norm_add_relu_grad(gy, x, y, gamma, mean, inv_std)]

    stored = everything()
    asked = request.getfixturevalue("streamed")
    for a, b in zip(everything(), stored, strict=True):
        np.testing.assert_array_equal(a, b)
    assert asked == [True] * 4


def test_only_what_is_large_and_aligned() -> None:
    room = np.empty(1 << 12, np.uint8)
    start = -room.ctypes.data % simd.VECTOR_BYTES
    assert simd.streams(room[start:], 1 << 10)
    assert not simd.streams(room[start:], 1 << 20)
    assert not simd.streams(room[start + 4 :], 1 << 10)
