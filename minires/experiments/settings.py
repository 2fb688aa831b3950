"""What an experiment is run with: data, length, seeds. Quick, or as long as in the papers."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from minires import data
from minires._names import unknown
from minires.data import Dataset
from minires.files import atomic_write_text
from minires.training import Recipe, recipes

StrPath = str | os.PathLike[str]

DATA = ("cifar10", "cifar100", "digits")
QUICK_SEEDS, SEEDS = 2, 3
HELD_OUT = 6  # of the digits, every sixth training image is for validation


@dataclass(frozen=True)
class Quick:
    """The size of a quick run: images (None: all that there are), epochs and batch."""

    train: int | None
    validation: int | None
    test: int | None
    epochs: int
    batch_size: int = 32


QUICK = {
    "digits": Quick(None, None, None, epochs=10),
    "cifar10": Quick(2560, 1000, 1000, epochs=6),
    "cifar100": Quick(2560, 1000, 1000, epochs=6),
}


@dataclass(frozen=True)
class Sets:
    """Images to train on, to choose by (None: nothing is held out) and to test on."""

    train: Dataset
    validation: Dataset | None
    test: Dataset


@dataclass(frozen=True)
class Settings:
    """Made by `choose`; kept beside the report, so that an experiment can be gone on with.

    out: the folder of all experiments. quick: a few minutes instead of the papers' lengths.
    data, data_dir: the set and the folder of its files. seeds: runs of each net, 0, 1, ...
    models: nets to take in place of the experiment's own. runs: folders of trained nets to look
    into instead of training them. epochs, limit: another length, fewer training images.
    """

    out: str
    quick: bool = False
    data: str = "cifar10"
    data_dir: str | None = None
    seeds: int = SEEDS
    models: tuple[str, ...] = ()
    runs: tuple[str, ...] = ()
    epochs: int | None = None
    limit: int | None = None

    @classmethod
    def choose(
        cls,
        out: StrPath,
        *,
        quick: bool = False,
        data: str | None = None,
        data_dir: StrPath | None = None,
        seeds: int | None = None,
        models: Iterable[str] = (),
        runs: Iterable[StrPath] = (),
        epochs: int | None = None,
        limit: int | None = None,
    ) -> Settings:
        """With what is usual for all that is not given.

        data: "cifar10", but "digits", which come with the package, for a quick run without
            data_dir. seeds: 3, or 2 for a quick run.

        Raises ValueError for other data, for missing data_dir, and for numbers below 1.
        """
        if data is None:
            data = "digits" if quick and data_dir is None else "cifar10"
        if data not in DATA:
            raise ValueError(unknown("data set of experiments", data, DATA))
        if data != "digits" and data_dir is None:
            raise ValueError(
                f"{data} needs data_dir, the folder with its files; --quick without it takes the "
                "digits that come with the package"
            )
        for name, value in (("seeds", seeds), ("epochs", epochs), ("limit", limit)):
            if value is not None and value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")
        return cls(
            out=str(Path(out).absolute()),
            quick=quick,
            data=data,
            data_dir=None if data_dir is None else str(Path(data_dir).absolute()),
            seeds=seeds or (QUICK_SEEDS if quick else SEEDS),
            models=tuple(models),
            runs=tuple(str(Path(run).absolute()) for run in runs),
            epochs=epochs,
            limit=limit,
        )

    @classmethod
    def load(cls, folder: StrPath) -> Settings:
        """Those of an experiment that was begun in this folder.

        Raises FileNotFoundError if there are none.
        """
        path = Path(folder) / "settings.json"
        if not path.is_file():
            raise FileNotFoundError(f"{folder} holds no experiment: it has no settings.json")
        values = json.loads(path.read_text(encoding="utf-8"))
        lists = {name: tuple(values[name]) for name in ("models", "runs")}
        return cls(**{**values, **lists})

    def save(self, folder: StrPath) -> None:
        """Write settings.json."""
        text = json.dumps(dataclasses.asdict(self), indent=2)
        atomic_write_text(Path(folder) / "settings.json", text + "\n")

    def sets(self, held_out: bool = False) -> Sets:
        """The images. Quick runs always hold some out; otherwise `held_out` decides."""
        sizes = QUICK[self.data] if self.quick else Quick(None, None, None, 0)
        held_out = held_out or self.quick
        names = ("train45k", "val5k") if held_out else ("train", None)
        if self.data == "digits":
            whole = data.digits("train")
            if held_out:
                chosen = [i % HELD_OUT == HELD_OUT - 1 for i in range(len(whole))]
                train = whole.subset([i for i, out in enumerate(chosen) if not out])
                validation = whole.subset([i for i, out in enumerate(chosen) if out])
            else:
                train, validation = whole, None
            test = data.digits("test")
        else:
            train = data.load(self.data, names[0], self.data_dir)
            validation = None if names[1] is None else data.load(self.data, names[1], self.data_dir)
            test = data.load(self.data, "test", self.data_dir)
        return Sets(
            _first(train, self.limit or sizes.train),
            None if validation is None else _first(validation, sizes.validation),
            _first(test, sizes.test),
        )

    def recipe(self, train: Dataset, model: str) -> Recipe:
        """How a net is trained: as in the paper, or in one short cycle."""
        if self.quick:
            quick = QUICK[self.data]
            name = "digits" if self.data == "digits" else "fast"
            found = recipes.choose(train, name, model).replace(
                epochs=quick.epochs, batch_size=quick.batch_size, lr=0.05, label_smoothing=0.0
            )
        else:
            found = recipes.choose(train, None, model)
        return found if self.epochs is None else found.replace(epochs=self.epochs)

    def source(self, held_out: bool) -> dict[str, Any]:
        """For the record of a run, so that `minires eval` finds the images again."""
        return {
            "data": self.data,
            "data_dir": self.data_dir,
            "size": None,
            "limit": None,
            "validate": held_out and self.data != "digits",
        }


def _first(dataset: Dataset, count: int | None) -> Dataset:
    return dataset if count is None or count >= len(dataset) else dataset.take(count)
