"""A whole training run, with or without a folder.

    import minires as mr

    train_set, test_set = mr.data.digits("train"), mr.data.digits("test")
    run = mr.training.fit("resnet20", train_set, test_set, out="runs/first")
    print(run.last.test_accuracy)
"""

from __future__ import annotations

import math
import platform
import time
import warnings
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

import minires
from minires import models
from minires.data import Dataset
from minires.functional.random import manual_seed
from minires.kernels import choices
from minires.kernels.arrays import parse_device
from minires.nn import Module, init
from minires.training import recipes
from minires.training.curve import plot_curve
from minires.training.modelfile import TrainedModel, save_model
from minires.training.recipes import Recipe
from minires.training.runs import Checkpoint, RunFolder, StrPath
from minires.training.trainer import EpochMetrics, Progress, Trainer

CURVE_SECONDS = 60.0  # the picture is drawn at most so often, and at the end


class Run:
    """A training run: a trainer, what it has measured, and its folder if it has one.

    trainer: see `Trainer`. trained: the model with its classes and normalisation.
    history: the finished epochs. folder: where the run is kept, or None. config: its settings.
    """

    def __init__(
        self,
        trainer: Trainer,
        config: dict[str, Any],
        folder: RunFolder | None = None,
        history: list[EpochMetrics] | None = None,
    ) -> None:
        self.trainer, self.config, self.folder = trainer, config, folder
        self.history = history or []
        images = trainer.train_set.images
        self.trained = TrainedModel(
            model=trainer.model,
            classes=trainer.train_set.classes,
            normalization=trainer.normalization,
            name=config["model"],
            options=config["options"],
            data=trainer.train_set.name,
            image_shape=images.shape[1:],
        )

    @classmethod
    def new(
        cls,
        model: str | Module,
        train_set: Dataset,
        test_set: Dataset | None = None,
        recipe: Recipe | str | None = None,
        *,
        options: Mapping[str, Any] | None = None,
        out: StrPath | None = None,
        seed: int = 0,
        source: Mapping[str, Any] | None = None,
        threads: int | None = None,
        device: str = "cpu",
        precision: str = "fp32",
        graph: bool = True,
    ) -> Run:
        """A run that has not begun; see `fit`. Its folder is made, and written to, at once.

        source, threads: where the data came from and how many threads compute, for the record.
        """
        name = model if isinstance(model, str) else None
        if not isinstance(recipe, Recipe):
            recipe = recipes.choose(train_set, recipe, name)
        chosen = dict(options or {})
        manual_seed(seed)
        if isinstance(model, str):
            channels = train_set.images.shape[1]
            chosen = {"num_classes": len(train_set.classes), "in_channels": channels} | chosen
            model = models.create(model, **chosen)
        elif chosen:
            raise TypeError("fit: options go with the name of a model; this one is built already")
        trainer = Trainer(
            model, train_set, test_set, recipe,
            seed=seed, device=device, precision=precision, graph=graph,
        )  # fmt: skip
        config = {
            "model": name,
            "options": chosen,
            "recipe": recipe.as_dict(),
            "seed": seed,
            "threads": threads,
            "device": trainer.device,
            "precision": precision,
            "graph": graph,
            "kernels": choices(_backend(trainer.device)),
            "source": None if source is None else dict(source),
            "sets": _describe_sets(train_set, test_set),
            "minires": minires.__version__,
            "numpy": np.__version__,
            "python": platform.python_version(),
        }
        run = cls(trainer, config, None if out is None else RunFolder.create(out, config))
        run._save_checkpoint()
        return run

    @classmethod
    def resume(
        cls,
        folder: StrPath,
        train_set: Dataset,
        test_set: Dataset | None = None,
        *,
        model: Module | None = None,
        device: str | None = None,
        precision: str | None = None,
        graph: bool | None = None,
    ) -> Run:
        """A run that goes on after its last finished epoch and ends as if it had not been stopped.

        folder: the run's. train_set, test_set: the sets it was begun with. model: one built like
        the one it was begun with, if that was not given by name. device, precision, graph: other
        ones than it was begun with; on another device it ends with other bits.

        Raises FileNotFoundError if there is no such run, ValueError if its checkpoint is truncated
        or the sets are not those it was begun with.
        """
        opened = RunFolder.open(folder)
        checkpoint = opened.load_checkpoint()
        config = checkpoint.state["config"]
        begun, now = config["sets"], _describe_sets(train_set, test_set)
        for what, value in now.items():
            if value != begun[what]:
                raise ValueError(
                    f"{opened.path} was begun with other data: {what.replace('_', ' ')} were "
                    f"{begun[what]}, now {value}"
                )
        backend = _backend(device or config.get("device", "cpu"))
        _check_choices(config.get("kernels"), opened, backend)
        if model is None and config["model"] is None:
            raise ValueError(
                f"{opened.path} trains a model built in Python: build it again and pass it as "
                "model="
            )
        if model is None:
            with init.skip_init():
                model = models.create(config["model"], **config["options"])
        recipe = Recipe(**config["recipe"])
        asked = {"device": device, "precision": precision, "graph": graph}
        begun = {name: config[name] for name in asked if name in config}  # since there are devices
        computing = begun | {name: value for name, value in asked.items() if value is not None}
        trainer = Trainer(
            model, train_set, test_set, recipe, seed=config["seed"], **computing
        )
        trainer.load_state(checkpoint.arrays, checkpoint.state["trainer"])
        records = opened.keep_metrics(trainer.epoch)
        return cls(trainer, config, opened, [EpochMetrics(**record) for record in records])

    @property
    def finished(self) -> bool:
        return self.trainer.epoch >= self.trainer.epochs

    @property
    def last(self) -> EpochMetrics:
        """The last finished epoch. Raises IndexError before the first."""
        return self.history[-1]

    @property
    def best(self) -> EpochMetrics:
        """The first epoch of the best accuracy: on the test set, or in training without one."""

        def accuracy(metrics: EpochMetrics) -> float:
            tested = metrics.test_accuracy
            return metrics.train_accuracy if tested is None else tested

        return max(self.history, key=accuracy)

    @property
    def seconds(self) -> float:
        """The time that the finished epochs took."""
        return sum(metrics.seconds for metrics in self.history)

    def train(
        self,
        on_epoch: Callable[[EpochMetrics], None] | None = None,
        on_step: Callable[[Progress], None] | None = None,
    ) -> Run:
        """Train the epochs that are left, saving after each; returns self.

        on_epoch, on_step: called after every epoch and every batch.
        Raises as `Trainer.run` does; what was saved stays as it was.
        """
        drawn = time.monotonic()
        for metrics in self.trainer.run(on_step):
            self.history.append(metrics)
            if self.folder is not None:
                self.folder.append_metrics(metrics.as_dict())
                save_model(self.folder.model_path, self.trained)
                self._save_checkpoint()
                if self.finished or time.monotonic() - drawn > CURVE_SECONDS:
                    self.draw_curve()
                    drawn = time.monotonic()
            if on_epoch is not None:
                on_epoch(metrics)
        return self

    def draw_curve(self) -> None:
        """Write curve.png. Does nothing without a folder or a finished epoch."""
        if self.folder is None or not self.history:
            return
        recipe, net = self.trainer.recipe, self.config["model"] or type(self.trained.model).__name__
        plot_curve(
            self.folder.curve_path,
            [metrics.as_dict() for metrics in self.history],
            title=f"{net} on {self.trained.data}",
            subtitle=f"recipe {recipe.name}, batch {recipe.batch_size}, "
            f"{models.count_parameters(self.trained.model):,} parameters, "
            f"seed {self.config['seed']}",
        )

    def _save_checkpoint(self) -> None:
        if self.folder is not None:
            arrays, state = self.trainer.state()
            self.folder.save_checkpoint(
                Checkpoint(arrays, {"config": self.config, "trainer": state})
            )


def fit(
    model: str | Module,
    train_set: Dataset,
    test_set: Dataset | None = None,
    recipe: Recipe | str | None = None,
    *,
    options: Mapping[str, Any] | None = None,
    out: StrPath | None = None,
    seed: int = 0,
    log: Callable[[str], None] | None = print,
    on_step: Callable[[Progress], None] | None = None,
    device: str = "cpu",
    precision: str = "fp32",
    graph: bool = True,
) -> Run:
    """Train a model and return the run, which holds it and all that was measured.

    model: a name for `models.create` (initialised from the seed), or a Module to train as it is;
        it takes float32 images (N, C, H, W) and gives logits (N, number of classes).
    recipe: a Recipe, the name of one, or None for the usual one of this set.
    options: of `models.create`; the classes and channels are taken from the set.
    out: the folder to make for the run (it must be new or empty), or None to write nothing.
    log: takes a heading and one line per epoch; None for silence.
    on_step: called after every batch; on a CUDA device after every 25, and at the end of an epoch.
    device, precision, graph: see `Trainer`.

    The same seed, machine and number of threads give the same bits.

    Raises FileExistsError if `out` holds something, OSError if it cannot be written (both before
    any training), NotFiniteError where the loss or a gradient is not finite.
    """
    run = Run.new(
        model, train_set, test_set, recipe,
        options=options, out=out, seed=seed, device=device, precision=precision, graph=graph,
    )  # fmt: skip
    epochs = run.trainer.epochs
    if log is None:
        return run.train(None, on_step)
    log(epoch_header())
    return run.train(lambda metrics: log(epoch_line(metrics, epochs)), on_step)


def epoch_header() -> str:
    """The heading above the lines of `epoch_line`."""
    return (
        f"{'epoch':>7}  {'train loss':>10}  {'accuracy':>8}  {'test loss':>9}  {'accuracy':>8}  "
        f"{'images/s':>8}  {'time':>8}"
    )


def epoch_line(metrics: EpochMetrics, epochs: int) -> str:
    """A finished epoch in one line of 70 characters."""
    place = f"{metrics.epoch}/{epochs}"
    text = f"{place:>7}  {metrics.train_loss:10.4f}  {100 * metrics.train_accuracy:6.2f} %"
    if metrics.test_accuracy is None:
        text += f"  {'-':>9}  {'-':>8}"
    else:
        loss = math.nan if metrics.test_loss is None else metrics.test_loss
        text += f"  {loss:9.4f}  {100 * metrics.test_accuracy:6.2f} %"
    return f"{text}  {metrics.images_per_second:8,.0f}  {metrics.seconds:6.1f} s"


def _backend(device: str) -> str:
    return parse_device(device)[0]


def _check_choices(
    begun: Mapping[str, Any] | None, folder: RunFolder, backend: str
) -> None:
    """Warn if kernels are not chosen now as when a run was begun: its numbers would change."""
    now: Mapping[str, Any] = choices(backend)
    if begun is None or _deciding(begun) == _deciding(now):
        return
    warnings.warn(
        f"{folder.path} was begun with kernels chosen by {_deciding(begun)}, now they are chosen "
        f"by {_deciding(now)}: from here on its numbers differ in their rounding from those of a "
        "run that was not stopped",
        stacklevel=3,
    )


def _deciding(chosen: Mapping[str, Any]) -> dict[str, Any]:
    """What two runs must have in common to choose equally; where the table lies is no matter."""
    table = chosen["table"]
    return {**chosen, "table": table and table["hash"]}


def _describe_sets(train_set: Dataset, test_set: Dataset | None) -> dict[str, Any]:
    """What must be the same when a run is resumed. Raises ValueError if the two do not match."""
    if test_set is not None and (
        test_set.classes != train_set.classes
        or test_set.images.shape[1:] != train_set.images.shape[1:]
    ):
        raise ValueError(f"the test set {test_set!r} does not match the training set {train_set!r}")
    return {
        "training_images": len(train_set),
        "test_images": 0 if test_set is None else len(test_set),
        "image_sizes": list(train_set.images.shape[1:]),
        "classes": list(train_set.classes),
    }
