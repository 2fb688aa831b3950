"""gradcheck and gradgradcheck: is this gradient right, and if not, where and why?"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np

from minires import autograd
from minires.autograd import Tensor, enable_grad, is_grad_enabled
from minires.nn import Module
from minires.testing.array_problem import ArrayProblem
from minires.testing.curve import STEPS, StepCurve
from minires.testing.numeric import draw_upstream
from minires.testing.precision import checked_dtype
from minires.testing.problem import Params, TensorProblem, as_sequence, floating
from minires.testing.procedure import Options, check
from minires.testing.report import GradcheckError, GradcheckReport
from minires.testing.state import Lent, lent


def gradcheck(
    fn: Callable[..., Any],
    inputs: Any,
    *,
    params: Params = None,
    grad: Callable[..., Any] | bool | None = None,
    dtype: Any = None,
    eps: float = 1e-4,
    rtol: float = 1e-7,
    atol: float = 1e-9,
    directions: int = 3,
    elements: int | None = None,
    seed: int = 0,
    curve: bool = False,
    report: bool = False,
    raise_exception: bool | None = None,
) -> GradcheckReport:
    """Compare the gradient of a function or module with finite differences.

        gradcheck(F.conv2d, (x, weight), ...)          # Tensors with requires_grad=True are checked
        gradcheck(model, x)                            # a Module: its parameters are checked too
        gradcheck(lambda x: loss(model(x)), x, params=model)
        gradcheck(f, (a, b), grad=df)                  # arrays; df(a, b, upstream) -> (da, db)
        gradcheck(loss, (weights, x), grad=True)       # arrays; returns (value, gradients)

    fn: returns a floating-point Tensor or a tuple or dict of them. What it returns may be of any
        shape: every output receives a random gradient.
    inputs: one argument or a sequence. Floating-point Tensors are handed to fn as float64 copies;
        those that require gradients are checked. Everything else is handed on untouched. An
        argument may be a dict, list or tuple of Tensors, nested as you like.
    params: further tensors to check: a Module, a mapping of names to tensors, or a sequence.
    grad: the hand-written gradient, if fn is a function of NumPy arrays; then every floating-point
        array among the inputs is checked. grad(*inputs, *upstream) returns one gradient per input,
        or per floating-point input; for an argument that is a dict of arrays, a dict. None means
        zero. True: fn itself returns (value, gradients) for a value that is one number (as
        scipy.optimize.minimize wants with jac=True), or (outputs, pull_back), where
        pull_back(*upstream) returns the gradients.
    dtype: float32 or float16: compute the gradient in it, too, and compare with float64's at the
        same point, within what rounding explains (see `testing.precision`). The inputs are rounded
        to it first.
    eps: the first step along a random unit direction; smaller ones are tried near kinks and where
        the difference has not converged.
    rtol, atol: |analytic - numeric| <= atol + rtol * size, the size being that of the gradient
        along the direction (or of the element). For a step k times smaller than eps, k * rtol:
        rounding errors grow that much.
    directions: how many random directions, each with an upstream gradient of its own.
    elements: how many elements of the worst tensor are differenced one by one after a failure;
        by default 256, or 32 for problems of over 20,000 elements.
    curve: also measure the error against the step (`StepCurve`) and the slope test (`SlopeTest`).
    report: the same, and return a report of a wrong gradient instead of raising: `print(report)`,
        `report.explain()`, `report.plot("v.png")`.

    While it is checked, a module computes in float64 and starts every evaluation from the same
    parameters, buffers and random numbers, so training-mode batch norm and dropout can be checked.
    Afterwards everything (parameters, buffers, `.grad`, mode, random state) is as it was, bit for
    bit. The random generator of minires, NumPy's global one and Python's are reset between
    evaluations and left as they were; generators of your own are not.

    Returns a report that is true if the gradient is right. Otherwise raises GradcheckError, an
    AssertionError with the report as its message and in `.report`, unless `raise_exception` is
    False (as it is by default with `report`). Raises ValueError if there is nothing to check.
    """
    low = None if dtype is None else checked_dtype(dtype)
    options = Options(eps, rtol, atol, directions, elements, seed, curve or report, dtype=low)
    raising = not report if raise_exception is None else raise_exception
    if grad is not None and grad is not False:
        if params is not None or isinstance(fn, Module):
            raise TypeError("gradcheck: grad= is for functions of arrays, which have no params")
        return _verdict(check(ArrayProblem(fn, grad, inputs, low), options), raising)
    with _lent_to(fn, params, low) as (state, modules, parameters):
        problem = TensorProblem(fn, inputs, parameters, modules, state, low)
        return _verdict(check(problem, options), raising)


def gradgradcheck(
    fn: Callable[..., Any],
    inputs: Any,
    *,
    params: Params = None,
    eps: float = 1e-4,
    rtol: float = 1e-7,
    atol: float = 1e-9,
    directions: int = 3,
    elements: int | None = None,
    seed: int = 0,
    curve: bool = False,
    report: bool = False,
    raise_exception: bool | None = None,
) -> GradcheckReport:
    """Compare gradients of gradients with finite differences of first gradients.

    The function checked is (inputs, params, v) -> the gradient of <v, fn(inputs)>, with a random
    v that is an input like the others; see `gradcheck` for everything else. At a kink the first
    gradient jumps, so elements that lie on one are left out.
    """
    options = Options(eps, rtol, atol, directions, elements, seed, curve or report, jumps=True)
    raising = not report if raise_exception is None else raise_exception
    with _lent_to(fn, params) as (state, modules, parameters):
        first = TensorProblem(fn, inputs, parameters, modules, state)
        outputs, changed = first.prepare()
        if changed:
            raise ValueError(
                f"gradgradcheck: the forward pass changes {', '.join(changed)} in place; "
                "run gradcheck first"
            )
        upstream = draw_upstream(outputs, np.random.default_rng(seed))
        many = len(upstream) > 1
        names = [f"upstream[{i}]" if many else "upstream" for i in range(len(upstream))]
        extended = [*first.arguments, *(Tensor(u, requires_grad=True) for u in upstream)]
        second = TensorProblem(
            _gradient_of(first, len(first.arguments)), extended, parameters, modules, state
        )
        second.rename([*first.argument_names, *names])
        second.name = f"gradient of {first.name}"
        return _verdict(check(second, options), raising)


def _gradient_of(problem: TensorProblem, count: int) -> Callable[..., tuple[Tensor, ...]]:
    """(inputs, upstream) -> the gradients, differentiable themselves if anyone is recording."""

    def gradient(*arguments: Any) -> tuple[Tensor, ...]:
        create_graph = is_grad_enabled()
        inputs, upstream = arguments[:count], arguments[count:]
        with enable_grad():
            results = floating(problem.fn(*inputs))
            outputs = [results[i] for i in problem.kept or range(len(results))]
            if not any(y.requires_grad for y in outputs):
                raise ValueError(
                    "gradgradcheck: no output depends on the inputs; run gradcheck first"
                )
            seeds = [u.to(y.device) for u, y in zip(upstream, outputs, strict=True)]
            found = autograd.grad(
                outputs, problem.leaves(inputs), seeds,
                create_graph=create_graph, allow_unused=True,
            )  # fmt: skip
        return tuple(g for g in found if g is not None)

    return gradient


def step_curve(
    fn: Callable[..., Any], inputs: Any, *, params: Params = None,
    grad: Callable[..., Any] | bool | None = None, seed: int = 0,
) -> StepCurve:  # fmt: skip
    """The error of the difference quotient for steps from 1/4 down to 2e-12: the V.

    `print` it for a picture; `.order` is 2 if halving the step divides the error by 4, and
    `.best` the best step with its error. Raises RuntimeError where every direction meets a kink.
    """
    report = gradcheck(
        fn, inputs, params=params, grad=grad, seed=seed, directions=1, elements=1, report=True
    )
    if report.curve is None:
        raise RuntimeError(f"step_curve: no curve could be measured ({len(STEPS)} steps): {report}")
    return report.curve


def assert_gradients(
    fn: Callable[..., Any],
    inputs: Any,
    *,
    params: Params = None,
    grad: Callable[..., Any] | bool | None = None,
    dtype: Any = None,
    second_order: bool = True,
    **options: Any,
) -> None:
    """gradcheck and gradgradcheck in one line of a test; a failure's message is the report.

    second_order: whether gradients of gradients are checked; a function of arrays (`grad`) has
        none to check.
    options: further ones of `gradcheck`, used for both.

    Raises GradcheckError, an AssertionError, if a gradient is wrong.
    """
    gradcheck(fn, inputs, params=params, grad=grad, dtype=dtype, **options)
    if second_order and not grad:
        gradgradcheck(fn, inputs, params=params, **options)


def _verdict(report: GradcheckReport, raise_exception: bool) -> GradcheckReport:
    if raise_exception and not report.passed:
        raise GradcheckError(report)
    return report


@contextmanager
def _lent_to(
    fn: Callable[..., Any], params: Params, through: Any = None
) -> Iterator[tuple[Lent, list[Module], dict[str, Tensor]]]:
    """The modules and tensors to check with their names, lent for the length of the check."""
    if not callable(fn):
        raise TypeError(f"gradcheck: fn must be a function or a Module, got {type(fn).__name__}")
    modules = [m for m in (fn, params) if isinstance(m, Module)]
    named: list[tuple[str, Tensor]] = [p for m in modules for p in m.named_parameters()]
    if isinstance(params, Mapping):
        named += params.items()
    elif params is not None and not isinstance(params, Module):
        named += [(f"params[{i}]", p) for i, p in enumerate(as_sequence(params))]
    parameters: dict[str, Tensor] = {}
    for name, parameter in named:
        if not isinstance(parameter, Tensor):
            raise TypeError(f"gradcheck: {name} must be a Tensor, got {type(parameter).__name__}")
        if not any(parameter is p for p in parameters.values()):
            parameters[name if name not in parameters else f"params.{name}"] = parameter
    with lent(modules, parameters.values(), through) as state:
        yield state, modules, parameters
