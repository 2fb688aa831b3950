"""Arrays of more than 2^31 elements: places beyond it are reached, and are the right ones.

They need a GPU with room for them. Every result is held against the same operation on a part of
the arrays that is small; where sums go over everything, the parts are known.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from minires.kernels import conv_geometry, use
from minires.kernels import operations as ops

ROOM = 40 << 30
"""Bytes of free memory that the largest of these tests may take."""

N, C, H, W = 1 + (1 << 13), 64, 64, 64  # 2^31 elements, and one image more
LAST = slice(N - 2, N)


@pytest.fixture(scope="module")
def cupy() -> Any:
    module = pytest.importorskip("cupy", reason="no CuPy: install minires[cuda12] or [cuda13]")
    try:
        free, _ = module.cuda.runtime.memGetInfo()
    except module.cuda.runtime.CUDARuntimeError as error:
        pytest.skip(f"no GPU: {error}")
    if free < ROOM:
        pytest.skip(f"needs {ROOM >> 30} GiB of free GPU memory, there are {free >> 30}")
    return module


@pytest.fixture(autouse=True)
def _give_back(cupy: Any) -> Any:
    yield
    cupy.get_default_memory_pool().free_all_blocks()


def images(cupy: Any, dtype: Any = np.float16) -> Any:
    """(N, C, H, W), channels last: zeros but for the last two images."""
    x = cupy.zeros((N, H, W, C), dtype)
    x[LAST] = cupy.asarray(np.random.default_rng(0).standard_normal((2, H, W, C)).astype(dtype))
    return x.transpose(0, 3, 1, 2)


def close(found: Any, right: Any) -> None:
    np.testing.assert_allclose(
        found.get().astype(np.float32), right.get().astype(np.float32), rtol=2e-3, atol=2e-3
    )


@pytest.mark.gpu
def test_elementwise(cupy: Any) -> None:
    x = images(cupy)
    y = ops.relu(x)
    close(y[LAST], ops.relu(x[LAST]))
    assert not bool(y[: N - 2].any())


@pytest.mark.gpu
def test_batch_norm(cupy: Any) -> None:
    x = images(cupy)
    y, mean, var, inv_std = ops.batch_norm_relu_train(x, None, None, 1e-5)
    last, count = x[LAST].astype(np.float64), float(N * H * W)
    right = last.sum(axis=(0, 2, 3)) / count
    np.testing.assert_allclose(mean.get(), right.get(), atol=1e-6)
    squares = (last * last).sum(axis=(0, 2, 3)) / count - right * right
    np.testing.assert_allclose(var.get(), squares.get(), rtol=1e-3)
    column = (1, C, 1, 1)
    z = (last - right.reshape(column)) * inv_std.astype(np.float64).reshape(column)
    np.testing.assert_allclose(y[LAST].get(), z.get().clip(0), rtol=5e-3, atol=5e-3)


@pytest.mark.gpu
@pytest.mark.parametrize("name", ["implicit", "tensor", "mma"])
def test_convolutions_of_16_bits(cupy: Any, name: str) -> None:
    x = images(cupy)
    rng = np.random.default_rng(1)
    weight = cupy.asarray((0.05 * rng.standard_normal((C, C, 3, 3))).astype(np.float16))
    g = conv_geometry(x.shape, weight.shape, 1, 1)
    small = conv_geometry((2, C, H, W), weight.shape, 1, 1)
    with use(conv2d=name, conv2d_grad_input=name, conv2d_grad_weight=name):
        y = ops.conv2d(x, weight, g)
        close(y[LAST], ops.conv2d(x[LAST], weight, small))
        assert not bool(y[: N - 2].any())
        del y
        gx = ops.conv2d_grad_input(x, weight, g)
        close(gx[LAST], ops.conv2d_grad_input(x[LAST], weight, small))
        del gx
        found = ops.conv2d_grad_weight(x, x, g)
        right = ops.conv2d_grad_weight(x[LAST], x[LAST], small)
        scale = float(abs(right).max())
        np.testing.assert_allclose(found.get() / scale, right.get() / scale, atol=5e-3)


@pytest.mark.gpu
@pytest.mark.parametrize("name", ["implicit", "winograd4"])
def test_convolutions_of_32_bits(cupy: Any, name: str) -> None:
    x = images(cupy, np.float32)
    rng = np.random.default_rng(1)
    weight = cupy.asarray((0.05 * rng.standard_normal((C, C, 3, 3))).astype(np.float32))
    g = conv_geometry(x.shape, weight.shape, 1, 1)
    small = conv_geometry((2, C, H, W), weight.shape, 1, 1)
    with use(conv2d=name):
        y = ops.conv2d(x, weight, g)
        close(y[LAST], ops.conv2d(x[LAST], weight, small))
        assert not bool(y[: N - 2].any())
