"""The page that shows a recorded training: the net with its shortcuts, and a slider over epochs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from minires.anatomy.page import SHORTCUTS, net_parts, render
from minires.experiments.recording import NUMBERS, JoinMoment, Recording
from minires.files import atomic_write_text
from minires.models import count_parameters
from minires.training import EpochMetrics, TrainedModel
from minires.training.runs import StrPath

DIGITS = 6  # of the numbers in the page


def write_page(
    path: StrPath,
    trained: TrainedModel,
    recording: Recording,
    history: Sequence[EpochMetrics] = (),
    facts: Sequence[str] = (),
) -> None:
    """Write one self-contained HTML file that shows a recording.

    trained: the net. history: its finished epochs, for errors beside the slider.
    facts: lines below the title, after those about the net.

    Raises FileNotFoundError if the folder does not exist.
    """
    by_epoch = {metrics.epoch: metrics for metrics in history}
    last = recording.moments[-1]
    data = {
        "title": f"How the gradient divides in {trained.name or type(trained.model).__name__}",
        "facts": [
            f"{count_parameters(trained.model):,} parameters",
            f"{len(last.blocks)} blocks",
            f"{trained.data}, images of {'x'.join(map(str, trained.image_shape))}",
            *facts,
        ],
        "stages": net_parts(trained.model, trained.image_shape),  # type: ignore[arg-type]
        "shortcuts": last.shortcuts,
        "names": SHORTCUTS,
        "moments": [_moment(moment, by_epoch.get(moment.epoch)) for moment in recording.moments],
    }
    atomic_write_text(path, render(data))


def _moment(moment: JoinMoment, metrics: EpochMetrics | None) -> dict[str, Any]:
    numbers = {name: [_rounded(v) for v in moment.numbers[name]] for name in NUMBERS}
    return {"epoch": moment.epoch, "text": _text(moment, metrics), **numbers}


def _rounded(value: float) -> float:
    return float(f"{value:.{DIGITS}g}")


def _text(moment: JoinMoment, metrics: EpochMetrics | None) -> str:
    if moment.epoch == 0:
        return f"0: before training, loss {moment.loss:.3g}"
    text = f"{moment.epoch}: "
    if metrics is None:
        return f"{text}loss {moment.loss:.3g}"
    text += f"training error {100 - 100 * metrics.train_accuracy:.1f} %"
    if metrics.test_accuracy is not None:
        text += f", test error {100 - 100 * metrics.test_accuracy:.1f} %"
    return text
