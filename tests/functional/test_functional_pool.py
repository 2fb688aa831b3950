"""Pooling through the tape: gradients to third order, and the arguments that are refused."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import oracles
import pytest
from drawn import PoolCase, normal, pool_cases, seeds
from hypothesis import given
from hypothesis import strategies as st

import minires as mr
from minires import functional as F
from minires.testing.compare import assert_close


@given(case=pool_cases(dilated=True), seed=seeds)
def test_max_pool(case: PoolCase, seed: int) -> None:
    settings = (case.kernel, case.stride, case.padding, case.dilation)
    array = np.random.default_rng(seed).permutation(int(np.prod(case.x_shape))) * 0.5
    x = mr.Tensor(array.reshape(case.x_shape), requires_grad=True)
    y = F.max_pool2d(x, *settings)
    expected, origins = oracles.max_pool2d(x.numpy(), *settings)
    assert_close(y, expected)
    gy = normal(seed, y.shape)
    gx = np.zeros(x.shape)
    for output, origin in origins:
        if origin is not None:
            gx[origin] += gy[output]
    assert_close(mr.grad(y, [x], gy)[0], gx)


@given(case=pool_cases(), include=st.booleans(), seed=seeds)
def test_avg_pool(case: PoolCase, include: bool, seed: int) -> None:
    x = mr.Tensor(normal(seed, case.x_shape), requires_grad=True)
    y = F.avg_pool2d(
        x, case.kernel, case.stride, case.padding, count_include_pad=include
    )
    settings = (case.kernel, case.stride, case.padding, include)
    assert_close(y, oracles.avg_pool2d(x.numpy(), *settings))
    gy = normal(seed, y.shape)
    (gx,) = mr.grad(y, [x], gy)
    assert_close((gx * x).sum().item(), (gy * y.numpy()).sum(), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("out", [1, 2, (3, 1), (7, 9), [2, 3]])
def test_adaptive_avg_pool(out: Any, rng: np.random.Generator) -> None:
    x = mr.Tensor(rng.standard_normal((2, 3, 5, 4)), requires_grad=True)
    y = F.adaptive_avg_pool2d(x, out)
    pair = (out, out) if isinstance(out, int) else tuple(out)

    def definition(x: Any) -> Any:
        return oracles.adaptive_avg_pool2d(x, pair)

    assert_close(y, definition(x.numpy()))
    gy = rng.standard_normal(y.shape)
    (expected,) = oracles.complex_step_gradients(definition, [x.numpy()], gy)
    assert_close(mr.grad(y, [x], gy)[0], expected)


POOLS: dict[str, Callable[[Any], Any]] = {
    "max": lambda x: F.max_pool2d(x, 2, 1, 1),
    "avg": lambda x: F.avg_pool2d(x, 2, 1, 1, count_include_pad=False),
    "adaptive": lambda x: F.adaptive_avg_pool2d(x, (2, 3)),
}


@pytest.mark.parametrize("name", POOLS)
def test_to_third_order(name: str, rng: np.random.Generator) -> None:
    """pool(x^3) differentiates to adjoint(u) * 3x^2, and so on: the adjoint is linear in u."""
    pool = POOLS[name]
    array = rng.permutation(12).reshape(1, 1, 3, 4) * 0.25 + 0.25
    x = mr.Tensor(array, requires_grad=True)
    y = pool(x * x * x)
    u = mr.Tensor(rng.standard_normal(y.shape), requires_grad=True)
    probe = mr.Tensor(array**3, requires_grad=True)
    (adjoint,) = mr.grad(pool(probe), [probe], u.detach())
    (g,) = mr.grad(y, [x], u, create_graph=True)
    assert_close(g, adjoint.numpy() * 3 * array**2)
    v = rng.standard_normal(array.shape)
    gx, gu = mr.grad((g * v).sum(), [x, u], create_graph=True)
    assert_close(gx, adjoint.numpy() * 6 * array * v)
    # <v, 3x^2 pool*(u)> is linear in u: its gradient is the pooled direction, at the same maxima.
    assert_close((gu * u).sum().item(), (g * v).sum().item(), rtol=1e-9)
    (third,) = mr.grad((gx * v).sum(), [x], retain_graph=True)
    assert_close(third, adjoint.numpy() * 6 * v * v)
    (mixed,) = mr.grad((gu * u.detach()).sum(), [x])
    assert_close(mixed, adjoint.numpy() * 6 * array * v)


def test_defaults() -> None:
    x = np.arange(36.0).reshape(1, 1, 6, 6)
    assert F.max_pool2d(x, 3).shape == (1, 1, 2, 2)
    assert F.avg_pool2d(x, (2, 3)).shape == (1, 1, 3, 2)
    assert_close(F.max_pool2d(x, 3, stride=3), F.max_pool2d(x, 3))
    assert_close(F.avg_pool2d(np.ones((1, 1, 2, 2)), 2, 2, 1), np.full((1, 1, 2, 2), 0.25))


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda x: F.max_pool2d(x[0], 2), ValueError, r"max_pool2d: expected x \(N, C, H, W\), "),
        (lambda x: F.avg_pool2d(x, 5), ValueError, "avg_pool2d: the 5x5 window does not fit"),
        (lambda x: F.max_pool2d(x, 2, padding=2), ValueError, "max_pool2d: padding 2x2 is more"),
        (lambda x: F.max_pool2d(x, 2, ceil_mode=True), ValueError, "ceil_mode=True is not supp"),
        (lambda x: F.avg_pool2d(x, 2, ceil_mode=True), ValueError, "ceil_mode=True is not supp"),
        (lambda x: F.max_pool2d(x, 2.0), TypeError, "max_pool2d: kernel_size takes integers"),
        (lambda x: F.max_pool2d(x.astype(int), 2), TypeError, "x must be floating point, got int"),
        (lambda x: F.adaptive_avg_pool2d(x, 0), ValueError, "output_size must be at least 1"),
        (lambda x: F.adaptive_avg_pool2d(x[0], 1), ValueError, r"adaptive_avg_pool2d: expected x"),
        (lambda x: F.adaptive_avg_pool2d(x[:, :, :0], 1), ValueError, "x 1x2x0x4 has no pixel to"),
    ],
)
def test_refusals(call: Any, error: Any, message: str) -> None:
    with pytest.raises(error, match=message):
        call(np.ones((1, 2, 4, 4)))


def test_no_image_at_all() -> None:
    x = mr.Tensor(np.ones((0, 2, 4, 4)), requires_grad=True)
    for y, size in (
        (F.max_pool2d(x, 2), 2), (F.avg_pool2d(x, 2), 2), (F.adaptive_avg_pool2d(x, 1), 1)
    ):  # fmt: skip
        assert y.shape == (0, 2, size, size)
        assert mr.grad(y.sum(), [x])[0].shape == x.shape
