"""Degradation: deeper plain nets train worse, residual nets do not.

He et al. (2015), section 4.2 and figure 6: plain and residual nets of 20 to 56 layers (residual
ones to 110) on CIFAR-10.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial

from minires.experiments import pictures
from minires.experiments.lab import Lab, Plan, Trained, test_error, train_error
from minires.experiments.report import Figure, Report, Table
from minires.experiments.statistics import Difference, Spread

NETS = ("plain20", "plain32", "plain44", "plain56",
        "resnet20", "resnet32", "resnet44", "resnet56", "resnet110")  # fmt: skip
QUICK = ("plain20", "plain56", "resnet20", "resnet56")
PAPER = {"resnet20": 8.75, "resnet32": 7.51, "resnet44": 7.17, "resnet56": 6.97,
         "resnet110": 6.43, "resnet1202": 7.93}  # fmt: skip


def published(net: str) -> str | None:
    """The paper's test error of a net."""
    return f"{PAPER[net]:.2f}" if net in PAPER else None


@dataclass(frozen=True)
class Row:
    """A net; errors in per cent at the end of training."""

    net: str
    layers: int
    train: Spread
    test: Spread


@dataclass(frozen=True)
class Degradation:
    """plain, residual: from shallow to deep."""

    plain: list[Row]
    residual: list[Row]
    runs: dict[str, list[Trained]] = field(repr=False)


def run(lab: Lab) -> Degradation:
    """Train plain and residual nets of several depths."""
    plans = sorted(lab.nets(NETS, QUICK), key=lambda plan: plan.layers)
    found = lab.train(plans)

    def rows(kind: str) -> list[Row]:
        return [
            Row(plan.label, plan.layers, train_error(found[plan]), test_error(found[plan]))
            for plan in plans
            if _is_plain(plan) == (kind == "plain")
        ]

    runs = {plan.label: found[plan] for plan in plans}
    return Degradation(rows("plain"), rows("residual"), runs)


def _is_plain(plan: Plan) -> bool:
    return plan.model.startswith("plain")


def describe(result: Degradation) -> Report:
    rows = result.plain + result.residual
    groups = {
        f"{name} nets": {row.net: result.runs[row.net] for row in group}
        for name, group in (("plain", result.plain), ("residual", result.residual))
        if group
    }
    found = []
    for name, group in (("Plain", result.plain), ("Residual", result.residual)):
        if len(group) > 1:
            found.append(_depth_sentence(name, group[0], group[-1]))
        elif group:
            train, test = group[0].train.text(), group[0].test.text()
            found.append(f"{group[0].net}: {train} % training error, {test} % test error.")
    deepest = [group[-1] for group in (result.plain, result.residual) if group]
    if len(deepest) == 2 and deepest[0].layers == deepest[1].layers:
        gap = Difference.between(deepest[0].train, deepest[1].train)
        which = "lower" if gap.value > 0 else "higher"
        found.append(
            f"At {deepest[0].layers} layers the shortcuts make the training error "
            f"{abs(gap.value):.1f} points {which} ({gap.trust})."
        )
    return Report(
        title="Degradation: is a deeper net harder to train?",
        question="A deeper net could copy a shallower one and let its other layers do nothing, so "
        "its training error should never be higher. Is it? And do shortcuts change that?",
        paper=[
            "Plain nets get worse with depth, in training error too, from 20 to 56 layers; "
            "plain-110 stays above 60 % error. So the cause is not overfitting.",
            "Residual nets get better with depth up to 110 layers: test errors "
            + ", ".join(
                f"{net.removeprefix('resnet')} layers {published(net)} %"
                for net in NETS
                if net in PAPER
            )
            + ".",
        ],
        found=found,
        limits=[
            "Deeper nets learn more slowly at first, residual ones too: in a short run a part of "
            "a difference between depths may be that, and would close with more steps."
        ],
        tables=[
            Table(
                "errors",
                "Errors in per cent at the end of training: mean and deviation over seeds",
                ("net", "layers", "training error", "test error", "in the paper (CIFAR-10)"),
                [(r.net, r.layers, r.train, r.test, published(r.net)) for r in rows],
            )
        ],
        figures=[
            Figure(
                "errors",
                "Error by epoch; bands are one deviation over seeds",
                partial(
                    pictures.errors_by_epoch,
                    groups=groups,
                    title="Depth without and with shortcuts",
                    subtitle="test error (solid) and training error (dashed), mean over seeds",
                ),
            )
        ],
    )


def _depth_sentence(name: str, shallow: Row, deep: Row) -> str:
    train = Difference.between(deep.train, shallow.train)
    test = Difference.between(deep.test, shallow.test)
    worse = "higher" if train.value > 0 else "lower"
    verdict = {
        ("Plain", True): "this is the degradation that the paper describes",
        ("Plain", False): "no degradation in this run",
        ("Residual", True): "unlike in the paper, where deeper residual nets train better",
        ("Residual", False): "no degradation, as in the paper",
    }[name, train.value > 0]
    if not train.clear:
        verdict = "this run does not decide"
    return (
        f"{name} nets: from {shallow.layers} to {deep.layers} layers the training error goes from "
        f"{shallow.train.text()} to {deep.train.text()} %, {abs(train.value):.1f} points {worse} "
        f"({train.trust}): {verdict}. Test error: {shallow.test.text()} to {deep.test.text()} % "
        f"({test.value:+.1f} points; {test.trust})."
    )
