"""The learning curve as a picture: loss, error and learning rate by epoch."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from minires.files import atomic_write

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Values = NDArray[np.float64]

TRAIN, TEST, STEPS = "#7f93ad", "#c2412d", "#5b5b5b"
STYLE: dict[Any, Any] = {
    "font.family": "DejaVu Sans",
    "font.size": 9.5,
    "text.color": "#2b2b2b",
    "axes.edgecolor": "#9a9a9a",
    "axes.labelcolor": "#5a5a5a",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#e6e6e6",
    "grid.linewidth": 0.7,
    "xtick.color": "#9a9a9a",
    "ytick.color": "#9a9a9a",
    "xtick.labelcolor": "#4a4a4a",
    "ytick.labelcolor": "#4a4a4a",
    "xtick.minor.size": 0,
    "ytick.minor.size": 0,
}


def plot_curve(
    path: str | os.PathLike[str],
    history: Sequence[Mapping[str, Any]],
    title: str = "",
    subtitle: str = "",
) -> None:
    """Write the learning curve of a run as a PNG of 1500 x 840 pixels, atomically.

    history: one record per epoch with `epoch`, `lr`, `images_per_second`, `train_loss`,
    `train_accuracy`, `test_loss` and `test_accuracy` (None where nothing was measured), as
    `metrics.jsonl` holds them.

    Raises ValueError if there is no record.
    """
    if not history:
        raise ValueError("plot_curve: no epoch is finished yet")
    # A figure of its own, without pyplot: no window, no state, no backend to choose.
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    epochs = _column(history, "epoch")
    train_error = 100 - 100 * _column(history, "train_accuracy")
    test_error = 100 - 100 * _column(history, "test_accuracy")
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(10, 5.6), dpi=150, facecolor="white")
        FigureCanvasAgg(figure)
        grid = figure.add_gridspec(2, 2, height_ratios=(6, 1), left=0.075, right=0.88, top=0.81,
                                   bottom=0.09, hspace=0.24, wspace=0.5)  # fmt: skip
        loss, error = figure.add_subplot(grid[0, 0]), figure.add_subplot(grid[0, 1])
        _draw_pair(loss, epochs, _column(history, "train_loss"), _column(history, "test_loss"),
                   "{:#.3g}", "{:g}")  # fmt: skip
        _draw_pair(error, epochs, train_error, test_error, "{:.2f} %", "{:g} %")
        for axes, name in ((loss, "Loss"), (error, "Error")):
            axes.set_title(name, loc="left", fontweight="bold", fontsize=10.5, pad=9)
            axes.tick_params(labelbottom=False)
        for above, name, place in (
            (loss, "lr", grid[1, 0]),
            (error, "images_per_second", grid[1, 1]),
        ):
            axes = figure.add_subplot(place, sharex=above)
            _draw_steps(axes, epochs, _column(history, name))
            axes.set_title({"lr": "learning rate"}.get(name, "images per second"), loc="left",
                           fontsize=8.5, color="#6f6f6f", pad=4)  # fmt: skip
        figure.text(0.075, 0.945, title, fontsize=13.5, fontweight="bold", va="center")
        figure.text(0.075, 0.897, subtitle, fontsize=9.5, color="#6f6f6f", va="center")
        with atomic_write(path) as file:
            figure.savefig(file, format="png")


def _column(history: Sequence[Mapping[str, Any]], name: str) -> Values:
    return np.array([np.nan if r[name] is None else r[name] for r in history], np.float64)


def _draw_pair(
    axes: Axes, epochs: Values, train: Values, test: Values, precise: str, rough: str
) -> None:
    """Training and test values on a logarithmic axis, each with its last value at the end.

    precise, rough: formats of a measured value and of a tick.
    """
    from matplotlib.ticker import NullLocator

    values = np.concatenate([train, test])
    positive = values[values > 0]
    low, high = (positive.min(), positive.max()) if positive.size else (0.1, 1.0)
    zero = low / 2 if (values == 0).any() else None  # a logarithmic axis has none: drawn here
    bottom, top = (low / 1.25 if zero is None else zero / 1.15), high * 1.25
    stretch = max(1.0, np.sqrt(3 * bottom / top))  # nearly equal values: a range of three at least
    bottom, top = bottom / stretch, top * stretch
    axes.set_yscale("log")
    axes.set_ylim(bottom, top)
    axes.yaxis.set_minor_locator(NullLocator())
    ticks = _round_numbers(bottom if zero is None else low, top)
    labels = [rough.format(tick) for tick in ticks]
    if zero is not None:
        ticks, labels = [zero, *ticks], ["0", *labels]
    axes.set_yticks(ticks, labels)

    ends = []
    for name, series, colour, width in (("train", train, TRAIN, 1.6), ("test", test, TEST, 2.0)):
        if np.isnan(series).all():
            continue
        drawn = np.maximum(series, zero or 0)
        axes.plot(epochs, drawn, color=colour, linewidth=width, solid_capstyle="round",
                  marker="o" if len(epochs) <= 40 else None, markersize=3.2,
                  clip_on=False)  # fmt: skip
        last = np.flatnonzero(~np.isnan(series))[-1]
        height = np.log(drawn[last] / bottom) / np.log(top / bottom)
        ends.append((float(height), f"{name} {precise.format(series[last])}", colour))
    _label_ends(axes, ends)
    if not np.isnan(test).all():
        best = int(np.nanargmin(test))
        axes.plot(epochs[best], max(test[best], zero or 0), marker="o", markersize=8, color=TEST,
                  markerfacecolor="none", markeredgewidth=1.3, clip_on=False)  # fmt: skip
        axes.set_title(f"best on test: {precise.format(test[best])}, epoch {epochs[best]:.0f}",
                       loc="right", fontsize=9, color=TEST, pad=9)  # fmt: skip


def _round_numbers(low: float, high: float) -> list[float]:
    """Round numbers between two positive ones: at least two, and not many."""
    decades = range(int(np.floor(np.log10(low))), int(np.ceil(np.log10(high))) + 1)
    found: list[float] = []
    for digits in ((1,), (1, 3), (1, 2, 5), (1, 2, 3, 5, 7), tuple(np.arange(1, 10, 0.5)),
                   tuple(np.arange(1, 10, 0.1))):  # fmt: skip
        numbers = [float(f"{d * 10.0**k:.3g}") for k in decades for d in digits]
        numbers = [number for number in numbers if low <= number <= high]
        if len(numbers) > 8 and len(found) >= 2:
            break
        found = numbers
        if len(found) >= 5:
            break
    return found


def _label_ends(axes: Axes, ends: list[tuple[float, str, str]]) -> None:
    """Write (height, text, colour) to the right of the lines, apart from one another."""
    ends = sorted(ends)
    heights = [height for height, _, _ in ends]
    if len(ends) == 2 and heights[1] - heights[0] < 0.06:
        middle = sum(heights) / 2
        heights = [middle - 0.03, middle + 0.03]
    for height, (_, text, colour) in zip(heights, ends, strict=True):
        axes.text(1.03, height, text, transform=axes.transAxes, color=colour, va="center",
                  fontsize=9, fontweight="bold")  # fmt: skip


def _draw_steps(axes: Axes, epochs: Values, values: Values) -> None:
    """One value per epoch in a low panel."""
    from matplotlib.ticker import MaxNLocator

    edges = np.append(epochs - 0.5, epochs[-1] + 0.5)
    axes.stairs(values, edges, color=STEPS, linewidth=1.2, baseline=None)
    axes.stairs(values, edges, color=STEPS, alpha=0.09, fill=True)
    top = float(np.nanmax(values)) or 1.0
    axes.set_ylim(0, top * 1.15)
    axes.set_yticks([0, top], ["0", f"{top:.2g}" if top < 100 else f"{top:,.0f}"])
    axes.set_xlabel("epoch")
    axes.set_xlim(edges[0], edges[-1])
    axes.xaxis.set_major_locator(MaxNLocator(8, integer=True, min_n_ticks=1))
    axes.grid(axis="y", visible=False)
