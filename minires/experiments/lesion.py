"""Lesion: blocks of a trained net deleted or exchanged, without training it again.

Veit et al. (2016), section 4: "Residual Networks Behave Like Ensembles of Relatively Shallow
Networks".
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from minires.anatomy.lesions import LesionStudy, lesion_study
from minires.experiments.lab import Lab
from minires.experiments.report import Figure, Report, Table
from minires.experiments.statistics import Spread

NETS = ("resnet110", "plain20")
QUICK = ("resnet56", "plain20")
QUICK_IMAGES, QUICK_COUNTS = 500, (1, 2, 4, 8, 12)
COUNTS = (1, 2, 3, 5, 8, 12, 16, 20, 30, 40)
DRAWS, QUICK_DRAWS = 5, 3
SMALL = 2.0  # points of error


@dataclass(frozen=True)
class Lesion:
    """Two nets with the same lesions. chance: the error of guessing, in per cent."""

    nets: dict[str, LesionStudy]
    chance: float


def run(lab: Lab) -> Lesion:
    """Delete single blocks, several random ones, and exchange blocks, of two trained nets."""
    images = lab.sets.test
    quick = lab.settings.quick
    if quick:
        images = images.take(min(QUICK_IMAGES, len(images)))
    counts = QUICK_COUNTS if quick else COUNTS
    nets: dict[str, LesionStudy] = {}
    for name, trained in lab.trained_nets(NETS, QUICK):
        lab.log(f"lesions of {name} on {len(images):,} test images")
        data = trained.normalization.transform()(images.images), images.labels
        nets[name] = lesion_study(
            trained.model, data, random=counts, swaps=counts, seeds=QUICK_DRAWS if quick else DRAWS
        )
    return Lesion(nets, 100 - 100 / len(images.classes))


def describe(result: Lesion) -> Report:
    found = []
    for name, study in result.nets.items():
        found += _sentences(name, study, result.chance)
    rows = []
    for name, study in result.nets.items():
        rows.append((name, "none", 1, _percent([study.intact])))
        single = [lesion.error for lesion in study.of("single")]
        rows.append((name, "each block deleted in turn", len(single), _percent(single)))
        for kind, words in (
            ("random", "random blocks deleted: {}"),
            ("swap", "pairs of blocks swapped: {}"),
        ):
            rows += [
                (name, words.format(count), len(errors), _percent(errors))
                for count, errors in study.by_count(kind).items()
            ]
    first, *others = result.nets.values()
    return Report(
        title="Lesion: what happens when a block is cut out?",
        question="A net is trained; then one of its blocks is taken away, or two change places. "
        "Does it still work?",
        paper=[
            "Deleting any single block of a trained ResNet-110 barely changes its error, except "
            "where the shape changes; deleting a layer of VGG brings it to chance.",
            "The error grows smoothly with the number of deleted blocks, and with how far blocks "
            "are shuffled (Kendall's tau): as an ensemble of paths would behave.",
        ],
        found=found,
        limits=[
            "One trained net of each kind: the deviations are over lesions, not over trainings.",
            "Veit et al. compared with VGG; here the plain net is a ResNet's twin. A plain block "
            "that changes the shape cannot be deleted at all.",
        ],
        tables=[
            Table("lesions", "Test error in per cent: mean and deviation over lesions",
                  ("net", "lesion", "nets", "error"), rows),
        ],
        figures=[
            Figure("lesions", "Error by deleted block, number of deletions, and order of blocks",
                   lambda path: _draw(first, others[0] if others else None, path)),
        ],
    )  # fmt: skip


def _percent(errors: list[float]) -> Spread:
    return Spread.of(100 * error for error in errors)


def _sentences(name: str, study: LesionStudy, chance: float) -> list[str]:
    intact = 100 * study.intact
    single = study.of("single")
    costs = np.array([100 * lesion.error - intact for lesion in single])
    worst = single[int(costs.argmax())]
    found = [
        f"{name}: {intact:.1f} % error intact. Without one of {len(single)} blocks the error "
        f"changes by {np.median(costs):+.1f} points in the median and by {costs.max():+.1f} at "
        f"worst (without {worst.blocks[0]}); {int((costs < SMALL).sum())} of {len(single)} "
        f"deletions cost less than {SMALL:g} points.",
    ]
    for kind, words in (("random", "random blocks deleted"), ("swap", "pairs of blocks swapped")):
        counts = study.by_count(kind)
        if len(counts) > 1:
            ends = [min(counts), max(counts)]
            means = [100 * float(np.mean(counts[count])) for count in ends]
            found.append(
                f"{name}, {words}: with {ends[0]} the error is {means[0]:.1f} %, with {ends[1]} "
                f"{means[1]:.1f} % "
                f"(guessing is {chance:.0f} %)."
            )
    return found


def _draw(study: LesionStudy, twin: LesionStudy | None, path: Path) -> None:
    study.plot(path, twin)
