"""The networks and batches that are timed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

SETTINGS = {"lr": 0.01, "momentum": 0.9, "weight_decay": 1e-4}

Call = Callable[[], Any]


@dataclass(frozen=True)
class Work:
    """A network and a batch for it."""

    model: str
    batch: int
    size: int

    def images(self) -> np.ndarray:
        """(N, 3, H, W) float32, in channels-last memory."""
        rng = np.random.default_rng(0)
        shape = self.batch, self.size, self.size, 3
        return rng.standard_normal(shape, dtype=np.float32).transpose(0, 3, 1, 2)

    def labels(self) -> np.ndarray:
        return np.random.default_rng(1).integers(0, 10, self.batch)

    @property
    def arguments(self) -> list[str]:
        """For the programs that run in processes of their own."""
        return [self.model, str(self.batch), str(self.size)]

    def __str__(self) -> str:
        return f"{self.model}, batch {self.batch} at {self.size}x{self.size}"


WORK = {
    "resnet20": Work("resnet20", 128, 32),
    "resnet18": Work("resnet18", 16, 224),
    "resnet50": Work("resnet50", 8, 224),
    "resnet110": Work("resnet110", 128, 32),
}
