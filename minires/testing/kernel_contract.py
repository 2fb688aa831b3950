"""The contract that one call of a kernel is held to; `kernels.py` makes many calls."""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable
from typing import Any

import numpy as np

from minires.kernels import Kernel, available
from minires.testing.compare import element
from minires.testing.guards import NAN_BYTE, ZERO_BYTE, Guards
from minires.testing.kernel_inputs import Arguments
from minires.testing.kernel_report import KernelCase
from minires.testing.kernel_runs import Runner

Array = np.ndarray

DTYPES = ("float32", "float64")
LAYOUTS = ("contiguous", "channels last", "sliced", "reversed")

LINEAR_SLACK = 128.0
"""Linear operations: |error| <= slack * u * (result for the absolute values), u = eps / 2.

Where that is less than a tenth of its largest value, the tenth: fast algorithms mix neighbours,
and leave rounding errors even where nothing but padding is seen. Those that are not exact mix so
widely that a tenth of the product of the largest inputs is allowed for, too.
"""

OTHERS = {"float32": 2e-5, "float64": 2e-13}
"""Other operations: |error| <= this * max(1, the largest absolute value of the result)."""


def reference_kernel(operation: str) -> Kernel:
    """The oracle of an operation: its kernel in `minires.kernels.reference`."""
    for kernel in available(operation):
        if kernel.function.__module__.startswith("minires.kernels.reference"):
            return kernel
    raise ValueError(f"check_kernel: operation {operation!r} has no reference kernel")


def laid_out(array: Array, layout: str) -> Array:
    """The same values in other memory: channels last, every second element, or backwards."""
    if layout == "channels last" and array.ndim == 4:
        return np.ascontiguousarray(array.transpose(0, 2, 3, 1)).transpose(0, 3, 1, 2)
    if layout == "sliced" and array.ndim:
        wide = np.full((*array.shape[:-1], 2 * array.shape[-1]), 1e6).astype(array.dtype)
        wide[..., ::2] = array
        return wide[..., ::2]
    if layout == "reversed" and array.ndim:
        return np.ascontiguousarray(array[::-1, ...])[::-1, ...]
    return np.ascontiguousarray(array).reshape(array.shape)


class Contract:
    """Holds single calls of one kernel to everything that a call can show.

    slack: multiplies the allowed error.
    """

    def __init__(
        self, kernel: Kernel, reference: Callable[..., Any], runner: Runner, slack: float
    ) -> None:
        self.kernel, self.reference, self.runner, self.slack = kernel, reference, runner, slack

    def inputs(self, case: Arguments, dtype: str, layout: str) -> tuple[Any, ...]:
        """The case's arrays in a dtype and a layout; integers and settings as they are."""
        return tuple(
            laid_out(v.astype(dtype) if v.dtype.kind == "f" else v, layout)
            if isinstance(v, np.ndarray)
            else v
            for v in case.values
        )

    def expected(self, given: tuple[Any, ...]) -> tuple[Array, ...]:
        """The oracle's results for the rounded inputs, in float64."""
        return tuple_of(self.reference(*map(_double, given)))

    def call(
        self, case: Arguments, dtype: str, layout: str, *, thorough: bool = False
    ) -> KernelCase:
        """One call. thorough: with every kind of NaN and infinity, not just one of them."""
        given = self.inputs(case, dtype, layout)
        arrays = [v for v in given if isinstance(v, np.ndarray)]
        before = [v.copy() for v in arrays]
        found = KernelCase(self.kernel, case, dtype, layout, tuple(before))
        found.expected = self.expected(given)
        if self.runner.guarded:  # first: who writes out of bounds elsewhere may take us with him
            only_here = self._between_guards(found, given)
            if found.kinds & {"outside write"}:
                return found
        try:
            results = tuple_of(self.runner.call(*given))
            again = tuple_of(self.runner.call(*given))
        except Exception as error:  # a kernel may fail in any way; every way is a finding
            kind = "outside write" if "wrote outside of" in str(error) else "raised"
            found.fail(kind, f"raised {type(error).__name__}: {error}")
            return found
        if self.runner.guarded and only_here:
            found.fail("raised", f"{only_here} (with guard zones around the arrays)")
        odd = [type(r).__name__ for r in results if not isinstance(r, np.ndarray | np.generic)]
        if odd or len(results) != len(found.expected):
            what = odd[0] if odd else f"{len(results)} results"
            found.fail("results", f"{what}, expected {len(found.expected)}")
            return found
        found.results = tuple(map(np.asarray, results))
        if not all(np.array_equal(a, b) for a, b in zip(arrays, before, strict=True)):
            found.fail("mutated", "an input was changed in place")
            return found
        for i, result in enumerate(found.results):
            for other in (*arrays, *found.results[:i]):
                if np.may_share_memory(result, other):
                    found.fail("aliased", f"result {i} shares memory with an input or a result")
        if not all(map(same, results, again)):
            found.fail("random", "two calls with the same inputs give different bits")
        self.compare(found, given)
        if found.passed and layout == "contiguous":
            self._poison(found, given, thorough)
        return found

    def compare(self, found: KernelCase, given: tuple[Any, ...]) -> None:
        """Shape, dtype and numbers of the results against the reference in float64."""
        magnitudes: tuple[Array | None, ...] = (None,) * len(found.expected)
        if found.case.linear:
            absolute = [np.abs(v) if isinstance(v, np.ndarray) else v for v in map(_double, given)]
            magnitudes = tuple_of(self.reference(*absolute))
            if not self.kernel.exact:  # mixes what the definition keeps apart
                largest = 0.1 * math.prod(float(np.max(v, initial=0.0)) for v in absolute[:2])
                magnitudes = tuple(m if m is None else m + largest for m in magnitudes)
        for i, (result, right) in enumerate(zip(found.results, found.expected, strict=True)):
            label = f"result {i}: " if len(found.results) > 1 else ""
            text, share = difference(result, right, magnitudes[i], found.dtype, self.slack)
            found.worst = max(found.worst, share)
            if text:
                found.fail("wrong", label + text, result, right)

    def _between_guards(self, found: KernelCase, given: tuple[Any, ...]) -> str:
        """A call between guard zones: what reaches into them, what was never written.

        Returns the exception it raised, if any, for others to see whether it is raised always.
        """
        own = len(given)  # stands for arrays that the kernel makes

        def call(nan_zones: tuple[int, ...], content: int) -> tuple[list[str], list[Array]]:
            """Zones written to, and where the results have a NaN that they should not have."""
            guards, placed = Guards(content=content), []
            for i, value in enumerate(given):
                guards.zone = NAN_BYTE if i in nan_zones else ZERO_BYTE
                is_array = isinstance(value, np.ndarray)
                placed.append(guards.place(value, f"input {i}") if is_array else value)
            guards.zone = NAN_BYTE if own in nan_zones else ZERO_BYTE
            with guards.allocations(), np.errstate(all="ignore"):
                results = tuple_of(self.runner.call(*placed))
            lost = [np.isnan(r) & ~np.isnan(right)
                    for r, right in zip(results, found.expected, strict=False)
                    if right.dtype.kind == "f" and np.shape(r) == right.shape]  # fmt: skip
            return guards.broken(), lost

        everywhere = tuple(range(own + 1))
        try:
            broken, lost = call(everywhere, NAN_BYTE)
            if broken:
                found.fail("outside write", f"wrote {' and '.join(dict.fromkeys(broken))}")
            if not any(mask.any() for mask in lost):
                return ""
            for mask in call((), NAN_BYTE)[1]:
                if mask.any():
                    at = element("", tuple(int(k) for k in np.argwhere(mask)[0])) or "the only one"
                    found.fail("unwritten", f"{int(mask.sum())} of {mask.size} elements of the "
                               f"result are never written, the first is {at}")  # fmt: skip
            for i in everywhere:
                if any(mask.any() for mask in call((i,), ZERO_BYTE)[1]):
                    what = "an array of its own" if i == own else f"input {i}"
                    found.fail("outside read", f"read outside of {what}")
        except Exception as error:
            return f"raised {type(error).__name__}: {error}"
        return ""

    def _poison(self, found: KernelCase, given: tuple[Any, ...], thorough: bool) -> None:
        """A NaN or an infinity must come out wherever it goes in."""
        kinds = [(i, value) for i in ((0, 1) if found.case.linear else (0,))
                 for value in (np.nan, np.inf) if _poisonable(given[i])]  # fmt: skip
        if kinds and not thorough:
            text = f"{found.case.text} {found.dtype}"
            kinds = [kinds[zlib.crc32(text.encode()) % len(kinds)]]
        for i, value in kinds:
            poisoned = [v.copy() if isinstance(v, np.ndarray) else v for v in given]
            at = np.unravel_index(given[i].size // 2, given[i].shape)
            poisoned[i][at] = value
            label = f"{'NaN' if np.isnan(value) else 'infinity'}"
            with np.errstate(all="ignore"):
                reached = self._reached(found.case, poisoned, i, at)
                try:
                    results = tuple_of(self.runner.call(*poisoned))
                except Exception as error:  # as in `call`
                    found.fail("nonfinite", f"raised {type(error).__name__}: {error} for {label}")
                    continue
            for result, mask in zip(results, reached, strict=True):
                if result.dtype.kind == "f":
                    kept = np.isnan(result) if np.isnan(value) else ~np.isfinite(result)
                    lost = int((mask & ~kept).sum())
                    if lost:
                        found.fail("nonfinite", f"{label} was lost in {lost} elements")

    def _reached(self, case: Arguments, poisoned: list[Any], i: int, at: Any) -> list[Array]:
        """Where the poisoned element takes part in the results."""
        if case.linear:  # where something comes of a one there, zeros around it, and ones elsewhere
            ones = [np.ones_like(v) if _poisonable(v) else v for v in poisoned]
            zeros = list(ones)
            ones[i], zeros[i] = np.zeros_like(poisoned[i]), np.zeros_like(poisoned[i])
            ones[i][at] = 1
            with_it, without = tuple_of(self.reference(*ones)), tuple_of(self.reference(*zeros))
            return [a != b for a, b in zip(with_it, without, strict=True)]
        nan = np.isnan(poisoned[i][at])
        results = tuple_of(self.reference(*poisoned))
        return [np.isnan(r) if nan else ~np.isfinite(r) for r in results]


def difference(
    result: Array, right: Array, magnitude: Array | None, dtype: str, slack: float = 1.0
) -> tuple[str, float]:
    """What is wrong with a result ("" if nothing), and its largest error as a share of the bound.

    magnitude: the result for the absolute values of the inputs, for linear operations.
    """
    if result.shape != right.shape:
        return f"shape {result.shape}, expected {right.shape}", np.inf
    if right.dtype.kind != "f":
        if np.array_equal(result, right):
            return "", 0.0
        at = tuple(int(k) for k in np.argwhere(result != right)[0])
        return f"{element('', at)} is {result[at]}, expected {right[at]}", np.inf
    if result.dtype != dtype:
        return f"dtype {result.dtype}, expected {dtype}", np.inf
    if magnitude is None:
        size = max(1.0, float(np.max(np.abs(right), initial=0.0)))
        allowed = np.full(right.shape, OTHERS[dtype] * size)
    else:
        floor = 0.1 * float(np.max(magnitude, initial=0.0))
        allowed = LINEAR_SLACK * np.finfo(dtype).eps / 2 * np.maximum(magnitude, floor)
    allowed = slack * allowed + np.finfo(dtype).tiny
    # A wrong kernel may return anything, infinity and numbers near it included.
    with np.errstate(over="ignore", invalid="ignore"):
        error = np.abs(result.astype(np.float64) - right)
        share = np.nan_to_num(error / allowed, nan=np.inf)
    worst = float(share.max(initial=0.0))
    wrong = ~(error <= allowed)
    if not wrong.any():
        return "", worst
    at = tuple(int(k) for k in np.unravel_index(int(np.argmax(share)), error.shape))
    return (
        f"{int(wrong.sum())} of {error.size} elements wrong, worst at "
        f"{element('', at) or 'the only one'}: {result[at]:.9g}, expected "
        f"{right[at]:.9g}, error {error[at]:.2g}, allowed {allowed[at]:.2g}"
    ), worst


def tuple_of(result: Any) -> tuple[Any, ...]:
    """Results as a tuple, whether one or several."""
    return result if isinstance(result, tuple) else (result,)


def same(a: Array, b: Array) -> bool:
    """Equal bits but for the sign of zero and of NaN."""
    return np.array_equal(a, b, equal_nan=np.asarray(a).dtype.kind == "f")


def _double(value: Any) -> Any:
    """A floating array in float64, anything else as it is."""
    is_float = isinstance(value, np.ndarray) and value.dtype.kind == "f"
    return value.astype(np.float64) if is_float else value


def _poisonable(value: Any) -> bool:
    return isinstance(value, np.ndarray) and value.dtype.kind == "f" and value.size > 0
