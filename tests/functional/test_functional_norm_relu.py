"""Batch norm with a ReLU behind it in one pass: the same as the one after the other."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import minires as mr
from minires import functional as F
from minires import nn
from minires.testing.compare import assert_close

SHAPES = [(8, 3), (2, 3, 3, 2), (1, 2, 3, 5)]


def apart(x: Any, *arguments: Any, **settings: Any) -> mr.Tensor:
    return F.relu(F.batch_norm(x, *arguments, **settings))


def joined(x: Any, shortcut: Any, *arguments: Any, **settings: Any) -> mr.Tensor:
    return F.add_relu(F.batch_norm(x, *arguments, **settings), shortcut)


def statistics(C: int) -> tuple[mr.Tensor, mr.Tensor]:
    return mr.Tensor(np.full(C, 0.25)), mr.Tensor(np.full(C, 1.5))


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize("training", [True, False])
def test_values_gradients_and_statistics(
    shape: Any, affine: bool, training: bool, rng: np.random.Generator
) -> None:
    C = shape[1]
    arrays = [rng.standard_normal(s) for s in (shape, (C,), (C,))][: 3 if affine else 1]
    u, v = rng.standard_normal(shape), rng.standard_normal(shape)
    results = []
    for function in (F.batch_norm_relu, apart):
        tensors = [mr.Tensor(a, requires_grad=True) for a in arrays]
        mean, var = statistics(C)
        y = function(tensors[0], mean, var, *tensors[1:], training=training, momentum=0.3)
        upstream = mr.Tensor(u, requires_grad=True)
        plain = mr.grad(y, tensors, u, retain_graph=True)
        first = mr.grad(y, tensors, upstream, create_graph=True)
        assert (y.numpy() == 0).any()
        assert (y.numpy() > 0).any()
        second = mr.grad((first[0] * v).sum(), [*tensors, upstream], create_graph=True,
                         allow_unused=True)  # fmt: skip
        total = sum((s * s).sum() for s in second if s is not None)
        third = mr.grad(total, [*tensors, upstream], allow_unused=True)
        results.append([y, mean, var, *plain, *first, *second, *third])
    for actual, expected in zip(*results, strict=True):
        assert (actual is None) == (expected is None)
        if actual is not None:
            scale = max(1.0, float(np.abs(expected.numpy()).max(initial=0)))
            assert_close(actual, expected, rtol=1e-9, atol=1e-10 * scale)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize("training", [True, False])
def test_the_join(
    shape: Any, affine: bool, training: bool, rng: np.random.Generator
) -> None:
    """relu(batch norm + shortcut): values, statistics, and gradients to second order."""
    C = shape[1]
    arrays = [rng.standard_normal(s) for s in (shape, shape, (C,), (C,))][: 4 if affine else 2]
    u, v = rng.standard_normal(shape), rng.standard_normal(shape)
    results = []
    for function in (F.batch_norm_add_relu, joined):
        x, shortcut, *rest = tensors = [mr.Tensor(a, requires_grad=True) for a in arrays]
        mean, var = statistics(C)
        y = function(x, shortcut, mean, var, *rest, training=training, momentum=0.3)
        plain = mr.grad(y, tensors, u, retain_graph=True)
        upstream = mr.Tensor(u, requires_grad=True)
        first = mr.grad(y, tensors, upstream, create_graph=True)
        assert (y.numpy() == 0).any()
        assert (y.numpy() > 0).any()
        second = mr.grad((first[0] * v).sum() + (first[1] * v).sum(), [*tensors, upstream],
                         allow_unused=True)  # fmt: skip
        results.append([y, mean, var, *plain, *first, *second])
    for actual, expected in zip(*results, strict=True):
        assert (actual is None) == (expected is None)
        if actual is not None:
            scale = max(1.0, float(np.abs(expected.numpy()).max(initial=0)))
            assert_close(actual, expected, rtol=1e-9, atol=1e-10 * scale)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("shape", [(4, 5, 3, 3), (8, 16, 32, 32)])
def test_the_same_bits_whether_gradients_are_wanted_or_not(
    shape: Any, dtype: Any, rng: np.random.Generator
) -> None:
    """Evaluation takes a shorter way where the weights need no gradient; large and small."""
    layer, x = nn.BatchNorm2d(shape[1]), mr.Tensor(rng.standard_normal(shape).astype(dtype))
    layer = layer.double() if dtype is np.float64 else layer
    layer(x)
    layer.weight.data = rng.standard_normal(shape[1]).astype(dtype)
    layer.eval()
    shortcut = mr.Tensor(rng.standard_normal(shape).astype(dtype))
    for call in (layer, layer.relu, lambda x: layer.add_relu(x, shortcut)):
        recorded = call(x)
        assert recorded.requires_grad
        with mr.no_grad():
            assert_close(call(x), recorded, rtol=0, atol=0)


def test_the_join_s_refusals() -> None:
    x = np.ones((2, 3, 2, 2))
    with pytest.raises(ValueError, match="x has 2x3x2x2 and the shortcut 2x3x2x1"):
        F.batch_norm_add_relu(x, x[..., :1], None, None, training=True)
    with pytest.raises(TypeError, match="shortcut"):
        F.batch_norm_add_relu(x, x.astype(np.float32), None, None, training=True)
    with pytest.raises(TypeError, match="batch_norm_add_relu: x must be floating point"):
        F.batch_norm_add_relu(x.astype(int), x.astype(int), None, None, training=True)


def test_the_refusals_are_those_of_batch_norm() -> None:
    with pytest.raises(ValueError, match="batch_norm: training needs more than one value"):
        F.batch_norm_relu(np.ones((1, 3)), None, None)
    with pytest.raises(ValueError, match="give weight and bias both, or neither"):
        F.batch_norm_relu(np.ones((2, 3)), None, None, weight=np.ones(3))


def test_the_output_is_not_kept() -> None:
    """Its backward computes the mask again: a changed output changes no gradient."""
    x = mr.Tensor(np.array([[1.0], [2.0], [4.0]]), requires_grad=True)
    y = F.batch_norm_relu(x, None, None)
    (expected,) = mr.grad(y, x, np.array([[1.0], [2.0], [3.0]]), retain_graph=True)
    y.numpy()[...] = -1
    (actual,) = mr.grad(y, x, np.array([[1.0], [2.0], [3.0]]))
    assert_close(actual, expected, rtol=0, atol=0)


@pytest.mark.parametrize("training", [True, False])
def test_the_layer_s_fused_relu(training: bool, rng: np.random.Generator) -> None:
    x = mr.Tensor(rng.standard_normal((4, 2, 3, 3)).astype(np.float32))
    fused, plain = nn.BatchNorm2d(2).train(training), nn.BatchNorm2d(2).train(training)
    expected = F.relu(plain(x))
    assert_close(fused.relu(x), expected)
    for name, tensor in plain.state_dict().items():
        assert_close(fused.state_dict()[name], tensor, name=name)
    seen = []
    handle = fused.register_forward_hook(lambda m, a, y: seen.append((y < 0).sum().item()))
    fused.relu(x)
    assert seen[0] > 0  # who listens to the layer sees what the layer computes
    handle.remove()
    fused.relu(x)
    assert len(seen) == 1


def test_a_subclass_with_its_own_forward_is_asked(rng: np.random.Generator) -> None:
    class Shifted(nn.BatchNorm2d):
        def forward(self, x: Any) -> mr.Tensor:
            return super().forward(x) + 1.0

    layer, x = Shifted(3), rng.standard_normal((2, 3, 4, 4)).astype(np.float32)
    assert_close(layer.relu(x), F.relu(layer(x)))
    assert not np.array_equal(layer.relu(x).numpy(), nn.BatchNorm2d(3).relu(x).numpy())
