"""Conformance of kernels: a registered kernel against the reference, on shapes that break kernels.

Every call is made in float32 and float64 and in several memory layouts. The result must equal
that of the reference kernel computed in float64, leave the inputs alone, share no memory with
them, come out the same twice, and not lose a NaN.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from minires._names import unknown
from minires.kernels import Kernel, available
from minires.kernels.registry import operation as operation_named
from minires.testing.compare import element
from minires.testing.kernel_inputs import Arguments, arguments

Array = np.ndarray

DTYPES = ("float32", "float64")
LAYOUTS = ("contiguous", "channels last", "sliced", "reversed")

LINEAR_SLACK = 128.0
"""Linear operations: |error| <= slack * u * (result for the absolute values), u = eps / 2.

Where that is less than a tenth of its largest value, the tenth: fast algorithms mix neighbours,
and leave rounding errors even where nothing but padding is seen.
"""

OTHERS = {"float32": 2e-5, "float64": 2e-13}
"""Other operations: |error| <= this * max(1, the largest absolute value of the result)."""


@dataclass
class KernelReport:
    """What was checked; true if the kernel conforms.

    calls: how many calls were compared; skipped: pairs of geometry and dtype that the kernel does
        not claim.
    worst: the largest error as a share of what is allowed.
    """

    operation: str
    name: str
    calls: int = 0
    skipped: int = 0
    worst: float = 0.0
    failures: list[str] = field(default_factory=list)

    @property
    def passed(self) -> bool:
        return not self.failures

    def __bool__(self) -> bool:
        return self.passed

    def __str__(self) -> str:
        head = f"{self.operation}/{self.name}: {self.calls} calls"
        if self.skipped:
            head += f", {self.skipped} not supported"
        if self.passed:
            return f"{head}, conforms; worst error {self.worst:.2g} of what is allowed"
        shown = self.failures[:5]
        more = len(self.failures) - len(shown)
        return "\n  ".join(
            [f"{head}, {len(self.failures)} failures", *shown]
            + ([f"and {more} more"] if more > 0 else [])
        )


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


def check_kernel(
    operation: str,
    name: str,
    *,
    seed: int = 0,
    slack: float = 1.0,
    raise_exception: bool = True,
) -> KernelReport:
    """Compare the kernel `name` of an operation with the reference on many shapes and layouts.

    slack: multiplies the allowed error, for algorithms that trade accuracy for speed (state why).

    What the kernel does not claim to support (`only`, `dtypes`) is skipped. Raises AssertionError
    listing what failed, unless `raise_exception` is off; ValueError for unknown names, or if
    nothing at all was supported.
    """
    kernels = {k.name: k for k in operation_named(operation).kernels if k.backend == "cpu"}
    if name not in kernels:
        raise ValueError(unknown(f"{operation} kernel", name, kernels))
    check = _Check(kernels[name], reference_kernel(operation), slack)
    for i, case in enumerate(arguments(operation, np.random.default_rng(seed))):
        for dtype in map(np.dtype, DTYPES):
            if not kernels[name].supports(case.geometry, dtype.name):
                check.report.skipped += 1
                continue
            # All layouts for the first cases, then one after the other.
            for layout in LAYOUTS if i < 2 else (LAYOUTS[i % len(LAYOUTS)],):
                check.call(case, dtype, layout)
            check.nan(case, dtype)
    if not check.report.calls:
        raise ValueError(f"check_kernel: {operation}/{name} supports none of the geometries tried")
    if raise_exception and not check.report.passed:
        raise AssertionError(str(check.report))
    return check.report


class _Check:
    def __init__(self, kernel: Kernel, reference: Kernel, slack: float) -> None:
        self.kernel, self.reference, self.slack = kernel, reference, slack
        self.report = KernelReport(kernel.operation, kernel.name)

    def fail(self, case: Arguments, how: str, text: str) -> None:
        self.report.failures.append(f"{case.text} ({how}): {text}")

    def given(self, case: Arguments, dtype: Any, layout: str) -> tuple[Any, ...]:
        return tuple(
            laid_out(v.astype(dtype) if v.dtype.kind == "f" else v, layout)
            if isinstance(v, np.ndarray)
            else v
            for v in case.values
        )

    def call(self, case: Arguments, dtype: Any, layout: str) -> None:
        """One call, held to everything but NaN."""
        how = f"{dtype}, {layout}"
        given = self.given(case, dtype, layout)
        arrays = [v for v in given if isinstance(v, np.ndarray)]
        before = [v.copy() for v in arrays]
        try:
            results = _tuple(self.kernel.function(*given))
            # The oracle sees the rounded inputs, in float64.
            exact = [v.astype(np.float64) if isinstance(v, np.ndarray) and v.dtype.kind == "f"
                     else v for v in given]  # fmt: skip
            expected = _tuple(self.reference.function(*exact))
        except Exception as error:  # a kernel may fail in any way; every way is a finding
            self.fail(case, how, f"raised {type(error).__name__}: {error}")
            return
        self.report.calls += 1
        if not all(np.array_equal(a, b) for a, b in zip(arrays, before, strict=True)):
            self.fail(case, how, "an input was changed in place")
            return
        for i, result in enumerate(results):
            for other in (*arrays, *results[:i]):
                if np.may_share_memory(result, other):
                    self.fail(case, how, f"result {i} shares memory with an input or a result")
        again = _tuple(self.kernel.function(*given))
        if not all(map(_same, results, again)):
            self.fail(case, how, "two calls with the same inputs give different bits")
        if len(results) != len(expected):
            self.fail(case, how, f"{len(results)} results, expected {len(expected)}")
            return
        magnitudes = list(expected)
        if case.linear:
            absolute = [np.abs(v) if isinstance(v, np.ndarray) else v for v in exact]
            magnitudes = list(_tuple(self.reference.function(*absolute)))
        for i, (result, right) in enumerate(zip(results, expected, strict=True)):
            label = f"result {i}: " if len(results) > 1 else ""
            self.compare(case, how, label, result, right, magnitudes[i], dtype)

    def compare(
        self, case: Arguments, how: str, label: str, result: Array, right: Array,
        magnitude: Array, dtype: Any,
    ) -> None:  # fmt: skip
        if result.shape != right.shape:
            self.fail(case, how, f"{label}shape {result.shape}, expected {right.shape}")
            return
        if right.dtype.kind != "f":
            if not np.array_equal(result, right):
                at = tuple(int(k) for k in np.argwhere(result != right)[0])
                self.fail(
                    case, how, f"{element(label, at)} is {result[at]}, expected {right[at]}"
                )
            return
        if result.dtype != dtype:
            self.fail(case, how, f"{label}dtype {result.dtype}, expected {dtype}")
            return
        if case.linear:
            floor = 0.1 * float(np.max(magnitude, initial=0.0))
            allowed = LINEAR_SLACK * np.finfo(dtype).eps / 2 * np.maximum(magnitude, floor)
        else:
            size = max(1.0, float(np.max(np.abs(right), initial=0.0)))
            allowed = np.full(right.shape, OTHERS[str(dtype)] * size)
        allowed = self.slack * allowed + np.finfo(dtype).tiny
        # A wrong kernel may return anything, infinity and numbers near it included.
        with np.errstate(over="ignore", invalid="ignore"):
            error = np.abs(result.astype(np.float64) - right)
            share = np.nan_to_num(error / allowed, nan=np.inf)
        self.report.worst = max(self.report.worst, float(share.max(initial=0.0)))
        wrong = ~(error <= allowed)
        if wrong.any():
            at = tuple(int(k) for k in np.unravel_index(int(np.argmax(share)), error.shape))
            self.fail(
                case, how,
                f"{label}{int(wrong.sum())} of {error.size} elements wrong, worst at "
                f"{element('', at) or 'the only one'}: {result[at]:.9g}, expected "
                f"{right[at]:.9g}, error {error[at]:.2g}, allowed {allowed[at]:.2g}",
            )  # fmt: skip

    def nan(self, case: Arguments, dtype: Any) -> None:
        """A NaN in the first array must come out wherever the reference lets it out."""
        given = self.given(case, dtype, "contiguous")
        first = given[0]
        if first.size == 0:
            return
        first.reshape(-1)[first.size // 2] = np.nan
        with np.errstate(invalid="ignore"):
            expected = _tuple(self.reference.function(*given))
            try:
                results = _tuple(self.kernel.function(*given))
            except Exception as error:  # as in `call`
                self.fail(case, f"{dtype}, NaN", f"raised {type(error).__name__}: {error}")
                return
        for result, right in zip(results, expected, strict=False):
            if right.dtype.kind != "f" or result.shape != right.shape:
                continue
            lost = int((np.isnan(right) & ~np.isnan(result)).sum())
            if lost:
                self.fail(case, f"{dtype}, NaN", f"NaN was lost in {lost} elements")


def _tuple(result: Any) -> tuple[Array, ...]:
    return result if isinstance(result, tuple) else (result,)


def _same(a: Array, b: Array) -> bool:
    return np.array_equal(a, b, equal_nan=a.dtype.kind == "f")
