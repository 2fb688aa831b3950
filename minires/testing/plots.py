"""The picture of a gradient check: the V of the step, and the slopes of the Taylor remainder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from minires.testing.curve import StepCurve
from minires.testing.report import GradcheckReport
from minires.testing.taylor import SlopeTest

INK, MUTED, GRID = "#22272e", "#7a828e", "#e4e7eb"
BLUE, ORANGE, RED = "#2563a8", "#d97706", "#c0392b"


def plot_report(report: GradcheckReport, path: Path) -> Path:
    """Draw both panels; raises ValueError where they were not measured."""
    if report.curve is None or report.slopes is None:
        raise ValueError(
            f"{report.name}: no curve was measured; use gradcheck(..., report=True)"
            + ("; every direction met a kink or failed before" if report.causes else "")
        )
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 4.6), dpi=160, layout="constrained", facecolor="white")
    left, right = figure.subplots(1, 2)
    verdict = "right" if report.passed else "wrong"
    figure.suptitle(
        f"{report.name}: gradient {verdict}", color=INK, fontsize=13, fontweight="bold"
    )
    _curve(left, report.curve, right=report.passed)
    _slopes(right, report.slopes)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)
    return path


def _axes(axes: Any, title: str, ylabel: str) -> None:
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_title(title, color=INK, fontsize=11, loc="left")
    axes.set_xlabel("step h", color=INK)
    axes.set_ylabel(ylabel, color=INK)
    axes.grid(True, color=GRID, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(colors=MUTED, which="both", length=0)
    for spine in axes.spines.values():
        spine.set_visible(False)


def _curve(axes: Any, curve: StepCurve, *, right: bool) -> None:
    steps, errors = np.array(curve.steps), np.maximum(curve.errors, 1e-17)
    colour = BLUE if right else RED
    _axes(axes, "Error of the central difference", "relative error")
    axes.plot(steps, errors, "o-", color=colour, markersize=4, linewidth=1.6)
    best, error = curve.best
    if right and best == best and curve.order is not None:
        large = (steps > 4 * best) & (errors > 30 * error) & (steps < 0.1)
        if large.any():
            h, e = steps[large][len(steps[large]) // 2], errors[large][len(steps[large]) // 2]
            _guide(axes, np.array([best, 0.25]), lambda s: e * (s / h) ** 2, error / 5)
            axes.annotate("truncation, $h^2$", (h, e), (-10, 6), textcoords="offset points",
                          color=MUTED, ha="right", fontsize=9)  # fmt: skip
        small = (steps < best / 8) & (errors > 0)
        if small.any():
            h = float(np.exp(np.mean(np.log(steps[small]))))
            e = float(np.exp(np.median(np.log(errors[small] * steps[small])))) / h
            _guide(axes, np.array([steps.min(), best]), lambda s: e * h / s, error / 5)
            axes.annotate("rounding, $u/h$", (h, e), (10, 6), textcoords="offset points",
                          color=MUTED, ha="left", fontsize=9)  # fmt: skip
        lowest = max(error, 1e-17)
        axes.plot([best], [lowest], "o", color=ORANGE, markersize=8, zorder=5)
        text = f"best step {best:.0e}\nerror {error:.0e}"
        axes.annotate(text, (best, lowest), (0, -30), textcoords="offset points", color=ORANGE,
                      ha="center", fontsize=9)  # fmt: skip
        axes.set_ylim(bottom=lowest / 300)
    elif not right:
        axes.annotate("no step makes it smaller: the gradient is wrong", (0.5, 0.82),
                      xycoords="axes fraction", color=RED, ha="center", fontsize=9)  # fmt: skip
        axes.set_ylim(1e-12, 10 * float(np.nanmax(errors)))


def _slopes(axes: Any, slopes: SlopeTest) -> None:
    steps = np.array(slopes.steps)
    change, remainder = np.array(slopes.change), np.array(slopes.remainder)
    _axes(axes, "Taylor remainder", "relative to the slope")
    for values, order, colour, text in (
        (change, slopes.order_without, MUTED, "|f(x + h d) − f(x)|"),
        (remainder, slopes.order_with, BLUE if slopes.passed else RED,
         "|f(x + h d) − f(x) − h ⟨g, d⟩|"),
    ):  # fmt: skip
        measured = "rounding only" if order is None else f"slope {order:.2f}"
        shown = np.where(values > 0, values, np.nan)
        axes.plot(steps, shown, "o-", color=colour, markersize=4, linewidth=1.6,
                  label=f"{text}:  {measured}")  # fmt: skip
    axes.axhline(max(slopes.floor, 1e-18), color=ORANGE, linewidth=1, linestyle=":")
    axes.annotate("rounding of f", (steps.min(), max(slopes.floor, 1e-18)), (0, 4),
                  textcoords="offset points", color=ORANGE, ha="left", fontsize=9)  # fmt: skip
    axes.legend(frameon=False, loc="upper left", labelcolor=INK, fontsize=9)
    axes.set_ylim(top=30 * float(np.nanmax(change)))


def _guide(axes: Any, steps: Any, law: Any, lowest: float) -> None:
    """A dashed line that a power law follows, as far down as the measurements go."""
    s = np.geomspace(steps.min(), steps.max(), 50)
    values = law(s)
    axes.plot(s[values > lowest], values[values > lowest], "--", color=MUTED, linewidth=1)

