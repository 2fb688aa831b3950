r"""The error of a difference quotient against its step: a V on logarithmic axes.

To the right of the V the truncation error of the central difference rules: it falls by 4 when the
step is halved. To the left the rounding of the function rules, and grows as the step shrinks. A
right gradient shows the V; the error of a wrong one stays level, since no step makes it smaller.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from minires.testing.numeric import Differences, Direction

STEPS = tuple(0.5**k for k in range(2, 40))
"""1/4 down to about 2e-12, halved each time."""


@dataclass(frozen=True)
class StepCurve:
    """Relative errors of the central difference at a series of halved steps.

    errors: NaN where a kink lay between the ends.
    """

    steps: tuple[float, ...]
    errors: tuple[float, ...]

    @property
    def best(self) -> tuple[float, float]:
        """The step with the smallest error, and that error. NaN if every step crossed a kink."""
        known = [(e, h) for h, e in zip(self.steps, self.errors, strict=True) if e == e]
        error, step = min(known, default=(math.nan, math.nan))
        return step, error

    @property
    def order(self) -> float | None:
        """How fast the truncation error vanishes: 2 means halving the step divides it by 4.

        The median of log2(error(h) / error(h/2)) over the steps where rounding does not matter
        yet; None if there are fewer than three of those (as for a quadratic function, which
        central differences get exactly).
        """
        best, error = self.best
        floor = 300.0 * max(error, 1e-16)
        rates = []
        for (h, wide), narrow in zip(
            zip(self.steps, self.errors, strict=True), self.errors[1:], strict=False
        ):
            if 2.0**-4 >= h > best and wide > floor and narrow > floor:
                rates.append(math.log2(wide / narrow))
        return float(np.median(rates)) if len(rates) >= 3 else None

    def __str__(self) -> str:
        lines = ["  step      relative error"]
        for h, error in list(zip(self.steps, self.errors, strict=True))[::3]:
            if error != error:
                lines.append(f"  {h:.1e}   across a kink")
                continue
            bar = "#" * max(0, round(2 * (math.log10(max(error, 1e-16)) + 16)))
            lines.append(f"  {h:.1e}   {error:.1e}  {bar}")
        if self.order is not None:
            lines.append(f"  halving the step divides the error by {2**self.order:.2f}")
        return "\n".join(lines)


def measure(
    differences: Differences,
    direction: Direction,
    analytic: float,
    scale: float,
    steps: Sequence[float] = STEPS,
) -> StepCurve:
    """|c(h) - analytic| / scale for each step h."""
    errors = []
    for h in steps:
        numeric = differences.central(direction, h)
        errors.append(math.nan if numeric is None else abs(numeric - analytic) / scale)
    return StepCurve(tuple(steps), tuple(errors))
