"""Responses: how strongly the layers of trained nets respond, by depth.

He et al. (2015), section 4.2 and figure 7: standard deviations of the outputs of 3x3 layers, after
batch norm and before the ReLU or the addition.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from minires.anatomy.drawing import PLAIN, RESIDUAL, canvas
from minires.anatomy.profiles import responses
from minires.experiments import pictures
from minires.experiments.lab import Lab
from minires.experiments.recording import look_batch
from minires.experiments.report import Figure, Report, Table
from minires.experiments.statistics import Difference, Spread

NETS = ("plain20", "plain56", "resnet20", "resnet56", "resnet110")
QUICK = ("plain20", "plain56", "resnet20", "resnet56")
IMAGES = 128


@dataclass(frozen=True)
class Row:
    """A net. std: (seeds, 3x3 layers), standard deviation of each layer's response.

    mean_std: over the layers.
    """

    net: str
    layers: int
    std: NDArray[np.float64]
    mean_std: Spread


@dataclass(frozen=True)
class Responses:
    """images: of the test set, that the layers responded to. rows: from shallow to deep."""

    images: int
    rows: list[Row]

    def row(self, net: str) -> Row | None:
        return next((row for row in self.rows if row.net == net), None)


def run(lab: Lab) -> Responses:
    """Train plain and residual nets and measure the responses of their layers."""
    plans = sorted(lab.nets(NETS, QUICK), key=lambda plan: plan.layers)
    rows = []
    for plan, runs in lab.train(plans).items():
        found: list[Any] = []
        for done in runs:
            trained = done.load()
            x, _ = look_batch(lab.sets.test, trained.normalization, IMAGES)
            trained.model.train()  # statistics of this batch: a short run's averages lag behind
            found.append(responses(trained.model, x).std)
        std = np.array(found)
        rows.append(Row(plan.label, plan.layers, std, Spread.of(std.mean(axis=1))))
    return Responses(min(IMAGES, len(lab.sets.test)), rows)


def describe(result: Responses) -> Report:
    found = [
        f"{row.net}: {row.mean_std.text(2)} on average over its {row.std.shape[1]} 3x3 layers."
        for row in result.rows
    ]
    for row in result.rows:
        twin = result.row(row.net.replace("resnet", "plain"))
        if twin is not None and twin is not row:
            gap = Difference.between(row.mean_std, twin.mean_std)
            smaller = "smaller" if gap.value < 0 else "larger"
            ratio = row.mean_std.mean / twin.mean_std.mean
            found.append(
                f"{row.net} responds {abs(100 - 100 * ratio):.0f} % {smaller} than {twin.net}"
                + _against_paper(gap)
            )
    residual = [row for row in result.rows if row.net.startswith("resnet")]
    if len(residual) > 1:
        shallow, deep = residual[0], residual[-1]
        fall = Difference.between(deep.mean_std, shallow.mean_std)
        found.append(
            f"From {shallow.layers} to {deep.layers} layers the residual nets' responses go from "
            f"{shallow.mean_std.text(2)} to {deep.mean_std.text(2)}"
            + _against_paper(fall)
        )
    return Report(
        title="Responses: how strongly do layers answer?",
        question="If a residual block mostly passes its input on and changes it a little, its "
        "layers should answer with small numbers. Do they?",
        paper=[
            "Residual nets have generally smaller responses than their plain twins.",
            "The deeper the residual net (20, 56, 110), the smaller the responses: with more "
            "layers, each one changes the signal less.",
        ],
        found=found,
        limits=[
            "Batch norm starts every layer at a standard deviation of about 1; only training moves "
            "gamma away from it, so short training shows small differences."
        ],
        tables=[
            Table(
                "responses",
                "Standard deviation of responses over layers: mean over seeds",
                ("net", "layers", "mean", "smallest", "median", "largest"),
                [
                    (r.net, r.layers, r.mean_std, *(float(v) for v in np.quantile(
                        r.std.mean(axis=0), (0, 0.5, 1)))) for r in result.rows
                ],
                digits=2,
            )
        ],
        figures=[
            Figure("responses", "Figure 7 of the paper: by layer, and sorted",
                   partial(_draw, result)),
        ],
    )  # fmt: skip


def _against_paper(difference: Difference) -> str:
    """The end of a sentence about a difference that is below zero in the paper."""
    if not difference.clear:
        return "; with these seeds that may be chance."
    return ", as in the paper." if difference.value < 0 else ", unlike in the paper."


def _draw(result: Responses, path: Path) -> None:
    colours: dict[str, str] = {}
    for colour in (PLAIN, RESIDUAL):
        nets = [row.net for row in result.rows if pictures.colour_of(row.net) == colour]
        colours |= dict(zip(nets, pictures.shades(colour, len(nets)), strict=True))
    subtitle = f"after batch norm, before ReLU or addition; {result.images} test images, one batch"
    title = "Standard deviation of the responses of 3x3 layers"
    with canvas(10.4, 4.2, title, subtitle, path) as figure:
        by_layer, by_size = (
            [
                pictures.Line(row.net, -np.sort(-row.std, axis=1) if by_size else row.std,
                              colours[row.net], np.linspace(0, 100, row.std.shape[1]))
                for row in result.rows
            ]
            for by_size in (False, True)
        )  # fmt: skip
        pictures.draw_panels(
            figure.subplots(1, 2, sharey=True),
            [pictures.Panel("in the order of the layers", by_layer),
             pictures.Panel("each net's layers by size", by_size)],
            x="layer, % of the depth",
            from_zero=True,
        )  # fmt: skip
