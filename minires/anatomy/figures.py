"""Pictures of what the other modules of this package measure in a network."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from minires.anatomy.drawing import NEUTRAL, PLAIN, RESIDUAL, SERIES, Path, canvas, heading

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from minires.anatomy.joins import Joins
    from minires.anatomy.lesions import LesionStudy
    from minires.anatomy.paths import Depth, Paths, SinglePaths
    from minires.anatomy.profiles import GradientNorms, Histograms, ModelHistograms, Responses
    from minires.anatomy.recorder import Moment

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
                _line(axes, places, _positive(values), colour, label)
        norms.set_yscale("log")
        forward.set_ylim(bottom=0)
        whole = np.array([join.whole_norm for join in joins])
        norms.plot(places, whole, color=NEUTRAL, linewidth=1, linestyle=":", label="whole")
        for axes in (norms, forward):
            axes.legend(frameon=False, loc="best")
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


def draw_paths(
    paths: Paths, depth: Depth, singles: SinglePaths | None, path: Path = None
) -> Figure:
    """Figure 6 of Veit et al. (2016) at one depth, from exact sums; and from drawn single paths."""
    from matplotlib.ticker import MaxNLocator

    lengths = np.arange(len(depth.norms))
    counts = np.array([float(c) for c in depth.counts])
    total = f"{int(counts.sum()):,}" if counts.sum() < 1e7 else f"{counts.sum():.2e}"
    where = {"image": "the image", "head": "the head's input"}.get(depth.name, depth.name)
    subtitle = (f"{len(paths.names) - 1 - ('image' in paths.names)} blocks; {total} paths from the "
                f"loss to {where}, all paths of a length carried together")  # fmt: skip
    if singles is not None:
        subtitle += f"; dots: {singles.norms.shape[1]} single paths of each length"
    with canvas(11.5, 3.8, "The gradient by path length", subtitle, path) as figure:
        count, single, all_of = figure.subplots(1, 3)
        count.bar(lengths, 100 * counts[: len(lengths)] / counts.sum(), color=NEUTRAL, width=0.85)
        heading(count, "Paths of this length")
        count.set_ylabel("% of all paths")
        _line(single, lengths, _positive(depth.norm_per_path), SHORTCUT, "norm of the mean")
        if singles is not None:
            x = np.repeat(singles.lengths, singles.norms.shape[1])
            single.scatter(x, _positive(singles.norms.ravel()), s=7, color=BRANCH, alpha=0.4,
                           linewidths=0)  # fmt: skip
            _line(single, singles.lengths, _positive(singles.mean), BRANCH, "mean of norms")
            single.legend(frameon=False, loc="best")
        if (depth.norms > 0).any():
            single.set_yscale("log")
        heading(single, "Gradient of a single path")
        all_of.bar(lengths, depth.norms, color=SHORTCUT, width=0.85)
        all_of.axhline(depth.whole_norm, color=NEUTRAL, linewidth=1.2, linestyle="--")
        all_of.annotate("whole gradient", (1, depth.whole_norm), (0, 3), color=NEUTRAL, ha="right",
                        xycoords=("axes fraction", "data"), textcoords="offset points",
                        fontsize=8.5)  # fmt: skip
        heading(all_of, "Gradient of all paths of this length")
        for axes in (count, single, all_of):
            axes.set_xlabel("branches on the path")
            axes.set_xlim(-0.7, lengths[-1] + 0.7)
            axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    return figure


def draw_lesions(study: LesionStudy, twin: LesionStudy | None, path: Path = None) -> Figure:
    """Error by deleted block, by number of deletions, and by how far the order is changed."""
    from matplotlib.ticker import MaxNLocator

    studies = [(study, RESIDUAL), *([(twin, PLAIN)] if twin else [])]
    subtitle = f"{study.images:,} images; intact error {100 * study.intact:.2f} %"
    if twin is not None:
        subtitle += f" (red), its twin {100 * twin.intact:.2f} % (blue)"
    if any(len(found.of("single")) < len(found.blocks) for found, _ in studies):
        subtitle += "; no bar: a plain block that changes the shape cannot be deleted"
    with canvas(11.5, 4.0, "Blocks deleted and exchanged after training", subtitle, path) as figure:
        single, several, order = figure.subplots(1, 3, width_ratios=(1.5, 1, 1), sharey=True)
        places = {name: i for i, name in enumerate(study.blocks)}
        for which, (found, colour) in enumerate(studies):
            for axes in (single, several, order):
                axes.axhline(100 * found.intact, color=colour, linewidth=1, linestyle=":")
            shift = 0.0 if twin is None else (which - 0.5) * 0.42
            deleted = found.of("single")
            single.bar([places[str(x.blocks[0])] + shift for x in deleted],
                       [100 * x.error for x in deleted], color=colour,
                       width=0.85 if twin is None else 0.42)  # fmt: skip
            counts = found.by_count("random")
            several.plot(list(counts), [100 * np.mean(e) for e in counts.values()], color=colour)
            several.scatter([k for k, errors in counts.items() for _ in errors],
                            [100 * e for errors in counts.values() for e in errors],
                            s=12, color=colour, alpha=0.45, linewidths=0)  # fmt: skip
            swaps = found.of("swap")
            order.scatter([x.tau for x in swaps], [100 * x.error for x in swaps], s=14,
                          color=colour, alpha=0.6, linewidths=0)  # fmt: skip
        heading(single, "One block deleted")
        heading(several, "Several blocks deleted")
        heading(order, "Blocks exchanged")
        single.set_ylabel("error, %")
        single.set_ylim(bottom=0)
        several.set_xlabel("deleted blocks (mean and each draw)")
        several.xaxis.set_major_locator(MaxNLocator(integer=True))
        order.set_xlabel("Kendall's correlation with the intact order")
        order.invert_xaxis()
        _name_blocks(single, list(study.blocks))
    return figure


def draw_responses(nets: Mapping[str, Responses], path: Path = None) -> Figure:
    """Figure 7 of the paper: standard deviations in the order of the layers, and sorted."""
    with canvas(10, 5.4, "Layer responses",
                "Standard deviation after batch norm, before ReLU or addition",
                path) as figure:  # fmt: skip
        in_order, ranked = figure.subplots(2, 1, sharex=True)
        for (label, found), colour in zip(nets.items(), _colours(len(nets)), strict=True):
            layers = np.arange(1, len(found.layers) + 1)
            _line(in_order, layers, found.std, colour, label)
            _line(ranked, layers, np.sort(found.std)[::-1], colour, label)
        heading(in_order, "By layer")
        heading(ranked, "Sorted, the largest first")
        top = max(found.std.max() for found in nets.values())
        for axes in (in_order, ranked):
            axes.set_ylim(0, 1.08 * top)
            _legend(axes, nets)
        _number_layers(ranked)
    return figure


def draw_gradient_norms(nets: Mapping[str, GradientNorms], path: Path = None) -> Figure:
    """Gradients at the blocks' inputs and of the weights, by depth."""
    with canvas(10, 4.2, "Gradient by depth", "Euclidean norms", path) as figure:
        places, weights = figure.subplots(1, 2)
        for (label, found), colour in zip(nets.items(), _colours(len(nets)), strict=True):
            n = np.arange(len(found.places))
            _line(places, n, _positive(found.activations), colour, label)
            main = ["downsample" not in name.split(".") for name in found.layers]
            values = _positive(found.weights)[main]
            _line(weights, np.arange(1, len(values) + 1), values, colour, label)
        for axes in (places, weights):
            axes.set_yscale("log")
            _legend(axes, nets)
        heading(places, "Of the loss by a block's input")
        heading(weights, "Of the loss by a layer's weight")
        _number_layers(weights)
        _name_blocks(places, max((list(g.places) for g in nets.values()), key=len))
    return figure


def draw_histograms(found: ModelHistograms, path: Path = None) -> Figure:
    """Densities by depth, darker where there is more, and how many activations are zero."""
    with canvas(11, 4.6, "Activations and weights by depth",
                "How often a value occurs in each layer, relative to its most frequent one; "
                "zeros apart", path) as figure:  # fmt: skip
        grid = figure.add_gridspec(2, 2, height_ratios=(4, 1))
        activations, zeros = figure.add_subplot(grid[0, 0]), figure.add_subplot(grid[1, 0])
        weights = figure.add_subplot(grid[:, 1])
        _densities(activations, found.activations)
        heading(activations, "What the stem and the blocks give, where it is not zero")
        activations.tick_params(labelbottom=False)
        names = found.activations.names
        zeros.bar(range(len(names)), 100 * found.activations.zeros, color=PLAIN, width=0.85)
        zeros.set_ylim(0, 100)
        zeros.set_ylabel("zeros, %")
        zeros.set_xlim(*activations.get_xlim())
        _name_blocks(zeros, list(names))
        _densities(weights, found.weights)
        heading(weights, "Weights")
        _name_blocks(weights, list(found.weights.names))
    return figure


def _densities(axes: Axes, found: Histograms) -> None:
    most = np.maximum(found.counts.max(axis=1, keepdims=True), 1)
    sides = np.arange(len(found.names) + 1) - 0.5
    axes.pcolormesh(sides, found.edges, (found.counts / most).T, cmap="Greys", vmin=0, vmax=1.15)
    axes.grid(visible=False)
    axes.set_ylabel("value")


def draw_recording(moments: Sequence[Moment], path: Path = None) -> Figure:
    """Responses and gradients by depth, a line per moment, the later the darker."""
    import matplotlib

    steps = [moment.step for moment in moments]
    subtitle = f"{len(steps)} moments, from step {steps[0]:,} (light) to {steps[-1]:,} (dark)"
    with canvas(11, 4.2, "Magnitudes by depth while training", subtitle, path) as figure:
        stds, norms = figure.subplots(1, 2)
        shades = matplotlib.colormaps["Reds"](np.linspace(0.25, 0.95, len(moments)))
        for moment, shade in zip(moments, shades, strict=True):
            found, gradients = moment.responses, moment.gradients
            stds.plot(np.arange(1, len(found.layers) + 1), found.std, color=shade, linewidth=1.2)
            norms.plot(_positive(gradients.activations), color=shade, linewidth=1.2)
        heading(stds, "Standard deviation of the 3x3 layers' responses")
        _number_layers(stds)
        stds.set_ylim(0, 1.08 * max(moment.responses.std.max() for moment in moments))
        heading(norms, "Gradient at a block's input: Euclidean norm")
        norms.set_yscale("log")
        _name_blocks(norms, list(moments[0].gradients.places))
    return figure


def _number_layers(axes: Axes) -> None:
    from matplotlib.ticker import MaxNLocator

    axes.set_xlabel("layer")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))


def _positive(values: np.ndarray) -> np.ndarray:
    """With NaN, which is not drawn, for what has no place on a logarithmic axis."""
    return np.where(values > 0, values, np.nan)


def _colours(count: int) -> Sequence[str]:
    """One for each line; two are a residual net and its plain twin."""
    if count <= 2:
        return (RESIDUAL, PLAIN)[:count]
    return [SERIES[i % len(SERIES)] for i in range(count)]


def _legend(axes: Axes, nets: Mapping[str, Any]) -> None:
    if len(nets) > 1:
        axes.legend(frameon=False, loc="best")


def _line(axes: Axes, places: np.ndarray, values: np.ndarray, colour: str, label: str) -> None:
    axes.plot(places, values, color=colour, linewidth=1.6, label=label,
              marker="o" if len(places) <= 40 else None, markersize=3.2)  # fmt: skip


def _name_blocks(axes: Axes, names: list[str]) -> None:
    """Block names under an axis: as many as there is room for."""
    every = max(1, -(-len(names) // 12))
    places = range(0, len(names), every)
    axes.set_xticks(list(places), [names[i] for i in places], rotation=45, ha="right", fontsize=8)
