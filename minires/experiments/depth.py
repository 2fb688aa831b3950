"""Depth: how many layers are enough? Chosen on held-out images, then tested.

He et al. (2015), section 4.2 and table 6: residual nets of 20 to 1202 layers on CIFAR-10; the
last is better in training and worse on the test set.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from minires import models
from minires.anatomy.drawing import NEUTRAL, RESIDUAL, SERIES, canvas
from minires.experiments.degradation import PAPER, published
from minires.experiments.lab import Lab, test_error, train_error
from minires.experiments.report import Figure, Report, Table
from minires.experiments.statistics import Difference, Spread
from minires.training import evaluate

NETS = ("resnet20", "resnet32", "resnet44", "resnet56", "resnet110", "resnet1202")
QUICK = ("resnet20", "resnet32", "resnet56")


@dataclass(frozen=True)
class Row:
    """A depth; errors in per cent at the end of training."""

    net: str
    layers: int
    parameters: int
    multiply_adds: int
    train: Spread
    validation: Spread
    test: Spread


@dataclass(frozen=True)
class Depth:
    """From shallow to deep."""

    rows: list[Row]

    @property
    def chosen(self) -> Row:
        """The lowest validation error; the test set has no say."""
        return min(self.rows, key=lambda row: row.validation.mean)


def run(lab: Lab) -> Depth:
    """Train residual nets of several depths, part of the training images held out."""
    plans = sorted(lab.nets(NETS, QUICK), key=lambda plan: plan.layers)
    found = lab.train(plans, held_out=True)
    held_out = lab.sets.validation
    if held_out is None:
        raise ValueError("depth: no images are held out to choose by")
    rows = []
    for plan in plans:
        cost = models.describe(plan.model)
        errors = []
        for done in found[plan]:
            trained = done.load()
            result = evaluate(trained.model, held_out, trained.normalization.transform())
            errors.append(100 - 100 * result.accuracy)
        rows.append(
            Row(
                plan.label,
                plan.layers,
                cost.parameters,
                cost.multiply_adds,
                train=train_error(found[plan]),
                validation=Spread.of(errors),
                test=test_error(found[plan]),
            )
        )
    return Depth(rows)


def describe(result: Depth) -> Report:
    chosen, deepest = result.chosen, result.rows[-1]
    best_test = min(result.rows, key=lambda row: row.test.mean)
    best_train = min(result.rows, key=lambda row: row.train.mean)
    found = [
        f"On the held-out images {chosen.net} is best, with {chosen.validation.text()} %; its test "
        f"error is {chosen.test.text()} %.",
        f"The lowest test error of all is {best_test.net}'s, {best_test.test.text()} %: "
        + (
            "choosing on held-out images found it."
            if best_test is chosen
            else f"the choice cost {chosen.test.mean - best_test.test.mean:.1f} points."
        ),
        f"The lowest training error is {best_train.net}'s, {best_train.train.text()} %.",
    ]
    if deepest is not chosen:
        train = Difference.between(deepest.train, chosen.train)
        test = Difference.between(deepest.test, chosen.test)
        fits = train.value < 0 < test.value
        found.append(
            f"Against the chosen net the deepest, {deepest.net}, has {train.value:+.1f} points of "
            f"training error ({train.trust}) and {test.value:+.1f} of test error ({test.trust}): "
            + (
                "lower in training and higher in test is what overfitting looks like."
                if fits
                else "this is not overfitting."
            )
        )
    cheapest = min(result.rows, key=lambda row: row.multiply_adds)
    found.append(
        f"One image costs {deepest.multiply_adds / cheapest.multiply_adds:.1f} times as much in "
        f"{deepest.net} as in {cheapest.net}."
    )
    return Report(
        title="Depth: how many layers are enough?",
        question="1202 layers fit the training set of CIFAR-10 almost perfectly, and 110 test "
        "better. How is a depth chosen without looking at the test set?",
        paper=[
            "Test error by layers: "
            + ", ".join(f"{n.removeprefix('resnet')}: {e} %" for n, e in PAPER.items())
            + ".",
            "1202 layers reach a training error below 0.1 %, as 110 do, and test worse: with 19.4 "
            "million parameters, overfitting on this small set.",
        ],
        found=found,
        limits=[] if deepest.layers > 1000 else [
            f"The deepest net here has {deepest.layers} layers: the overfitting of 1202 is out of "
            "reach of this run."
        ],
        tables=[
            Table(
                "depths",
                "Errors in per cent at the end of training",
                ("net", "layers", "parameters", "multiply-adds (M)", "training error",
                 "held-out error", "test error", "in the paper (CIFAR-10)"),
                [(r.net, r.layers, r.parameters, r.multiply_adds / 1e6, r.train, r.validation,
                  r.test, published(r.net)) for r in result.rows],
            )
        ],
        figures=[
            Figure("depths", "Errors by depth; bars are one deviation over seeds",
                   partial(_draw, result)),
        ],
    )  # fmt: skip


def _draw(result: Depth, path: Path) -> None:
    layers = [row.layers for row in result.rows]
    series = (
        ("training", NEUTRAL, [row.train for row in result.rows]),
        ("held out", SERIES[1], [row.validation for row in result.rows]),
        ("test", RESIDUAL, [row.test for row in result.rows]),
    )
    subtitle = f"the choice on held-out images, {result.chosen.net}, is ringed"
    with canvas(7.4, 4.2, "Error by number of layers", subtitle, path) as figure:
        axes = figure.subplots()
        for name, colour, spreads in series:
            means = [spread.mean for spread in spreads]
            errors = [spread.deviation or 0 for spread in spreads]
            axes.errorbar(layers, means, errors, color=colour, marker="o", markersize=5,
                          linewidth=1.8, capsize=3, label=name)  # fmt: skip
        chosen = result.chosen
        axes.plot(chosen.layers, chosen.validation.mean, "o", markersize=13, color=SERIES[1],
                  markerfacecolor="none", markeredgewidth=1.4)  # fmt: skip
        if max(layers) / min(layers) > 3:
            axes.set_xscale("log")
        axes.minorticks_off()
        axes.set_xticks(layers, [str(n) for n in layers])
        axes.margins(x=0.08)
        axes.set_xlabel("layers")
        axes.set_ylabel("error, %")
        axes.set_ylim(max(0, math.floor(axes.get_ylim()[0] - 1)), None)
        axes.legend(frameon=False, loc="upper left", bbox_to_anchor=(1, 1))
