"""Handwritten digits that come with the package: 1,797 images of 8x8, enough for a first net."""

from __future__ import annotations

from importlib import resources

import numpy as np

from minires._names import unknown
from minires.data.dataset import Dataset


def digits(split: str = "train") -> Dataset:
    """The UCI optical recognition of handwritten digits images, (N, 1, 8, 8), classes "0" to "9".

    split: "train" (1,437 images), "test" (360) or "all" (1,797, in the source's order). The split
        is stored with the images and has the same share of each digit on both sides.

    The source counts ink in steps of 1/16; its 0..16 is scaled here to uint8 0..255, white on
    black. Source, licence (CC BY 4.0) and how the file was made: README.md beside this module.

    Raises ValueError for another split.
    """
    masks = {"train": False, "test": True}
    if split != "all" and split not in masks:
        raise ValueError(unknown("split of digits", split, [*masks, "all"]))
    with (
        resources.files(__name__).joinpath("optdigits.npz").open("rb") as file,
        np.load(file) as stored,
    ):
        ink, labels, is_test = stored["images"], stored["labels"], stored["is_test"]
    images = ((ink.astype(np.uint16) * 255 + 8) // 16).astype(np.uint8)[:, np.newaxis]
    everything = Dataset(images, labels, [str(digit) for digit in range(10)], "digits", split)
    return everything if split == "all" else everything.subset(is_test == masks[split])
