"""Evaluation: loss and accuracy of a model on labelled images."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from minires import functional as F
from minires.autograd import Tensor, no_grad
from minires.data import Dataset, Loader
from minires.data.transforms import Transform
from minires.kernels.arrays import to_host
from minires.nn import Module
from minires.training.precision import MixedPrecision, check_precision, kernels_of

BATCH = 64
"""Images that are evaluated at a time: few enough that digits need no compiled kernels, and that
ImageNet's images fit in memory."""


@dataclass(frozen=True)
class Evaluation:
    """What a model does on a set.

    loss: mean cross-entropy in nats. accuracy: the share that is right, 0 to 1.
    confusion: int64 (K, K); [i, j] counts images of class i that were taken for class j.
    classes: the K names. seconds: the time it took.
    """

    loss: float
    accuracy: float
    confusion: NDArray[np.int64]
    classes: tuple[str, ...]
    seconds: float

    @property
    def images(self) -> int:
        return int(self.confusion.sum())

    @property
    def images_per_second(self) -> float:
        return self.images / self.seconds

    @property
    def class_counts(self) -> NDArray[np.int64]:
        """(K,) images per class."""
        return self.confusion.sum(axis=1)

    @property
    def class_accuracy(self) -> NDArray[np.float64]:
        """(K,) accuracy per class; NaN for a class without images."""
        counts = self.class_counts
        right = np.diag(self.confusion).astype(np.float64)
        return np.divide(right, counts, out=np.full(len(counts), np.nan), where=counts > 0)

    def mistaken_for(self, label: int) -> tuple[int, int] | None:
        """(the wrong class most often given to images of `label`, how often); None if never."""
        row = self.confusion[label].copy()
        row[label] = 0
        return (int(row.argmax()), int(row.max())) if row.any() else None


def evaluate(
    model: Module,
    dataset: Dataset,
    transform: Transform,
    *,
    batch_size: int = BATCH,
    device: str = "cpu",
    precision: str = "fp32",
) -> Evaluation:
    """Run the model in evaluation mode on every image once; modes are put back afterwards.

    transform: as given to `Loader`: uint8 images to the float32 images the model expects.
    batch_size: does not change the result, up to the rounding of matrix products.
    device: where the model is. precision: see `training.precision`.

    Raises ValueError if the set is empty, the model gives another number of classes, or the device
    lacks the precision.
    """
    check_precision(precision, device)
    if len(dataset) == 0:
        raise ValueError(f"evaluate: {dataset!r} has no images")
    losses, answers, labels = [], [], []
    start = time.perf_counter()
    loader = Loader(dataset, batch_size=batch_size, transform=transform)
    place, batches = _on(device, loader)
    call = MixedPrecision(model, precision)
    # Overflow is not hidden: it shows as a loss that is not finite.
    quiet = np.errstate(over="ignore", invalid="ignore")
    with evaluation_mode(model), no_grad(), quiet, place, kernels_of(precision):
        for x, y in batches:
            logits = call(Tensor._wrap(x))
            check_logits("evaluate", logits, len(y), dataset)
            losses.append(F.cross_entropy(logits, Tensor._wrap(y), reduction="none")._data)
            answers.append(logits._data.argmax(axis=1))
            labels.append(y.copy())
        # Read at the end, once for each batch: a device does not wait for the host in between.
        loss, answer, label = (
            np.concatenate([to_host(part) for part in parts]) for parts in (losses, answers, labels)
        )
    return summarised(dataset, loss, answer, label, start)


def check_logits(who: str, logits: Tensor, n: int, dataset: Dataset) -> None:
    """Raise ValueError unless there is one for each class of each of n images."""
    K = len(dataset.classes)
    if logits.shape != (n, K):
        raise ValueError(
            f"{who}: the model gives {'x'.join(map(str, logits.shape))} for {n} images; "
            f"expected {n}x{K} ({K} classes of {dataset.name})"
        )


@contextmanager
def evaluation_mode(model: Module) -> Iterator[None]:
    """A block in which every module is in evaluation mode; modes are put back afterwards."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


def summarised(
    dataset: Dataset, losses: Any, answers: Any, labels: Any, start: float
) -> Evaluation:
    """From the loss, the answer and the label of every image; start: when it began."""
    K = len(dataset.classes)
    confusion = np.zeros((K, K), np.int64)
    np.add.at(confusion, (labels, answers), 1)
    return Evaluation(
        loss=float(losses.mean(dtype=np.float64)),
        accuracy=float(np.trace(confusion) / len(dataset)),
        confusion=confusion,
        classes=dataset.classes,
        seconds=time.perf_counter() - start,
    )


def _on(device: str, loader: Loader) -> tuple[AbstractContextManager[Any], Iterable[Any]]:
    """A block in which the device is the current one, and the loader's batches there."""
    if device == "cpu":
        return nullcontext(), loader
    from minires.kernels.cuda.graph import Workplace
    from minires.training.transfer import Transfer

    place = Workplace(device)
    return place, Transfer(loader, place)
