"""Gradients when only one input wants one: a frozen weight, or images without a gradient."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

import minires as mr
from minires import functional as F
from minires.testing import gradgradcheck
from minires.testing.cases import Case, cases
from minires.testing.problem import floating

SEVERAL = [
    case
    for case in cases()
    if not case.module and sum(isinstance(i, mr.Tensor) for i in case.build()[1]) > 1
]


def gradients(case: Case, wanted: list[int]) -> list[np.ndarray | None]:
    fn, inputs = case.build()
    for position, value in enumerate(inputs):
        if isinstance(value, mr.Tensor):
            value.requires_grad_(position in wanted)
    mr.manual_seed(0)
    outputs = floating(fn(*inputs))
    outputs = [y for y in outputs if y.requires_grad]
    rng = np.random.default_rng(0)
    seeds = [mr.Tensor(rng.standard_normal(y.shape)) for y in outputs]
    found = mr.grad(outputs, [inputs[i] for i in wanted], seeds, allow_unused=True)
    return [None if g is None else g.numpy() for g in found]


@pytest.mark.parametrize("case", SEVERAL, ids=lambda case: case.name)
def test_each_input_alone_has_the_gradient_it_has_among_others(case: Case) -> None:
    _, inputs = case.build()
    all_wanted = [
        i for i, value in enumerate(inputs) if isinstance(value, mr.Tensor) and value.requires_grad
    ]
    together = gradients(case, all_wanted)
    for position, expected in zip(all_wanted, together, strict=True):
        (alone,) = gradients(case, [position])
        if expected is None:
            assert alone is None
        else:
            np.testing.assert_allclose(alone, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("make", [lambda a: mr.Tensor(a), lambda a: mr.tensor(a)])
def test_statistics_that_moved_on_are_noticed(make: Callable[..., mr.Tensor]) -> None:
    """They are changed in place; what was computed from them before has lost its gradient."""
    x = mr.Tensor(np.random.default_rng(0).standard_normal((4, 3)), requires_grad=True)
    mean, var = make(np.zeros(3)), make(np.ones(3))
    y = x * mean
    F.batch_norm(x, mean, var, training=True)
    with pytest.raises(RuntimeError, match="changed in place"):
        y.sum().backward()


def test_third_order_through_batch_norm(rng: np.random.Generator) -> None:
    """The gradient's gradient, differentiated: paths through its own arguments count once."""
    weights = rng.standard_normal((5, 2))

    def first(x: mr.Tensor, gamma: mr.Tensor, beta: mr.Tensor) -> tuple[mr.Tensor, ...]:
        y = F.batch_norm(x, None, None, gamma, beta, training=True)
        return mr.grad((y * y * weights).sum(), [x, gamma, beta], create_graph=True)

    inputs = [
        mr.Tensor(rng.standard_normal(shape), requires_grad=True) for shape in ((5, 2), (2,), (2,))
    ]
    gradgradcheck(first, inputs)
