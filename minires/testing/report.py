"""What a gradient check found, as data and as text."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from minires.kernels.geometry import shape_text
from minires.testing.compare import element
from minires.testing.curve import StepCurve
from minires.testing.faults import ADVICE, FAULTS
from minires.testing.taylor import SlopeTest


@dataclass(frozen=True)
class Cause:
    """A likely cause. kind: a key of `faults.FAULTS`; where: the operation at fault, or "".

    evidence: the number that speaks for it: the error with the fault cured, and without.
    """

    kind: str
    text: str
    where: str = ""
    evidence: str = ""

    def __str__(self) -> str:
        text = f"{self.text}; {self.evidence}" if self.evidence else self.text
        return f"{self.where}: {text}" if self.where else text


@dataclass(frozen=True)
class DirectionResult:
    """One random direction. error: |analytic - numeric| relative to the size of the gradient."""

    analytic: float
    numeric: float
    error: float
    eps: float
    passed: bool


@dataclass(frozen=True)
class ElementResult:
    """One element that was differenced on its own and found wrong.

    slopes: the slopes to the left and right if the point lies on a kink, else None.
    """

    tensor: str
    index: tuple[int, ...]
    analytic: float
    numeric: float
    slopes: tuple[float, float] | None = None

    @property
    def error(self) -> float:
        """|analytic - numeric| / max(|analytic|, |numeric|)."""
        return relative(self.analytic, self.numeric)

    def __str__(self) -> str:
        where = element(self.tensor, self.index)
        if self.slopes is not None:
            left, right = (slope + 0.0 for slope in self.slopes)  # no -0
            return (
                f"{where}: on a kink, analytic {self.analytic:.6g} lies outside the one-sided "
                f"slopes {left:.6g} and {right:.6g}"
            )
        return (
            f"{where}: analytic {self.analytic:.6g}, numeric {self.numeric:.6g}, "
            f"relative error {self.error:.2g}"
        )


@dataclass(frozen=True)
class TensorResult:
    """One input or parameter. error: worst relative error along directions of its own; NaN where
    the directions over all tensors agreed, so that it was not singled out."""

    name: str
    shape: tuple[int, ...]
    size: int
    gradient_norm: float
    error: float
    passed: bool


@dataclass(frozen=True)
class PrecisionResult:
    """One gradient in a lower precision.

    error: the largest |g_dtype - g_float64|, at `index`; allowed: what rounding explains;
    size: the largest |g_float64|.
    """

    tensor: str
    dtype: str
    index: tuple[int, ...]
    error: float
    allowed: float
    size: float

    @property
    def passed(self) -> bool:
        return self.error <= self.allowed

    @property
    def relative(self) -> float:
        """The error relative to the gradient's largest element."""
        return self.error / self.size if self.size else self.error

    def __str__(self) -> str:
        return (
            f"{element(self.tensor, self.index)} in {self.dtype}: off by {self.error:.2g}, "
            f"{self.relative:.1e} of the largest element; rounding explains {self.allowed:.2g}"
        )


def relative(a: float, b: float) -> float:
    """|a - b| / max(|a|, |b|); 0 if both are zero."""
    largest = max(abs(a), abs(b))
    return abs(a - b) / largest if largest != 0 else 0.0


@dataclass
class GradcheckReport:
    """The verdict on one function or module; true if its gradient is right.

    elements: elements found wrong, worst first; looked_at: how many were differenced one by one.
    rejected: steps given up because a kink lay between their ends.
    on_kinks: elements on a kink whose analytic value lies between the one-sided slopes.
    precision: one result per tensor, where another dtype was asked for.
    notes: what the reader should know beyond the verdict.
    curve, slopes: the error against the step and the slope test, where they were asked for.
    """

    name: str
    passed: bool = True
    tensors: list[TensorResult] = field(default_factory=list)
    directions: list[DirectionResult] = field(default_factory=list)
    elements: list[ElementResult] = field(default_factory=list)
    looked_at: int = 0
    causes: list[Cause] = field(default_factory=list)
    rejected: int = 0
    on_kinks: int = 0
    notes: list[str] = field(default_factory=list)
    curve: StepCurve | None = None
    slopes: SlopeTest | None = None
    precision: list[PrecisionResult] = field(default_factory=list)

    def __bool__(self) -> bool:
        return self.passed

    @property
    def undecided(self) -> bool:
        """Whether the check gave up at kinks and found nothing wrong."""
        return not self.passed and not self.elements and self.kinds == {"kink"}

    @property
    def worst_error(self) -> float:
        """The largest relative error of any direction; NaN if one was NaN or none was measured."""
        errors = [d.error for d in self.directions]
        if not errors or any(e != e for e in errors):
            return float("nan")
        return max(errors)

    @property
    def kinds(self) -> set[str]:
        """The kinds of the causes: keys of `faults.FAULTS`."""
        return {cause.kind for cause in self.causes}

    def fail(self, kind: str, text: str, where: str = "") -> None:
        """Record a failure and its cause."""
        self.passed = False
        self.causes.append(Cause(kind, text, where))

    def summary(self) -> str:
        """The verdict; on failure the elements at fault, the likely cause, and every tensor."""
        count = sum(t.size for t in self.tensors)
        checked = f"{len(self.tensors)} tensors, {count} elements" if self.tensors else ""
        if self.passed:
            lines = [f"{self.name}: gradient right ({checked}, {self._measured()})"]
            lines += [f"  note: {note}" for note in self.notes]
        else:
            verdict = "undecided" if self.undecided else "wrong"
            lines = [f"{self.name}: gradient {verdict}" + (f" ({checked})" if checked else "")]
            lines += [f"  {e}" for e in self.elements[:3]]
            if len(self.elements) > 3:
                lines.append(f"  {len(self.elements)} wrong of {self.looked_at} looked at")
            lead = "" if self.undecided else "likely cause: "
            lines += [f"  {lead}{cause}" for cause in self.causes]
            kinds = dict.fromkeys(cause.kind for cause in self.causes)
            lines += [f"  look at: {ADVICE[kind]}" for kind in kinds]
            lines += [f"  note: {note}" for note in self.notes]
            lines += self._table()
        if self.precision:
            worst = max(self.precision, key=lambda p: p.error / p.allowed if p.allowed else 0.0)
            lines.append(f"  {worst}")
        if self.curve is not None:
            lines.append(str(self.curve))
        if self.slopes is not None:
            lines.append(str(self.slopes))
        return "\n".join(lines)

    def explain(self) -> str:
        """Each cause at length: what the kind of fault is, what speaks for it, where to look."""
        if self.passed:
            return f"{self.name}: nothing to explain, the gradient is right"
        parts = []
        for cause in self.causes:
            lines = [f"{cause.kind}: {FAULTS[cause.kind]}", f"  found: {cause}"]
            parts.append("\n".join([*lines, f"  look at: {ADVICE[cause.kind]}"]))
        return "\n".join(parts)

    def plot(self, path: str | Path) -> Path:
        """Draw the error against the step, and the slope test, into a picture file.

        Raises ValueError if they were not measured: ask for gradcheck(..., report=True).
        """
        from minires.testing.plots import plot_report

        return plot_report(self, Path(path))

    def _measured(self) -> str:
        if not self.directions:
            return f"{self.looked_at} elements one by one"
        text = f"{len(self.directions)} directions, worst relative error {self.worst_error:.1e}"
        return text + (f", {self.rejected} steps across kinks rejected" if self.rejected else "")

    def _table(self) -> list[str]:
        """The tensors that were singled out, or the worst of them where they are many."""
        singled_out = [t for t in self.tensors if t.error == t.error]
        if len(singled_out) < 2:
            return []
        wrong = sorted((t for t in singled_out if not t.passed), key=lambda t: -t.error)
        right = [t for t in singled_out if t.passed]
        few = len(singled_out) <= 12
        shown = singled_out if few else wrong[:6]
        width = max(len(t.name) for t in shown)
        wide = max(len(shape_text(t.shape)) for t in shown)
        lines = [
            f"  {t.name:<{width}}  {shape_text(t.shape):<{wide}}  "
            f"{'right' if t.passed else 'WRONG'}  relative error {t.error:.1e}"
            for t in shown
        ]
        if not few:
            names = [t.name for t in right]
            rest = f" and {len(names) - 8} more" if len(names) > 8 else ""
            lines.append(f"  {len(wrong)} of {len(singled_out)} tensors are wrong; right: "
                         + (", ".join(names[-8:]) + rest if names else "none"))  # fmt: skip
        return lines

    def __str__(self) -> str:
        return self.summary()


class GradcheckError(AssertionError):
    """A gradient is wrong. `report` has the details, which are also the message."""

    def __init__(self, report: GradcheckReport) -> None:
        super().__init__(report.summary())
        self.report = report
