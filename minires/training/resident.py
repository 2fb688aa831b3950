"""Training batches made on the device, from a set that lies in its memory.

What a batch costs the processor is a fraction of a millisecond, and a small net's step takes hardly
more on a good GPU. The standard augmentation (normalise, pad, crop, mirror) is a kernel instead,
and the host only draws the random numbers, those of an epoch while the one before runs: the images
are the same, bit for bit, as the loader's.
"""

from __future__ import annotations

from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import numpy as np

from minires.data import Dataset, Loader
from minires.data._layout import to_nhwc
from minires.data.transforms import RandomCrop, RandomHorizontalFlip
from minires.kernels.cuda.batch import ResidentSet
from minires.kernels.cuda.graph import Workplace
from minires.training.normalization import Normalization
from minires.training.recipes import Recipe

SHARE = 0.25
"""Of the device's free memory: what a set may take at most to be kept there."""


def obstacle(recipe: Recipe, loader: Loader, place: Workplace) -> str | None:
    """Why batches cannot be made on the device, or None if they can."""
    if recipe.resized_crop is not None:
        return "images are resized"
    if recipe.color_pca:
        return "colours are shifted"
    if not fits(loader.dataset, place):
        return f"the set takes more than {SHARE:.0%} of the device's free memory"
    return None


def fits(dataset: Dataset, place: Workplace) -> bool:
    """Whether a set may be kept on the device."""
    with place:
        free, _ = place.cuda.runtime.memGetInfo()
    return dataset.images.nbytes <= SHARE * free


def draw_epoch(loader: Loader, recipe: Recipe, epoch: int) -> np.ndarray:
    """int32 (N, 4): of every image of an epoch, in order: its number, top, left, mirrored.

    Drawn as the transforms of `recipe.augmentation` draw, from the same generators.
    """
    H, W = loader.dataset.images.shape[2:]
    crop, flip = RandomCrop((H, W), recipe.crop_padding), RandomHorizontalFlip()
    parts = []
    for picked, generator in loader.picks(epoch):
        n = len(picked)
        draws = np.zeros((n, 4), np.int32)
        draws[:, 0] = picked
        if recipe.crop_padding:
            draws[:, 1], draws[:, 2] = crop.draw(n, (H, W), generator)
        if recipe.flip:
            draws[:, 3] = flip.draw(n, generator)
        parts.append(draws)
    return np.concatenate(parts)


def resident_set(
    place: Workplace, dataset: Dataset, normalization: Normalization, padding: int = 0
) -> ResidentSet:
    """A set copied to the device, in the layout of the kernel."""
    mean, std = normalization.mean, normalization.std
    if std is None:
        mean = np.ascontiguousarray(mean.transpose(1, 2, 0))
    images = np.ascontiguousarray(to_nhwc(dataset.images))
    return ResidentSet(place.device, images, dataset.labels, mean, std, padding)


class ResidentBatches:
    """The batches of a loader, made where they are used."""

    def __init__(
        self, loader: Loader, recipe: Recipe, normalization: Normalization, place: Workplace
    ) -> None:
        self.loader, self.recipe, self.place = loader, recipe, place
        with place:
            self.set = resident_set(place, loader.dataset, normalization, recipe.crop_padding)
            self.draws = place.xp.zeros((len(loader.dataset), 4), np.int32)
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="minires-draws")
        self._next: tuple[int, Future[np.ndarray]] | None = None

    def begin_epoch(self) -> list[int]:
        """Bring the loader's epoch to the device; returns the sizes of its batches."""
        epoch = self.loader.epoch
        if self._next is not None and self._next[0] == epoch:
            draws = self._next[1].result()
        else:
            draws = draw_epoch(self.loader, self.recipe, epoch)
        self.draws[: len(draws)].set(draws)
        ahead = self._thread.submit(draw_epoch, self.loader, self.recipe, epoch + 1)
        self._next = epoch + 1, ahead
        sizes = [self.loader.batch_size] * len(self.loader)
        sizes[-1] = len(draws) - sum(sizes[:-1])
        return sizes

    def batch(self, cursor: Any, n: int) -> tuple[Any, Any]:
        """The n images from the cursor on: (x, y) on the device."""
        return self.set.batch(self.draws, cursor, n, np.float32)
