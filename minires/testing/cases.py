"""Every differentiable operation and every layer, with inputs to check it on.

`check_all()` runs gradcheck and gradgradcheck over the whole table; `minires gradcheck` shows what
it returns. The table itself is in `case_operations` and `case_layers`.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from minires._names import unknown
from minires.autograd import Function, Tensor, enable_grad, functions, grad
from minires.nn import Module
from minires.testing.gradcheck import gradcheck, gradgradcheck
from minires.testing.numeric import draw_upstream
from minires.testing.observe import watch_calls
from minires.testing.problem import floating
from minires.testing.report import GradcheckReport
from minires.testing.small_nets import away_from_start

Draw = Callable[[np.random.Generator], Any]
Input = tuple[int, ...] | Draw


@dataclass(frozen=True)
class Case:
    """One use of one operation.

    operation: what it belongs to in the table, such as "conv2d".
    text: what is special about this use.
    fn: a function of Tensors, or (with `module`) a function that builds a Module.
    inputs: shapes, filled with normal random numbers that require gradients, or functions that
        draw the argument from a generator.
    second_order: whether gradients of gradients are checked; off at exact kinks, where they jump.
    """

    operation: str
    text: str
    fn: Callable[..., Any]
    inputs: tuple[Input, ...]
    module: bool = False
    second_order: bool = True

    @property
    def name(self) -> str:
        return f"{self.operation}: {self.text}"

    def build(self, seed: int = 0) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        """The function or module and its inputs; the same for the same seed."""
        rng = np.random.default_rng([seed, zlib.crc32(self.name.encode())])
        inputs = tuple(i(rng) if callable(i) else normal(i)(rng) for i in self.inputs)
        return (away_from_start(self.fn, rng) if self.module else self.fn), inputs


def normal(shape: tuple[int, ...], requires_grad: bool = True) -> Draw:
    """Standard normal float64."""
    return lambda rng: Tensor(np.asarray(rng.standard_normal(shape)), requires_grad=requires_grad)


def positive(*shape: int) -> Draw:
    """Uniform in [0.5, 2)."""
    return lambda rng: Tensor(np.asarray(rng.uniform(0.5, 2.0, shape)), requires_grad=True)


def given(values: Any) -> Draw:
    """These values."""
    return lambda rng: Tensor(np.array(values, np.float64), requires_grad=True)


_cases: list[Case] = []


def add_case(
    operation: str,
    text: str,
    fn: Callable[..., Any],
    *inputs: Input,
    module: bool = False,
    second_order: bool = True,
) -> None:
    """Add a use of an operation to the table; see `Case`."""
    _cases.append(Case(operation, text, fn, inputs, module, second_order))


def cases(names: Iterable[str] | None = None) -> list[Case]:
    """The table, or the part of it that belongs to some operations.

    Raises ValueError for a name that is not in it.
    """
    from minires.testing import case_layers, case_operations  # noqa: F401 - they fill the table

    if names is None:
        return list(_cases)
    known = dict.fromkeys(case.operation for case in _cases)
    chosen = [names] if isinstance(names, str) else list(names)
    for name in chosen:
        if name not in known:
            raise ValueError(unknown("gradient case", name, known))
    return [case for case in _cases if case.operation in chosen]


@dataclass
class OperationResult:
    """The verdict on one operation.

    cases: how many uses were checked.
    first_error, second_error: worst relative error of gradients, and of gradients of gradients
        (NaN if there were none to measure).
    kinks: steps that were rejected because they crossed a kink, and elements on one.
    failures: the reports of what is wrong.
    """

    name: str
    cases: int = 0
    first_error: float = math.nan
    second_error: float = math.nan
    kinks: int = 0
    failures: list[GradcheckReport] = field(default_factory=list)

    @property
    def passed(self) -> bool:
        return not self.failures

    def add(self, report: GradcheckReport, *, second: bool) -> None:
        self.kinks += report.rejected + report.on_kinks
        error = report.worst_error
        if second:
            self.second_error = float(np.fmax(self.second_error, error))
        else:
            self.first_error = float(np.fmax(self.first_error, error))
        if not report.passed:
            self.failures.append(report)


def check_all(
    names: Iterable[str] | None = None,
    second_order: bool = True,
    seed: int = 0,
    progress: Callable[[OperationResult], None] | None = None,
) -> list[OperationResult]:
    """gradcheck every case of every operation (or of those named); never raises for a failure.

    second_order: check gradients of gradients too, where they exist.
    progress: called with each operation's result as soon as it is there.
    """
    results: dict[str, OperationResult] = {}
    chosen = cases(names)
    for position, case in enumerate(chosen):
        result = results.setdefault(case.operation, OperationResult(case.operation))
        result.cases += 1
        fn, inputs = case.build(seed)
        report = gradcheck(fn, inputs, seed=seed, raise_exception=False)
        report.name = case.name
        result.add(report, second=False)
        if second_order and case.second_order and report.passed:
            report = gradgradcheck(fn, inputs, seed=seed, raise_exception=False)
            report.name = f"{case.name}, second order"
            result.add(report, second=True)
        is_last = all(later.operation != case.operation for later in chosen[position + 1 :])
        if progress is not None and is_last:
            progress(result)
    return list(results.values())


def own_functions() -> dict[str, type[Function]]:
    """Every operation that minires defines, by qualified name, without abstract bases."""
    return {
        name: function
        for name, function in functions().items()
        if name.startswith("minires.") and not function.__name__.startswith("_")
    }


def covered(chosen: Iterable[Case] | None = None) -> set[type[Function]]:
    """The operations that the cases differentiate: called on the way forward or back with an
    input that wants a gradient."""
    seen: set[type[Function]] = set()
    for case in cases() if chosen is None else chosen:
        fn, inputs = case.build()
        wanted = [t for t in inputs if isinstance(t, Tensor) and t.requires_grad]
        if isinstance(fn, Module):
            fn.double()
            wanted += fn.parameters()
        with (
            enable_grad(),
            watch_calls(lambda call: seen.add(type(call.function)) if any(call.wanted) else None),
        ):
            outputs = [y for y in floating(fn(*inputs)) if y.requires_grad]
            upstream = draw_upstream([y.data for y in outputs], np.random.default_rng(0))
            seeds = [Tensor(u, requires_grad=True) for u in upstream]
            grad(outputs, wanted, seeds, create_graph=True, allow_unused=True)
    return seen
