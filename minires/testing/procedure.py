"""The course of one gradient check, from a problem to a report.

The function is called twice: it must leave its inputs alone and repeat itself. Then, for a few
random upstream gradients, the backward pass is run and looked over (`audit`), and <gradient, d>
compared with a difference quotient along a random direction d over all inputs and parameters
together. Only where a direction fails is more work done: each tensor gets directions of its own,
the worst one is differenced element by element, every operation is checked alone (`blame`), and
the wrong gradient is held against the table of faults (`diagnosis`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from minires.testing.array_problem import ArrayProblem
from minires.testing.audit import (
    NEGLIGIBLE,
    Audit,
    audited,
    first_call,
    largest,
    loses_digits,
    single_precision,
    turns_nonfinite,
    wrong_shape,
)
from minires.testing.blame import faults, norm
from minires.testing.curve import measure
from minires.testing.diagnosis import Suspect, diagnose, halve, worst_element
from minires.testing.elementwise import Place, examine, places
from minires.testing.faults import FAULTS
from minires.testing.numeric import (
    Differences,
    Direction,
    Slope,
    draw_direction,
    draw_upstream,
    inner,
)
from minires.testing.observe import Array
from minires.testing.precision import compare_precision
from minires.testing.problem import TensorProblem, same_bits
from minires.testing.report import Cause, DirectionResult, GradcheckReport, TensorResult
from minires.testing.taylor import slope_test

GIVE_UP = 20
"""Rejected steps after which a point is said to be too close to its kinks."""


MANY_TENSORS = 64
"""Above this many tensors, the wrong ones are not all named."""


@dataclass(frozen=True)
class Options:
    """See `gradcheck`.

    jumps: the function is a gradient, which jumps where the original kinks.
    dtype: another dtype to compare with float64.
    """

    eps: float = 1e-4
    rtol: float = 1e-7
    atol: float = 1e-9
    directions: int = 3
    elements: int | None = None
    seed: int = 0
    curve: bool = False
    jumps: bool = False
    dtype: Any = None

    def __post_init__(self) -> None:
        if not self.eps > 0:
            raise ValueError(f"gradcheck: eps must be positive, got {self.eps}")
        if not (self.rtol >= 0 and self.atol >= 0):
            raise ValueError(
                f"gradcheck: rtol and atol must not be negative, got {self.rtol} and {self.atol}"
            )
        if self.directions < 1:
            raise ValueError(f"gradcheck: needs at least one direction, got {self.directions}")


def check(problem: TensorProblem | ArrayProblem, options: Options) -> GradcheckReport:
    """Carry out the check."""
    return _Check(problem, options).run()


class _Check:
    def __init__(self, problem: TensorProblem | ArrayProblem, options: Options) -> None:
        self.problem, self.options = problem, options
        self.rng = np.random.default_rng(options.seed)
        self.values = [v.value for v in problem.variables]
        self.report = GradcheckReport(problem.name)

    def run(self) -> GradcheckReport:
        report = self.report
        self.outputs = self.forward()
        for _ in range(self.options.directions if report.passed else 0):
            upstream = draw_upstream(self.outputs, self.rng)
            gradients, audit = self.backward(upstream)
            if not report.passed:
                break
            self.describe(gradients)
            differences = Differences(self.problem, upstream, self.options.eps)
            met_kink = self.direction(differences, gradients)
            report.rejected += differences.rejected
            if met_kink:
                self.element_by_element(differences, gradients)
                break
            if not report.passed:
                if self.on_undeclared_kink(differences, gradients):
                    self.element_by_element(differences, gradients)
                else:
                    self.explain(differences, gradients, audit)
                break
        if report.passed and self.options.dtype is not None:
            upstream = draw_upstream(self.outputs, self.rng)
            dtype = self.options.dtype
            compare_precision(self.problem, self.values, upstream, dtype, self.rng, report)
        return report

    # -- the function and its gradient, before any difference ----------------------------------

    def forward(self) -> list[Array]:
        """The outputs, if fn leaves its inputs alone, repeats itself and stays finite."""
        problem, report = self.problem, self.report
        outputs, changed = problem.prepare()
        if problem.left_out:
            report.notes.append(
                f"{problem.left_out} of the outputs do not require gradients and were not checked"
            )
        if changed:
            report.fail(
                "mutated", f"the forward pass changes {', '.join(changed)} in place; work on a copy"
            )
            return outputs
        again = problem.evaluate(self.values)
        for i, (first, second) in enumerate(zip(outputs, again, strict=True)):
            if not same_bits(first, second):
                apart = float(np.nanmax(np.abs(first - second)))
                report.fail(
                    "random",
                    f"two forward passes from the same inputs, parameters and random state differ "
                    f"by up to {apart:.2g} in output {i}; draw random numbers from "
                    "minires.functional.random.generator(), or outside of the function",
                )
                return outputs
            if not np.isfinite(first).all():
                call = first_call(problem, self.values, turns_nonfinite)
                bad = int((~np.isfinite(first)).sum())
                report.fail(
                    "nonfinite",
                    f"the forward pass gives NaN or infinity in {bad} of {first.size} elements of "
                    f"output {i}, so there is nothing to differentiate",
                    str(call) if call else "",
                )
                return outputs
        return outputs

    def backward(self, upstream: list[Array]) -> tuple[list[Array | None], Audit]:
        """The analytic gradients, if they are fit to be compared at all."""
        problem, report = self.problem, self.report
        before = [u.copy() for u in upstream]
        values = [np.array(v, order="K") for v in self.values]
        gradients, audit = audited(problem, values, upstream)
        for cause in audit.causes:
            report.fail(cause.kind, cause.text, cause.where)
        if not gradients:
            return gradients, audit
        for variable, value in zip(problem.variables, values, strict=True):
            if not same_bits(value, variable.value):
                report.fail("mutated", f"the backward pass changes {variable.name} in place")
        if not all(map(same_bits, upstream, before)):
            report.fail("mutated", "the backward pass changes the upstream gradient in place")
        floor = NEGLIGIBLE * max(
            largest(g) for g in (*upstream, *gradients) if g is not None
        )
        for i, (variable, g) in enumerate(zip(problem.variables, gradients, strict=True)):
            if g is None:
                continue
            if g.shape != variable.value.shape:
                report.fail(*wrong_shape(variable.name, g.shape, variable.value.shape))
            elif not np.isfinite(g).all():
                self.not_finite(i, gradients, upstream)
            elif not audit.causes and (g.dtype != np.float64 or single_precision(g, floor)):
                report.fail(
                    "float32",
                    f"the gradient of {variable.name} has float32's digits only (dtype {g.dtype}) "
                    "where everything is float64: something computes in single precision",
                )
            for other, h in zip(problem.variables[:i], gradients, strict=False):
                if h is not None and np.may_share_memory(g, h):
                    report.fail(
                        "shared memory",
                        f"the gradients of {other.name} and {variable.name} share memory: what "
                        "changes one in place changes the other; return copies",
                    )
        return gradients, audit

    def not_finite(
        self, position: int, gradients: list[Array | None], upstream: list[Array]
    ) -> None:
        gradient = gradients[position]
        if gradient is None:
            return
        bad = np.argwhere(~np.isfinite(gradient))
        chosen: list[Place] = [(position, tuple(int(k) for k in index)) for index in bad[:3]]
        differences = Differences(self.problem, upstream, self.options.eps)
        with np.errstate(all="ignore"):
            found = examine(differences, gradients, chosen, 0.0, 0.0)
        self.report.elements += found.wrong
        self.report.looked_at += found.looked_at
        if "nonfinite" not in self.report.kinds:
            name = self.problem.variables[position].name
            self.report.fail(
                "nonfinite",
                f"the gradient of {name} is NaN or infinite in {len(bad)} of {gradient.size} "
                "elements",
            )
        self.report.passed = False

    def describe(self, gradients: Sequence[Array | None]) -> None:
        self.report.tensors = [
            TensorResult(
                v.name,
                v.value.shape,
                v.value.size,
                0.0 if g is None else float(np.linalg.norm(g)),
                float("nan"),
                True,
            )
            for v, g in zip(self.problem.variables, gradients, strict=True)
        ]

    # -- directions ------------------------------------------------------------------------------

    def direction(self, differences: Differences, gradients: Sequence[Array | None]) -> bool:
        """Compare along one random direction. True if the point lies on a kink instead."""
        report, options = self.report, self.options
        while True:
            d = draw_direction(self.problem.variables, self.rng)
            slope = differences.slope(d, norm(gradients, d))
            if slope is not None:
                break
            if differences.at_kinks(d):
                return True
            if differences.rejected >= GIVE_UP:
                report.fail(
                    "kink",
                    f"gave up after {differences.rejected} steps that all crossed a kink, the last "
                    f"one at {differences.kink}: use a smaller eps than {options.eps:g}, inputs "
                    "away from the kink, or fewer elements",
                )
                return False
        if options.curve and report.curve is None:
            analytic = inner(gradients, d)
            report.curve = measure(differences, d, analytic, self.scale(gradients, d, slope))
            report.slopes = slope_test(differences, d, analytic)
        error, right = self.compare(differences, gradients, d, slope)
        report.directions.append(
            DirectionResult(inner(gradients, d), slope.value, error, slope.eps, right)
        )
        self.last = d
        report.passed &= right
        return False

    def scale(self, gradients: Sequence[Array | None], d: Direction, slope: Slope) -> float:
        return max(abs(inner(gradients, d)), abs(slope.value), norm(gradients, d), 1e-300)

    def compare(
        self,
        differences: Differences,
        gradients: Sequence[Array | None],
        d: Direction,
        slope: Slope,
    ) -> tuple[float, bool]:
        """The relative error along a direction, and whether it is within the tolerances."""
        error = abs(inner(gradients, d) - slope.value)
        scale = self.scale(gradients, d, slope)
        right = error <= differences.allowed(slope, scale, self.options.rtol, self.options.atol)
        return (0.0 if error == 0 else error / scale), right

    # -- after a failure ---------------------------------------------------------------------------

    def explain(
        self, differences: Differences, gradients: Sequence[Array | None], audit: Audit
    ) -> None:
        """Which tensor, which elements, which operation, and why."""
        if self.report.causes:  # gave up at kinks
            return
        last = self.report.directions[-1]
        if self.uncertain(differences, gradients, abs(last.analytic - last.numeric)):
            return
        wrong = self.single_out(differences, gradients)
        self.name_elements(differences, gradients, wrong[0])
        found = []
        if isinstance(self.problem, TensorProblem):
            o = self.options
            found = faults(self.problem, o.eps, o.rtol, o.atol, self.rng)
        if not found:
            found = [self.diagnosed(differences, gradients, audit, i) for i in wrong[:3]]
        self.report.causes += found

    def uncertain(
        self, differences: Differences, gradients: Sequence[Array | None], error: float
    ) -> bool:
        """Whether the numeric derivative, rather than the analytic one, is to blame."""
        d = draw_direction(self.problem.variables, self.rng)
        slope = differences.slope(d, norm(gradients, d))
        if slope is None:
            return False
        if not np.isfinite(slope.value):
            self.report.fail(
                "nonfinite",
                f"the function is NaN or infinite at a step of {slope.eps:.1g} from the point: "
                "choose inputs well inside its domain, or a smaller eps",
            )
            return True
        spread = slope.error
        if slope.value == 0:  # as between the jumps of a function with steps
            wide = differences.central(d, self.options.eps)
            spread = max(spread, abs(wide or 0.0))
        if not spread > 0.1 * error:
            return False
        moved = [x + self.options.eps * (0.0 if e is None else e)
                 for x, e in zip(self.values, d, strict=True)]  # fmt: skip
        call = first_call(self.problem, moved, loses_digits)
        if call is not None or all(map(single_precision, self.problem.evaluate(moved))):
            self.report.fail(
                "float32",
                "gives results with float32's digits only from float64 inputs, too coarse for "
                "differences: do not convert to float32, and keep constants in float64",
                str(call) if call else "the function",
            )
        else:
            self.report.fail(
                "noisy",
                f"the numeric derivative changes by {spread:.2g} with the step: "
                "the function is noisy, has a kink or jump that gradcheck does not know (see "
                f"register_kink), or wants another eps than {self.options.eps:g}",
            )
        return True

    def single_out(
        self, differences: Differences, gradients: Sequence[Array | None]
    ) -> list[int]:
        """Check each tensor along a direction of its own; the wrong ones, worst first.

        Of very many tensors, only a wrong one that halving finds.
        """
        count = len(self.values)
        alone = [draw_direction(self.problem.variables, self.rng, only=i) for i in range(count)]

        def error_of(part: Array) -> float:
            d = [alone[i][i] if i in part else None for i in range(count)]
            slope = differences.slope(d, norm(gradients, d))
            return -1.0 if slope is None else abs(inner(gradients, d) - slope.value)

        chosen = range(count) if count <= MANY_TENSORS else [halve(count, error_of)]
        errors = {}
        for i in chosen:
            slope = differences.slope(alone[i], norm(gradients, alone[i]))
            errors[i], right = (
                (0.0, True) if slope is None
                else self.compare(differences, gradients, alone[i], slope)
            )  # fmt: skip
            tensor = self.report.tensors[i]
            self.report.tensors[i] = replace(tensor, error=errors[i], passed=right)
        order = sorted(errors, key=lambda i: -errors[i])
        return [i for i in order if not self.report.tensors[i].passed] or order[:1]

    def limit(self) -> int:
        """How many elements are worth differencing one by one."""
        if self.options.elements is not None:
            return self.options.elements
        return 256 if sum(v.size for v in self.values) <= 20_000 else 32

    def name_elements(
        self, differences: Differences, gradients: Sequence[Array | None], position: int
    ) -> None:
        """Find wrong elements of one tensor: all of them, or a sample and the worst."""
        shape = self.values[position].shape
        chosen = [(position, index) for _, index in places([shape], self.limit(), self.rng)]
        if self.values[position].size > self.limit():
            worst = worst_element(differences, gradients, position, self.rng)
            chosen = [(position, worst), *(c for c in chosen if c[1] != worst)]
        found = examine(
            differences, gradients, chosen, self.options.rtol, self.options.atol,
            jumps=self.options.jumps,
        )  # fmt: skip
        self.report.elements = found.wrong
        self.report.looked_at = found.looked_at

    def diagnosed(
        self,
        differences: Differences,
        gradients: Sequence[Array | None],
        audit: Audit,
        position: int,
    ) -> Cause:
        return diagnose(
            Suspect(
                self.problem,
                differences.upstream,
                gradients,
                position,
                self.options.eps,
                self.outputs,
                audit.flows,
                self.rng,
            )
        )

    def on_undeclared_kink(
        self, differences: Differences, gradients: Sequence[Array | None]
    ) -> bool:
        """Whether the direction that failed leaves the point with another slope on each side.

        Then it says nothing: what it found is taken back.
        """
        report = self.report
        if self.options.jumps or report.causes or not report.directions:
            return False
        size = norm(gradients, self.last)
        sides = differences.undeclared_kink(self.last, size)
        if sides is None:
            return False
        report.directions.pop()
        report.passed = True
        return True

    def element_by_element(
        self, differences: Differences, gradients: Sequence[Array | None]
    ) -> None:
        """At a kink: each element for itself, those on the kink by their one-sided slopes."""
        report, options = self.report, self.options
        chosen = places([x.shape for x in self.values], self.limit(), self.rng)
        found = examine(
            differences, gradients, chosen, options.rtol, options.atol, jumps=options.jumps
        )
        report.elements, report.looked_at = found.wrong, found.looked_at
        report.on_kinks = found.on_kinks
        kink = differences.kink or "one that nobody declared"
        report.notes.append(
            f"the point lies on a kink ({kink}), so {found.looked_at} elements were "
            f"differenced one by one; {found.on_kinks} of them lie on a kink and have a value "
            "between their one-sided slopes"
            + (f"; {found.unknown} could not be judged" if found.unknown else "")
        )
        if found.wrong:
            on_kink = found.wrong[0].slopes is not None
            report.fail(
                "kink" if on_kink else "unknown",
                "the value on a kink must lie between the slopes on its two sides (where several "
                "kinks meet, as behind a row of zeros, their values may add up to one outside: "
                "move the point)"
                if on_kink
                else f"on a point with kinks only elements are compared; {FAULTS['unknown']}",
            )
        elif found.unknown == found.looked_at:
            report.fail("kink", f"every element lies on a kink ({kink}): move away")
