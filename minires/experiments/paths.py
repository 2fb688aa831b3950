"""Paths: which path lengths carry the gradient of a trained residual net.

Veit et al. (2016), section 5 and figure 6. They sampled paths; here all paths of a length are
carried back together, exactly.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from minires.anatomy.drawing import NEUTRAL, RESIDUAL, canvas
from minires.anatomy.paths import Paths as Found
from minires.anatomy.paths import paths
from minires.experiments.lab import Lab
from minires.experiments.pictures import whole_numbers
from minires.experiments.recording import look_batch
from minires.experiments.report import Figure, Report, Table
from minires.training import evaluate

IMAGES = 32
MOST = 0.95  # of the gradient, for the sentence about lengths
LARGE = 10**9  # numbers of paths from here on are rounded


@dataclass(frozen=True)
class Paths:
    """The gradient at the first block's input, by the number of branches on the path: 0 to n.

    net: its name. error: on the test set, in per cent. blocks: n. images: of the training set.
    counts: of paths, C(n, k). norms: of the gradient over all paths of a length.
    shares: what each length contributes to the whole gradient g: <g_k, g> / |g|², adding up to 1.
    relative_difference: between the sum of all lengths and backward's gradient.
    """

    net: str
    error: float
    blocks: int
    images: int
    counts: list[int]
    norms: NDArray[np.float64]
    shares: NDArray[np.float64]
    relative_difference: float
    found: Found = field(repr=False)

    @property
    def expected(self) -> NDArray[np.float64]:
        """The share of each length among all 2^n paths."""
        return np.array([float(count) for count in self.counts]) / 2.0**self.blocks

    def range(self, shares: NDArray[np.float64]) -> tuple[int, int]:
        """The shortest run of lengths that holds `MOST` of all shares."""
        best = (0, len(shares) - 1)
        for low in range(len(shares)):
            total = np.cumsum(shares[low:])
            if total.max() < MOST * shares.sum():
                break
            high = low + int(np.argmax(total >= MOST * shares.sum()))
            if high - low < best[1] - best[0]:
                best = (low, high)
        return best


def run(lab: Lab) -> Paths:
    """Train a residual net, or take a trained one, and follow its gradient by path length."""
    ((name, trained), *_) = lab.trained_nets(["resnet110"], ["resnet56"])
    test = lab.sets.test
    result = evaluate(trained.model, test, trained.normalization.transform())
    x, y = look_batch(lab.sets.train, trained.normalization, IMAGES)
    lab.log(f"paths of {name}, by length")
    trained.model.train()  # the gradient that training receives
    found = paths(trained.model, x, y)
    depth = found.depth()
    whole = found.whole[depth.name].astype(np.float64)
    shares = [
        0.0 if g is None else float((g * whole).sum() / (whole * whole).sum())
        for g in found.gradients[depth.name]
    ]
    return Paths(
        net=name,
        error=100 - 100 * result.accuracy,
        blocks=len(found.names) - 1,
        images=len(y),
        counts=list(depth.counts),
        norms=depth.norms,
        shares=np.array(shares),
        relative_difference=found.max_relative_difference or 0.0,
        found=found,
    )


def describe(result: Paths) -> Report:
    lengths = np.arange(result.blocks + 1)
    paths_range, gradient_range = result.range(result.expected), result.range(result.shares)
    longer = slice(gradient_range[1] + 1, None)
    inside = result.expected[gradient_range[0] : gradient_range[1] + 1].sum()
    found = [
        f"{result.net} has {result.blocks} blocks and 2^{result.blocks} = "
        f"{2.0**result.blocks:.3g} paths; {_percent(MOST)} of them go through {paths_range[0]} to "
        f"{paths_range[1]} branches, {result.expected @ lengths:.1f} on average.",
        f"{_percent(MOST)} of the gradient comes by paths through {gradient_range[0]} to "
        f"{gradient_range[1]} branches, {result.shares @ lengths:.1f} on average (weighted by "
        f"contribution); these are {_percent(inside, 2)} of all paths.",
        f"The one path through no branch at all contributes {_percent(result.shares[0], 2)}; the "
        f"{_percent(result.expected[longer].sum(), 2)} of paths with more than "
        f"{gradient_range[1]} branches contribute {_percent(result.shares[longer].sum(), 2)}.",
        f"The sum over lengths equals backward's gradient to {result.relative_difference:.1e}.",
        f"The net's test error is {result.error:.1f} %.",
    ]
    rows = [
        (
            k,
            f"{count:,}" if count < LARGE else f"{float(count):.3g}",
            _percent(result.expected[k], 3),
            f"{result.norms[k]:.3e}",
            _percent(result.shares[k], 3),
        )
        for k, count in enumerate(result.counts)
    ]
    return Report(
        title="Paths: which lengths carry the gradient?",
        question="A residual net of n blocks is a sum over 2^n paths from image to loss. Most "
        "are about n/2 branches long. Do these carry the gradient?",
        paper=[
            "Path lengths follow a binomial distribution; in ResNet-110, with 54 blocks, more "
            "than 95 % of paths go through 19 to 35 of them.",
            "The gradient of a path falls exponentially with its length.",
            "So most of the gradient comes from paths of only 5 to 17 blocks (10 to 34 layers): "
            "the effective paths are short.",
        ],
        found=found,
        limits=[
            "Veit et al. added up the norms of sampled single paths; here the paths of a length "
            "are added as vectors, as they act in training, so that they can also cancel.",
            f"One trained net, one batch of {result.images} training images, the gradient at the "
            "first block's input.",
        ],
        tables=[
            Table("lengths", "By path length, in branches: exact, nothing sampled",
                  ("branches", "paths", "of all paths", "gradient norm", "of the gradient"), rows),
        ],
        figures=[
            Figure("share", "Path lengths: how many there are, and what they contribute",
                   partial(_draw, result)),
            Figure("lengths", "The three panels of figure 6 of Veit et al.",
                   partial(_draw_three, result)),
        ],
    )  # fmt: skip


def _percent(share: float, digits: int = 0) -> str:
    return f"{100 * share:z.{digits}f} %"


def _draw(result: Paths, path: Path) -> None:
    lengths = np.arange(result.blocks + 1)
    subtitle = (
        f"{result.net}, test error {result.error:.1f} %; gradient at the first block's input, "
        f"{result.images} images"
    )
    with canvas(8.6, 3.9, "By path length: all paths, and the gradient", subtitle, path) as figure:
        axes = figure.subplots()
        axes.bar(lengths, 100 * result.expected, width=0.9, color=NEUTRAL, alpha=0.3,
                 label="of all paths")  # fmt: skip
        axes.bar(lengths, 100 * result.shares, width=0.55, color=RESIDUAL,
                 label="of the gradient")  # fmt: skip
        axes.set_xlabel("branches on the path")
        axes.set_ylabel("%")
        axes.set_xlim(-0.8, result.blocks + 0.8)
        axes.grid(axis="x", visible=False)
        whole_numbers(axes)
        axes.legend(frameon=False)


def _draw_three(result: Paths, path: Path) -> None:
    result.found.plot(path)
