"""Normalisation: what is subtracted from the images, and kept with the model that expects it."""

from __future__ import annotations

import json
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from minires._names import unknown
from minires.data import Dataset, channel_stats, per_pixel_mean, transforms

KINDS = ("pixel_mean", "channels")


@dataclass(frozen=True)
class Normalization:
    """Images scaled to 0..1, minus `mean`, divided by `std` (None: not divided).

    mean: float32, per channel (C,) if there is a `std`, else per pixel (C, H, W). std: (C,).
    """

    mean: NDArray[np.float32]
    std: NDArray[np.float32] | None = None

    @classmethod
    def fit(cls, kind: str, dataset: Dataset) -> Normalization:
        """From the images of a training set; `kind` is one of `KINDS`."""
        if kind == "pixel_mean":
            return cls(per_pixel_mean(dataset))
        if kind == "channels":
            return cls(*channel_stats(dataset))
        raise ValueError(unknown("normalization", kind, KINDS))

    def transform(self) -> transforms.Transform:
        """uint8 images in, normalised float32 images out."""
        step: transforms.Transform
        if self.std is None:
            step = transforms.SubtractMean(self.mean)
        else:
            step = transforms.Normalize(self.mean, self.std)
        return transforms.Compose([transforms.ToFloat(), step])

    def to_json(self) -> str:
        """As text; `from_json` gives back the same bits."""
        return json.dumps(
            {
                "mean": self.mean.tolist(),
                "std": None if self.std is None else self.std.tolist(),
            }
        )

    @classmethod
    def from_json(cls, text: str) -> Normalization:
        values = json.loads(text)
        std = values["std"]
        return cls(
            np.asarray(values["mean"], np.float32),
            None if std is None else np.asarray(std, np.float32),
        )
