"""The pictures of the reports: one look, that of `minires.anatomy.drawing`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from minires.anatomy.drawing import PLAIN, RESIDUAL, canvas, heading
from minires.experiments.statistics import Spread

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from minires.experiments.lab import Trained

Values = Any  # what NumPy makes a vector of


@dataclass(frozen=True)
class Line:
    """One line of a plot.

    values: (n,), or (seeds, n): their mean with a band of one deviation. x: (n,).
    """

    label: str
    values: Values
    colour: str
    x: Values
    dashed: bool = False
    marks: bool = False


def shades(colour: str, count: int) -> list[str]:
    """`count` tones of a colour, from light to full."""
    from matplotlib.colors import to_hex, to_rgb

    base = np.array(to_rgb(colour))
    weights = np.linspace(0.45, 1.0, count) if count > 1 else np.ones(count)
    return [to_hex(tuple(1 - w * (1 - base))) for w in weights]


@dataclass(frozen=True)
class Panel:
    """Lines that share axes, under a heading."""

    title: str
    lines: Sequence[Line]


def draw_panels(
    axes: Sequence[Axes],
    panels: Sequence[Panel],
    *,
    x: str = "",
    y: str = "",
    log: bool = False,
    from_zero: bool = False,
) -> None:
    """Lines by panel, each with its name at its right end, apart from one another.

    x, y: what the axes show; y is written once, on the left. from_zero: where y begins.
    """
    for place, panel in zip(axes, panels, strict=True):
        for line in panel.lines:
            _draw_line(place, line, log)
        place.set_xlabel(x)
        heading(place, panel.title)
        if log:
            place.set_yscale("log")
        if from_zero:
            place.set_ylim(0)
    axes[0].set_ylabel(y)
    for place, panel in zip(axes, panels, strict=True):  # when the limits of all are known
        if log:
            _plain_decades(place)
        _name_ends(place, panel.lines)


def _draw_line(axes: Axes, line: Line, log: bool) -> None:
    values = np.atleast_2d(np.asarray(line.values, np.float64))
    places = np.asarray(line.x, np.float64)
    mean = values.mean(axis=0)
    axes.plot(places, mean, color=line.colour, linewidth=1.8, solid_capstyle="round",
              linestyle=(0, (4, 2)) if line.dashed else "-",
              marker="o" if line.marks else None, markersize=3.2)  # fmt: skip
    if len(values) > 1:
        spread = values.std(axis=0, ddof=1)
        low = np.maximum(mean - spread, mean * 0.05) if log else mean - spread
        axes.fill_between(places, low, mean + spread, color=line.colour, alpha=0.14, linewidth=0)


def _plain_decades(axes: Axes) -> None:
    """Round numbers on a logarithmic axis: 1, 2, 5 where it is short."""
    from matplotlib.ticker import LogLocator, NullFormatter

    low, high = axes.get_ylim()
    short = high / low < 100
    axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0) if short else (1.0,)))
    axes.yaxis.set_minor_formatter(NullFormatter())
    if high / low < 1e5:
        axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")


def _name_ends(axes: Axes, lines: Sequence[Line], gap: float = 0.062) -> None:
    """Write each line's name beside its last value; crowded names move apart."""
    named = [line for line in lines if line.label]
    if not named:
        return
    ends = np.array([np.atleast_2d(line.values).mean(axis=0)[-1] for line in named])
    axes.get_ylim()  # makes pending limits take effect
    to_axes = axes.transData + axes.transAxes.inverted()
    heights = to_axes.transform(np.column_stack([np.zeros_like(ends), ends]))[:, 1]
    order = np.argsort(heights)
    heights = heights[order]
    for _ in range(200):  # push neighbours apart until none touch
        lack = np.maximum(gap - np.diff(heights), 0)
        if lack.max(initial=0) < 1e-4:
            break
        heights[:-1] -= lack / 2
        heights[1:] += lack / 2
    for height, index in zip(heights, order, strict=True):
        axes.annotate(named[index].label, (1, float(height)), xytext=(5, 0),
                      xycoords="axes fraction", textcoords="offset points",
                      color=named[index].colour, va="center", fontsize=8.5, fontweight="bold",
                      annotation_clip=False)  # fmt: skip


def draw_dots(
    axes: Axes,
    labels: Sequence[str],
    spreads: Sequence[Spread],
    colours: Sequence[str],
    *,
    title: str = "",
    x: str = "",
    digits: int = 1,
) -> None:
    """A row per label: every seed a small dot, the mean a large one with its number."""
    rows = np.arange(len(labels))[::-1]
    for row, spread, colour in zip(rows, spreads, colours, strict=True):
        axes.scatter(spread.values, [row] * len(spread.values), s=16, color=colour, alpha=0.45,
                     linewidth=0, zorder=3)  # fmt: skip
        axes.scatter([spread.mean], [row], s=64, color=colour, zorder=4)
        axes.annotate(f"{spread.mean:.{digits}f}", (spread.mean, row), xytext=(0, 9),
                      textcoords="offset points", ha="center", fontsize=8.5, fontweight="bold",
                      color=colour)  # fmt: skip
    axes.set_yticks(rows, labels)
    axes.set_ylim(-0.6, len(labels) - 0.3)
    axes.margins(x=0.12)
    axes.grid(axis="y", visible=False)
    axes.set_xlabel(x)
    if title:
        heading(axes, title)


def errors_by_epoch(
    path: Path, groups: Mapping[str, Mapping[str, Sequence[Trained]]], title: str, subtitle: str
) -> None:
    """Training error (dashed) and test error by epoch, a panel per group, a line per net."""
    panels = []
    for name, nets in groups.items():
        colours = shades(colour_of(name), len(nets))
        lines = []
        for colour, (label, runs) in zip(colours, nets.items(), strict=True):
            epochs = [m.epoch for m in runs[0].history]
            lines += [
                Line("", train_errors(runs), colour, epochs, dashed=True),
                Line(label, test_errors(runs), colour, epochs, marks=len(epochs) <= 30),
            ]
        panels.append(Panel(name, lines))
    with canvas(10, 4.4, title, subtitle, path) as figure:
        axes = figure.subplots(1, len(panels), sharey=True, squeeze=False)[0]
        draw_panels(axes, panels, x="epoch", y="error, %   (dashed: training)")
        for place in axes:
            whole_numbers(place)


def train_errors(runs: Sequence[Trained]) -> list[list[float]]:
    """Per cent, (seeds, epochs)."""
    return [[100 - 100 * m.train_accuracy for m in run.history] for run in runs]


def test_errors(runs: Sequence[Trained]) -> list[list[float]]:
    """Per cent, (seeds, epochs)."""
    return [[100 - 100 * (m.test_accuracy or 0) for m in run.history] for run in runs]


def whole_numbers(axes: Axes) -> None:
    """Ticks of the horizontal axis at whole numbers."""
    from matplotlib.ticker import MaxNLocator

    axes.xaxis.set_major_locator(MaxNLocator(8, integer=True, min_n_ticks=1))


def colour_of(label: str) -> str:
    """Of a net or a group of nets: plain ones are blue, residual ones red."""
    return PLAIN if label.startswith("plain") else RESIDUAL
