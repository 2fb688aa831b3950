"""Numbers of several seeds: mean, deviation, and whether two differ by more than chance."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable
from dataclasses import dataclass

CLEAR = 2.0  # standard errors


@dataclass(frozen=True)
class Spread:
    """One number measured with several seeds."""

    values: tuple[float, ...]

    @classmethod
    def of(cls, values: Iterable[float]) -> Spread:
        """Raises ValueError if there is none."""
        kept = tuple(float(value) for value in values)
        if not kept:
            raise ValueError("Spread: expected at least one value")
        return cls(kept)

    @property
    def mean(self) -> float:
        return statistics.fmean(self.values)

    @property
    def deviation(self) -> float | None:
        """The sample's standard deviation (n - 1); None for one value."""
        return statistics.stdev(self.values) if len(self.values) > 1 else None

    def text(self, digits: int = 1) -> str:
        """`12.3 ± 0.4`, or `12.3` for one value."""
        if self.deviation is None:
            return f"{self.mean:.{digits}f}"
        return f"{self.mean:.{digits}f} ± {self.deviation:.{digits}f}"


@dataclass(frozen=True)
class Difference:
    """How much larger the mean of one number is than that of another.

    error: the standard error of the difference; None if one of the two was measured once.
    """

    value: float
    error: float | None

    @classmethod
    def between(cls, larger: Spread, smaller: Spread) -> Difference:
        error = None
        if larger.deviation is not None and smaller.deviation is not None:
            error = math.sqrt(
                larger.deviation**2 / len(larger.values)
                + smaller.deviation**2 / len(smaller.values)
            )
        return cls(larger.mean - smaller.mean, error)

    @property
    def clear(self) -> bool:
        """Whether it is more than twice its standard error."""
        return self.error is not None and abs(self.value) > CLEAR * self.error

    @property
    def trust(self) -> str:
        """What the seeds say about it, for the end of a sentence."""
        if self.error is None:
            return "one seed, so chance cannot be told from effect"
        size = f"standard error {self.error:.1f}"
        return f"{size}: more than chance" if self.clear else f"{size}: may be chance"
