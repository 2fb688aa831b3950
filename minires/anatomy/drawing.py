"""One look for every picture: a white ground, a heading on the left, few and quiet colours."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np

from minires.files import atomic_write
from minires.training.curve import STYLE

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Path = str | os.PathLike[str] | None

PLAIN, RESIDUAL, NEUTRAL = "#7f93ad", "#c2412d", "#5b5b5b"
SERIES = ("#c2412d", "#3f6fa3", "#c99a2e", "#5a8f5a", "#7a5a96")
"""Colours of further lines, in this order."""


@contextmanager
def canvas(
    width: float, height: float, title: str, subtitle: str = "", path: Path = None
) -> Iterator[Figure]:
    """A figure of width x height inches to draw on; written as PNG to `path`, if given, at the end.

    No window and no global state: the figure is not known to pyplot. A notebook with
    `%matplotlib inline` shows it when it is the value of a cell.
    """
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    head = 0.62 if subtitle else 0.4
    with matplotlib.rc_context(STYLE):
        layout = ConstrainedLayoutEngine(rect=(0.008, 0.01, 0.984, 0.99 - head / height))
        figure = Figure(figsize=(width, height), dpi=120, facecolor="white", layout=layout)
        FigureCanvasAgg(figure)
        figure.text(0.12 / width, 1 - 0.2 / height, title, fontsize=12.5, fontweight="bold",
                    va="center")  # fmt: skip
        figure.text(0.12 / width, 1 - 0.45 / height, subtitle, fontsize=9, color="#6f6f6f",
                    va="center")  # fmt: skip
        yield figure
        if path is not None:
            with atomic_write(path) as file:
                figure.savefig(file, format="png")


def heading(axes: Axes, text: str) -> None:
    """The small heading of one panel."""
    axes.set_title(text, loc="left", fontsize=9.5, fontweight="bold", pad=7)


def picture(axes: Axes, image: Any, **how: Any) -> Any:
    """An array of pixels without ticks and frame; (H, W), or (H, W, 3) from 0 to 1."""
    axes.set_axis_off()
    return axes.imshow(np.asarray(image), interpolation=how.pop("interpolation", "nearest"), **how)
