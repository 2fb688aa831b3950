"""Options: what to do where a shortcut meets another number of channels.

He et al. (2015), section 3.3 and table 3: A pads with zeros, B projects where the shape changes,
C projects everywhere.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial
from itertools import combinations
from pathlib import Path

from minires import models
from minires.anatomy.drawing import NEUTRAL, PLAIN, RESIDUAL, SERIES, canvas
from minires.experiments import pictures
from minires.experiments.lab import Lab, Plan, Trained, test_error, train_error
from minires.experiments.report import Figure, Report, Table
from minires.experiments.statistics import Difference, Spread

OPTIONS = ("A", "B", "C")
PAPER = {"A": 25.03, "B": 24.52, "C": 24.19}
PAPER_PLAIN = 28.54
MEANING = {
    "none": "no shortcut: the plain twin",
    "A": "zeros for the added channels",
    "B": "a 1x1 projection where the shape changes",
    "C": "a 1x1 projection on every shortcut",
}
COLOURS = {"none": PLAIN, "A": RESIDUAL, "B": SERIES[2], "C": NEUTRAL}


@dataclass(frozen=True)
class Row:
    """One option; errors in per cent, cost of one image's forward pass."""

    option: str
    parameters: int
    multiply_adds: int
    train: Spread
    test: Spread


@dataclass(frozen=True)
class Options:
    """net: the residual net. rows: the plain twin, then A, B and C."""

    net: str
    rows: list[Row]
    runs: dict[str, list[Trained]] = field(repr=False)


def run(lab: Lab) -> Options:
    """Train one residual net with each option, and its plain twin.

    Raises ValueError for a plain net.
    """
    net = lab.nets(["resnet56"], ["resnet20"])[0].model
    if "shortcut" not in models.entry(net).options:
        raise ValueError(f"options: {net} has no shortcuts to choose; give a residual net")
    plans = {option: Plan(net, option) for option in ("none", *OPTIONS)}
    found = lab.train(list(plans.values()))
    rows = []
    for option, plan in plans.items():
        cost = models.describe(plan.model, **plan.options)
        rows.append(
            Row(
                option,
                cost.parameters,
                cost.multiply_adds,
                train_error(found[plan]),
                test_error(found[plan]),
            )
        )
    return Options(net, rows, {option: found[plan] for option, plan in plans.items()})


def describe(result: Options) -> Report:
    by_option = {row.option: row for row in result.rows}
    plain, best = by_option["none"], min(result.rows[1:], key=lambda row: row.test.mean)
    worst_residual = max(result.rows[1:], key=lambda row: row.test.mean)
    gain = Difference.between(plain.test, worst_residual.test)
    found = [
        f"Test errors: {', '.join(f'{o} {by_option[o].test.text()} %' for o in OPTIONS)}; without "
        f"shortcuts {plain.test.text()} %.",
        f"Lowest: {best.option}. The largest difference among the three is "
        f"{worst_residual.test.mean - best.test.mean:.1f} points.",
    ]
    for one, other in combinations(OPTIONS, 2):
        gap = Difference.between(by_option[one].test, by_option[other].test)
        found.append(f"{one} minus {other}: {gap.value:+.1f} points ({gap.trust}).")
    change = "gains" if gain.value > 0 else "loses"
    found.append(
        f"Against no shortcut at all even the weakest option ({worst_residual.option}) {change} "
        f"{abs(gain.value):.1f} points ({gain.trust})."
    )
    a, c = by_option["A"], by_option["C"]
    found.append(
        f"C costs {100 * (c.parameters / a.parameters - 1):.1f} % more parameters than A and "
        f"{100 * (c.multiply_adds / a.multiply_adds - 1):.1f} % more multiply-adds."
    )
    return Report(
        title="Options A, B and C: does a shortcut need weights?",
        question="Where the number of channels changes, a shortcut can pad with zeros (A) or "
        "project (B); it can also project everywhere (C). How much does it matter?",
        paper=[
            "ResNet-34 on ImageNet, top-1 error: "
            + ", ".join(f"{option} {error} %" for option, error in PAPER.items())
            + f"; plain-34 {PAPER_PLAIN} %.",
            "The differences among A, B and C are small beside the one to the plain net: "
            "projections are not essential for addressing degradation.",
        ],
        found=found,
        limits=[
            "The paper compared the options on ImageNet, where more channels are added more often."
        ],
        tables=[
            Table(
                "options",
                f"{result.net}: errors in per cent at the end of training",
                ("shortcut", "", "parameters", "multiply-adds (M)", "training error",
                 "test error"),
                [(r.option, MEANING[r.option], r.parameters, r.multiply_adds / 1e6, r.train,
                  r.test) for r in result.rows],
            )
        ],
        figures=[
            Figure("options", "Test error and its course; small dots are single seeds",
                   partial(_draw, result)),
        ],
    )  # fmt: skip


def _draw(result: Options, path: Path) -> None:
    names = {"none": "plain", "A": "A: pad", "B": "B: project", "C": "C: project all"}
    subtitle = "test error, %; bands are one deviation over seeds"
    with canvas(10, 4, f"{result.net} with each kind of shortcut", subtitle, path) as figure:
        left, right = figure.subplots(1, 2, width_ratios=(1, 1.25))
        pictures.draw_dots(
            left,
            [names[row.option] for row in result.rows],
            [row.test for row in result.rows],
            [COLOURS[row.option] for row in result.rows],
            title="at the end",
            x="test error, %",
        )
        lines = [
            pictures.Line(names[option].split(":")[0], pictures.test_errors(runs),
                          COLOURS[option], [m.epoch for m in runs[0].history])
            for option, runs in result.runs.items()
        ]  # fmt: skip
        pictures.draw_panels([right], [pictures.Panel("by epoch", lines)], x="epoch")
        pictures.whole_numbers(right)
