"""The training loop."""

from __future__ import annotations

import dataclasses
import itertools
import math
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from minires import functional as F
from minires import optim
from minires.autograd import Tensor
from minires.data import Dataset, Loader
from minires.functional.random import get_rng_state, set_rng_state
from minires.kernels.arrays import parse_device, to_host
from minires.nn import Module
from minires.training.evaluate import Evaluation, evaluate
from minires.training.finiteness import (
    NotFiniteError,
    all_finite,
    find_in_state,
    find_not_finite,
)
from minires.training.normalization import Normalization
from minires.training.packing import pack, unpack
from minires.training.precision import check_precision
from minires.training.recipes import Recipe

if TYPE_CHECKING:
    from minires.training.device_training import DeviceTraining


@dataclass(frozen=True)
class Progress:
    """Where training stands after a batch.

    epoch: counted from 1. step, steps: batches done, and in all, of this epoch.
    done, total: the same of the whole run. lr: of this batch.
    loss, accuracy: means over this epoch so far. images_per_second: over this epoch so far.
    """

    epoch: int
    epochs: int
    step: int
    steps: int
    done: int
    total: int
    lr: float
    loss: float
    accuracy: float
    images_per_second: float


@dataclass(frozen=True)
class Reading:
    """What an epoch has summed up so far: loss over images, right answers, images, batches; lr: of
    the last batch."""

    step: int
    lr: float
    loss: float
    right: int
    images: int


@dataclass(frozen=True)
class EpochMetrics:
    """One finished epoch; a line of `metrics.jsonl`.

    epoch: counted from 1. step: batches since the start of the run. lr: of the last batch.
    train_loss, train_accuracy: means over the epoch's batches, on augmented images, while the
        weights were changing.
    test_loss, test_accuracy: in evaluation mode at the end of the epoch, None without a test set;
        the loss is also None if it is not finite.
    Both losses are plain cross-entropy, whatever the label smoothing.
    seconds: training and evaluation. images_per_second: of training.
    """

    epoch: int
    step: int
    lr: float
    train_loss: float
    train_accuracy: float
    test_loss: float | None
    test_accuracy: float | None
    seconds: float
    images_per_second: float

    def as_dict(self) -> dict[str, Any]:
        return dataclasses.asdict(self)


class Trainer:
    """Trains a model by a recipe, epoch by epoch.

        trainer = Trainer(model, train_set, test_set, recipe, seed=0)
        for metrics in trainer.run():
            ...

    The order of the images and their augmentation follow from the seed and the epoch alone.

    device: "cpu", "cuda", "cuda:1"; the model is moved there and stays.
    precision: "fp32", or on a CUDA device "tf32", "bf16" or "fp16"; see `training.precision`.
    graph: on a CUDA device, whether steps become a CUDA graph; see `GraphedStep`.

    Raises ValueError for an unknown device, or a precision that it lacks; ImportError without CuPy
    and RuntimeError without a GPU, if one is asked for.
    """

    def __init__(
        self,
        model: Module,
        train_set: Dataset,
        test_set: Dataset | None,
        recipe: Recipe,
        *,
        seed: int = 0,
        device: str = "cpu",
        precision: str = "fp32",
        graph: bool = True,
    ) -> None:
        if len(train_set) == 0:
            raise ValueError(f"Trainer: {train_set!r} has no images")
        self.device = "cpu" if parse_device(device)[0] == "cpu" else device
        self.precision = check_precision(precision, self.device)
        self.model, self.recipe = model, recipe
        self.train_set, self.test_set = train_set, test_set
        self.normalization = Normalization.fit(recipe.normalization, train_set)
        self.loader = Loader(
            train_set,
            batch_size=recipe.batch_size,
            shuffle=True,
            transform=recipe.augmentation(train_set, self.normalization),
            seed=seed,
        )
        self.total_steps = recipe.total_steps(len(self.loader))
        self.epochs = math.ceil(self.total_steps / len(self.loader))
        self.schedule = recipe.learning_rates(self.total_steps)
        if self.device != "cpu":
            model.to(self.device)
        self.optimizer = optim.SGD(
            model.parameters(),
            lr=recipe.lr,
            momentum=recipe.momentum,
            weight_decay=recipe.weight_decay,
            nesterov=recipe.nesterov,
        )
        self.epoch = 0  # finished epochs
        self.step = 0  # finished batches
        self.careful = recipe.careful_lr is not None
        self.running_error = 1.0
        self.on_device: DeviceTraining | None = None
        if self.device != "cpu":
            from minires.training.device_training import DeviceTraining

            self.on_device = DeviceTraining(self, graph)

    def run(self, on_step: Callable[[Progress], None] | None = None) -> Iterator[EpochMetrics]:
        """Train the epochs that are left; yields the metrics of each when it is finished.

        Raises NotFiniteError where the loss or a gradient is not finite.
        """
        while self.epoch < self.epochs:
            yield self.train_epoch(on_step)

    def train_epoch(self, on_step: Callable[[Progress], None] | None = None) -> EpochMetrics:
        """One pass over the training set, then evaluation on the test set."""
        start = time.perf_counter()
        self.model.train()
        self.loader.set_epoch(self.epoch)
        steps = min(len(self.loader), self.total_steps - self.step)
        for reading in self._readings(steps):
            speed = reading.images / (time.perf_counter() - start)
            if on_step is not None:
                on_step(
                    Progress(
                        epoch=self.epoch + 1,
                        epochs=self.epochs,
                        step=reading.step,
                        steps=steps,
                        done=self.step,
                        total=self.total_steps,
                        lr=reading.lr,
                        loss=reading.loss / reading.images,
                        accuracy=reading.right / reading.images,
                        images_per_second=speed,
                    )
                )
        broken = find_in_state(self.model)
        if broken is not None:  # by the last step: the next one would have told
            raise NotFiniteError(self.epoch + 1, self.step, reading.lr, f"after it, {broken}")
        test_loss = test_accuracy = None
        if self.test_set is not None:
            result = self.evaluate(self.test_set)
            test_loss = result.loss if math.isfinite(result.loss) else None
            test_accuracy = result.accuracy
        self.epoch += 1
        return EpochMetrics(
            epoch=self.epoch,
            step=self.step,
            lr=reading.lr,
            train_loss=reading.loss / reading.images,
            train_accuracy=reading.right / reading.images,
            test_loss=test_loss,
            test_accuracy=test_accuracy,
            seconds=time.perf_counter() - start,
            images_per_second=speed,
        )

    def evaluate(self, dataset: Dataset) -> Evaluation:
        """The model's loss and accuracy on a set, on the trainer's device in its precision."""
        if self.on_device is not None:
            return self.on_device.evaluate(dataset)
        return evaluate(self.model, dataset, self.normalization.transform())

    def _readings(self, steps: int) -> Iterator[Reading]:
        """Train so many batches of the epoch; on the CPU there is a reading after each."""
        if self.on_device is not None:
            yield from self.on_device.readings(steps)
            return
        loss_sum, right, images = 0.0, 0, 0
        for step, (x, y) in enumerate(itertools.islice(self.loader, steps), 1):
            lr = self.learning_rate()
            loss, correct = self._train_batch(x, y, lr)
            loss_sum += loss * len(y)
            right += correct
            images += len(y)
            yield Reading(step, lr, loss_sum, right, images)

    def learning_rate(self) -> float:
        """Of the next batch."""
        if self.careful and self.recipe.careful_lr is not None:
            return self.recipe.careful_lr
        return float(self.schedule(self.step))

    def _train_batch(self, x: Any, y: Any, lr: float) -> tuple[float, int]:
        """One step of the optimiser; returns the mean cross-entropy and how many were right."""
        random_state = get_rng_state()
        # NumPy's warnings of overflow say less than the check of the result.
        with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
            logits = self.model(Tensor._wrap(x))
            loss = self.loss(logits, y)
            value = float(loss.item())
            finite = math.isfinite(value)
            if finite:
                loss.backward()
                gradients = (parameter.grad for parameter in self.model.parameters())
                finite = all_finite(g._data for g in gradients if g is not None)
            if not finite:
                set_rng_state(random_state)
                place = find_not_finite(self.model, x, lambda output: self.loss(output, y))
                raise NotFiniteError(self.epoch + 1, self.step + 1, lr, place)
            self.optimizer.lr = lr
            self.optimizer.step()
        self.optimizer.zero_grad()
        self.step += 1
        if self.recipe.label_smoothing:
            value = float(F.cross_entropy(logits.detach(), y).item())
        correct = int((logits._data.argmax(axis=1) == y).sum())
        self.note_error(1 - correct / len(y))
        return value, correct

    def note_error(self, error: float) -> None:
        """The share of a batch that was wrong: what a careful start waits for."""
        if self.careful:
            self.running_error += 0.02 * (error - self.running_error)
            self.careful = self.running_error >= self.recipe.careful_error

    def loss(self, logits: Tensor, y: Any) -> Tensor:
        """What is minimised."""
        return F.cross_entropy(logits, y, label_smoothing=self.recipe.label_smoothing)

    def state(self) -> tuple[dict[str, Any], dict[str, Any]]:
        """What `load_state` needs to go on from here: arrays by name, and values for JSON."""
        arrays = {f"model.{k}": to_host(v._data) for k, v in self.model.state_dict().items()}
        values: dict[str, Any] = {
            "epoch": self.epoch,
            "step": self.step,
            "careful": self.careful,
            "running_error": self.running_error,
            "random": get_rng_state(),
            "optimizer": pack(self.optimizer.state_dict(), "optimizer", arrays),
        }
        if self.on_device is not None:
            values["loss_scale"] = self.on_device.loss_scale()
        return arrays, values

    def load_state(self, arrays: Mapping[str, Any], values: Mapping[str, Any]) -> None:
        """Go back to where `state` was called, in a trainer made with the same arguments; only
        device and precision may be others."""
        prefix = "model."
        self.model.load_state_dict(
            {k.removeprefix(prefix): v for k, v in arrays.items() if k.startswith(prefix)}
        )
        self.optimizer.load_state_dict(unpack(values["optimizer"], arrays))
        set_rng_state(values["random"])
        self.epoch, self.step = values["epoch"], values["step"]
        self.careful, self.running_error = values["careful"], values["running_error"]
        if self.on_device is not None and values.get("loss_scale") is not None:
            self.on_device.load_loss_scale(values["loss_scale"])
