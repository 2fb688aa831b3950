r"""From a wrong gradient to its likely cause.

Each fault in the table below has a cure: a simple change c of the analytic gradient a that would
make it right if that fault were the only one (half of it, its mirror image, a plus some gradient
that flowed elsewhere), or a subspace of directions along which a is right already (those without
a mean per channel, those away from the border). A cure is tried by comparing <c, d> with the
numeric slope along a few random directions d, so it costs next to nothing whatever the size of the
tensor, and an accidental match is out of the question.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np

from minires.testing.compare import element
from minires.testing.faults import FAULTS
from minires.testing.numeric import Differences, Problem, draw_array, draw_direction, inner
from minires.testing.observe import Array
from minires.testing.report import Cause


@dataclass
class Suspect:
    """One wrong gradient and what it can be compared with.

    gradient: of variable `position`; None if there was none.
    factors: other inputs and outputs, by name, that may be a missing factor.
    flows: gradients that operations returned during the backward pass, by name.
    """

    problem: Problem
    upstream: Sequence[Array]
    gradients: Sequence[Array | None]
    position: int
    eps: float
    outputs: Sequence[Array] = ()
    flows: Sequence[tuple[str, Array]] = ()
    rng: np.random.Generator = field(default_factory=lambda: np.random.default_rng(0))

    def __post_init__(self) -> None:
        variable = self.problem.variables[self.position]
        self.name, self.value = variable.name, variable.value
        found = self.gradients[self.position]
        self.a: Array = np.zeros(self.value.shape) if found is None else found
        self.differences = Differences(self.problem, self.upstream, self.eps)
        self.directions = [draw_array(self.value.shape, self.rng) for _ in range(3)]
        self.slopes = [self.slope(d) for d in self.directions]
        self.evidence = ""

    def slope(self, direction: Array, along: int | None = None) -> float:
        """The numeric slope along a direction of this variable (or another); NaN if unknown."""
        full: list[Array | None] = [None] * len(self.problem.variables)
        full[self.position if along is None else along] = direction
        found = self.differences.slope(full)
        return float("nan") if found is None else found.value

    def agree(self, predicted: Sequence[float], numeric: Sequence[float]) -> bool:
        """Whether predictions equal slopes, up to 1e-4 of the error to be explained.

        If so, `evidence` tells how much smaller the error is.
        """
        wrong = max(abs(float(np.sum(self.a * d)) - n)
                    for d, n in zip(self.directions, self.slopes, strict=True))  # fmt: skip
        left = max((abs(p - n) for p, n in zip(predicted, numeric, strict=True)), default=0.0)
        if not left <= 1e-4 * wrong + 1e-12:
            return False
        size = max(*map(abs, self.slopes), 1e-300)
        self.evidence = (
            f"error {wrong / size:.2g} of the gradient, {left / size:.0e} with that taken into "
            "account"
        )
        return True

    def cured_by(self, c: Array) -> bool:
        """Whether c would be the right gradient."""
        return self.agree([float(np.sum(c * d)) for d in self.directions], self.slopes)

    def right_along(self, restrict: Callable[[Array], Array]) -> bool:
        """Whether the gradient is right along restricted directions (and these are not nothing)."""
        restricted = [restrict(d) for d in self.directions]
        for d, r in zip(self.directions, restricted, strict=True):
            if np.linalg.norm(r) < 0.05 * np.linalg.norm(d):
                return False
        first = restricted[0]  # one is enough to say no, and cheaper
        if not self.agree([float(np.sum(self.a * first))], [self.slope(first)]):
            return False
        rest = restricted[1:]
        return self.agree([float(np.sum(self.a * r)) for r in rest], [self.slope(r) for r in rest])


Finding = tuple[str, str]
"""(kind, text)."""


def diagnose(suspect: Suspect) -> Cause:
    """The first fault whose cure works."""
    if not np.isfinite(suspect.a).all():
        bad = int((~np.isfinite(suspect.a)).sum())
        return Cause("nonfinite", f"the gradient of {suspect.name} is NaN or infinite in {bad} of "
                     f"{suspect.a.size} elements")  # fmt: skip
    if not np.isfinite(suspect.slopes).all():
        return Cause("kink", f"no step along {suspect.name} stays on one side of every kink")
    for rule in (_single, _flat, _absent, _constant_ratio, _rearranged, _other_factor, _flows,
                 _shifted, _swapped, _altered_input, _isolated, _statistics, _partly, _border):
        suspect.evidence = ""
        for kind, text in rule(suspect):
            evidence = suspect.evidence
            return Cause(kind, f"the gradient of {suspect.name} {text}", evidence=evidence)
    return Cause("unknown", f"the gradient of {suspect.name} matches {FAULTS['unknown']}")


def _single(s: Suspect) -> Iterator[Finding]:
    for d, n in zip(s.directions, s.slopes, strict=True):
        scale = max(float(np.linalg.norm(s.a * d)), abs(n))
        if not abs(float(np.sum(s.a * d)) - n) < 1e-6 * scale:
            return
    yield "float32", (
        "is off by less than a millionth of its size, as float32 leaves it: something computes in "
        "single precision"
    )


def _flat(s: Suspect) -> Iterator[Finding]:
    if not any(s.slopes):
        yield "flat", f"is not zero, but {FAULTS['flat']}"


def _absent(s: Suspect) -> Iterator[Finding]:
    if not s.a.any():
        yield "missing", f"is {FAULTS['missing']}"


def _sizes(s: Suspect) -> dict[int, str]:
    """Numbers above 2 that a factor may turn out to be, and what each one counts."""
    sizes: dict[int, str] = {}
    arrays = [(v.name, v.value) for v in s.problem.variables]
    arrays += [("the output" if len(s.outputs) == 1 else f"output {i}", y)
               for i, y in enumerate(s.outputs)]  # fmt: skip
    for name, array in arrays:
        counts = {array.size: f"the number of elements of {name}"}
        counts |= {n: f"the size of axis {i} of {name}" for i, n in enumerate(array.shape)}
        if array.ndim > 1:
            per_channel = array.size // max(array.shape[1], 1)
            counts.setdefault(per_channel, f"the elements per channel of {name}")
        if array.ndim > 2:
            area = int(np.prod(array.shape[2:]))
            counts[area] = f"the pixels per channel of {name}"
        for n, text in counts.items():
            sizes.setdefault(n, text)
    return {n: text for n, text in sizes.items() if n > 2}


def _constant_ratio(s: Suspect) -> Iterator[Finding]:
    n = s.slopes[0]
    if n == 0:
        return
    ratio = float(np.sum(s.a * s.directions[0])) / n
    if ratio == 0 or not s.cured_by(s.a / ratio):
        return
    for value, kind in ((2.0, "twice"), (0.5, "half"), (-1.0, "sign")):
        if abs(ratio - value) < 1e-3:
            yield kind, f"is {FAULTS[kind]} (ratio {value:g})"
    for size, text in _sizes(s).items():
        for value, shown in ((float(size), f"{size}"), (1.0 / size, f"1/{size}")):
            if abs(ratio / value - 1.0) < 1e-3:
                yield "count", f"is {shown} times the numeric one, and {size} is {text}: " + (
                    "a sum where a mean belongs" if ratio > 1 else "a mean where a sum belongs"
                )
    yield "constant factor", f"is {ratio:.6g} times the numeric one everywhere: a scale is missing"


Rearrange = Callable[[Array], Array]


def rearrangements(shape: tuple[int, ...]) -> dict[str, tuple[str, Rearrange]]:
    """Ways to mix up the axes of an array that keep its shape: text -> (kind, function)."""
    found: dict[str, tuple[str, Rearrange]] = {}
    if len(shape) == 2 and shape[0] == shape[1]:
        found["transposed"] = ("transposed", lambda a: a.T)
    if len(shape) != 4:
        return found
    O, I, KH, KW = shape
    if KH * KW > 1:
        found["flipped in both spatial axes"] = ("flipped", lambda a: a[:, :, ::-1, ::-1])
    if KH > 1 and KW > 1:
        found["flipped top to bottom"] = ("flipped", lambda a: a[:, :, ::-1])
        found["flipped left to right"] = ("flipped", lambda a: a[:, :, :, ::-1])
    if KH == KW:
        found["with height and width swapped"] = (
            "transposed", lambda a: a.transpose(0, 1, 3, 2))  # fmt: skip
    if O == I:
        found["with its first two axes (channels) swapped"] = (
            "transposed", lambda a: a.transpose(1, 0, 2, 3))  # fmt: skip
        found["with channels swapped and flipped in space"] = (
            "flipped", lambda a: a.transpose(1, 0, 2, 3)[:, :, ::-1, ::-1])  # fmt: skip
    return found


def _rearranged(s: Suspect) -> Iterator[Finding]:
    for text, (kind, change) in rearrangements(s.a.shape).items():
        if s.cured_by(change(s.a)):
            yield kind, f"is the right one {text}"


def _altered_input(s: Suspect) -> Iterator[Finding]:
    """Right if another input were rearranged: a product with the wrong side of a weight."""
    predicted = [float(np.sum(s.a * d)) for d in s.directions]
    for j, other in enumerate(s.problem.variables):
        if j == s.position:
            continue
        for text, (kind, change) in rearrangements(other.value.shape).items():
            altered = np.ascontiguousarray(change(other.value))
            if np.array_equal(altered, other.value):
                continue
            values = [altered if k == j else v.value for k, v in enumerate(s.problem.variables)]
            there = Differences(s.problem, s.upstream, s.eps, values)
            slopes = []
            for d in s.directions:
                full: list[Array | None] = [None] * len(values)
                full[s.position] = d
                found = there.slope(full)
                slopes.append(float("nan") if found is None else found.value)
            if s.agree(predicted, slopes):
                yield kind, f"would be right for {other.name} {text}"


def _columns(v: Array, shape: tuple[int, ...]) -> Array | None:
    """v in a shape that multiplies an array of this shape: as it is, or one value per channel."""
    if len(shape) > 1 and v.shape == (shape[1],):
        return v.reshape((1, -1) + (1,) * (len(shape) - 2))
    try:
        return v if np.broadcast_shapes(v.shape, shape) == shape else None
    except ValueError:
        return None


def _other_factor(s: Suspect) -> Iterator[Finding]:
    candidates = [(v.name, v.value) for v in s.problem.variables]
    candidates += [("the output", y) for y in s.outputs]
    for name, array in candidates:
        v = _columns(array, s.a.shape)
        if v is None:
            continue
        for factor, shown in ((v, name), (2.0 * v, f"2 * {name}")):
            if s.cured_by(s.a * factor):
                yield "missing factor", f"is right once multiplied by {shown}"
        if np.all(v != 0) and s.cured_by(s.a / v):
            yield "extra factor", f"is right once divided by {name}"


def _flows(s: Suspect) -> Iterator[Finding]:
    for name, flow in s.flows:
        if flow.shape != s.a.shape or not flow.any():
            continue
        if s.cured_by(s.a + flow):
            yield "path dropped", (
                f"is short by exactly the gradient of {name}: that path was dropped "
                "(at a residual join: the shortcut)"
            )
        if s.cured_by(s.a - flow):
            yield "path doubled", (
                f"is too large by exactly the gradient of {name}: that path was counted twice "
                "(at a residual join: the shortcut)"
            )


def inside(shape: tuple[int, ...], width: int) -> Array:
    """1 for pixels further than `width` from the border of (..., H, W), 0 for the others."""
    mask = np.zeros(shape)
    mask[..., width : shape[-2] - width, width : shape[-1] - width] = 1.0
    return mask


def _shifted(s: Suspect) -> Iterator[Finding]:
    if s.a.ndim != 4 or min(s.a.shape[2:]) < 3:
        return
    mask = inside(s.a.shape, 1)
    restricted = [d * mask for d in s.directions]
    slopes = [s.slope(r) for r in restricted]
    for rows, cols in ((1, 0), (-1, 0), (0, 1), (0, -1), (1, 1), (-1, -1), (1, -1), (-1, 1)):
        moved = np.roll(s.a, (rows, cols), (2, 3))
        if s.agree([float(np.sum(moved * r)) for r in restricted], slopes):
            yield "shifted", (
                f"is the right one shifted by {abs(rows)} rows and {abs(cols)} columns: off by "
                "one in padding or stride"
            )


def _swapped(s: Suspect) -> Iterator[Finding]:
    predicted = [float(np.sum(s.a * d)) for d in s.directions]
    for j, other in enumerate(s.problem.variables):
        if j == s.position or other.value.shape != s.a.shape:
            continue
        if s.agree(predicted, [s.slope(d, along=j) for d in s.directions]):
            yield "swapped inputs", f"is that of {other.name}: two results were swapped"


def _statistics(s: Suspect) -> Iterator[Finding]:
    """Batch norm's own faults: the error is a constant, or a multiple of xhat, per channel."""
    if s.a.ndim < 2 or s.a.size // s.a.shape[1] < 4:
        return
    axes = (0, *range(2, s.a.ndim))

    def mean(d: Array) -> Array:
        return np.asarray(d.mean(axis=axes, keepdims=True))

    centred = s.value - mean(s.value)
    square = mean(centred * centred)
    xhat = centred / np.sqrt(np.where(square > 0, square, 1.0))
    if s.right_along(lambda d: d - mean(d)):
        yield "mean term", (
            "is off by a constant per channel: the term of the mean is missing (dbeta/m in batch "
            "norm's dx)"
        )
    if s.right_along(lambda d: d - xhat * mean(d * xhat)):
        yield "variance term", (
            "is off by a multiple of the normalised input per channel: the term of the variance "
            "is missing (xhat * dgamma/m in batch norm's dx)"
        )
    if s.right_along(lambda d: d - mean(d) - xhat * mean(d * xhat)):
        yield "batch statistics", (
            "treats the batch's mean and variance as constants: both terms are missing"
        )


def _partly(s: Suspect) -> Iterator[Finding]:
    zero = s.a == 0
    if zero.any() and s.right_along(lambda d: d * ~zero):
        yield "partly missing", (
            f"is zero in {int(zero.sum())} of {s.a.size} elements and right in the others: a mask "
            "is wrong, or part of a path was dropped"
        )


def _border(s: Suspect) -> Iterator[Finding]:
    if s.a.ndim != 4:
        return
    for width in (1, 2, 3):
        if min(s.a.shape[2:]) > 2 * width:
            mask = inside(s.a.shape, width)
            if s.right_along(lambda d, mask=mask: d * mask):  # type: ignore[misc]
                pixels = "pixel" if width == 1 else f"{width} pixels"
                yield "border", f"is right but for the outermost {pixels}: padding or stride"


def _isolated(s: Suspect) -> Iterator[Finding]:
    if s.a.size < 2:
        return
    worst = worst_element(s.differences, s.gradients, s.position, s.rng)
    without = np.ones(s.a.shape)
    without[worst] = 0.0
    if s.right_along(lambda d: d * without):
        yield "one element", f"is wrong in {element(s.name, worst)} alone"


def worst_element(
    differences: Differences,
    gradients: Sequence[Array | None],
    position: int,
    rng: np.random.Generator,
) -> tuple[int, ...]:
    """An element of a wrong gradient that is wrong itself, found by halving where the error is.

    A slope along part of a direction tells whether any element of that part is wrong, so one in a
    million is found in twenty steps.
    """
    shape = differences.values[position].shape
    variables = differences.problem.variables
    full = draw_direction(variables, rng, only=position)[position]
    if full is None:
        raise RuntimeError("worst_element: no direction for the tensor in question")
    flat = full.ravel()

    def error_of(part: Array) -> float:
        d = np.zeros(flat.size)
        d[part] = flat[part]
        direction: list[Array | None] = [None] * len(variables)
        direction[position] = d.reshape(shape)
        slope = differences.slope(direction)
        return -1.0 if slope is None else abs(inner(gradients, direction) - slope.value)

    found = halve(flat.size, error_of)
    return tuple(int(i) for i in np.unravel_index(found, shape))


def halve(count: int, error_of: Callable[[Array], float]) -> int:
    """One of `count` things, found by following the half with the larger error."""
    part: Array = np.arange(count)
    while part.size > 1:
        part = max(np.array_split(part, 2), key=error_of)
    return int(part[0])
