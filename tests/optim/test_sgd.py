"""SGD against the update rule written out number by number."""

import numpy as np
import pytest

import minires as mr
from minires import nn
from minires.optim import SGD
from minires.testing.compare import assert_close


def by_the_rule(p, gradients, lr, momentum=0.0, dampening=0.0, weight_decay=0.0, nesterov=False):
    """One number through several steps."""
    v = None
    for g in gradients:
        d = g + weight_decay * p
        if momentum:
            v = d if v is None else momentum * v + (1 - dampening) * d
            d = d + momentum * v if nesterov else v
        p = p - lr * d
    return p


SETTINGS = [
    {},
    {"weight_decay": 0.1},
    {"momentum": 0.9},
    {"momentum": 0.9, "weight_decay": 0.1},
    {"momentum": 0.9, "dampening": 0.3},
    {"momentum": 0.5, "dampening": 1.0, "weight_decay": 0.1},
    {"momentum": 0.9, "nesterov": True},
    {"momentum": 0.9, "nesterov": True, "weight_decay": 0.1},
    {"dampening": 0.5},
]


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
@pytest.mark.parametrize("shape", [(2, 3), (), (1,)])
def test_update_rule(settings, shape):
    rng = np.random.default_rng(0)
    start, gradients = rng.standard_normal(shape), rng.standard_normal((6, *shape))
    p = nn.Parameter(start)
    optimiser = SGD([p], lr=0.1, **settings)
    for g in gradients:
        p.grad = mr.Tensor(g)
        optimiser.step()
    expected = np.zeros(shape)
    for index in np.ndindex(shape):
        column = [float(g[index]) for g in gradients]
        expected[index] = by_the_rule(float(start[index]), column, 0.1, **settings)
    assert_close(p, expected, rtol=1e-13, atol=1e-14)


def test_the_first_buffer_is_the_gradient_undampened():
    p = nn.Parameter(np.zeros(2))
    optimiser = SGD([p], lr=1.0, momentum=0.9, dampening=0.5)
    p.grad = mr.Tensor(np.array([1.0, -2.0]))
    optimiser.step()
    assert np.array_equal(optimiser.state[p]["momentum_buffer"], [1.0, -2.0])
    optimiser.step()
    assert_close(optimiser.state[p]["momentum_buffer"], np.array([1.4, -2.8]))


def test_the_buffer_is_not_the_gradient_itself():
    p = nn.Parameter(np.zeros(2))
    optimiser = SGD([p], lr=1.0, momentum=0.9)
    p.grad = mr.Tensor(np.ones(2))
    optimiser.step()
    assert not np.shares_memory(optimiser.state[p]["momentum_buffer"], p.grad._data)


def test_a_new_learning_rate_acts_at_once():
    p = nn.Parameter(np.zeros(1))
    optimiser = SGD([p], lr=1.0, momentum=0.9)
    p.grad = mr.Tensor(np.ones(1))
    optimiser.step()
    optimiser.lr = 0.1
    optimiser.step()
    assert_close(p, np.array([-1.0 - 0.1 * 1.9]))
    assert optimiser.lr == 0.1


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"momentum": -0.1}, "SGD: momentum must be a number from 0 up, got -0.1"),
        ({"dampening": -1}, "SGD: dampening must be a number from 0 up, got -1"),
        ({"nesterov": True}, "nesterov needs momentum and no dampening, got momentum=0.0"),
        (
            {"nesterov": True, "momentum": 0.9, "dampening": 0.1},
            "nesterov needs momentum and no dampening, got momentum=0.9 and dampening=0.1",
        ),
    ],
)
def test_impossible_settings(settings, message):
    with pytest.raises(ValueError, match=message):
        SGD([nn.Parameter(np.zeros(2))], lr=0.1, **settings)


def test_memory_is_reused_from_parameter_to_parameter():
    params = [nn.Parameter(np.zeros(n, np.float32)) for n in (5, 100, 30)]
    optimiser = SGD(params, lr=0.1, weight_decay=0.1)
    for _ in range(2):
        for p in params:
            p.grad = mr.Tensor(np.ones(p.shape, np.float32))
        optimiser.step()
    assert [a.size for a in optimiser._scratch.values()] == [100]
