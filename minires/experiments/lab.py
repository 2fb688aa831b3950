"""Where experiments train their nets: a shared folder of runs, each done once and resumed.

A run's folder is named by everything that decides its outcome. So an experiment that is started
again finds what is finished, goes on with what is not, and two experiments that need the same net
train it once.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from minires import models
from minires.experiments.recording import Recording, load_recording, record_training
from minires.experiments.settings import Sets, Settings
from minires.experiments.statistics import Spread
from minires.nn import init
from minires.training import EpochMetrics, Progress, Run, RunFolder, TrainedModel, load_model
from minires.training.recipes import Recipe
from minires.training.runs import StrPath

PAPER_STEPS, PAPER_IMAGES, PAPER_BATCH = 64_000, 50_000, 128
FEW = 3  # seeds: fewer give rough deviations


@dataclass(frozen=True)
class Plan:
    """A net to train. shortcut: the option, or None for the net's own."""

    model: str
    shortcut: str | None = None

    @property
    def label(self) -> str:
        return self.model if self.shortcut is None else f"{self.model} {self.shortcut}"

    @property
    def options(self) -> dict[str, Any]:
        return {} if self.shortcut is None else {"shortcut": self.shortcut}

    @property
    def layers(self) -> int:
        """Layers with weights, projections not counted."""
        return models.describe(self.model, **self.options).layers


@dataclass(frozen=True)
class Trained:
    """A finished run."""

    plan: Plan
    seed: int
    folder: Path
    history: tuple[EpochMetrics, ...]

    def load(self) -> TrainedModel:
        return load_model(self.folder)

    def recording(self) -> Recording:
        """What was recorded at the joins after every epoch."""
        return load_recording(self.folder)

    @property
    def train_error(self) -> float:
        """Per cent, over the last epoch, on augmented images."""
        return 100 - 100 * self.history[-1].train_accuracy

    @property
    def test_error(self) -> float:
        """Per cent, after the last epoch."""
        accuracy = self.history[-1].test_accuracy
        return float("nan") if accuracy is None else 100 - 100 * accuracy


def train_error(runs: Sequence[Trained]) -> Spread:
    return Spread.of(run.train_error for run in runs)


def test_error(runs: Sequence[Trained]) -> Spread:
    return Spread.of(run.test_error for run in runs)


class Lab:
    """Trains nets as the settings say. log: takes one line per epoch and per run."""

    def __init__(
        self,
        settings: Settings,
        log: Callable[[str], None] = print,
        on_step: Callable[[str, Progress], None] | None = None,
    ) -> None:
        self.settings, self.log, self.on_step = settings, log, on_step
        self.seconds = 0.0  # of training, finished runs included
        self.trained: dict[Plan, list[Trained]] = {}
        self.known: list[KnownRun] = []  # that the settings point to

    @cached_property
    def sets(self) -> Sets:
        """The images, with the training set whole unless the run is quick or `train` says so."""
        return self.settings.sets()

    def nets(self, usual: Sequence[str], quick: Sequence[str]) -> list[Plan]:
        """The nets to train: those that the settings name, or the experiment's own."""
        named = self.settings.models or (quick if self.settings.quick else usual)
        return [Plan(name) for name in named]

    def train(self, plans: Sequence[Plan], held_out: bool = False) -> dict[Plan, list[Trained]]:
        """Every net with every seed. held_out: keep the validation set out of training."""
        if held_out:
            self.sets = self.settings.sets(held_out)
        work = [(plan, seed) for plan in plans for seed in range(self.settings.seeds)]
        found: dict[Plan, list[Trained]] = {plan: [] for plan in plans}
        for number, (plan, seed) in enumerate(work, 1):
            place = f"run {number}/{len(work)}: {plan.label}, seed {seed}"
            found[plan].append(self._one(plan, seed, held_out, place))
        self.trained |= found
        return found

    def _one(self, plan: Plan, seed: int, held_out: bool, place: str) -> Trained:
        sets = self.sets
        recipe = self.settings.recipe(sets.train, plan.model)
        folder = self._folder(plan, seed, recipe)
        if folder.exists() and not RunFolder(folder).checkpoint_path.is_file():
            shutil.rmtree(folder)  # stopped before its first checkpoint: nothing is in it
        if folder.exists():
            run = Run.resume(folder, sets.train, sets.test)
        else:
            run = Run.new(
                plan.model,
                sets.train,
                sets.test,
                recipe,
                options=plan.options,
                out=folder,
                seed=seed,
                source=self.settings.source(held_out),
            )
        if run.finished:
            self.log(f"{place}: finished before")
        else:
            begun = f", going on after epoch {run.trainer.epoch}" if run.trainer.epoch else ""
            self.log(place + begun)
            step = self.on_step
            record_training(
                run,
                on_epoch=lambda metrics: self.log(_line(metrics, run.trainer.epochs)),
                on_step=None if step is None else lambda progress: step(place, progress),
            )
        self.seconds += run.seconds
        return Trained(plan, seed, folder, tuple(run.history))

    def _folder(self, plan: Plan, seed: int, recipe: Recipe) -> Path:
        """Where the run of such a net is, whatever it was called, or will be."""
        sets = self.sets
        channels = sets.train.images.shape[1]
        with init.skip_init():
            net = models.create(
                plan.model,
                num_classes=len(sets.train.classes),
                in_channels=channels,
                **plan.options,
            )
        decides = {
            "net": repr(net),
            "seed": seed,
            "recipe": recipe.as_dict(),
            "train": [sets.train.name, sets.train.split, len(sets.train)],
            "test": [sets.test.name, sets.test.split, len(sets.test)],
        }
        digest = hashlib.sha256(json.dumps(decides, sort_keys=True).encode()).hexdigest()[:8]
        runs = Path(self.settings.out) / "runs"
        label = plan.label.replace(" ", "-")
        return next(runs.glob(f"*-{digest}"), runs / f"{label}-seed{seed}-{digest}")

    def trained_nets(
        self, usual: Sequence[str], quick: Sequence[str]
    ) -> Iterator[tuple[str, TrainedModel]]:
        """Nets to look into, by name: those that the settings point to, or seed 0 of the nets."""
        if self.settings.runs:
            for folder in self.settings.runs:
                self.known.append(KnownRun(folder))
                trained = load_model(folder)
                if trained.classes != self.sets.test.classes:
                    raise ValueError(
                        f"{folder} was trained on {trained.data}, this experiment is on "
                        f"{self.sets.test.name}: choose the same --data"
                    )
                yield trained.name or Path(folder).name, trained
            return
        for plan in self.nets(usual, quick):
            yield plan.label, self.train_once(plan).load()

    def train_once(self, plan: Plan) -> Trained:
        """This net with seed 0."""
        run = self._one(plan, 0, False, f"{plan.label}, seed 0")
        self.trained[plan] = [run]
        return run

    def how(self) -> list[str]:
        """How the nets were trained, one sentence each, for the report."""
        sentences = [run.sentence() for run in self.known]
        if self.trained:
            sets = self.sets
            held = "" if sets.validation is None else f", {len(sets.validation):,} held out"
            sentences.append(
                f"Data: {sets.train.name}, {len(sets.train):,} images to train on{held}, "
                f"{len(sets.test):,} to test on."
            )
            runs = [run for runs in self.trained.values() for run in runs]
            sentences += sorted({KnownRun(run.folder).recipe_sentence() for run in runs})
            sentences.append(
                f"{len(runs)} runs, {self.seconds / 60:.1f} minutes of training in all."
            )
        return sentences

    def limits(self) -> list[str]:
        """What the length of the runs and the number of seeds keep the report from showing."""
        runs = [run for runs in self.trained.values() for run in runs]
        known = [*self.known, *(KnownRun(run.folder) for run in runs)]
        if not known:
            return []
        sets, found = self.sets, []
        seen, most = (pick(run.images_seen for run in known) for pick in (min, max))
        if seen < PAPER_STEPS * PAPER_BATCH:
            found.append(
                f"The papers train for {PAPER_STEPS:,} steps of {PAPER_BATCH} images; here a net "
                f"saw {PAPER_STEPS * PAPER_BATCH / seen:,.0f} times fewer images, so errors are "
                "far from the papers' and what shows late in training is not seen."
            )
        if most > 1.1 * seen:
            found.append(
                f"The nets were not trained alike: they saw {seen:,} to {most:,} images, repeats "
                "counted."
            )
        fewest = min(run.training_images for run in known)
        if sets.train.name != "cifar10":
            found.append(f"The papers use CIFAR-10; this is {sets.train.name}.")
        elif fewest < PAPER_IMAGES * 0.9:
            found.append(
                f"{fewest:,} of {PAPER_IMAGES:,} training images were used, so a net can learn "
                "them by heart sooner."
            )
        if any(1 < len(runs) < FEW for runs in self.trained.values()):
            found.append("Deviations of two seeds are rough.")
        tested = [a for run in known if (a := run.last["test_accuracy"]) is not None]
        if tested:
            error = 1 - sum(tested) / len(tested)
            chance = 100 * (error * (1 - error) / len(sets.test)) ** 0.5
            found.append(
                f"With {len(sets.test):,} test images an error of {100 * error:.1f} %, as it is "
                f"here on average, has a standard error of {chance:.1f} points from the choice of "
                "images alone."
            )
        return found


class KnownRun:
    """A run that has its folder already: how long it was. Raises as `RunFolder.open` does."""

    def __init__(self, folder: StrPath) -> None:
        run = RunFolder.open(folder)
        self.config, metrics = run.config(), run.metrics()
        if not metrics:
            raise ValueError(f"{folder}: no epoch of this run is finished")
        self.recipe, self.last = Recipe(**self.config["recipe"]), metrics[-1]
        self.images_seen = self.last["step"] * self.recipe.batch_size
        self.training_images: int = self.config["sets"]["training_images"]

    def sentence(self) -> str:
        return (
            f"{self.config['model']} was trained before, on {self.training_images:,} images. "
            + self.recipe_sentence()
        )

    def recipe_sentence(self) -> str:
        recipe = self.recipe
        return (
            f"Recipe {recipe.name}: {self.last['epoch']} epochs, {self.last['step']:,} steps of "
            f"{recipe.batch_size} images, learning rate {recipe.lr:g} ({recipe.schedule}), weight "
            f"decay {recipe.weight_decay:g}."
        )


def _line(metrics: EpochMetrics, epochs: int) -> str:
    width = len(str(epochs))
    tested = "" if metrics.test_accuracy is None else (
        f", test error {100 - 100 * metrics.test_accuracy:5.1f} %"
    )
    return (
        f"  epoch {metrics.epoch:{width}}/{epochs}: training error "
        f"{100 - 100 * metrics.train_accuracy:5.1f} %{tested}, {metrics.seconds:.0f} s"
    )
