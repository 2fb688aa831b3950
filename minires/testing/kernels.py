"""Conformance of kernels: a registered kernel against the reference, on shapes that break kernels.

Every call is made in float32 and float64 and in several memory layouts. A kernel must

- equal the reference kernel computed in float64, within a stated bound;
- leave its inputs alone, and share no memory with them or between its results;
- give the same bits at every call, and right numbers with any number of threads;
- stay inside its arrays, reading and writing (`guards.py`), and write all that it returns;
- let NaN and infinity through.

What fails is shrunk to the smallest case that still fails, and its likely cause is named.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np

from minires._names import unknown
from minires.kernels import ConvGeometry, Kernel, available, conv_geometry
from minires.testing.kernel_causes import explain
from minires.testing.kernel_contract import (
    DTYPES,
    LAYOUTS,
    LINEAR_SLACK,
    Contract,
    laid_out,
    reference_kernel,
    same,
    tuple_of,
)
from minires.testing.kernel_inputs import CONVOLUTION_ARRAYS, Arguments, arguments, convolution
from minires.testing.kernel_report import KINDS, Finding, KernelCase, KernelReport, python_line
from minires.testing.kernel_runs import runner, thread_counts, threads
from minires.testing.kernel_shrink import smallest

__all__ = [
    "DTYPES", "LAYOUTS", "LINEAR_SLACK", "KernelCase", "KernelReport", "check_kernel",
    "kernel_case", "laid_out", "reference_kernel",
]  # fmt: skip

PATIENCE = 3.0
"""Seconds that one call may be expected to take; larger cases are left out, and noted."""

LARGE = conv_geometry((4, 32, 32, 32), (32, 32, 3, 3), 1, 1)
"""For threads: enough work for each of them to have some at the same time."""

REPEATS = 4
ENOUGH = 60
"""Findings after which no more are looked for."""


def check_kernel(
    operation: str,
    name: str,
    *,
    backend: str = "cpu",
    seed: int = 0,
    slack: float = 1.0,
    raise_exception: bool = True,
    progress: Callable[[str], None] | None = None,
) -> KernelReport:
    """Hold the kernel `name` of an operation to the contract, on many shapes and layouts.

    backend: "cuda" runs on the GPU, or where there is none behind the emulator, on small cases.
    slack: multiplies the allowed error, for algorithms that trade accuracy for speed (state why).
    progress: called with the text of each case.

    What the kernel does not claim to support (`only`, `dtypes`) is skipped. Raises AssertionError
    listing what failed, unless `raise_exception` is off; ValueError for unknown names, or if
    nothing at all was supported; RuntimeError if nothing here can run the backend.
    """
    check = _Check(_kernel(operation, name, backend), slack)
    cases = list(arguments(operation, np.random.default_rng(seed)))
    for i, case in enumerate(cases):
        if progress is not None:
            progress(case.text)
        if check.hopeless:
            check.report.notes.append(f"stopped after {i} of {len(cases)} cases")
            break
        # All layouts for the first cases, then one after the other.
        check.case(case, LAYOUTS if i < 2 else (LAYOUTS[i % len(LAYOUTS)],))
    report = check.report
    if not report.calls:
        raise ValueError(f"check_kernel: {operation}/{name} supports none of the geometries tried")
    check.threads(cases)
    check.conclude()
    if raise_exception and not report.passed:
        raise AssertionError(str(report))
    return report


def kernel_case(
    operation: str,
    name: str,
    case: ConvGeometry | str,
    *,
    dtype: str = "float32",
    layout: str = "contiguous",
    backend: str = "cpu",
    seed: int = 0,
) -> KernelCase:
    """One call of a kernel held to the contract; prints as its arrays and what is wrong.

    case: a geometry for convolutions, otherwise the text of a case as `check_kernel` prints it.

    Raises ValueError for an unknown operation, kernel, case or layout.
    """
    kernel = _kernel(operation, name, backend)
    if layout not in LAYOUTS:
        raise ValueError(unknown("layout", layout, LAYOUTS))
    if isinstance(case, ConvGeometry):
        if operation not in CONVOLUTION_ARRAYS:
            raise ValueError(f"kernel_case: {operation} has no convolution geometry")
        chosen = convolution(operation, case)
    else:
        known = {c.text: c for c in arguments(operation, np.random.default_rng(seed))}
        if case not in known:
            raise ValueError(unknown(f"{operation} case", case, known))
        chosen = known[case]
    return _Check(kernel, 1.0).contract.call(chosen, dtype, layout, thorough=True)


def _kernel(operation: str, name: str, backend: str) -> Kernel:
    kernels = {k.name: k for k in available(operation) if k.backend == backend}
    if name not in kernels:
        raise ValueError(unknown(f"{operation} kernel", name, kernels))
    return kernels[name]


class _Check:
    def __init__(self, kernel: Kernel, slack: float) -> None:
        self.kernel = kernel
        self.runner = runner(kernel)
        reference = reference_kernel(kernel.operation).function
        self.contract = Contract(kernel, reference, self.runner, slack)
        self.report = KernelReport(kernel.operation, kernel.name, kernel.backend)
        self.right: list[KernelCase] = []
        self.seconds = 0.0  # of a call per unit of work
        self.left_out = 0

    def case(self, case: Arguments, layouts: tuple[str, ...]) -> None:
        """One case in every dtype."""
        for dtype in DTYPES:
            if not self.kernel.supports(case.geometry, dtype):
                self.report.skipped += 1
            elif not self.affordable(case):
                self.left_out += 1
            else:
                for layout in layouts:
                    if not self.hopeless:
                        self.call(case, dtype, layout)

    @property
    def hopeless(self) -> bool:
        """Enough was found, or a further call might end the process."""
        findings = self.report.findings
        return len(findings) > ENOUGH or any(f.kind == "outside write" for f in findings)

    def affordable(self, case: Arguments, patience: float = PATIENCE) -> bool:
        size = work(case)
        return size <= self.runner.largest and self.seconds * size <= patience

    def call(self, case: Arguments, dtype: str, layout: str) -> None:
        start = time.perf_counter()
        found = self.contract.call(case, dtype, layout)
        if len(self.right) > 8 and work(case) > 5000:  # the first calls may compile
            self.seconds = (time.perf_counter() - start) / 4 / work(case)
        self.report.calls += 1
        self.report.worst = max(self.report.worst, found.worst)
        self.report.findings += found.findings
        if found.passed:
            self.right.append(found)

    def threads(self, cases: list[Arguments]) -> None:
        """Several calls with each number of threads, on the largest cases."""
        if self.report.findings or self.kernel.backend != "cpu":
            return
        operation = self.kernel.operation
        if operation in CONVOLUTION_ARRAYS:
            cases = [*cases, convolution(operation, LARGE)]
        usable = [c for c in cases
                  if self.kernel.supports(c.geometry, "float32")
                  and self.affordable(c, PATIENCE / 10)]  # fmt: skip
        for case in sorted(usable, key=work)[-2:]:
            for count in thread_counts(self.kernel):
                how = f"{count} thread" + ("s" if count > 1 else "")
                found = KernelCase(self.kernel, case, "float32", how)
                given = self.contract.inputs(case, "float32", "contiguous")
                found.expected = self.contract.expected(given)
                with threads(count):
                    results = [tuple_of(self.runner.call(*given)) for _ in range(REPEATS)]
                found.results = results[0]
                if not all(all(map(same, results[0], later)) for later in results[1:]):
                    found.fail("threads", "calls with the same inputs give different bits")
                self.contract.compare(found, given)
                self.report.calls += 1
                self.report.findings += found.findings

    def conclude(self) -> None:
        """Shrink the first finding of the likeliest kind, and explain."""
        report = self.report
        if self.left_out:
            reason = "emulation is" if self.runner.largest < float("inf") else "this kernel is"
            report.notes.append(f"{self.left_out} larger cases left out: {reason} too slow")
        if report.findings:
            order = list(KINDS)
            first = min(
                report.findings,
                key=lambda f: (order.index(f.kind), f.layout != LAYOUTS[0], f.dtype, work(f.case)),
            )
            report.smallest = found = self._smallest(first)
            report.line = python_line(self.kernel, found.case, found.dtype, found.layout)
            report.causes = explain(report.findings, self.right)

    def _smallest(self, finding: Finding) -> Finding:
        g, kind = finding.case.geometry, finding.kind
        if kind == "threads" or not isinstance(g, ConvGeometry):
            return min((f for f in self.report.findings if f.kind == kind),
                       key=lambda f: work(f.case))  # fmt: skip

        def found(smaller: ConvGeometry) -> Finding | None:
            if not self.kernel.supports(smaller, finding.dtype):
                return None
            case = convolution(self.kernel.operation, smaller)
            thorough = kind == "nonfinite"
            result = self.contract.call(case, finding.dtype, finding.layout, thorough=thorough)
            return next((f for f in result.findings if f.kind == kind), None)

        return found(smallest(g, lambda smaller: found(smaller) is not None)) or finding


def work(case: Arguments) -> int:
    """Multiply-adds of a convolution, otherwise the elements that go in."""
    g = case.geometry
    if isinstance(g, ConvGeometry):
        return g.multiply_adds
    return sum(v.size for v in case.values if isinstance(v, np.ndarray))
