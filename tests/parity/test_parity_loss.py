"""Softmax, losses and dropout against PyTorch."""

import itertools

import numpy as np
import pytest
from against_torch import close, compare, to_torch, torch

import minires as mr
from minires import functional as F

T = torch.nn.functional
N, K = 6, 5


def logits(dtype=np.float64, shape=(N, K)):
    return (3 * np.random.default_rng(0).standard_normal(shape)).astype(dtype)


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
@pytest.mark.parametrize("name", ["softmax", "log_softmax"])
@pytest.mark.parametrize(
    ("shape", "axis"), [((6, 5), 1), ((6, 5), -2), ((4,), 0), ((2, 3, 4), 1), ((2, 3, 4, 2), -1)]
)
def test_softmax(name, shape, axis, dtype):
    compare(
        lambda x: getattr(F, name)(x, axis),
        lambda x: getattr(T, name)(x, axis),
        {"x": logits(dtype, shape)},
    )


@pytest.mark.parametrize("offset", [1e4, -1e4])
def test_log_softmax_of_large_logits(offset):
    compare(
        lambda x: F.log_softmax(x, 1), lambda x: T.log_softmax(x, 1), {"x": logits() * 50 + offset}
    )


COMBINATIONS = list(
    itertools.product(["mean", "sum", "none"], [0.0, 0.1, 1.0], [False, True], [-100, 2])
)


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
@pytest.mark.parametrize(("reduction", "smoothing", "weighted", "ignored"), COMBINATIONS)
def test_cross_entropy_of_labels(reduction, smoothing, weighted, ignored, dtype):
    labels = np.array([0, 4, 2, 2, 1, 3])
    labels[0] = ignored if ignored < 0 else 0
    weight = np.random.default_rng(1).random(K).astype(dtype) if weighted else None
    settings = {"ignore_index": ignored, "reduction": reduction, "label_smoothing": smoothing}
    compare(
        lambda x: F.cross_entropy(x, labels, weight, **settings),
        lambda x: T.cross_entropy(x, to_torch(labels), to_torch(weight), **settings),
        {"x": logits(dtype)},
    )


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("weighted", [False, True])
def test_cross_entropy_of_probabilities(reduction, smoothing, weighted):
    rng = np.random.default_rng(1)
    target = rng.dirichlet(np.ones(K), N)
    weight = rng.random(K) if weighted else None
    settings = {"reduction": reduction, "label_smoothing": smoothing}
    compare(
        lambda x: F.cross_entropy(x, target, weight, **settings),
        lambda x: T.cross_entropy(x, to_torch(target), weight=to_torch(weight), **settings),
        {"x": logits()},
    )


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("weighted", [False, True])
def test_nll_loss(reduction, weighted):
    labels = np.array([0, 4, -100, 2, 1, 3])
    weight = np.random.default_rng(1).random(K) if weighted else None
    compare(
        lambda x: F.nll_loss(F.log_softmax(x, 1), labels, weight, reduction=reduction),
        lambda x: T.nll_loss(
            T.log_softmax(x, 1), to_torch(labels), to_torch(weight), reduction=reduction
        ),
        {"x": logits()},
    )


def test_mse_loss():
    compare(F.mse_loss, T.mse_loss, {"x": logits(), "target": logits()[::-1].copy()})


@pytest.mark.parametrize("name", ["relu", "sigmoid", "tanh"])
def test_activations(name):
    x = logits()
    x[0] = [0.0, -0.0, 40.0, -40.0, 1e-300]
    compare(getattr(F, name), getattr(torch, name), {"x": x})


def test_add_relu():
    a, b = logits(), logits()[::-1].copy()
    b[0] = -a[0]  # the kink: no gradient on either side
    compare(F.add_relu, lambda a, b: torch.relu(a + b), {"a": a, "b": b})


@pytest.mark.parametrize("p", [0.0, 0.3, 0.9, 1.0])
def test_dropout_has_pytorchs_statistics(p):
    """The masks are drawn by different generators: only their distribution can agree."""
    mr.manual_seed(0)
    n = 200_000
    values = np.ones(n, np.float32)
    x = mr.Tensor(values, requires_grad=True)
    y = F.dropout(x, p)
    torch.manual_seed(0)
    expected = T.dropout(to_torch(values), p).numpy()
    assert set(np.unique(y.numpy())) == set(np.unique(expected))
    deviation = np.sqrt(p * (1 - p) / n)  # of the share that is dropped
    dropped = [float((values == 0).mean()) for values in (y.numpy(), expected)]
    assert dropped == pytest.approx([p, p], abs=5 * deviation)
    y.backward(np.full(n, 2.0, np.float32))
    assert np.array_equal(x.grad.numpy(), 2 * y.numpy())
    close(F.dropout(x, p, training=False), T.dropout(to_torch(values), p, False), "in evaluation")
