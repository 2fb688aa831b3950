"""Timing calls side by side: interleaved in one process, medians with their spread.

Two programs timed one after the other are timed on two machines: clocks change, neighbours come
and go. So every round visits every contender once, in an order that rotates from round to round. A
pause before each visit lets the threads of the library before stop spinning; one call that is not
timed brings caches and threads back; then a few calls are timed, more of them the shorter they are.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

PAUSE = 0.03  # seconds before each visit
VISIT = 0.03  # seconds of timed calls per visit, about
SAMPLE = 5e-4  # seconds that one reading of the clock should span: shorter calls are timed together
SAMPLES = 5  # the most readings per visit
LONG = 1.0  # seconds from which on a call needs no untimed call before it

Call = Callable[[], Any]
Clock = Callable[[], float]
Reading = Callable[[Call, int], float]
"""(call, calls) -> seconds per call over so many of them."""


@dataclass(frozen=True)
class Times:
    """Seconds per call of one contender.

    rounds: the readings of each round. first_call: of the very first call, in which a kernel may
    be compiled or read from a cache; it is not among the readings.
    """

    rounds: tuple[tuple[float, ...], ...]
    first_call: float

    @property
    def readings(self) -> list[float]:
        return [seconds for visit in self.rounds for seconds in visit]

    @property
    def median(self) -> float:
        return statistics.median(self.readings)

    @property
    def quartiles(self) -> tuple[float, float]:
        """A quarter of the readings is below the first, a quarter above the second."""
        readings = self.readings
        if len(readings) < 2:
            return readings[0], readings[0]
        low, _, high = statistics.quantiles(readings, n=4, method="inclusive")
        return low, high

    @property
    def best(self) -> float:
        return min(self.readings)

    @property
    def spread(self) -> float:
        """Half the distance of the quartiles, as a share of the median."""
        low, high = self.quartiles
        return (high - low) / 2 / self.median

    def record(self) -> dict[str, Any]:
        """Plain values for JSON, in milliseconds."""
        low, high = self.quartiles
        return {
            "median_ms": self.median * 1e3,
            "quartiles_ms": [low * 1e3, high * 1e3],
            "best_ms": self.best * 1e3,
            "readings": len(self.readings),
            "first_call_ms": self.first_call * 1e3,
        }


def interleave(
    contenders: Mapping[str, Call],
    rounds: int = 7,
    *,
    first_calls: Mapping[str, float] | None = None,
    visit: float = VISIT,
    pause: float = PAUSE,
    clock: Clock = time.perf_counter,
    reading: Reading | None = None,
    sleep: Callable[[float], None] = time.sleep,
    progress: Callable[[str], None] | None = None,
) -> dict[str, Times]:
    """Time every contender in turn, `rounds` times.

    first_calls: seconds of first calls that were made before, by name; the others are made here.
    visit: seconds of timed calls per visit, about; pause: seconds before it.
    reading: how calls are timed where the clock does not do, as on a device (`Place.reading`).
    progress: told the name of each contender when it is visited.

    Raises ValueError unless there is a contender and a round.
    """
    if not contenders:
        raise ValueError("interleave: nothing to time")
    if rounds < 1:
        raise ValueError(f"interleave: rounds must be at least 1, got {rounds}")
    read = reading or (lambda call, calls: _reading(call, calls, clock))
    first = dict(first_calls or {})
    plans: dict[str, _Plan] = {}
    for name, call in contenders.items():
        sleep(pause)
        if name not in first:
            first[name] = read(call, 1)
        plans[name] = _Plan.of(read(call, 1), visit)
    readings: dict[str, list[tuple[float, ...]]] = {name: [] for name in contenders}
    for turn in range(rounds):
        for name in rotated(list(contenders), turn):
            if progress is not None:
                progress(name)
            sleep(pause)
            call, plan = contenders[name], plans[name]
            if plan.warm:
                call()
            readings[name].append(
                tuple(read(call, plan.calls) for _ in range(plan.samples))
            )
    return {name: Times(tuple(readings[name]), first[name]) for name in contenders}


def rotated(names: Sequence[str], turn: int) -> list[str]:
    """The order of a round: every second one is the one before backwards, then another begins;
    nobody always comes after the same neighbour."""
    start = turn // 2 % len(names)
    order = [*names[start:], *names[:start]]
    return order[::-1] if turn % 2 else order


@dataclass(frozen=True)
class _Plan:
    """calls: per reading of the clock; samples: readings per visit; warm: an untimed call first."""

    calls: int
    samples: int
    warm: bool

    @classmethod
    def of(cls, seconds: float, visit: float) -> _Plan:
        seconds = max(seconds, 1e-9)
        calls = max(1, math.ceil(SAMPLE / seconds))
        samples = min(max(1, round(visit / (calls * seconds))), SAMPLES)
        return cls(calls, samples, seconds < LONG)


def _reading(call: Call, calls: int, clock: Clock) -> float:
    """Seconds per call over so many of them."""
    start = clock()
    for _ in range(calls):
        call()
    return (clock() - start) / calls
