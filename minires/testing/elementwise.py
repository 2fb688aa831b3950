"""One element at a time: slow, and it says exactly which numbers are wrong."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from minires.testing.numeric import Differences
from minires.testing.observe import Array
from minires.testing.report import ElementResult

Place = tuple[int, tuple[int, ...]]
"""(variable, index of an element in it)."""


@dataclass
class Elements:
    """What a walk over elements found.

    wrong: the elements that are wrong, worst first.
    on_kinks: elements on a kink, right in lying between the slopes to its left and right.
    unknown: elements with kinks so near that nothing can be said.
    """

    wrong: list[ElementResult] = field(default_factory=list)
    looked_at: int = 0
    on_kinks: int = 0
    unknown: int = 0


def places(shapes: Sequence[tuple[int, ...]], limit: int, rng: np.random.Generator) -> list[Place]:
    """All elements of some tensors if they are at most `limit`, else a random choice of them."""
    sizes = [int(np.prod(shape)) for shape in shapes]
    total = sum(sizes)
    chosen = range(total) if total <= limit else np.sort(rng.choice(total, limit, replace=False))
    ends = np.cumsum(sizes)
    found: list[Place] = []
    for k in chosen:
        i = int(np.searchsorted(ends, k, side="right"))
        flat = int(k - (ends[i] - sizes[i]))
        found.append((i, tuple(int(j) for j in np.unravel_index(flat, shapes[i]))))
    return found


def examine(
    differences: Differences,
    gradients: Sequence[Array | None],
    chosen: Sequence[Place],
    rtol: float,
    atol: float,
    *,
    jumps: bool = False,
) -> Elements:
    """Difference the chosen elements one by one.

    jumps: the function jumps at its kinks (as gradients do), so nothing can be said there.
    """
    found = Elements()
    variables = differences.problem.variables
    typical = [0.0 if g is None else float(np.sqrt(np.mean(g * g))) for g in gradients]
    for i, index in chosen:
        gradient = gradients[i]
        analytic = 0.0 if gradient is None else float(gradient[index])
        unit = variables[i].unit
        d = np.zeros(variables[i].value.shape)
        d[index] = unit
        direction: list[Array | None] = [None] * len(variables)
        direction[i] = d
        found.looked_at += 1
        kinks = 0  # that are known of
        slope = differences.slope(direction, unit * typical[i])
        if slope is not None:
            numeric = slope.value / unit
            scale = max(abs(analytic), abs(numeric), typical[i])
            if abs(analytic - numeric) <= differences.allowed(slope, scale, rtol, atol):
                continue
            sides = None if jumps else differences.undeclared_kink(direction, unit * scale)
            if sides is None:
                found.wrong.append(ElementResult(variables[i].name, index, analytic, numeric))
                continue
        else:
            kinks = 0 if jumps else differences.at_kinks(direction)
            sides = differences.one_sided(direction) if kinks else None
        if sides is None:
            found.unknown += 1
            continue
        sides = sides[0] / unit, sides[1] / unit
        # One-sided differences carry an error of O(h^2) with h up to eps.
        slack = atol + max(rtol, 1e-5) * max(*map(abs, sides), typical[i])
        if min(sides) - slack <= analytic <= max(sides) + slack:
            found.on_kinks += 1
            continue
        if kinks > 1:  # each may have a value of its own choice: their sum may lie outside
            found.unknown += 1
            continue
        nearest = min(sides, key=lambda s: abs(s - analytic))
        found.wrong.append(
            ElementResult(variables[i].name, index, analytic, nearest, sides)
        )
    found.wrong.sort(key=lambda e: -abs(e.analytic - e.numeric))
    return found
