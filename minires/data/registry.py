"""Data sets by name, for the command line."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

from minires._names import unknown
from minires.data.cifar import cifar10, cifar100
from minires.data.dataset import Dataset
from minires.data.folder import image_folder
from minires.data.optdigits import digits

StrPath = str | os.PathLike[str]


def _digits(data_dir: StrPath | None, split: str) -> Dataset:
    return digits(split)  # they come with the package


def _image_folder(data_dir: StrPath, split: str | None, **options: Any) -> Dataset:
    return image_folder(data_dir, split=split, **options)


_NEEDS_FOLDER: dict[str, Callable[..., Dataset]] = {
    "cifar10": cifar10,
    "cifar100": cifar100,
    "image_folder": _image_folder,
}
_DATASETS: dict[str, Callable[..., Dataset]] = {"digits": _digits, **_NEEDS_FOLDER}


def list_datasets() -> list[str]:
    """Names that `load` knows."""
    return sorted(_DATASETS)


def load(
    name: str, split: str | None = "train", data_dir: StrPath | None = None, **options: Any
) -> Dataset:
    """A data set by name.

    data_dir: where its files are; "digits" come with the package and need none.
    options: as in the set's own function, e.g. `download=True` (cifar10, cifar100), `size=64`
        (image_folder).

    Raises ValueError for an unknown name or split, or a missing data_dir; TypeError for an option
    that the set does not have.
    """
    if name not in _DATASETS:
        raise ValueError(unknown("data set", name, _DATASETS))
    if name in _NEEDS_FOLDER and data_dir is None:
        raise ValueError(f"{name} needs data_dir, the folder with its files")
    return _DATASETS[name](data_dir, split=split, **options)
