"""Which operation is at fault: every call in the forward pass is checked on its own.

A wrong gradient shows in every tensor upstream of the fault. Alone, with its own inputs and a
random upstream gradient, each operation is either right or wrong, and the diagnosis of a wrong
one is undisturbed by the rest of the network.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from minires.autograd import Function, Tensor, enable_grad
from minires.functional.norm_training import BatchNormGrad
from minires.testing.diagnosis import Suspect, diagnose
from minires.testing.numeric import Differences, draw_direction, draw_upstream, inner
from minires.testing.observe import Call, watch_calls
from minires.testing.problem import TensorProblem
from minires.testing.report import Cause

NOT_ALONE: tuple[type[Function], ...] = (BatchNormGrad,)
"""Operations that take part of their inputs as attributes (here the statistics of x), so that
their gradients are right in a graph only."""


def faults(problem: TensorProblem, eps: float, rtol: float, atol: float,
           rng: np.random.Generator) -> list[Cause]:  # fmt: skip
    """The causes found in single operations, one per kind of operation and input."""
    calls: list[Call] = []
    with enable_grad(), watch_calls(calls.append, problem.modules):
        problem.call([np.array(v.value, order="K") for v in problem.variables])
    found: dict[tuple[type[Function], int], Cause] = {}
    again: dict[tuple[type[Function], int], int] = {}
    for call in calls:
        if not any(call.wanted) or isinstance(call.function, NOT_ALONE):
            continue
        node = _alone(call)
        for position in wrong_inputs(node, eps, rtol, atol, rng):
            key = (type(call.function), node.positions[position])
            if key in found:
                again[key] = again.get(key, 0) + 1
                continue
            cause = _examine(node, position, eps, rng)
            found[key] = replace(cause, where=str(call))
    return [
        replace(c, text=f"{c.text} (and in {again[key]} other calls)")
        if key in again
        else c
        for key, c in found.items()
    ]


def _alone(call: Call) -> TensorProblem:
    """One call as a problem of its own, of those inputs that wanted a gradient."""
    inputs = [
        Tensor(array, requires_grad=wanted)
        for array, wanted in zip(call.inputs, call.wanted, strict=True)
    ]

    def operation(*tensors: Tensor) -> Any:
        return copy.copy(call.fresh)(*tensors)

    node = TensorProblem(operation, inputs)
    node.rename([call.input_name(i) for i in range(len(inputs))])
    return node


def wrong_inputs(
    problem: TensorProblem, eps: float, rtol: float, atol: float, rng: np.random.Generator
) -> Sequence[int]:
    """Which variables have a wrong gradient, by two directions each. Kinks in the way acquit."""
    outputs, _ = problem.prepare()
    upstream = draw_upstream(outputs, rng)
    gradients = problem.gradients([v.value for v in problem.variables], upstream)
    differences = Differences(problem, upstream, eps)
    wrong = []
    for i in range(len(problem.variables)):
        for _ in range(2):
            d = draw_direction(problem.variables, rng, only=i)
            slope = differences.slope(d)
            if slope is None:
                continue
            analytic = inner(gradients, d)
            scale = max(abs(analytic), abs(slope.value), norm(gradients, d))
            if not abs(analytic - slope.value) <= differences.allowed(slope, scale, rtol, atol):
                wrong.append(i)
                break
    return wrong


def norm(gradients: Sequence[Any], direction: Sequence[Any]) -> float:
    """The typical size of <gradient, direction>: the norm of their product by elements."""
    squares = (
        float(np.sum((g * d) ** 2))
        for g, d in zip(gradients, direction, strict=True)
        if g is not None and d is not None
    )
    return float(np.sqrt(sum(squares)))


def _examine(node: TensorProblem, position: int, eps: float, rng: np.random.Generator) -> Cause:
    outputs, _ = node.prepare()
    upstream = draw_upstream(outputs, rng)
    gradients = node.gradients([v.value for v in node.variables], upstream)
    return diagnose(Suspect(node, upstream, gradients, position, eps, outputs, rng=rng))
