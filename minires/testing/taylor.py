r"""The slope test: how fast the remainder of Taylor's formula vanishes with the step.

For a right gradient g and a direction d,

    |f(x + h d) - f(x)|              = O(h)     slope 1 on logarithmic axes
    |f(x + h d) - f(x) - h <g, d>|   = O(h^2)   slope 2

and with a wrong g the second one is of order h like the first. No tolerance enters: it is the
slope that tells. (Farrell et al., "Automated derivation of the adjoint of high-level transient
finite element programs", SIAM J. Sci. Comput. 35(4), 2013, section 5, use it for adjoints.)
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from minires.testing.numeric import Differences, Direction, inner

STEPS = tuple(0.5**k for k in range(2, 32))
"""1/4 down to 5e-10: below it, the remainder of a right gradient is rounding alone."""


@dataclass(frozen=True)
class SlopeTest:
    """Remainders of Taylor's formula for a series of halved steps, relative to the slope.

    change: |f(x + h d) - f(x)|; remainder: the same with h <g, d> taken off. NaN across a kink.
    floor: what rounding leaves; remainders below it tell nothing.
    """

    steps: tuple[float, ...]
    change: tuple[float, ...]
    remainder: tuple[float, ...]
    floor: float

    @property
    def order_without(self) -> float | None:
        """The slope without the gradient: 1, or 2 where the function is stationary along d."""
        return self._order(self.change)

    @property
    def order_with(self) -> float | None:
        """The slope with the gradient: 2 (or more) if it is right, 1 if it is wrong; None where
        nothing but rounding is left at any step, as for a linear function."""
        return self._order(self.remainder)

    @property
    def passed(self) -> bool:
        """Whether the remainder is of second order, or nothing at all."""
        return self.order_with is None or self.order_with > 1.8

    def _order(self, values: Sequence[float]) -> float | None:
        rates = [
            math.log2(wide / narrow)
            for h, wide, narrow in zip(self.steps, values, values[1:], strict=False)
            if h <= 2.0**-4 and wide > 100 * self.floor and narrow > 100 * self.floor
        ]
        # The smallest steps that rounding spares come nearest to the limit.
        return float(np.median(rates[-8:])) if len(rates) >= 3 else None

    def __str__(self) -> str:
        without, with_ = self.order_without, self.order_with
        if with_ is None:
            text = "with the gradient taken off, nothing but rounding is left (a linear function)"
        else:
            verdict = "right: second order" if self.passed else "wrong: the first order is left"
            text = f"{with_:.2f} with the gradient taken off ({verdict})"
        known = "unknown" if without is None else f"{without:.2f}"
        return f"  slope of f(x + h d) - f(x): {known}; {text}"


def slope_test(differences: Differences, direction: Direction, analytic: float) -> SlopeTest:
    """Remainders along a direction; analytic: <g, d>."""
    centre, here = differences.outputs(direction, 0.0)
    change, remainder = [], []
    for h in STEPS:
        there, branches = differences.outputs(direction, h)
        crossed = here.first_difference(branches) is not None
        rise = math.nan if crossed else differences.paired(there, centre)
        change.append(abs(rise))
        remainder.append(abs(rise - h * analytic))
    sizes = [np.abs(y) for y in centre]
    rounding = np.finfo(np.float64).eps * inner([np.abs(u) for u in differences.upstream], sizes)
    scale = max(abs(analytic), *(r / h for r, h in zip(change, STEPS, strict=True) if r == r),
                1e-300)  # fmt: skip
    return SlopeTest(
        STEPS,
        tuple(r / scale for r in change),
        tuple(r / scale for r in remainder),
        float(rounding) / scale,
    )
