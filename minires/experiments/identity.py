"""Identity: is it easier to learn "do nothing" with a shortcut?

He et al. (2015), section 3.1: solvers may have difficulties in approximating identity mappings by
several nonlinear layers; with a shortcut the weights only have to go to zero.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from minires.anatomy.truths_trained import (
    IdentityLearning,
    SmallResponses,
    learn_identity,
    small_responses,
)
from minires.experiments.lab import Lab
from minires.experiments.report import Figure, Report, Table
from minires.experiments.statistics import Spread

BLOCKS, QUICK_BLOCKS = (1, 2, 4, 8, 16), (1, 4, 8)
STEPS, QUICK_STEPS = 1000, 200


@dataclass(frozen=True)
class Identity:
    """learning: nets that learned to return their input. responses: nets that learned a turn."""

    learning: IdentityLearning
    responses: SmallResponses


def run(lab: Lab) -> Identity:
    """Train small nets of two-layer blocks, with and without shortcuts, on the identity."""
    quick, seeds = lab.settings.quick, lab.settings.seeds
    blocks, steps = (QUICK_BLOCKS, QUICK_STEPS) if quick else (BLOCKS, STEPS)
    lab.log(f"learning the identity: {len(blocks)} depths, {seeds} seeds, {steps} steps")
    learning = learn_identity(blocks, steps=steps, seeds=seeds)
    lab.log("learning a turn: the size of responses by the number of blocks")
    return Identity(learning, small_responses() if quick else small_responses(steps=STEPS))


def describe(result: Identity) -> Report:
    learning, responses = result.learning, result.responses
    last = max(1, learning.errors.shape[-1] // 10)
    ends = learning.errors[..., -last:].mean(axis=-1)  # (2, B, S, seeds)
    rows = [
        (f"{scale:g}", blocks, Spread.of(ends[0, b, s]), Spread.of(ends[1, b, s]))
        for s, scale in enumerate(learning.scales)
        for b, blocks in enumerate(learning.blocks)
    ]
    with np.errstate(divide="ignore", invalid="ignore"):
        better = learning.final[1] < learning.final[0]
    deep = learning.blocks[-1]
    found = [
        f"In {int(better.sum())} of {better.size} settings the residual net came closer to the "
        "identity than the plain net of the same size.",
    ]
    for s, scale in enumerate(learning.scales):
        plain, residual = learning.final[0, -1, s], learning.final[1, -1, s]
        found.append(
            f"{deep} blocks, first weights x {scale:g}: relative squared error {plain:.2g} plain, "
            f"{residual:.2g} residual."
        )
    n = responses.blocks[-1]
    found.append(
        f"Asked to turn vectors by {responses.angle:g} rad, the {n} blocks of the residual net "
        f"answer with {responses.residual[n].mean():.2f} of the input's size on average, those of "
        f"the plain net with {responses.plain[n].mean():.2f}; with {responses.blocks[0]} block it "
        f"is {responses.residual[responses.blocks[0]].mean():.2f} and "
        f"{responses.plain[responses.blocks[0]].mean():.2f}."
    )
    return Report(
        title="Identity: is doing nothing easier with a shortcut?",
        question="A plain block that should do nothing must find W2 relu(W1 x) = x. A residual "
        "block must find zero. Which one gets there?",
        paper=[
            "Degradation suggests that solvers have difficulty in approximating the identity with "
            "several nonlinear layers (section 3.1).",
            "With a shortcut the weights may simply be driven towards zero; identity need not be "
            "optimal to help, if what is wanted is closer to it than to zero.",
            "The measured responses of trained residual nets are small (figure 7), which supports "
            "that the identity is a reasonable starting point.",
        ],
        found=found,
        limits=[
            f"These are small fully connected nets without batch norm, trained for "
            f"{learning.errors.shape[-1]} steps: they show the mechanism, not a ResNet."
        ],
        tables=[
            Table(
                "identity",
                "Relative squared error over the last tenth of training (1: as bad as zero)",
                ("first weights x", "blocks", "plain", "residual"),
                rows,
                digits=4,
            )
        ],
        figures=[
            Figure("identity", "Learning to return the input", _picture(learning)),
            Figure("responses", "The size of responses by the number of blocks",
                   _picture(responses)),
        ],
    )  # fmt: skip


def _picture(truth: IdentityLearning | SmallResponses) -> Callable[[Path], None]:
    def draw(path: Path) -> None:
        truth.plot(path)

    return draw
