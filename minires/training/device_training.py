"""What a `Trainer` does on a CUDA device: batches, steps, readings, evaluation."""

from __future__ import annotations

import gc
import itertools
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from minires.autograd import Tensor
from minires.data import Dataset
from minires.functional.random import get_rng_state, set_rng_state
from minires.kernels.cuda import memory
from minires.kernels.cuda.graph import Workplace
from minires.kernels.cuda.steps import Figures
from minires.training import resident
from minires.training.device_evaluation import DeviceEvaluation
from minires.training.device_steps import DeviceSteps
from minires.training.evaluate import Evaluation, check_logits, evaluate
from minires.training.finiteness import NotFiniteError
from minires.training.out_of_memory import OutOfMemoryError, explained
from minires.training.precision import kernels_of
from minires.training.transfer import Transfer

if TYPE_CHECKING:
    from minires.training.trainer import Reading, Trainer

INTERVAL = 25
"""Steps between two readings. The device waits for the host at each, for some microseconds."""


class DeviceTraining:
    """The part of a trainer that knows about its device.

    resident: whether batches are made on the device; if not, `why_not` says why, and a thread
    prepares and sends them.
    """

    def __init__(self, trainer: Trainer, graph: bool) -> None:
        self.trainer = trainer
        self.place = Workplace(trainer.device)
        self.why_not = resident.obstacle(trainer.recipe, trainer.loader, self.place)
        self.resident: resident.ResidentBatches | None = None
        if self.why_not is None:
            self.resident = resident.ResidentBatches(
                trainer.loader, trainer.recipe, trainer.normalization, self.place
            )
        self.evaluation: DeviceEvaluation | None = None
        self.transfer = Transfer(trainer.loader, self.place)
        self.steps = DeviceSteps(
            trainer.model,
            trainer.optimizer,
            self._loss,
            self.place,
            precision=trainer.precision,
            graph=graph,
            source=None if self.resident is None else self.resident.batch,
        )

    def description(self) -> str:
        """How and where, in a line: `on cuda:0, bf16, batches made on the device`."""
        made = "made on the device"
        if self.why_not is not None:
            made = f"made by the processor and sent ({self.why_not})"
        name = f"cuda:{self.place.number}"
        return f"on {name}, {self.trainer.precision}, batches {made}"

    def launching(self) -> str:
        """How steps were launched: as graphs, or why not."""
        graphed = self.steps.graphed
        if graphed is None:
            return "launch by launch"
        if graphed.reason is not None:
            return f"launch by launch: {graphed.reason}"
        return f"{graphed.replays:,} as CUDA graphs, captured {graphed.captures} times"

    def readings(self, steps: int) -> Iterator[Reading]:
        """Train so many batches of the trainer's epoch; yields what the sums are now and then.

        While the start is careful, that is after every batch, whose errors decide when it ends.
        """
        from minires.training.trainer import Reading

        trainer = self.trainer
        self.steps.begin_epoch()
        before = 0, 0
        for step, (batch, made) in enumerate(itertools.islice(self._batches(), steps), 1):
            lr = trainer.learning_rate()
            try:
                self.steps.run(*batch, lr=lr, **made)
            except MemoryError as error:
                raise self._explained(error, made.get("n") or len(batch[1])) from None
            trainer.step += 1
            if step % INTERVAL and step != steps and not trainer.careful:
                continue
            figures = self.steps.read()
            self._check(figures)
            if trainer.careful:
                right, images = figures.right - before[0], figures.images - before[1]
                trainer.note_error(1 - right / images)
            before = figures.right, figures.images
            yield Reading(step, lr, figures.loss, figures.right, figures.images)

    def _loss(self, logits: Tensor, y: Tensor) -> Tensor:
        """A device does not look at labels, so their number is looked at here."""
        check_logits("train", logits, len(y), self.trainer.train_set)
        return self.trainer.loss(logits, y)

    def _batches(self) -> Iterator[tuple[tuple[Any, ...], dict[str, int]]]:
        """Of each batch: arrays on the device, or how many images to make there."""
        if self.resident is None:
            for batch in self.transfer:
                yield batch, {}
            return
        with self.place:
            sizes = self.resident.begin_epoch()
        for n in sizes:
            yield (), {"n": n}

    def _check(self, figures: Figures) -> None:
        """Raise NotFiniteError if something was not finite since the last reading."""
        if figures.broken is None:
            return
        trainer = self.trainer
        step = trainer.step - figures.steps + figures.broken_at
        raise NotFiniteError(
            trainer.epoch + 1,
            step,
            trainer.optimizer.lr,
            f"{figures.broken} is not finite. It was noticed after step {trainer.step}; weights "
            f"and momentum are those before step {step}",
        )

    def evaluate(self, dataset: Dataset) -> Evaluation:
        """As `evaluate`, in the precision of the training, and in batches of its size: they fit."""
        trainer = self.trainer
        batch = trainer.recipe.batch_size
        try:
            if resident.fits(dataset, self.place):
                return self._evaluation_of(dataset, batch)()
            return evaluate(
                trainer.model,
                dataset,
                trainer.normalization.transform(),
                batch_size=batch,
                device=trainer.device,
                precision=trainer.precision,
            )
        except MemoryError as error:
            raise self._explained(error, batch) from None

    def _evaluation_of(self, dataset: Dataset, batch: int) -> DeviceEvaluation:
        """Made once for a set, which then stays on the device."""
        made = self.evaluation
        if made is None or made.dataset is not dataset:
            made = self.evaluation = DeviceEvaluation(
                self.steps.mixed, dataset, self.trainer.normalization, self.place, batch,
                graph=self.steps.graphed is not None,
            )  # fmt: skip
        return made

    def _explained(self, error: MemoryError, batch: int) -> OutOfMemoryError:
        """An error that says what to do; the device's memory is free again for another try."""
        with self.place, kernels_of(self.trainer.precision):
            return explained(
                error,
                self.trainer.device,
                batch,
                lambda: memory.use(self.place.xp, self.place.number),
                self._release,
                self._peak_of,
            )

    def _release(self) -> None:
        """Forget what is not needed to go on."""
        self.trainer.optimizer.zero_grad()
        if self.steps.graphed is not None:
            self.steps.graphed.release()
        self.evaluation = None
        gc.collect()  # a trainer and its parts refer to each other: so do those of earlier runs
        memory.empty_cache(self.place.xp)

    def _peak_of(self, images: int) -> int:
        """The most bytes in use during a step on so many black images that changes nothing."""
        trainer, place = self.trainer, self.place
        C, H, W = trainer.train_set.images.shape[1:]
        kept = [(buffer, buffer._data.copy()) for buffer in trainer.model.buffers()]
        random = get_rng_state()
        memory.reset_peak(place.xp, place.number)
        x = place.xp.zeros((images, H, W, C), np.float32).transpose(0, 3, 1, 2)
        y = place.xp.zeros(images, np.int64)
        try:
            trainer.loss(self.steps.mixed(Tensor._wrap(x)), Tensor._wrap(y)).backward()
        finally:
            trainer.optimizer.zero_grad()
            set_rng_state(random)
            for buffer, values in kept:
                buffer._data[...] = values
        peak = memory.use(place.xp, place.number).peak
        if not trainer.optimizer.state:  # momentum is made in the first step
            peak += sum(parameter._data.nbytes for parameter in trainer.model.parameters())
        return peak

    def loss_scale(self) -> dict[str, Any] | None:
        """For a checkpoint; None without loss scaling."""
        account = self.steps.account
        return account.state() if account.loss_scale is not None else None

    def load_loss_scale(self, state: dict[str, Any]) -> None:
        with self.place:
            self.steps.account.load_state(state)
