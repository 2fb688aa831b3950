"""Labelled images in memory, and the statistics of a set that normalisation needs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, overload

import numpy as np
from numpy.typing import NDArray

from minires.data._layout import to_nhwc

Images = NDArray[np.uint8]
Labels = NDArray[np.int64]


class Dataset:
    """Images with a label each.

    images: uint8 (N, C, H, W), 0 black to 255 full; any strides (the readers of this package give
        channels-last memory).
    labels: integers (N,), kept as int64; label k belongs to `classes[k]`.
    classes: the class names.
    name, split: what the set is called, for messages and reports.

    `dataset[i]` is (image (C, H, W), label) for an integer, and (images, labels) for a slice, an
    index array or a mask; `len(dataset)` is N. Arrays are kept, not copied.

    Raises TypeError for another dtype, ValueError for shapes that do not fit or a label without a
    class.
    """

    def __init__(
        self,
        images: Images,
        labels: NDArray[Any],
        classes: Sequence[str],
        name: str = "dataset",
        split: str = "train",
    ) -> None:
        images, labels = np.asarray(images), np.asarray(labels)
        if images.dtype != np.uint8:
            raise TypeError(f"Dataset: images must be uint8 (0 to 255), got {images.dtype}")
        if images.ndim != 4:
            raise ValueError(f"Dataset: images must be (N, C, H, W), got shape {images.shape}")
        if not np.issubdtype(labels.dtype, np.integer):
            raise TypeError(f"Dataset: labels must be integers, got {labels.dtype}")
        if labels.shape != images.shape[:1]:
            raise ValueError(
                f"Dataset: expected one label for each of {len(images)} images, got labels of "
                f"shape {labels.shape}"
            )
        wrong = np.flatnonzero((labels < 0) | (labels >= len(classes)))
        if wrong.size:
            raise ValueError(
                f"Dataset: label {labels[wrong[0]]} of image {wrong[0]} is outside 0 to "
                f"{len(classes) - 1} ({len(classes)} classes)"
            )
        self.images: Images = images
        self.labels: Labels = labels.astype(np.int64, copy=False)
        self.classes = tuple(classes)
        self.name = name
        self.split = split

    def __len__(self) -> int:
        return len(self.images)

    @overload
    def __getitem__(self, index: int) -> tuple[Images, int]: ...
    @overload
    def __getitem__(self, index: slice | Sequence[int] | NDArray[Any]) -> tuple[Images, Labels]: ...
    def __getitem__(self, index: Any) -> tuple[Images, Any]:
        labels = self.labels[index]
        return self.images[index], int(labels) if np.ndim(labels) == 0 else labels

    def subset(self, indices: slice | Sequence[int] | NDArray[Any]) -> Dataset:
        """The images at `indices` (integers, a slice, or a mask of length N), in that order."""
        picked = np.arange(len(self))[indices]
        return Dataset(
            self.images[picked], self.labels[picked], self.classes, self.name, self.split
        )

    def take(self, n: int) -> Dataset:
        """The first n images. Raises ValueError if there are fewer."""
        if not 0 <= n <= len(self):
            raise ValueError(f"take: expected 0 to {len(self)} images of {self!r}, got {n}")
        return self.subset(slice(n))

    def __repr__(self) -> str:
        n, *image = self.images.shape
        size = "x".join(map(str, image))
        return f"Dataset({self.name} {self.split}: {n} images {size}, {len(self.classes)} classes)"


def per_pixel_mean(dataset: Dataset) -> NDArray[np.float32]:
    """Mean image (C, H, W), float32, pixels scaled to 0..1 as by `transforms.ToFloat`.

    Exact up to the last rounding. The CIFAR nets of "Deep Residual Learning" (section 4.2) have
    the training set's mean image subtracted: see `transforms.SubtractMean`.
    """
    _not_empty(dataset)
    total = dataset.images.sum(axis=0, dtype=np.uint64)
    return (total / (255.0 * len(dataset))).astype(np.float32)


def channel_stats(dataset: Dataset) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """(mean, standard deviation) per channel, each float32 (C,), pixels scaled to 0..1.

    Over all pixels of all images (population, not sample, deviation); see `transforms.Normalize`.
    """
    mean, covariance = channel_moments(dataset)
    return mean.astype(np.float32), np.sqrt(np.diag(covariance)).astype(np.float32)


def channel_moments(dataset: Dataset) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """(mean (C,), covariance (C, C)) of the pixels as vectors of C channels scaled to 0..1."""
    _not_empty(dataset)
    channels = dataset.images.shape[1]
    total, products = np.zeros(channels), np.zeros((channels, channels))
    # Sums of products of bytes are whole numbers far below 2**53: float64 holds them exactly, so
    # the order in which BLAS adds them does not matter.
    for start in range(0, len(dataset), 512):
        block = to_nhwc(dataset.images[start : start + 512])
        pixels = block.reshape(-1, channels).astype(np.float64)
        total += pixels.sum(axis=0)
        products += pixels.T @ pixels
    count = dataset.images.size // channels
    mean = total / count
    return mean / 255, (products / count - np.outer(mean, mean)) / 255**2


def _not_empty(dataset: Dataset) -> None:
    if dataset.images.size == 0:
        raise ValueError(f"no statistics of an empty set: {dataset!r}")
