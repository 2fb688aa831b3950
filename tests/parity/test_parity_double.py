"""Gradients of gradients against PyTorch's create_graph."""

import numpy as np
import pytest
from against_torch import close, to_torch, torch

import minires as mr
from minires import functional as F

T = torch.nn.functional


def compare_twice(ours, theirs, inputs, tolerance=1e-11):
    """First gradients of <gy, f(x, ...)>, then those of a random combination of them."""
    rng = np.random.default_rng(19991231)
    a = [mr.Tensor(v, requires_grad=True) for v in inputs]
    b = [to_torch(v).requires_grad_() for v in inputs]
    y, z = ours(*a), theirs(*b)
    upstream = np.asarray(rng.standard_normal(y.shape))
    gy, gz = mr.Tensor(upstream, requires_grad=True), to_torch(upstream).requires_grad_()
    first = mr.grad(y, a, gy, create_graph=True)
    expected = torch.autograd.grad(z, b, gz, create_graph=True)
    total, expected_total = 0.0, 0.0
    for i, (g, h) in enumerate(zip(first, expected, strict=True)):
        close(g, h, f"gradient of input {i}", tolerance)
        v = rng.standard_normal(g.shape)
        total = total + (g * mr.Tensor(v)).sum()
        expected_total = expected_total + (h * to_torch(v)).sum()
    second = mr.grad(total, [*a, gy], allow_unused=True)
    expected = torch.autograd.grad(expected_total, [*b, gz], allow_unused=True)
    for i, (g, h) in enumerate(zip(second, expected, strict=True)):
        name = f"second gradient of input {i}" if i < len(a) else "second gradient of gy"
        if g is None or h is None:  # one side may know that it is zero
            other = g if h is None else h
            assert other is None or not np.asarray(other.detach()).any(), name
        else:
            close(g, h, name, tolerance)


GEOMETRIES = [
    ((2, 3, 5, 6), (4, 3, 3, 3), {"padding": 1}),
    ((2, 4, 7, 6), (6, 2, 3, 2), {"stride": 2, "padding": (1, 0), "groups": 2}),
    ((1, 2, 8, 8), (3, 2, 2, 3), {"stride": (1, 2), "dilation": (2, 1)}),
    ((2, 3, 4, 4), (5, 3, 1, 1), {"stride": 2}),
]


@pytest.mark.parametrize("case", GEOMETRIES, ids=str)
def test_conv2d(case):
    x_shape, weight_shape, settings = case
    rng = np.random.default_rng(0)
    arrays = [rng.standard_normal(s) for s in (x_shape, weight_shape, weight_shape[:1])]
    compare_twice(
        lambda x, w, b: F.conv2d(x, w, b, **settings),
        lambda x, w, b: T.conv2d(x, w, b, **settings),
        arrays,
    )


@pytest.mark.parametrize("shape", [(4, 3), (3, 2, 4, 5)])
@pytest.mark.parametrize("affine", [True, False])
def test_batch_norm_in_training(shape, affine):
    rng = np.random.default_rng(0)
    arrays = [rng.standard_normal(shape)]
    arrays += [rng.standard_normal(shape[1]) for _ in range(2 * affine)]
    compare_twice(
        lambda x, *wb: F.batch_norm(x, None, None, *wb, training=True),
        lambda x, *wb: T.batch_norm(x, None, None, *wb, training=True),
        arrays,
    )


def test_batch_norm_in_evaluation():
    rng = np.random.default_rng(0)
    arrays = [rng.standard_normal(s) for s in ((3, 2, 4, 5), (2,), (2,))]
    statistics = rng.standard_normal(2), rng.random(2) + 0.5
    ours, theirs = ([make(s) for s in statistics] for make in (mr.Tensor, to_torch))
    compare_twice(
        lambda x, w, b: F.batch_norm(x, *ours, w, b),
        lambda x, w, b: T.batch_norm(x, *theirs, w, b),
        arrays,
    )


def test_add_relu():
    """Piecewise linear itself, so something curved goes in and comes out."""
    rng = np.random.default_rng(0)
    arrays = [rng.standard_normal((3, 4)) for _ in range(2)]
    compare_twice(
        lambda a, b: F.add_relu(a * a * b, b) ** 2,
        lambda a, b: torch.relu(a * a * b + b) ** 2,
        arrays,
    )


@pytest.mark.parametrize(
    "settings", [{}, {"label_smoothing": 0.1}, {"reduction": "none"}, {"reduction": "sum"}], ids=str
)
def test_cross_entropy(settings):
    labels = np.array([0, 3, 1, -100, 2])
    compare_twice(
        lambda x: F.cross_entropy(x, labels, **settings),
        lambda x: T.cross_entropy(x, to_torch(labels), **settings),
        [np.random.default_rng(0).standard_normal((5, 4))],
    )


@pytest.mark.parametrize("name", ["max_pool2d", "avg_pool2d"])
def test_pooling(name):
    settings = {"kernel_size": 3, "stride": 2, "padding": 1}
    compare_twice(
        lambda x: getattr(F, name)(x, **settings) ** 2,
        lambda x: getattr(T, name)(x, **settings) ** 2,
        [np.random.default_rng(0).standard_normal((2, 3, 6, 5))],
    )


def test_linear_and_log_softmax():
    rng = np.random.default_rng(0)
    compare_twice(
        lambda x, w, b: F.log_softmax(F.linear(x, w, b), 1),
        lambda x, w, b: T.log_softmax(T.linear(x, w, b), 1),
        [rng.standard_normal(s) for s in ((4, 3), (5, 3), (5,))],
    )


def test_a_gradient_penalty_through_a_residual_block():
    """The gradient of |dloss/dx|^2 for a convolution, batch norm, join and ReLU together."""
    rng = np.random.default_rng(0)

    def ours(x, w, gamma, beta):
        y = F.batch_norm(F.conv2d(x, w, padding=1), None, None, gamma, beta, training=True)
        return F.add_relu(y, x)

    def theirs(x, w, gamma, beta):
        y = T.conv2d(x, w, padding=1)
        y = T.batch_norm(y, None, None, gamma, beta, training=True)
        return torch.relu(y + x)

    shapes = ((2, 3, 4, 4), (3, 3, 3, 3), (3,), (3,))
    compare_twice(ours, theirs, [rng.standard_normal(s) for s in shapes])
