"""Pictures of joins and paths."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from minires.anatomy.drawing import NEUTRAL, PLAIN, RESIDUAL, Path, canvas, heading

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from minires.anatomy.joins import Joins
    from minires.anatomy.paths import Depth, Paths

SHORTCUT, BRANCH = PLAIN, RESIDUAL


def draw_joins(joins: Joins, path: Path = None) -> Figure:
    """Norms of the two ways, the angle between them, and the forward magnitudes, by block."""
    places = np.arange(len(joins))
    title = "How the gradient divides at each join"
    subtitle = f"{len(joins)} blocks in the order of the forward pass; loss {joins.loss:.3g}"
    with canvas(10, 6.6, title, subtitle, path) as figure:
        norms, share, angle, forward = figure.subplots(2, 2, sharex=True).ravel()
        for axes, by_shortcut, by_branch in (
            (norms, "shortcut_norm", "branch_norm"),
            (forward, "x_rms", "f_rms"),
        ):
            for name, colour, label in (
                (by_shortcut, SHORTCUT, "shortcut"),
                (by_branch, BRANCH, "branch"),
            ):
                values = np.array([getattr(join, name) for join in joins])
                _line(axes, places, np.where(values > 0, values, np.nan), colour, label)
            axes.set_yscale("log")
            axes.legend(frameon=False, loc="best")
        whole = np.array([join.whole_norm for join in joins])
        norms.plot(places, whole, color=NEUTRAL, linewidth=1, linestyle=":", label="whole")
        norms.legend(frameon=False, loc="best")
        heading(norms, "Gradient at the block's input: Euclidean norm")
        heading(forward, "On the way forward: root mean square of x and F(x)")
        share.bar(places, [100 * join.share for join in joins], color=SHORTCUT, width=0.8)
        share.bar(places, [100 * (1 - join.share) for join in joins], color=BRANCH, width=0.8,
                  bottom=[100 * join.share for join in joins])  # fmt: skip
        share.set_ylim(0, 100)
        share.set_ylabel("%")
        heading(share, "Share of the two norms: shortcut below, branch above")
        angle.axhline(0, color="#9a9a9a", linewidth=0.8)
        angle.bar(places, [join.cosine for join in joins], color=NEUTRAL, width=0.8)
        angle.set_ylim(-1, 1)
        heading(angle, "Cosine between the two")
        for axes in (angle, forward):
            _name_blocks(axes, [join.name for join in joins])
    return figure


def draw_paths(paths: Paths, depth: Depth, path: Path = None) -> Figure:
    """Figure 6 of Veit et al. (2016) at one depth, from exact sums."""
    lengths = np.arange(len(depth.norms))
    n = len(depth.counts) - 1
    where = {"image": "the image", "head": "the head's input"}.get(depth.name, depth.name)
    subtitle = f"{n} blocks, {sum(depth.counts):,} paths" if n < 24 else (
        f"{n} blocks, {float(sum(depth.counts)):.2e} paths")  # fmt: skip
    subtitle += f"; gradient at {where}; all paths of a length carried together, none sampled"
    with canvas(11, 3.7, "The gradient by path length", subtitle, path) as figure:
        count, single, all_of = figure.subplots(1, 3)
        counts = np.array([float(c) for c in depth.counts[: len(lengths)]])
        total = float(sum(depth.counts))
        count.bar(lengths, 100 * counts / total, color=NEUTRAL, width=0.85)
        heading(count, "How many paths have this length")
        count.set_ylabel("% of all paths")
        per_path = depth.norm_per_path
        shown = per_path > 0
        single.plot(lengths[shown], per_path[shown], color=BRANCH, marker="o", markersize=3.2)
        if shown.any():
            single.set_yscale("log")
        heading(single, "Gradient of a single path (norm of the mean)")
        all_of.bar(lengths, depth.norms, color=SHORTCUT, width=0.85)
        all_of.axhline(depth.whole_norm, color=BRANCH, linewidth=1.2, linestyle="--")
        all_of.annotate("whole gradient", (1, depth.whole_norm), (0, 3), color=BRANCH, fontsize=8.5,
                        xycoords=("axes fraction", "data"), textcoords="offset points",
                        ha="right")  # fmt: skip
        heading(all_of, "Gradient of all paths of this length (norm)")
        for axes in (count, single, all_of):
            axes.set_xlabel("branches on the path")
            axes.set_xlim(-0.7, lengths[-1] + 0.7)
            axes.xaxis.get_major_locator().set_params(integer=True)
    return figure


def _line(axes: Axes, places: np.ndarray, values: np.ndarray, colour: str, label: str) -> None:
    axes.plot(places, values, color=colour, linewidth=1.6, label=label,
              marker="o" if len(places) <= 40 else None, markersize=3.2)  # fmt: skip


def _name_blocks(axes: Axes, names: list[str]) -> None:
    """Block names under an axis: as many as there is room for."""
    every = max(1, -(-len(names) // 12))
    places = range(0, len(names), every)
    axes.set_xticks(list(places), [names[i] for i in places], rotation=45, ha="right", fontsize=8)
