"""Vanishing: what happens to gradients on a long way back.

In a chain of single neurons the gradient is a product of w σ'(z) and vanishes or explodes. In real
nets with batch norm it need not: He et al. (2015), section 4.1, argue that degradation has another
cause.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from minires.anatomy import truths
from minires.anatomy.drawing import canvas
from minires.experiments import pictures
from minires.experiments.lab import Lab
from minires.experiments.report import Figure, Report, Table
from minires.experiments.statistics import Spread

NETS = ("plain20", "plain56", "resnet20", "resnet56", "resnet110")
QUICK = ("plain56", "resnet56")
VANISHED, MANY = 0.1, 100.0  # ratios of gradients that a sentence calls so


@dataclass(frozen=True)
class Row:
    """A net with batch norm. norms: (seeds, epochs + 1, blocks), the gradient's Euclidean norm at
    every block's input, before training and after each epoch.

    start, end: how many times larger it is at the first block than at the last, before and after
    training.
    """

    net: str
    norms: NDArray[np.float64]
    start: Spread
    end: Spread


@dataclass(frozen=True)
class Vanishing:
    """chain: single neurons, by depth. rows: whole nets."""

    chain: truths.Vanishing
    rows: list[Row]


def run(lab: Lab) -> Vanishing:
    """Chains of neurons, then the gradients of plain and residual nets while they train."""
    lab.log("chains of single neurons")
    chain = truths.vanishing()
    plans = sorted(lab.nets(NETS, QUICK), key=lambda plan: plan.layers)
    rows = []
    for plan, runs in lab.train(plans).items():
        norms = np.array([done.recording().column("whole_norm") for done in runs])
        growth = norms[:, :, 0] / norms[:, :, -1]
        rows.append(
            Row(plan.label, norms, Spread.of(growth[:, 0]), Spread.of(growth[:, -1]))
        )
    return Vanishing(chain, rows)


def describe(result: Vanishing) -> Report:
    chain = result.chain
    depth = int(chain.depths[-1])
    found = []
    for name in chain.initialisations:
        plain, residual = chain.plain[name][1, -1], chain.residual[name][1, -1]
        found.append(
            f"Chain of {depth} neurons, {name}: the median gradient at the first one is "
            f"{plain:.1e} without shortcuts and {residual:.1e} with them."
        )
    for row in result.rows:
        blocks = row.norms.shape[-1]
        found.append(
            f"{row.net} with batch norm: at the first of {blocks} blocks the gradient is "
            f"{_times(row.start)} that at the last before training, and {_times(row.end)} after."
        )
    smallest = min(float((row.norms[:, :, 0] / row.norms[:, :, -1]).min()) for row in result.rows)
    found.append(
        "At no epoch does the gradient of a net vanish on its way to the first block: the smallest "
        f"ratio of first to last seen is {smallest:.2g}."
        if smallest > VANISHED
        else "The gradient of some net shrinks on its way to the first block: the smallest ratio "
        f"of first to last seen is {smallest:.2g}."
    )
    steepest = max(result.rows, key=lambda row: row.start.mean)
    if steepest.start.mean > MANY:
        factor = steepest.start.mean ** (1 / (steepest.norms.shape[-1] - 1))
        found.append(
            f"Before training it is the opposite in {steepest.net}: the gradient explodes on its "
            f"way back, by a factor of {factor:.2f} per block."
        )
    return Report(
        title="Vanishing: what is left of a gradient at the first layer?",
        question="A gradient that passes many layers is a product of many factors. Does it vanish, "
        "explode, or arrive? And is that what keeps deep plain nets from learning?",
        paper=[
            "With batch norm, forward signals have non-zero variances and backward gradients "
            "healthy norms in plain nets too: vanishing gradients are unlikely to be the cause of "
            "degradation (section 4.1).",
            "The authors conjecture that deep plain nets have exponentially low convergence rates.",
        ],
        found=found,
        limits=[
            "Healthy norms do not say that the gradient points in a useful direction.",
            "The nets all have batch norm; without it the picture is another one.",
        ],
        tables=[
            Table(
                "gradients",
                "|gradient| at the first block over that at the last",
                ("net", "blocks", "before training", "after training"),
                [(r.net, int(r.norms.shape[-1]), r.start, r.end) for r in result.rows],
            ),
            Table(
                "chain",
                f"Median |gradient| at the first of {depth} neurons",
                ("weights", "without shortcuts", "with shortcuts"),
                [(n, f"{chain.plain[n][1, -1]:.2e}", f"{chain.residual[n][1, -1]:.2e}")
                 for n in chain.initialisations],
            ),
        ],
        figures=[
            Figure("chain", "Chains of single neurons", lambda path: _draw_chain(chain, path)),
            Figure("gradients", "Gradients of nets with batch norm, by depth and epoch",
                   partial(_draw, result)),
        ],
    )  # fmt: skip


def _times(spread: Spread) -> str:
    digits = 0 if spread.mean >= MANY else 1 if spread.mean >= 1 else 2
    return f"{spread.text(digits)} times"


def _draw_chain(chain: truths.Vanishing, path: Path) -> None:
    chain.plot(path)


def _draw(result: Vanishing, path: Path) -> None:
    subtitle = "Euclidean norm at every block's input: mean over seeds, light before training"
    width = min(5.2 * len(result.rows), 13)
    title = "The gradient by depth while nets with batch norm train"
    with canvas(width, 4, title, subtitle, path) as figure:
        panels = []
        for row in result.rows:
            mean = row.norms.mean(axis=0)
            shown = np.unique(np.linspace(0, len(mean) - 1, 5).round().astype(int))
            colour = pictures.colour_of(row.net)
            lines = [
                pictures.Line("start" if epoch == 0 else f"epoch {epoch}", mean[epoch], shade,
                              np.arange(1, mean.shape[1] + 1))
                for epoch, shade in zip(shown, pictures.shades(colour, len(shown)), strict=True)
            ]  # fmt: skip
            panels.append(pictures.Panel(row.net, lines))
        axes = figure.subplots(1, len(panels), sharey=True, squeeze=False)[0]
        pictures.draw_panels(axes, panels, x="block", y="|gradient|", log=True)
        for place in axes:
            pictures.whole_numbers(place)
