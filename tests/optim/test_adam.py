"""Adam and AdamW against the algorithm written out number by number."""

import math

import numpy as np
import pytest

import minires as mr
from minires import nn
from minires.optim import Adam, AdamW
from minires.testing.compare import assert_close


def by_the_rule(p, gradients, lr, betas, eps, weight_decay, decoupled):
    """One number through several steps: Kingma & Ba, algorithm 1; Loshchilov & Hutter's decay."""
    m = v = 0.0
    for t, g in enumerate(gradients, 1):
        if decoupled:
            p = p - lr * weight_decay * p
        else:
            g = g + weight_decay * p
        m = betas[0] * m + (1 - betas[0]) * g
        v = betas[1] * v + (1 - betas[1]) * g * g
        m_hat, v_hat = m / (1 - betas[0] ** t), v / (1 - betas[1] ** t)
        p = p - lr * m_hat / (math.sqrt(v_hat) + eps)
    return p


@pytest.mark.parametrize("make", [Adam, AdamW])
@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
@pytest.mark.parametrize("betas", [(0.9, 0.999), (0.0, 0.5), [0.5, 0.0]])
@pytest.mark.parametrize("shape", [(2, 3), ()])
def test_update_rule(make, weight_decay, betas, shape):
    rng = np.random.default_rng(0)
    start, gradients = rng.standard_normal(shape), rng.standard_normal((6, *shape))
    p = nn.Parameter(start)
    optimiser = make([p], lr=0.1, betas=betas, eps=1e-3, weight_decay=weight_decay)
    for g in gradients:
        p.grad = mr.Tensor(g)
        optimiser.step()
    expected = np.zeros(shape)
    for index in np.ndindex(shape):
        column = [float(g[index]) for g in gradients]
        expected[index] = by_the_rule(
            float(start[index]), column, 0.1, betas, 1e-3, weight_decay, make is AdamW
        )
    assert_close(p, expected, rtol=1e-12, atol=1e-13)


def test_defaults():
    p = [nn.Parameter(np.zeros(2))]
    expected = {"lr": 1e-3, "betas": (0.9, 0.999), "eps": 1e-8}
    for make, decay in ((Adam, 0.0), (AdamW, 1e-2)):
        (group,) = make(p).param_groups
        assert group == {"params": p, **expected, "weight_decay": decay}


@pytest.mark.parametrize("betas", [(1.0, 0.9), (0.9, -0.1), (0.9,), (0.9, 0.9, 0.9)])
def test_impossible_betas(betas):
    for make in (Adam, AdamW):
        with pytest.raises(
            ValueError, match=rf"{make.__name__}: betas are two numbers in \[0, 1\)"
        ):
            make([nn.Parameter(np.zeros(2))], betas=betas)
    with pytest.raises(ValueError, match="eps must be a number from 0 up"):
        Adam([nn.Parameter(np.zeros(2))], eps=-1e-8)
