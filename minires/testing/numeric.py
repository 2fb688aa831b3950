r"""Derivatives by differences, with the step checked for kinks and for convergence.

For a direction d over all inputs, the slope of <u, f(x)> along d is estimated by

    c(h) = <u, f(x + h d) - f(x - h d)> / 2h = slope + O(h^2)

and, from c(h) and c(h/2), by (4 c(h/2) - c(h)) / 3 = slope + O(h^4). |c(h/2) - c(h)| tells how far
the estimate can be trusted: it is large if h is too large for the curvature, too small for the
rounding of f, or if a kink nobody declared lies in between.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from minires.testing.kinks import BranchRecord, Kink, record_branches
from minires.testing.observe import Array

Direction = Sequence[Array | None]
"""One array per variable; None where it is zero."""

SHRINK = (1.0, 0.1, 0.01, 0.001)
"""Steps that are tried, as multiples of eps, until one crosses no kink and has converged."""

TINY = 1e-8
"""Where even eps * TINY crosses a kink, the point lies on it."""


@dataclass(frozen=True)
class Variable:
    """A float64 array with respect to which a gradient is checked."""

    name: str
    value: Array

    @property
    def unit(self) -> float:
        """What a step is measured in: 1, or the root mean square of larger values."""
        return max(1.0, float(np.sqrt(np.mean(self.value**2)))) if self.value.size else 1.0


class Problem(Protocol):
    """A function of some variables, however it is written down."""

    variables: list[Variable]

    def evaluate(self, values: Sequence[Array]) -> list[Array]:
        """The floating-point outputs for these values of the variables."""

    def gradients(self, values: Sequence[Array], upstream: Sequence[Array]) -> list[Array | None]:
        """The analytic gradient of <upstream, outputs> for each variable; None if there is none."""


@dataclass(frozen=True)
class Slope:
    """A numeric directional derivative. error: |c(h/2) - c(h)|; eps: the step h."""

    value: float
    error: float
    eps: float


def inner(a: Sequence[Array | None], b: Sequence[Array | None]) -> float:
    """<a, b> over several arrays; None counts as zero."""
    return float(
        sum(np.sum(x * y) for x, y in zip(a, b, strict=True) if x is not None and y is not None)
    )


def draw_upstream(outputs: Sequence[Array], rng: np.random.Generator) -> list[Array]:
    """A random gradient reaching each output: magnitudes in [0.5, 1.5), random signs."""
    # asarray: for shape () NumPy returns numbers, which are no arrays.
    return [
        np.asarray(rng.uniform(0.5, 1.5, y.shape) * rng.choice([-1.0, 1.0], y.shape))
        for y in outputs
    ]


def draw_array(shape: tuple[int, ...], rng: np.random.Generator) -> Array:
    """A random unit vector with no component below 0.1 / sqrt(n), so none goes unnoticed."""
    d = np.asarray(rng.standard_normal(shape))
    n = max(d.size, 1)
    d = d / max(float(np.linalg.norm(d)), 1e-300)
    return np.asarray(np.copysign(np.maximum(np.abs(d), 0.1 / np.sqrt(n)), d))


def draw_direction(
    variables: Sequence[Variable], rng: np.random.Generator, only: int | None = None
) -> list[Array | None]:
    """A random direction over all variables, an equal share for each; or over one of them."""
    chosen = range(len(variables)) if only is None else [only]
    share = 1.0 / np.sqrt(max(len(chosen), 1))
    return [
        share * v.unit * draw_array(v.value.shape, rng) if i in chosen else None
        for i, v in enumerate(variables)
    ]


class Differences:
    """Slopes of <upstream, f> at a point.

    rejected: how many steps were given up because a kink lay between their ends.
    kink: the last such kink.
    """

    def __init__(
        self,
        problem: Problem,
        upstream: Sequence[Array],
        eps: float,
        values: Sequence[Array] | None = None,
    ) -> None:
        self.problem, self.upstream, self.eps = problem, upstream, eps
        self.values = [v.value for v in problem.variables] if values is None else list(values)
        self.rejected = 0
        self.kink: Kink | None = None

    def outputs(self, direction: Direction, step: float) -> tuple[list[Array], BranchRecord]:
        """f(x + step * direction), and the branches taken."""
        moved = []
        for x, d in zip(self.values, direction, strict=True):
            if d is None:
                moved.append(x)
                continue
            y = np.empty_like(x)  # keeps the memory layout, which may decide the kernel
            np.multiply(d, step, out=y)
            y += x
            moved.append(y)
        # A step may leave the domain of f, which is no reason for a warning: the result tells.
        with record_branches() as branches, np.errstate(all="ignore"):
            return self.problem.evaluate(moved), branches

    def central(self, direction: Direction, h: float) -> float | None:
        """c(h), or None if a kink lies between the two ends."""
        (above, there), (below, here) = self.outputs(direction, h), self.outputs(direction, -h)
        kink = there.first_difference(here)
        if kink is not None:
            self.kink = kink
            return None
        return self.paired(above, below) / (2.0 * h)

    def paired(self, above: Sequence[Array], below: Sequence[Array]) -> float:
        """<upstream, above - below>: subtracted first, so that large values cancel exactly."""
        with np.errstate(invalid="ignore"):
            return inner(self.upstream, [a - b for a, b in zip(above, below, strict=True)])

    def slope(self, direction: Direction, scale: float = 0.0) -> Slope | None:
        """The slope along a direction; None if every step crosses a kink.

        scale: size of a typical slope, for judging convergence where this one is nearly zero.
        """
        best: Slope | None = None
        for shrink in SHRINK:
            h = self.eps * shrink
            wide = self.central(direction, h)
            narrow = None if wide is None else self.central(direction, h / 2)
            if wide is None or narrow is None:
                self.rejected += 1
                continue
            found = Slope((4.0 * narrow - wide) / 3.0, abs(narrow - wide), h)
            if best is None or found.error < best.error or np.isnan(best.error):
                best = found
            # The extrapolated value is better than that: its error is about the square of this.
            if found.error <= 1e-5 * max(abs(found.value), scale):
                break
        return best

    def allowed(self, slope: Slope, scale: float, rtol: float, atol: float) -> float:
        """How far a slope may be from the analytic one; scale: the size of the gradient.

        Rounding errors grow as the step shrinks, so a step shrunk k times allows k times more.
        """
        return atol + rtol * scale * self.eps / slope.eps

    def at_kinks(self, direction: Direction) -> int:
        """How many kinks the point itself lies on that this direction crosses."""
        h = self.eps * TINY
        (_, there), (_, here) = self.outputs(direction, h), self.outputs(direction, -h)
        return there.count_differences(here)

    def one_sided(self, direction: Direction) -> tuple[float, float] | None:
        """Slopes of <u, f> to the left and to the right of the point, each to O(h^2).

        None if there are further kinks on either side however small the step.
        """
        centre, _ = self.outputs(direction, 0.0)
        slopes = []
        for sign in (-1.0, 1.0):
            for shrink in SHRINK:
                h = sign * self.eps * shrink
                (near, here), (far, there) = (
                    self.outputs(direction, h),
                    self.outputs(direction, 2.0 * h),
                )
                if here.first_difference(there) is None:
                    # (-3 f(0) + 4 f(h) - f(2h)) / 2h, as two differences that vanish together.
                    rise = 4.0 * self.paired(near, centre) - self.paired(far, centre)
                    slopes.append(rise / (2.0 * h))
                    break
            else:
                return None
        return slopes[0], slopes[1]

    def undeclared_kink(self, direction: Direction, scale: float) -> tuple[float, float] | None:
        """The slopes to the left and right, if they differ however close one looks.

        For kinks that were not registered, and for functions of arrays, which cannot register any.
        The difference of the slopes of a smooth function shrinks with the square of the step.
        """
        wide, narrow = (self._sides(direction, self.eps * k) for k in (1.0, 0.125))
        gap, nearer = (right - left for left, right in (wide, narrow))
        if abs(nearer) > 1e-6 * max(scale, *map(abs, narrow)) and (
            abs(nearer - gap) < 0.1 * abs(nearer)
        ):
            return narrow
        return None

    def _sides(self, direction: Direction, h: float) -> tuple[float, float]:
        """One-sided slopes with one step, whatever kinks are known."""
        centre, _ = self.outputs(direction, 0.0)
        slopes = []
        for step in (-h, h):
            near, far = (self.outputs(direction, k * step)[0] for k in (1.0, 2.0))
            rise = 4.0 * self.paired(near, centre) - self.paired(far, centre)
            slopes.append(rise / (2.0 * step))
        return slopes[0], slopes[1]
