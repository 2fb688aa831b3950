"""The roofline picture: every kernel under the two limits of the machine.

Williams, Waterman, Patterson, "Roofline" (CACM 52(4), 2009). Across: operations per byte that has
to move. Up: operations per second. The slope is the copy bandwidth, the flat part the
matrix-product rate. A point on the roof cannot become faster with the direct algorithm; Winograd's
may lie above the flat part, because it needs fewer multiplications than are counted.
"""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from minires.bench.conv import ConvReport, Row
from minires.bench.gate import PASSES

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MARKERS = dict(zip(PASSES.values(), ("o", "s", "^"), strict=True))
FURTHER_COLOURS = ("#2f8f8f", "#b56a9e", "#8c6d4f", "#1f3552")


def plot_roofline(report: ConvReport, path: str | os.PathLike[str], title: str = "") -> None:
    """Write the picture of a report as PNG: a point per kernel, pass and layer.

    Raises ValueError if nothing was timed.
    """
    from minires.anatomy.drawing import canvas

    rows = report.timed
    if not rows:
        raise ValueError("plot_roofline: nothing was timed, so there is nothing to show")
    limits = report.limits
    subtitle = (
        f"{limits.name}, {rows[0].dtype}; medians, operations counted by the direct algorithm"
    )
    several = len({row.layer for row in rows}) > 1
    with canvas(9.6, 6.6 if several else 5.6, title or "Roofline", subtitle, path) as figure:
        axes = figure.add_subplot()
        _draw_roof(axes, report, rows)
        colours = _colours(rows)
        positions = _draw_points(axes, rows, 1.06 if several else 1.3, colours)
        if several:
            _name_layers(axes, rows)
            _draw_legend(axes, colours, rows)
        else:
            _name_kernels(axes, positions, colours, limits.rate(rows[0].dtype))
            _draw_legend(axes, {}, rows)
        axes.set_xlabel("operations per byte that has to move")
        axes.set_ylabel("GFLOP/s")


def _draw_roof(axes: Axes, report: ConvReport, rows: Sequence[Row]) -> None:
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    peak, copy = report.limits.rate(rows[0].dtype), report.limits.copy_gbs
    ridge = peak / copy
    intensities = [row.cost.intensity for row in rows]
    speeds = [row.gflops or peak for row in rows]
    low, high = min(*speeds, peak) / 2.2, max(*speeds, peak) * 1.7
    left = max(min(*intensities, ridge) / 3, low / copy)
    right = max(*intensities, ridge) * 4
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xlim(left, right)
    axes.set_ylim(low, high)
    roof = [left, ridge, right], [left * copy, peak, peak]
    axes.fill_between(*roof, high, color="#f4f2ee", zorder=0, linewidth=0)
    axes.plot(*roof, color="#3a3a3a", linewidth=1.8, solid_joinstyle="miter", zorder=2)
    axes.annotate(f"matrix products {peak:,.0f} GFLOP/s", (ridge, peak), (8, 4),
                  textcoords="offset points", ha="left", va="bottom", fontsize=9)  # fmt: skip
    middle = left**0.7 * ridge**0.3
    axes.annotate(f"copying {copy:,.1f} GB/s", (middle, middle * copy), (7, -4),
                  textcoords="offset points", ha="left", va="top", fontsize=9)  # fmt: skip
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(LogLocator(10, (1, 2, 5)))
        axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axis.set_minor_formatter(NullFormatter())


def _colours(rows: Sequence[Row]) -> dict[str, str]:
    from minires.anatomy.drawing import NEUTRAL, SERIES

    known = (*SERIES, NEUTRAL, *FURTHER_COLOURS)
    names = dict.fromkeys(row.kernel for row in rows)
    return {name: known[i % len(known)] for i, name in enumerate(names)}


def _operations(rows: Sequence[Row]) -> list[str]:
    return [op for op in PASSES.values() if any(row.operation == op for row in rows)]


def _draw_points(
    axes: Axes, rows: Sequence[Row], apart: float, colours: dict[str, str]
) -> dict[str, tuple[float, float]]:
    """Draw every row; returns where each kernel's last point is.

    The passes of a layer have one intensity: they stand beside each other, by this factor.
    """
    operations, last = _operations(rows), {}
    for row in rows:
        beside = apart ** (operations.index(row.operation) - (len(operations) - 1) / 2)
        x, y = row.cost.intensity * beside, row.gflops or math.nan
        axes.plot(x, y, MARKERS[row.operation], color=colours[row.kernel], markersize=7,
                  markeredgecolor="white", markeredgewidth=0.8, zorder=3)  # fmt: skip
        last[row.kernel] = x, y
    return last


def _name_kernels(
    axes: Axes, positions: dict[str, tuple[float, float]], colours: dict[str, str], roof: float
) -> None:
    """The name of each kernel to the right of its points, and not on the roof."""
    names = sorted(positions, key=lambda name: positions[name][1])
    right = max(x for x, _ in positions.values())
    heights = [axes.transData.transform(positions[name])[1] for name in names]
    place = axes.transData.transform((right, 1))[0] + 14
    line = float(axes.transData.transform((right, roof))[1])
    for name, height in zip(names, clear(spread(heights, 17), line, 17), strict=True):
        x, y = axes.transData.inverted().transform((place, height))
        axes.text(x, y, name, color=colours[name], va="center", fontsize=9,
                  fontweight="bold")  # fmt: skip


def _name_layers(axes: Axes, rows: Sequence[Row]) -> None:
    """The name of each layer above the picture, with a line down to its intensity."""
    where = sorted({row.layer: row.cost.intensity for row in rows}.items(), key=lambda at: at[1])
    bottom, top = axes.get_ylim()
    across = [float(axes.transData.transform((x, 1))[0]) for _, x in where]
    shown = axes.get_xaxis_transform()
    for (name, x), pixel in zip(where, spread(across, 15), strict=True):
        axes.axvline(x, color="#d9d9d9", linewidth=0.7, zorder=1)
        beside = axes.transData.inverted().transform((pixel, 1))[0]
        axes.plot([x, beside], [1, 1.025], transform=shown, color="#bbbbbb", linewidth=0.7,
                  clip_on=False)  # fmt: skip
        axes.text(beside, 1.03, name, transform=shown, rotation=90, ha="center", va="bottom",
                  fontsize=7.5, color="#5a5a5a")  # fmt: skip
    axes.grid(axis="x", visible=False)
    axes.set_ylim(bottom, top)


def spread(places: Sequence[float], apart: float) -> list[float]:
    """Sorted numbers, moved as little as needed to be `apart` from each other.

    Runs of places that are too close are centred on where they were.
    """
    groups: list[list[float]] = []  # [sum of the wanted centres, members]
    for place in places:
        groups.append([place, 1])
        while len(groups) > 1 and _edge(groups[-2], apart, 1) > _edge(groups[-1], apart, -1):
            total, members = groups.pop()
            groups[-1][0] += total
            groups[-1][1] += members
    return [
        total / members + (i - (members - 1) / 2) * apart
        for total, members in groups
        for i in range(int(members))
    ]


def clear(places: Sequence[float], line: float, apart: float) -> list[float]:
    """Sorted numbers, at least `apart` from each other, moved so far from the line that a text of
    that height does not touch it; on which side of it they are stays."""
    found: list[float] = []
    nearest = line + 0.7 * apart
    for place in (p for p in places if p >= line):
        found.append(max(place, nearest))
        nearest = found[-1] + apart
    nearest = line - 0.7 * apart
    for place in reversed([p for p in places if p < line]):
        found.insert(0, min(place, nearest))
        nearest = found[0] - apart
    return found


def _edge(group: list[float], apart: float, side: int) -> float:
    total, members = group
    return total / members + side * members * apart / 2


def _draw_legend(axes: Axes, colours: dict[str, str], rows: Sequence[Row]) -> None:
    """Colours of kernels, then signs of passes."""
    handles: list[Any] = []
    texts: list[str] = []
    for name, colour in colours.items():
        handles += axes.plot([], [], "o", color=colour, markersize=7)
        texts.append(name)
    names = {op: name for name, op in PASSES.items()}
    for op in _operations(rows):
        handles += axes.plot([], [], MARKERS[op], color="#9a9a9a", markersize=7)
        texts.append(names[op])
    axes.figure.legend(handles, texts, loc="outside lower center", fontsize=9, frameon=False,
                       ncols=8, handletextpad=0.1, columnspacing=1.4)  # fmt: skip
