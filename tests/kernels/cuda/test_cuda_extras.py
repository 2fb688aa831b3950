"""What the operations do not cover: joins with a residual, cross-entropy, SGD, casts."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from minires.kernels.cuda import chunks, elementwise, norm, pool, sgd, softmax
from minires.kernels.geometry import pool_geometry
from minires.kernels.reference import pool as reference_pool
from minires.testing.kernels import laid_out


@pytest.mark.parametrize("first", [1e4, 0.0], ids=["like the rest", "an outlier"])
@pytest.mark.parametrize("C", [3, 8])
def test_statistics_with_a_large_mean(device: Any, rng: Any, C: int, first: float) -> None:
    """Mean 1e4, deviation 1, float32; the first value, from which all are taken, may be odd."""
    x = (1e4 + rng.standard_normal((16, C, 9, 7))).astype(np.float32)
    x[0, :, 0, 0] = first
    y, mean, var, inv_std = device(norm.batch_norm_train, x, None, None, 1e-5)
    exact = x.astype(np.float64)
    m, s2 = exact.mean(axis=(0, 2, 3)), exact.var(axis=(0, 2, 3))
    np.testing.assert_allclose(mean, m, rtol=1e-7)
    np.testing.assert_allclose(var, s2, rtol=1e-5)
    np.testing.assert_allclose(inv_std, 1 / np.sqrt(s2 + 1e-5), rtol=1e-5)
    shape = (1, C, 1, 1)
    right = (exact - m.reshape(shape)) / np.sqrt(s2 + 1e-5).reshape(shape)
    # With an outlier the distances are 1e4 themselves, in units of float32's 6e-8.
    np.testing.assert_allclose(y, right, atol=2e-5 if first else 2e-3, rtol=1e-5)


@pytest.mark.parametrize("C", [3, 8])
def test_statistics_over_many_blocks(device: Any, rng: Any, C: int) -> None:
    """Every block joins its own mean, and these differ: a drift by 3 deviations over the batch."""
    x = rng.standard_normal((48, C, 21, 20)) + np.linspace(-1.5, 1.5, 48).reshape(-1, 1, 1, 1)
    x = (1e4 + x).astype(np.float32)
    _, mean, var, _ = device(norm.batch_norm_train, x, None, None, 1e-5)
    exact = x.astype(np.float64)
    np.testing.assert_allclose(mean, exact.mean(axis=(0, 2, 3)), rtol=1e-7)
    np.testing.assert_allclose(var, exact.var(axis=(0, 2, 3)), rtol=1e-5)


@pytest.mark.parametrize("C", [3, 8])
@pytest.mark.parametrize("given", [np.uint8, np.int32, np.int64])
def test_places_of_every_integer_type(device: Any, rng: Any, C: int, given: Any) -> None:
    """Bytes where they are enough, as here, and whatever else another kernel wrote."""
    g = pool_geometry("max_pool2d", (2, C, 9, 8), 3, 2, 1)
    x, gy = rng.standard_normal(g.x_shape), rng.standard_normal(g.y_shape)
    _, places = device(pool.max_pool2d, x, g)
    right, right_places = reference_pool.max_pool2d(x, g)
    assert places.dtype == np.uint8
    np.testing.assert_array_equal(places, right_places)
    np.testing.assert_array_equal(device(pool.max_pool2d_take, x, places.astype(given), g), right)
    np.testing.assert_allclose(
        device(pool.max_pool2d_grad, gy, places.astype(given), g),
        reference_pool.max_pool2d_grad(gy, right_places, g), atol=1e-15,
    )  # fmt: skip


def test_places_of_a_window_larger_than_a_byte(device: Any, rng: Any) -> None:
    g = pool_geometry("max_pool2d", (1, 2, 17, 17), 17)
    x = np.zeros(g.x_shape)
    x[0, :, 16, 15] = 1
    y, places = device(pool.max_pool2d, x, g)
    assert y.reshape(-1).tolist() == [1, 1]
    assert places.reshape(-1).tolist() == [16 * 17 + 15] * 2
    gx = device(pool.max_pool2d_grad, np.full(g.y_shape, 2.0), places, g)
    np.testing.assert_array_equal(gx, 2 * x)


@pytest.mark.parametrize("C", [5, 8])
@pytest.mark.parametrize("relu", [True, False])
def test_normalise_add_relu(device: Any, rng: Any, C: int, relu: bool) -> None:
    x, residual = (rng.standard_normal((3, C, 5, 4)) for _ in range(2))
    gamma, beta = rng.standard_normal(C), rng.standard_normal(C)
    y, mean, var, _ = device(norm.normalise_add_relu, x, gamma, beta, 1e-3, residual, relu)
    shape = (1, C, 1, 1)
    expected = (x - mean.reshape(shape)) / np.sqrt(var.reshape(shape) + 1e-3)
    expected = expected * gamma.reshape(shape) + beta.reshape(shape) + residual
    np.testing.assert_allclose(y, np.maximum(expected, 0) if relu else expected, atol=1e-12)
    np.testing.assert_allclose(mean, x.mean(axis=(0, 2, 3)), atol=1e-12)
    np.testing.assert_allclose(var, x.var(axis=(0, 2, 3)), atol=1e-12)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("shape", [(5, 10), (1, 1), (19, 3), (2, 70)])
def test_cross_entropy(device: Any, rng: Any, shape: tuple[int, int], smoothing: float) -> None:
    N, K = shape
    x, labels = 5 * rng.standard_normal(shape), rng.integers(0, K, N)
    labels[0] = -100
    losses, gx = device(softmax.cross_entropy, x, labels, -100, smoothing)
    e = np.exp(x - x.max(axis=1, keepdims=True))
    p = e / e.sum(axis=1, keepdims=True)
    q = (1 - smoothing) * np.eye(K)[np.maximum(labels, 0)] + smoothing / K
    kept = (labels != -100)[:, None]
    np.testing.assert_allclose(losses, -(q * np.log(p) * kept).sum(axis=1), atol=1e-12)
    np.testing.assert_allclose(gx, (p - q) * kept, atol=1e-12)


def test_cross_entropy_of_a_label_out_of_range_is_nan(device: Any, rng: Any) -> None:
    losses, _ = device(softmax.cross_entropy, rng.standard_normal((3, 4)), np.array([0, 4, -1]))
    np.testing.assert_array_equal(np.isnan(losses), [False, True, True])


def sgd_by_definition(
    p: Any, v: Any, g: Any, lr: float, momentum: float, dampening: float, decay: float,
    nesterov: bool,
) -> tuple[Any, Any]:  # fmt: skip
    d = g + decay * p
    v = d if v is None else momentum * v + (1 - dampening) * d
    step = (d + momentum * v if nesterov else v) if momentum else d
    return p - lr * step, v


@pytest.mark.parametrize(
    "settings",
    [(0.1, 0.0, 0.0, 0.0, False), (0.1, 0.9, 0.0, 1e-2, False), (0.05, 0.9, 0.1, 0.0, False),
     (0.05, 0.8, 0.0, 1e-2, True)],
)  # fmt: skip
def test_sgd_over_all_parameters(device: Any, rng: Any, settings: Any) -> None:
    shapes = [(7,), (4, 3, 3, 3), (chunks.CHUNK + 5,), (1,), (16, 8, 1, 1)]
    start = [rng.standard_normal(s) for s in shapes]
    start[1] = laid_out(start[1], "channels last")
    gradients = [[laid_out(rng.standard_normal(s), "channels last") for s in shapes]
                 for _ in range(3)]  # fmt: skip
    gradients = [[g if i == 1 else np.ascontiguousarray(g) for i, g in enumerate(step)]
                 for step in gradients]  # fmt: skip

    def three_steps(*parameters: Any) -> Any:
        optimiser = sgd.FusedSGD(parameters, *settings)
        for step in gradients:
            given = [laid_like(p, g) for p, g in zip(parameters, step, strict=True)]
            optimiser.step(given)
        return tuple(parameters)

    def laid_like(p: Any, g: Any) -> Any:
        """The gradient where its parameter is."""
        if isinstance(p, np.ndarray):
            return g
        import cupy

        return cupy.asarray(g, order="K")

    results = device(three_steps, *(p.copy(order="K") for p in start))
    for i, result in enumerate(results):
        p, v = start[i], None
        for step in gradients:
            p, v = sgd_by_definition(p, v, step[i], *settings)
        np.testing.assert_allclose(result, p, atol=1e-13)


def test_sgd_refuses_gradients_in_another_memory_order(emulator: Any) -> None:
    p = np.zeros((2, 3, 4, 4))

    def step() -> None:
        sgd.FusedSGD([p], 0.1).step([laid_out(p, "channels last")])

    with pytest.raises(ValueError, match="gradient 0 is float64"):
        emulator(step)
    with pytest.raises(ValueError, match="number 0 is float64 with"):
        emulator(sgd.FusedSGD, [p[:, ::2]], 0.1)
    with pytest.raises(ValueError, match="got no parameters"):
        sgd.FusedSGD([], 0.1)


@pytest.mark.parametrize("narrow", ["float16", "bfloat16"])
def test_casts_round_to_nearest_even(device: Any, rng: Any, narrow: str) -> None:
    if narrow == "bfloat16":
        pytest.importorskip("ml_dtypes", reason="NumPy has no bfloat16: install ml_dtypes")
    bits = rng.integers(0x30000000, 0x47000000, 1001, dtype=np.int64).astype(np.uint32)
    bits[:200] &= 0xFFFF8000  # halfway between two of bfloat16
    x = bits.view(np.float32)
    x[5], x[6], x[7] = np.nan, np.inf, -0.0
    y = device(elementwise.cast, x, np.dtype(narrow))
    # Compared as float32, where NaN equals NaN.
    np.testing.assert_array_equal(y.astype(np.float32), x.astype(narrow).astype(np.float32))
    np.testing.assert_array_equal(device(elementwise.cast, y, np.dtype(np.float32)),
                                  y.astype(np.float32))  # fmt: skip


def test_sgd_takes_its_settings_from_memory(device: Any, rng: Any) -> None:
    start, gradients = rng.standard_normal(40), rng.standard_normal((2, 40))

    def two_steps(p: Any, v: Any, first: Any, second: Any) -> Any:
        optimiser = sgd.FusedSGD([p], 0.1, 0.9, buffers=[v])
        optimiser.step([first])
        optimiser.set(0.01, 0.5, 0.0, 1e-2)
        optimiser.step([second])
        return p, v

    p, v = device(two_steps, start.copy(), np.zeros(40), *gradients)
    expected, buffer = sgd_by_definition(start, np.zeros(40), gradients[0], 0.1, 0.9, 0, 0, False)
    expected, buffer = sgd_by_definition(
        expected, buffer, gradients[1], 0.01, 0.5, 0, 1e-2, False
    )
    np.testing.assert_allclose(p, expected, atol=1e-14)
    np.testing.assert_allclose(v, buffer, atol=1e-14)
