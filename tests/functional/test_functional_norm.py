"""Batch norm: values, gradients to third order, running statistics, evaluation."""

from __future__ import annotations

from typing import Any

import numpy as np
import oracles
import pytest

import minires as mr
from minires import functional as F
from minires.testing.compare import assert_close

EPS = 1e-5
SHAPES = [(4, 3), (2, 3, 2, 2), (3, 1, 1, 1), (1, 2, 3, 1)]


def made(rng: np.random.Generator, *shapes: tuple[int, ...]) -> list[mr.Tensor]:
    return [mr.Tensor(rng.standard_normal(s), requires_grad=True) for s in shapes]


def statistics(C: int, dtype: Any = np.float64) -> tuple[mr.Tensor, mr.Tensor]:
    return mr.Tensor(np.zeros(C, dtype)), mr.Tensor(np.ones(C, dtype))


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize("training", [True, False])
def test_value_and_gradients(
    shape: Any, affine: bool, training: bool, rng: np.random.Generator
) -> None:
    C = shape[1]
    tensors = made(rng, shape, (C,), (C,))[: 3 if affine else 1]
    running = rng.standard_normal(C), rng.uniform(0.5, 2, C)
    mean, var = (mr.Tensor(a.copy()) for a in running)
    y = F.batch_norm(tensors[0], mean, var, *tensors[1:], training=training)

    def definition(x: Any, gamma: Any = None, beta: Any = None) -> Any:
        return oracles.batch_norm(x, gamma, beta, EPS, None if training else running)[0]

    arrays = [t.numpy() for t in tensors]
    assert_close(y, definition(*arrays), rtol=1e-9, atol=1e-9)
    gy = rng.standard_normal(shape)
    expected = oracles.complex_step_gradients(definition, arrays, gy)
    for actual, wanted in zip(mr.grad(y, tensors, gy), expected, strict=True):
        assert_close(actual, wanted, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("shape", [(4, 2), (2, 2, 2, 1)])
@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize("training", [True, False])
def test_second_and_third_order(
    shape: Any, affine: bool, training: bool, rng: np.random.Generator
) -> None:
    """Against the same derivatives of batch norm composed of elementary operations."""
    C = shape[1]
    arrays = [rng.standard_normal(s) for s in (shape, (C,), (C,))][: 3 if affine else 1]
    running = rng.standard_normal(C), rng.uniform(0.5, 2, C)
    column = (1, C) + (1,) * (len(shape) - 2)
    axes = (0, *range(2, len(shape)))

    def ours(x: Any, *affine: Any) -> Any:
        return F.batch_norm(x, *map(mr.Tensor, running), *affine, training=training)

    def composed(x: Any, gamma: Any = None, beta: Any = None) -> Any:
        if training:
            centred = x - x.mean(axes, keepdims=True)
            y = centred * ((centred * centred).mean(axes, keepdims=True) + EPS) ** -0.5
        else:
            y = (x - running[0].reshape(column)) * (running[1].reshape(column) + EPS) ** -0.5
        return y if gamma is None else y * gamma.reshape(column) + beta.reshape(column)

    vs = [rng.standard_normal(a.shape) for a in arrays]
    u = rng.standard_normal(shape)
    results = []
    for function in (ours, composed):
        tensors = [mr.Tensor(a, requires_grad=True) for a in arrays]
        f = (function(*tensors) * u).sum()
        found = []
        for _ in range(3):
            if not f.requires_grad:
                break
            gradients = mr.grad(f, tensors, create_graph=True, allow_unused=True)
            found.append([np.zeros(a.shape) if g is None else g.numpy().copy()
                          for g, a in zip(gradients, arrays, strict=True)])  # fmt: skip
            terms = [  # what reaches a gradient depends on the inputs, too
                (g * (v + t)).sum()
                for g, v, t in zip(gradients, vs, tensors, strict=True) if g is not None
            ]  # fmt: skip
            f = sum(terms[1:], terms[0])
        results.append(found)
    for order, (actual, wanted) in enumerate(zip(*results, strict=False), 1):
        for a, b in zip(actual, wanted, strict=True):
            assert_close(a, b, rtol=1e-7, atol=1e-7 * 10**order, name=f"order {order}")
    assert len(results[0]) >= (3 if training else 1)


def test_gradients_of_gradients_reach_the_upstream(rng: np.random.Generator) -> None:
    x, gamma, beta, gy = made(rng, (3, 2), (2,), (2,), (3, 2))
    v = rng.standard_normal((3, 2))
    y = F.batch_norm(x, None, None, gamma, beta)
    (gx,) = mr.grad(y, [x], gy, create_graph=True)
    (ggy,) = mr.grad((gx * v).sum(), [gy])
    # gx is linear in gy and its matrix is symmetric, so <v, gx(gy)> differentiates to gx(v).
    y = F.batch_norm(x, None, None, gamma, beta)
    assert_close(ggy, mr.grad(y, [x], v)[0], rtol=1e-8, atol=1e-10)


def test_running_statistics_move_towards_the_batch(rng: np.random.Generator) -> None:
    x = rng.standard_normal((4, 3, 2, 2)) * 2 + 1
    mean, var = statistics(3)
    F.batch_norm(x, mean, var, training=True, momentum=0.25)
    batch = x.transpose(1, 0, 2, 3).reshape(3, -1)
    expected = 0.25 * batch.mean(1), 0.75 + 0.25 * batch.var(1, ddof=1)
    assert_close(mean, expected[0])
    assert_close(var, expected[1])
    F.batch_norm(x, mean, var, training=False)
    assert_close(mean, expected[0])
    F.batch_norm(x, mean, var, training=True, momentum=1.0)
    assert_close(var, batch.var(1, ddof=1))


@pytest.mark.parametrize("which", [0, 1])
def test_what_was_computed_from_running_statistics_notices_that_they_moved(which: int) -> None:
    running = mr.tensor(np.zeros(3)), mr.tensor(np.ones(3))  # nobody else holds their arrays
    scale = mr.Tensor(np.ones(3), requires_grad=True)
    kept = (running[which] * scale).sum()
    F.batch_norm(np.arange(12.0).reshape(4, 3), *running, training=True)
    with pytest.raises(RuntimeError, match="changed in place"):
        kept.backward()


def test_defaults_are_pytorch_s() -> None:
    mean, var = statistics(1)
    y = F.batch_norm(np.array([[1.0], [3.0]]), mean, var, training=True)
    assert_close(mean, np.array([0.1 * 2]))
    assert_close(var, np.array([0.9 + 0.1 * 2]))
    assert_close(y, np.array([[-1.0], [1.0]]) / np.sqrt(1 + 1e-5))
    y = F.batch_norm(np.array([[1.0]]), mean, var)  # evaluation unless told otherwise
    assert_close(y, (np.array([[1.0]]) - 0.2) / np.sqrt(1.1 + 1e-5))


def test_running_statistics_keep_their_dtype() -> None:
    mean, var = statistics(2, np.float32)
    y = F.batch_norm(np.arange(8.0).reshape(4, 2), mean, var, training=True)
    assert (y.dtype, mean.dtype, var.dtype) == (np.float64, np.float32, np.float32)
    assert F.batch_norm(np.arange(8.0).reshape(4, 2), mean, var).dtype == np.float64


def test_without_statistics_the_batch_normalises(rng: np.random.Generator) -> None:
    x = rng.standard_normal((5, 2))
    for training in (True, False):
        y = F.batch_norm(x, None, None, training=training).numpy()
        assert_close(y.mean(0), np.zeros(2), atol=1e-12)
        assert_close(y.std(0), np.ones(2), rtol=1e-4)


def test_evaluation_does_not_see_later_updates(rng: np.random.Generator) -> None:
    """The statistics of the moment of forward are the ones backward uses."""
    x = mr.Tensor(rng.standard_normal((4, 2)), requires_grad=True)
    gamma, beta = made(rng, (2,), (2,))
    mean, var = statistics(2)
    y = F.batch_norm(x, mean, var, gamma, beta)
    F.batch_norm(rng.standard_normal((4, 2)) * 9, mean, var, training=True)
    gx, ggamma = mr.grad(y, [x, gamma], np.ones((4, 2)))
    assert_close(gx, np.tile(gamma.numpy() / np.sqrt(1 + EPS), (4, 1)))
    assert_close(ggamma, x.numpy().sum(0) / np.sqrt(1 + EPS))


def test_frozen_weights_get_no_gradient_in_evaluation(rng: np.random.Generator) -> None:
    x, gamma, beta = made(rng, (4, 2), (2,), (2,))
    y = F.batch_norm(x, *statistics(2), gamma.detach(), beta)
    gx, gbeta = mr.grad(y, [x, beta], np.ones((4, 2)))
    assert_close(gbeta, np.array([4.0, 4.0]))
    y = F.batch_norm(x, *statistics(2), gamma.detach(), beta.detach())
    assert_close(mr.grad(y, [x], np.ones((4, 2)))[0], gx)


def test_a_large_mean_in_float32(rng: np.random.Generator) -> None:
    x = (rng.standard_normal((8, 2, 8, 8)) + 1e4).astype(np.float32)
    tensor = mr.Tensor(x, requires_grad=True)
    y = F.batch_norm(tensor, *statistics(2, np.float32), training=True)
    wide = x.astype(np.float64)
    assert_close(y, oracles.batch_norm(wide, None, None, EPS)[0].astype(np.float32), atol=1e-5)
    gy = rng.standard_normal(x.shape).astype(np.float32)
    other = mr.Tensor(wide, requires_grad=True)
    z = F.batch_norm(other, None, None)
    (expected,) = mr.grad(z, [other], gy.astype(np.float64))
    # x itself is rounded to 1e-3 here, and the mean that backward subtracts likewise.
    assert_close(mr.grad(y, [tensor], gy)[0], expected.numpy().astype(np.float32), atol=2e-3)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"x": np.ones((2, 3, 4))}, ValueError, r"expected \(N, C\) or \(N, C, H, W\), got 2x3x4"),
        ({"x": np.ones((2, 3), np.int64)}, TypeError, "x must be floating point, got int64"),
        ({"weight": np.ones(3)}, ValueError, "give weight and bias both, or neither"),
        ({"bias": np.ones(3)}, ValueError, "give weight and bias both, or neither"),
        ({"running_var": None}, ValueError, "give running_mean and running_var both, or neither"),
        ({"weight": np.ones(2), "bias": np.ones(3)}, ValueError,
         r"weight must have shape \(3,\) for the 3 channels of x 2x3, got \(2,\)"),
        ({"weight": np.ones(3), "bias": np.ones((3, 1))}, ValueError, r"bias must have shape"),
        ({"running_mean": mr.Tensor(np.ones(4))}, ValueError, r"running_mean must have shape \(3"),
        ({"running_mean": np.ones(3)}, TypeError, "running statistics are Tensors.*got ndarray"),
        ({"weight": np.ones(3, np.float32), "bias": np.ones(3)}, TypeError,
         "x is float64 and weight is float32"),
        ({"x": np.ones((1, 3)), "training": True}, ValueError,
         r"training needs more than one value per channel, x has 1x3; use a larger batch or eval"),
        ({"x": np.ones((0, 3)), "training": True}, ValueError, "training needs more than one"),
    ],
)  # fmt: skip
def test_refusals(arguments: dict[str, Any], error: Any, message: str) -> None:
    mean, var = statistics(3)
    defaults = {"x": np.ones((2, 3)), "running_mean": mean, "running_var": var}
    with pytest.raises(error, match=f"batch_norm: {message}"):
        F.batch_norm(**(defaults | arguments))
    assert_close(mean, np.zeros(3))


def test_one_row_and_no_row_can_be_evaluated() -> None:
    for rows in (1, 0):
        y = F.batch_norm(np.ones((rows, 3)), *statistics(3))
        assert_close(y, np.full((rows, 3), (1 + EPS) ** -0.5))
