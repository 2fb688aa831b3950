r"""Gradients in float32 or float16 against those in float64, at the same point.

The inputs are rounded to the dtype first, so that both computations see the same numbers. How far
the results may then be apart depends on the function: where it amplifies errors, no algorithm
gives all digits. That is measured, as in Parker's Monte Carlo arithmetic ("Monte Carlo arithmetic:
exploiting randomness in floating-point arithmetic", UCLA CSD-970002, 1997): in float64, the inputs,
the upstream gradient and the result of every operation, forward and backward, are multiplied by
1 + u r with a random |r| <= 1, u being half the dtype's epsilon, which is what rounding each of
them once would do; and u r max|y| is added to a result y with one r for all of it, because what is
rounded inside an operation, as the mean of a channel is, moves many elements the same way: a sum of
them that ought to be zero is not. The gradient moves by some amount, `spread` at most in a few
repetitions, and

    |g_dtype - g_float64|  <=  SLACK * (spread + u * max|g|)        for every element

is asked for. SLACK covers what happens inside an operation: sums of many terms round more than
once (by sqrt(n) u for n random terms, less where they are added up in blocks). An operation that
loses digits inside is off by more: a variance as E[x^2] - E[x]^2 by (mean / deviation)^2.

Where such a formula is put together from several operations, each of them is as exact as it can be
and the bound allows for what they make of it together. So the gradient is also held against the
condition alone, the spread with nothing but the inputs and the upstream gradient rounded; if it is
off by far more than that, a note says how many digits the formula loses.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np

from minires.testing.kinks import BranchRecord, record_branches
from minires.testing.observe import Array, altered_results
from minires.testing.report import GradcheckReport, PrecisionResult

DTYPES = ("float32", "float16")
SLACK = 40.0
REPETITIONS = 16
LOSES = 100.0
"""How far beyond the condition an error must lie to be remarked on."""

NEARBY = 20
"""Points that are tried before it is given up to find one where both dtypes take one branch."""


def checked_dtype(dtype: Any) -> Any:
    """A dtype to compare with float64, or None for float64 itself. Raises ValueError for others."""
    known = np.dtype(dtype)
    if known == np.float64:
        return None
    if known.name not in DTYPES:
        raise ValueError(f"gradcheck: dtype is float64, {', '.join(DTYPES)}, got {known}")
    return known


def compare_precision(
    problem: Any,
    values: Sequence[Array],
    upstream: Sequence[Array],
    dtype: Any,
    rng: np.random.Generator,
    report: GradcheckReport,
) -> None:
    """Add the results for every variable to a report, and its failures."""
    upstream = [u.astype(dtype).astype(np.float64) for u in upstream]
    point, branches = _common_point(problem, values, dtype, rng)
    if branches is None:
        report.notes.append(
            f"{dtype} takes another branch at some kink than float64 at {NEARBY} points nearby, "
            "so gradients were not compared there; take fewer elements"
        )
        return
    exact = problem.gradients(point, upstream)
    with problem.computing_in(dtype), np.errstate(all="ignore"):
        outputs = problem.evaluate(point)
        found = problem.gradients(point, upstream)
    promoted = sorted({str(y.dtype) for y in outputs if y.dtype != dtype})
    if promoted:
        report.notes.append(
            f"from {dtype} inputs the function returns {', '.join(promoted)}: a constant of that "
            "type? What is computed in it is not checked"
        )
    unit = float(np.finfo(dtype).eps) / 2
    noise = _Noise(problem, point, upstream, unit, rng, exact, branches)
    spread, condition = noise.spread(inside=True), noise.spread(inside=False)
    if spread is None or condition is None:
        report.notes.append(
            f"rounding to {dtype} moves some kink in each of {REPETITIONS} tries, so gradients "
            "were not compared there; take fewer elements"
        )
        return
    smallest = float(np.finfo(dtype).smallest_subnormal)
    for i, variable in enumerate(problem.variables):
        wide, narrow = exact[i], found[i]
        if wide is None or narrow is None or wide.size == 0:
            continue
        size = float(np.abs(wide).max())
        allowed = SLACK * (spread[i] + unit * size + smallest)
        with np.errstate(invalid="ignore"):
            error = np.abs(narrow.astype(np.float64) - wide)
        worst = int(np.argmax(np.where(np.isnan(error), np.inf, error)))
        index = tuple(int(k) for k in np.unravel_index(worst, wide.shape))
        result = PrecisionResult(
            variable.name, str(dtype), index, float(error[index]), allowed, size
        )
        report.precision.append(result)
        if not result.passed:
            _blame(report, result, bool(np.isfinite(narrow).all()))
        lost = result.error / (condition[i] + unit * size + smallest)
        if result.passed and lost > LOSES:
            report.notes.append(
                f"in {dtype} the gradient of {variable.name} is off by {lost:.0f} times what "
                "rounding the inputs explains: a formula that loses digits (a difference of nearly "
                "equal numbers?)"
            )


def _blame(report: GradcheckReport, result: PrecisionResult, finite: bool) -> None:
    if not finite:
        largest = float(np.finfo(result.dtype).max)
        report.fail(
            "nonfinite",
            f"in {result.dtype} the gradient of {result.tensor} is NaN or infinite, in float64 it "
            f"is not: something on the way is larger than {largest:.6g}",
        )
        return
    report.fail(
        "precision",
        f"{result}: {result.error / result.allowed:.1f} times as much. The formula loses digits, "
        f"or what is computed in {result.dtype} is wrong",
    )


def _common_point(
    problem: Any, values: Sequence[Array], dtype: Any, rng: np.random.Generator
) -> tuple[list[Array], BranchRecord | None]:
    """A point at or near `values` where both dtypes take the same branches, exact in both."""
    for attempt in range(NEARBY):
        point = [
            (x * (1.0 + 0.02 * min(attempt, 1) * rng.uniform(-1, 1, x.shape)))
            .astype(dtype).astype(np.float64) for x in values
        ]  # fmt: skip
        with record_branches() as wide:
            problem.evaluate(point)
        with (
            problem.computing_in(dtype), record_branches() as narrow, np.errstate(all="ignore")
        ):  # fmt: skip
            problem.evaluate(point)
        if wide.first_difference(narrow) is None:
            return point, wide
    return list(values), None


@dataclass
class _Noise:
    """Rounding to a dtype, played in float64: every number times 1 + unit * r, |r| <= 1."""

    problem: Any
    point: Sequence[Array]
    upstream: Sequence[Array]
    unit: float
    rng: np.random.Generator
    exact: Sequence[Array | None]
    branches: BranchRecord

    def rounded(self, array: Array) -> Array:
        return np.asarray(array * (1.0 + self.unit * self.rng.uniform(-1.0, 1.0, array.shape)))

    def computed(self, array: Array) -> Array:
        """The result of an operation: rounded, and a number inside was rounded for all of it."""
        largest = float(np.abs(array).max(initial=0.0))
        return self.rounded(array) + self.unit * self.rng.uniform(-1.0, 1.0) * largest

    def spread(self, *, inside: bool) -> list[float] | None:
        """The largest change of each gradient in a few repetitions.

        inside: round the results of all operations, too. Repetitions that rounding puts on other
        branches are left out; None if all are.
        """
        largest = [0.0] * len(self.exact)
        told = False
        for _ in range(REPETITIONS):
            moved = [self.rounded(x) for x in self.point]
            seeds = [self.rounded(u) for u in self.upstream]
            noisy = altered_results(self.computed) if inside else nullcontext()
            with noisy, record_branches() as taken:
                found = self.problem.gradients(moved, seeds)
            del taken.taken[len(self.branches.taken) :]  # what the backward pass went through
            if self.branches.first_difference(taken) is not None:
                continue
            told = True
            for i, (g, h) in enumerate(zip(self.exact, found, strict=True)):
                if g is not None and h is not None and g.size:
                    largest[i] = max(largest[i], float(np.abs(h - g).max()))
        return largest if told else None
