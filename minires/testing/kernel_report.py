"""What a check of a kernel found: one finding, one case, the whole."""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from minires.kernels import ConvGeometry, Kernel
from minires.testing.kernel_inputs import Arguments

Array = np.ndarray
NOTHING: Array = np.empty(0)

KINDS = {
    "raised": "raises an exception",
    "results": "returns something else than it should",
    "mutated": "changes an input in place",
    "outside write": "writes outside of an array",
    "outside read": "reads outside of an array",
    "unwritten": "returns elements that it never wrote",
    "wrong": "gives wrong numbers",
    "random": "gives other bits at every call",
    "threads": "gives other bits, or wrong ones, with more threads",
    "aliased": "returns memory that belongs to an input or to another result",
    "nonfinite": "loses a NaN or an infinity",
}
"""Every kind of finding, the likelier root of the others first."""


@dataclass(frozen=True)
class Finding:
    """One way in which one call was not as it should be.

    result, expected: the arrays that differ, if `kind` is "wrong"; otherwise empty.
    """

    operation: str
    kind: str
    case: Arguments
    dtype: str
    layout: str
    text: str
    result: Array = field(default_factory=lambda: NOTHING)
    expected: Array = field(default_factory=lambda: NOTHING)

    def __str__(self) -> str:
        return f"{self.case.text} ({self.dtype}, {self.layout}): {self.text}"


@dataclass
class KernelCase:
    """One call of a kernel held to the contract: what went in, what came out, what is wrong."""

    kernel: Kernel
    case: Arguments
    dtype: str
    layout: str
    inputs: tuple[Any, ...] = ()
    results: tuple[Array, ...] = ()
    expected: tuple[Array, ...] = ()
    worst: float = 0.0
    findings: list[Finding] = field(default_factory=list)

    @property
    def passed(self) -> bool:
        return not self.findings

    @property
    def kinds(self) -> set[str]:
        return {finding.kind for finding in self.findings}

    def fail(
        self, kind: str, text: str, result: Array = NOTHING, expected: Array = NOTHING
    ) -> None:
        """Add a finding."""
        self.findings.append(
            Finding(self.kernel.operation, kind, self.case, self.dtype, self.layout, text,
                    result, expected)
        )  # fmt: skip

    def __bool__(self) -> bool:
        return self.passed

    def __str__(self) -> str:
        lines = [f"{self.kernel.operation}/{self.kernel.name}: {self.case.text} ({self.dtype}, "
                 f"{self.layout})"]  # fmt: skip
        for kind, arrays in (("input", self.inputs), ("result", self.results),
                             ("expected", self.expected)):  # fmt: skip
            for i, value in enumerate(arrays):
                if isinstance(value, np.ndarray):
                    text = np.array2string(value, precision=5, suppress_small=True, threshold=200)
                    lines += [f"{kind} {i}, {value.dtype}:", text]
        lines += [finding.text for finding in self.findings] or ["conforms"]
        return "\n".join(lines)


@dataclass
class KernelReport:
    """What was checked; true if the kernel conforms.

    calls: how many calls were compared; skipped: pairs of geometry and dtype that the kernel does
        not claim.
    worst: the largest error as a share of what is allowed.
    findings: every failing call; causes: what they are likely to come from, likeliest first.
    smallest: the smallest case that still fails in the same way; line: Python that repeats it.
    notes: what was left out, and why.
    """

    operation: str
    name: str
    backend: str = "cpu"
    calls: int = 0
    skipped: int = 0
    worst: float = 0.0
    findings: list[Finding] = field(default_factory=list)
    causes: list[str] = field(default_factory=list)
    smallest: Finding | None = None
    line: str = ""
    notes: list[str] = field(default_factory=list)

    @property
    def passed(self) -> bool:
        return not self.findings

    @property
    def failures(self) -> list[str]:
        """The findings as text."""
        return [str(finding) for finding in self.findings]

    def __bool__(self) -> bool:
        return self.passed

    @property
    def summary(self) -> str:
        """One line: what was checked."""
        text = f"{self.operation}/{self.name}: {self.calls} calls"
        return text + (f", {self.skipped} not supported" if self.skipped else "")

    def __str__(self) -> str:
        if self.passed:
            return f"{self.summary}, conforms; worst error {self.worst:.2g} of what is allowed"
        shown = self.failures[:5]
        more = len(self.findings) - len(shown)
        lines = [f"{self.summary}, {len(self.findings)} failures", *shown]
        lines += [f"and {more} more"] if more > 0 else []
        return "\n  ".join(lines + self.explanation())

    def explanation(self) -> list[str]:
        """The smallest failing case, how to repeat it, and the likely causes."""
        lines = [f"smallest: {self.smallest}"] if self.smallest is not None else []
        lines += [f"repeat: {self.line}"] if self.line else []
        heads = ["likely cause: ", *["or: "] * len(self.causes)]
        return lines + [head + cause for head, cause in zip(heads, self.causes, strict=False)]


def python_line(kernel: Kernel, case: Arguments, dtype: str, layout: str) -> str:
    """Python that repeats a case."""
    file = _file_of(kernel)
    load = "" if file is None else f"mr.kernels.load({file!r}); "
    geometry = case.geometry
    what = geometry_code(geometry) if isinstance(geometry, ConvGeometry) else repr(case.text)
    options = "" if dtype == "float32" else f", dtype={dtype!r}"
    options += "" if layout == "contiguous" else f", layout={layout!r}"
    options += "" if kernel.backend == "cpu" else f", backend={kernel.backend!r}"
    return (
        f"import minires as mr; {load}print(mr.testing.kernel_case({kernel.operation!r}, "
        f"{kernel.name!r}, {what}{options}))"
    )


def geometry_code(g: ConvGeometry) -> str:
    """The call that makes a geometry."""
    defaults = {"stride": (1, 1), "padding": (0, 0), "dilation": (1, 1)}
    given = [f"{name}={getattr(g, name)}" for name, value in defaults.items()
             if getattr(g, name) != value]  # fmt: skip
    given += [f"groups={g.groups}"] if g.groups != 1 else []
    return f"mr.kernels.conv_geometry({', '.join([f'{g.x_shape}, {g.weight_shape}', *given])})"


def _file_of(kernel: Kernel) -> str | None:
    """The file that a kernel was loaded from, relative to the working folder if it lies below."""
    module = sys.modules.get(getattr(kernel.function, "__module__", None) or "")
    if module is None or not module.__name__.startswith("minires_kernels_"):
        return None
    file = Path(str(module.__file__))
    here = Path.cwd()
    return str(file.relative_to(here) if file.is_relative_to(here) else file)
