"""Learning rates as functions of the step.

    schedule = MultiStep(0.1, [32_000, 48_000])
    optimizer.lr = schedule(step)

A step is one update of the parameters; the first is step 0. But for `Plateau`, a schedule has no
memory: `schedule(step)` is all that is needed to go on after a break.
"""

from __future__ import annotations

import math
import operator
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from minires.optim.optimizer import non_negative


class Schedule(Protocol):
    """Anything that gives the learning rate of a step."""

    def __call__(self, step: int, /) -> float: ...


def _step(step: int) -> int:
    """The step as an integer. Raises TypeError for anything else, ValueError below 0."""
    try:
        number = operator.index(step)
    except TypeError:
        raise TypeError(f"schedule: a step is an integer, got {step!r}") from None
    if number < 0:
        raise ValueError(f"schedule: steps count from 0, got {number}")
    return number


def _count(who: str, name: str, value: int, minimum: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int | np.integer):
        raise TypeError(f"{who}: {name} takes an integer, got {value!r}")
    if value < minimum:
        raise ValueError(f"{who}: {name} must be at least {minimum}, got {value}")


def _at_least_one(who: str, name: str, value: float) -> None:
    non_negative(who, **{name: value})
    if value < 1:
        raise ValueError(f"{who}: {name} must be at least 1, got {value}")


@dataclass(frozen=True)
class Constant:
    """The same learning rate at every step."""

    base: float

    def __post_init__(self) -> None:
        non_negative("Constant", base=self.base)

    def __call__(self, step: int) -> float:
        _step(step)
        return self.base


@dataclass(frozen=True)
class MultiStep:
    """A staircase: `base`, times `gamma` from each milestone on.

    The paper's (section 4.2): MultiStep(0.1, [32_000, 48_000]). ResNet-110 warms up at 0.01:
    MultiStep(0.1, [32_000, 48_000], warmup_steps=400, warmup_lr=0.01).

    milestones: steps in ascending order, counted from step 0, warm-up included.
    warmup_steps, warmup_lr: so many first steps at that learning rate.

    Raises ValueError for milestones that descend, or a warm-up of which half is given.
    """

    base: float
    milestones: Sequence[int]
    gamma: float = 0.1
    warmup_steps: int = 0
    warmup_lr: float | None = None

    def __post_init__(self) -> None:
        non_negative("MultiStep", base=self.base, gamma=self.gamma)
        milestones = tuple(self.milestones)
        for milestone in milestones:
            _count("MultiStep", "a milestone", milestone, 0)
        if list(milestones) != sorted(milestones):
            raise ValueError(f"MultiStep: milestones must ascend, got {list(milestones)}")
        object.__setattr__(self, "milestones", milestones)
        _count("MultiStep", "warmup_steps", self.warmup_steps, 0)
        if (self.warmup_steps > 0) != (self.warmup_lr is not None):
            raise ValueError(
                "MultiStep: warmup_steps and warmup_lr belong together, got "
                f"warmup_steps={self.warmup_steps} and warmup_lr={self.warmup_lr}"
            )
        if self.warmup_lr is not None:
            non_negative("MultiStep", warmup_lr=self.warmup_lr)

    def __call__(self, step: int) -> float:
        step = _step(step)
        if self.warmup_lr is not None and step < self.warmup_steps:
            return self.warmup_lr
        return float(self.base * self.gamma ** bisect_right(self.milestones, step))


@dataclass(frozen=True)
class OneCycle:
    """A tent: up in a straight line to `peak`, then down in a straight line (Smith, 2018).

    It starts at peak / start_div, is at its peak after the share `warmup` of the steps, reaches
    peak / end_div at the last step (total_steps - 1), and stays there.

    Raises ValueError unless 0 <= warmup <= 1 and both divisors are at least 1.
    """

    peak: float
    total_steps: int
    warmup: float = 0.3
    start_div: float = 25.0
    end_div: float = 1e4

    def __post_init__(self) -> None:
        non_negative("OneCycle", peak=self.peak, warmup=self.warmup)
        _count("OneCycle", "total_steps", self.total_steps, 1)
        if self.warmup > 1:
            raise ValueError(
                f"OneCycle: warmup is a share of the steps, from 0 to 1, got {self.warmup}"
            )
        _at_least_one("OneCycle", "start_div", self.start_div)
        _at_least_one("OneCycle", "end_div", self.end_div)

    def __call__(self, step: int) -> float:
        last = self.total_steps - 1
        step, top = min(_step(step), last), self.warmup * last
        if step < top:
            low, way = self.peak / self.start_div, step / top
        elif step > top:
            low, way = self.peak / self.end_div, (last - step) / (last - top)
        else:
            return self.peak
        return low + (self.peak - low) * way


@dataclass(frozen=True)
class Cosine:
    """Half a cosine wave, from `base` down to `end` (Loshchilov & Hutter, 2017, equation 5).

    Before it, `warmup_steps` steps that rise in a straight line: base / warmup_steps, twice as
    much, and so on, with `base` at the last of them and at the first step of the wave. It reaches
    `end` at the last step (total_steps - 1), and stays there.

    Raises ValueError unless warmup_steps < total_steps.
    """

    base: float
    total_steps: int
    warmup_steps: int = 0
    end: float = 0.0

    def __post_init__(self) -> None:
        non_negative("Cosine", base=self.base, end=self.end)
        _count("Cosine", "total_steps", self.total_steps, 1)
        _count("Cosine", "warmup_steps", self.warmup_steps, 0)
        if self.warmup_steps >= self.total_steps:
            raise ValueError(
                f"Cosine: {self.warmup_steps} warm-up steps leave none of {self.total_steps}"
            )

    def __call__(self, step: int) -> float:
        last = self.total_steps - 1
        step = min(_step(step), last)
        if step < self.warmup_steps:
            return self.base * (step + 1) / self.warmup_steps
        length = last - self.warmup_steps
        way = (step - self.warmup_steps) / length if length else 0.0
        return self.end + 0.5 * (self.base - self.end) * (1.0 + math.cos(math.pi * way))


class Plateau:
    """A staircase led by results: times `factor` when the error has stopped falling.

    `observe(error)` after each evaluation. An error counts as better if it is below
    (1 - threshold) times the best so far; after more than `patience` evaluations in a row without
    a better one, the learning rate falls, but not below `minimum`. The rule is that of PyTorch's
    ReduceLROnPlateau in mode "min". `lr` is the present learning rate, and what calling returns.

    The paper divides by 10 when the error plateaus (section 3.4).

    Raises ValueError unless factor and threshold are below 1 and minimum is at most base.
    """

    def __init__(
        self,
        base: float,
        factor: float = 0.1,
        patience: int = 10,
        threshold: float = 1e-4,
        minimum: float = 0.0,
    ) -> None:
        non_negative("Plateau", base=base, factor=factor, threshold=threshold, minimum=minimum)
        _count("Plateau", "patience", patience, 0)
        if factor >= 1:
            raise ValueError(f"Plateau: factor must be below 1, got {factor}")
        if threshold >= 1:
            raise ValueError(f"Plateau: threshold must be below 1, got {threshold}")
        if minimum > base:
            raise ValueError(f"Plateau: minimum {minimum} lies above the base {base}")
        self.base, self.factor, self.patience = float(base), factor, patience
        self.threshold, self.minimum = threshold, minimum
        self.lr, self.best, self.waited = self.base, math.inf, 0

    def __call__(self, step: int) -> float:
        _step(step)
        return self.lr

    def observe(self, error: float) -> float:
        """Take in the latest error and return the learning rate from here on.

        A NaN counts as no improvement.
        """
        if error < self.best * (1.0 - self.threshold):
            self.best, self.waited = float(error), 0
        else:
            self.waited += 1
        if self.waited > self.patience:
            self.lr, self.waited = max(self.lr * self.factor, self.minimum), 0
        return self.lr

    def state_dict(self) -> dict[str, Any]:
        """What `load_state_dict` needs to go on; `best` is None before the first observation."""
        best = self.best if math.isfinite(self.best) else None
        return {"lr": self.lr, "best": best, "waited": self.waited}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from what `state_dict` returned."""
        self.lr, self.waited = state["lr"], state["waited"]
        self.best = math.inf if state["best"] is None else state["best"]
