"""How the gradient divides at every join, recorded while a net trains: before it and per epoch.

A run with a folder keeps its record there, in `joins.jsonl`, one line per epoch, and goes on with
it when it is resumed. Looking changes nothing: a recorded run ends with the same bits as any other.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from minires.anatomy.joins import joins
from minires.data import Dataset
from minires.files import atomic_write_text
from minires.nn import Module
from minires.training import EpochMetrics, Normalization, Progress, Run
from minires.training.runs import StrPath

FILE = "joins.jsonl"
IMAGES = 32
NUMBERS = ("shortcut_norm", "branch_norm", "whole_norm", "arriving_norm", "cosine", "share",
           "x_rms", "f_rms")  # fmt: skip


@dataclass(frozen=True)
class JoinMoment:
    """The joins of a net at one time.

    epoch: finished epochs, 0 before training. loss: of the batch that was looked at.
    blocks: names, in the order of the forward pass. shortcuts: what each shortcut is.
    numbers: for each name of `NUMBERS` one number per block, as in `anatomy.joins.Join`.
    """

    epoch: int
    loss: float
    blocks: tuple[str, ...]
    shortcuts: tuple[str, ...]
    numbers: dict[str, tuple[float, ...]]

    @classmethod
    def of(cls, model: Module, x: Any, y: Any, epoch: int) -> JoinMoment:
        """Look at the model with a batch of normalised images x (N, C, H, W) and labels y (N,)."""
        found = joins(model, x, y, arrays=False)
        return cls(
            epoch=epoch,
            loss=found.loss,
            blocks=tuple(join.name for join in found),
            shortcuts=tuple(join.shortcut for join in found),
            numbers={n: tuple(float(getattr(join, n)) for join in found) for n in NUMBERS},
        )

    def line(self) -> str:
        """As one line of JSON."""
        values = {"epoch": self.epoch, "loss": self.loss, "blocks": self.blocks,
                  "shortcuts": self.shortcuts, **self.numbers}  # fmt: skip
        return json.dumps(values) + "\n"

    @classmethod
    def from_line(cls, line: str) -> JoinMoment:
        values = json.loads(line)
        return cls(
            epoch=values["epoch"],
            loss=values["loss"],
            blocks=tuple(values["blocks"]),
            shortcuts=tuple(values["shortcuts"]),
            numbers={name: tuple(values[name]) for name in NUMBERS},
        )


@dataclass(frozen=True)
class Recording:
    """The moments of a training, before it and after every epoch."""

    moments: tuple[JoinMoment, ...]

    def column(self, name: str) -> NDArray[np.float64]:
        """One of `NUMBERS` as (moments, blocks)."""
        return np.array([moment.numbers[name] for moment in self.moments])


def look_batch(
    dataset: Dataset, normalization: Normalization, images: int = IMAGES
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """The batch that is looked at: the set's first images, normalised, not augmented."""
    first = dataset.take(min(images, len(dataset)))
    return normalization.transform()(first.images), first.labels


def record_training(
    run: Run,
    *,
    images: int = IMAGES,
    on_epoch: Callable[[EpochMetrics], None] | None = None,
    on_step: Callable[[Progress], None] | None = None,
) -> Recording:
    """Train what is left of a run, looking at the joins before it and after every epoch.

    run: a residual net's or its plain twin's; with a folder the record is kept and resumed there.
    images: of the training set that are looked at, always the same.

    Raises ValueError for a run that was begun without a record; else as `Run.train`.
    """
    trainer = run.trainer
    batch = look_batch(trainer.train_set, trainer.normalization, images)
    path = None if run.folder is None else run.folder.path / FILE
    look = partial(JoinMoment.of, trainer.model, *batch)
    moments = [] if path is None else _kept(path, trainer.epoch + 1)
    if len(moments) < trainer.epoch:
        raise ValueError(
            f"{path}: holds {len(moments)} of {trainer.epoch + 1} records: the run was begun "
            "without a record of its joins. Begin another"
        )
    trainer.model.train()
    if len(moments) == trainer.epoch:  # the start, or an epoch whose record a crash prevented
        moments.append(look(trainer.epoch))
    if path is not None:
        atomic_write_text(path, "".join(moment.line() for moment in moments))

    def after_epoch(metrics: EpochMetrics) -> None:
        trainer.model.train()
        moments.append(look(metrics.epoch))
        if path is not None:
            with open(path, "a", encoding="utf-8") as file:
                file.write(moments[-1].line())
        if on_epoch is not None:
            on_epoch(metrics)

    run.train(after_epoch, on_step)
    return Recording(tuple(moments))


def load_recording(folder: StrPath) -> Recording:
    """The record in a run's folder. Raises FileNotFoundError if there is none."""
    path = Path(folder) / FILE
    if not path.is_file():
        raise FileNotFoundError(f"{folder} holds no record of its joins: it has no {FILE}")
    return Recording(tuple(_kept(path)))


def _kept(path: Path, most: int | None = None) -> list[JoinMoment]:
    """The whole lines of a record; a line that a crash cut short is left out."""
    if not path.is_file():
        return []
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    return [JoinMoment.from_line(line) for line in lines[:most] if line.endswith("\n")]
