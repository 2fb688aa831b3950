"""What checks are made of: verdicts, hints, and comparisons that recognise usual slips."""

from __future__ import annotations

import functools
import itertools
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

Array = np.ndarray


@dataclass(frozen=True)
class Verdict:
    """The outcome of one check; true if the answer is right."""

    right: bool
    text: str

    def __bool__(self) -> bool:
        return self.right

    def __repr__(self) -> str:
        return self.text


class Hint(Exception):  # noqa: N818 - not an error: what to tell the student
    """Raised by a check when an answer is wrong."""


def exercise(check: Callable[[Any], str]) -> Callable[[Any], Verdict]:
    """Make a check of a function that praises (returns a text) or raises a Hint."""

    @functools.wraps(check)
    def checked(answer: Any) -> Verdict:
        try:
            return Verdict(True, f"Right. {check(answer)}")
        except Hint as hint:
            return Verdict(False, f"Not yet: {hint}")
        except NotImplementedError:
            return Verdict(False, "Nothing to check yet: it is your turn.")
        except Exception as error:  # whatever a student's function may raise
            source = getattr(getattr(answer, "__code__", None), "co_filename", None)
            frames = traceback.extract_tb(error.__traceback__)
            lines = [frame.lineno for frame in frames if frame.filename == source]
            line = f" (line {lines[-1]} of the cell)" if lines else ""
            return Verdict(False, f"Not yet: it raised {type(error).__name__}: {error}{line}")

    return checked


def given(value: Any, name: str, shape: tuple[int, ...]) -> Array:
    """A student's result as an array of this shape. Raises a Hint for anything else."""
    if value is None:
        raise NotImplementedError
    try:
        array = np.asarray(value, dtype=np.float64)
    except (TypeError, ValueError):
        raise Hint(f"{name} should be an array of numbers, got {type(value).__name__}.") from None
    if array.shape != shape:
        raise Hint(f"{name} should have shape {shape}, got {array.shape}.")
    if not np.isfinite(array).all():
        raise Hint(f"{name} has values that are not finite.")
    return array


def close(a: Any, b: Any, tolerance: float = 1e-7) -> bool:
    """Whether two arrays agree, relative to the larger one's largest value."""
    scale = max(np.abs(b).max(initial=0), 1e-12)
    return bool(np.abs(np.asarray(a) - b).max(initial=0) <= tolerance * scale)


def compare(
    result: Array,
    right: Array,
    slips: dict[str, Array | None],
    otherwise: str,
    tolerance: float = 1e-7,
) -> None:
    """Raise a Hint unless the result is right: the slip that explains it, if one does."""
    if close(result, right, tolerance):
        return
    for hint, wrong in slips.items():
        if wrong is not None and close(result, wrong, tolerance):
            raise Hint(hint)
    raise Hint(otherwise)


def slope(f: Callable[[Array], float], x: Array, step: float = 1e-5) -> Array:
    """The gradient of a number with respect to an array, by central differences."""
    gradient = np.zeros_like(x)
    for index in np.ndindex(*x.shape):
        ahead, behind = x.copy(), x.copy()
        ahead[index] += step
        behind[index] -= step
        gradient[index] = (f(ahead) - f(behind)) / (2 * step)
    return gradient


def windows(x: Array, KH: int, KW: int, stride: int, padding: int) -> tuple[int, int, Array]:
    """(OH, OW, the pixel of each tap), the taps (N, C, OH, OW, KH, KW), one at a time."""
    N, C, H, W = x.shape
    OH, OW = (H + 2 * padding - KH) // stride + 1, (W + 2 * padding - KW) // stride + 1
    taps = np.zeros((N, C, OH, OW, KH, KW))
    for i, j, u, v in itertools.product(range(OH), range(OW), range(KH), range(KW)):
        h, w = i * stride - padding + u, j * stride - padding + v
        if 0 <= h < H and 0 <= w < W:
            taps[:, :, i, j, u, v] = x[:, :, h, w]
    return OH, OW, taps
