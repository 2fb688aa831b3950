"""The training and test sets that the options of a command name, and the threads for them."""

from __future__ import annotations

import os
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import typer

from minires import data
from minires.data import Dataset
from minires.kernels.threads import VARIABLE, set_num_threads

CIFAR = ("cifar10", "cifar100")
HELD_OUT = 5  # of a folder without a split, every fifth image is for testing
SMALL = 16  # side of images that one thread computes unless more are asked for
TEST_FOLDERS = ("test", "val", "valid", "validation")


@dataclass(frozen=True)
class Source:
    """Where images come from; kept in config.json, so that a run can be resumed and tested.

    data: a name of `data.list_datasets()`. data_dir: its folder. size: side of images from a
    folder. limit: at most so many images of each set. validate: train on 45,000 images of CIFAR
    and test on the other 5,000, as the paper does while developing (section 4.2).
    """

    data: str
    data_dir: str | None = None
    size: int | None = None
    limit: int | None = None
    validate: bool = False

    @classmethod
    def from_options(
        cls,
        name: str,
        data_dir: Path | None,
        size: int | None,
        limit: int | None,
        validate: bool = False,
    ) -> Source:
        """`name` may also be a folder of images."""
        if name not in data.list_datasets():
            name, data_dir = "image_folder", Path(name)
        if size is not None and name != "image_folder":
            raise typer.BadParameter(f"--size is for folders of images; {name} has its own")
        if name == "image_folder":
            size = size or 224
        if name != "digits" and data_dir is None:
            raise typer.BadParameter(f"{name} needs --data-dir, the folder with its files")
        if validate and name not in CIFAR:
            raise typer.BadParameter(f"--validate is for {' and '.join(CIFAR)}")
        folder = None if data_dir is None else str(data_dir.absolute())
        return cls(name, folder, size, limit, validate)

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)

    def load(self, split: str, download: bool = False) -> Dataset:
        """The set; `split` is "train" or "test".

        A folder of images may have sub-folders `train` and `test` (or `val`), each with one
        sub-folder per class. If it has the classes itself, every fifth image is for testing.
        """
        if self.data == "image_folder":
            found = self._from_folder(split)
        else:
            options = {"download": download} if self.data in CIFAR else {}
            if self.validate:
                split = {"train": "train45k", "test": "val5k"}[split]
            found = data.load(self.data, split, self.data_dir, **options)
        if self.limit is not None and self.limit < len(found):
            # Evenly spread: a folder's images are sorted by class.
            return found.subset(np.arange(self.limit) * len(found) // self.limit)
        return found

    def _from_folder(self, split: str) -> Dataset:
        root = Path(self.data_dir or "")
        if (root / "train").is_dir():
            names = ("train",) if split == "train" else TEST_FOLDERS
            for name in names:
                if (root / name).is_dir():
                    return data.image_folder(root, self.size or 224, name)
            raise ValueError(f"{root} has train/, but none of {', '.join(TEST_FOLDERS)} to test on")
        everything = _whole_folder(root, self.size or 224)
        held_out = np.arange(len(everything)) % HELD_OUT == HELD_OUT - 1
        return everything.subset(held_out if split == "test" else ~held_out)


def use_threads(count: int | None, dataset: Dataset) -> int:
    """Compute with `count` threads; None takes MINIRES_THREADS, or else what suits the images.

    The matrix products of images of up to 16x16 are too small to share: a second thread gains a
    few per cent on an idle machine, and on a busy one the first waits for it most of the time.
    Larger images get one thread per core. Returns the number in force.
    """
    small = max(dataset.images.shape[2:]) <= SMALL
    if count is None and small and not os.environ.get(VARIABLE, "").strip():
        count = 1
    return set_num_threads(count)


@lru_cache(maxsize=1)
def _whole_folder(root: Path, size: int) -> Dataset:
    """Kept, because the training and the test set come from one reading."""
    return data.image_folder(root, size)
