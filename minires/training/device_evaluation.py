"""Evaluation of a model on a set that stays on its device, between epochs of training."""

from __future__ import annotations

import time
from typing import Any

import numpy as np

from minires import functional as F
from minires.autograd import Tensor, no_grad
from minires.data import Dataset
from minires.kernels.arrays import to_host
from minires.kernels.cuda.graph import Workplace
from minires.training.evaluate import Evaluation, check_logits, evaluation_mode, summarised
from minires.training.graphs import GraphedStep
from minires.training.normalization import Normalization
from minires.training.precision import MixedPrecision, kernels_of
from minires.training.resident import resident_set


class DeviceEvaluation:
    """What `evaluate` measures, with images normalised on the device and answers kept there.

    batch: images at a time. graph: whether batches that repeat become CUDA graphs.
    """

    def __init__(
        self,
        mixed: MixedPrecision,
        dataset: Dataset,
        normalization: Normalization,
        place: Workplace,
        batch: int,
        graph: bool,
    ) -> None:
        self.mixed, self.dataset, self.place, self.batch = mixed, dataset, place, batch
        draws = np.zeros((len(dataset), 4), np.int32)
        draws[:, 0] = np.arange(len(dataset))  # every image as it is, in order
        with place:
            self.set = resident_set(place, dataset, normalization)
            self.draws = place.xp.asarray(draws)
            self.cursor = place.xp.zeros(1, np.int64)
            self.losses = place.xp.empty(len(dataset), np.float32)
            self.answers = place.xp.empty(len(dataset), np.int64)
        self.graphed = GraphedStep(self._answer, mixed.model, place) if graph else None

    def __call__(self) -> Evaluation:
        """The model as it is now."""
        start = time.perf_counter()
        with (
            evaluation_mode(self.mixed.model),
            no_grad(),
            self.place,
            kernels_of(self.mixed.precision),
        ):
            self.cursor.fill(0)
            for first in range(0, len(self.dataset), self.batch):
                n = min(self.batch, len(self.dataset) - first)
                losses, answers = (self.graphed or self._answer)(n=n)
                self.losses[first : first + n] = losses
                self.answers[first : first + n] = answers
            found = to_host(self.losses), to_host(self.answers)
        return summarised(self.dataset, *found, self.dataset.labels, start)

    def _answer(self, n: int) -> tuple[Any, Any]:
        """(losses, answers) of the next n images."""
        x, y = self.set.batch(self.draws, self.cursor, n, np.float32)
        self.cursor += n
        logits = self.mixed(Tensor._wrap(x))
        check_logits("evaluate", logits, n, self.dataset)
        losses = F.cross_entropy(logits, Tensor._wrap(y), reduction="none")
        return losses._data, logits._data.argmax(axis=1)
