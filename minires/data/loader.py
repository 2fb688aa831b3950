"""Batches of a dataset, in an order and with an augmentation that depend on seed and epoch only."""

from __future__ import annotations

import operator
import queue
import sys
import threading
from collections.abc import Generator, Iterator
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from minires.data._layout import to_nchw, to_nhwc
from minires.data.dataset import Dataset
from minires.data.transforms import ToFloat, Transform

Batch = tuple[NDArray[np.float32], NDArray[np.int64]]
T = TypeVar("T")


class Loader:
    """Iterates over a dataset in batches (x float32 (N, C, H, W), y int64 (N,)).

    batch_size: images in a batch; the last batch has what is left, or is left out (drop_last).
    shuffle: a new order in every epoch, instead of the dataset's.
    transform: applied to each batch of uint8 images, as `transform(images, rng)`; it must give
        float32. None means `transforms.ToFloat()`.
    seed: the order of epoch e is drawn from (seed, e), the augmentation of its batch b from
        (seed, e, b). Nothing else matters: not `prefetch`, nor what was iterated before. To resume
        a run, set the epoch.
    prefetch: batches prepared ahead of time by a background thread; 0 prepares each when asked.

    Iterating does not change the epoch: `for x, y in loader` gives the same batches again until
    `set_epoch` is called, once per epoch, by the training loop. Leaving the loop early ends the
    thread; an error in the transform is raised in the loop. x has channels-last memory.

    Raises ValueError for an empty dataset, sizes below 1, or drop_last with no full batch; while
    iterating, TypeError if the transform does not give float32 and ValueError if it changes the
    number of images.
    """

    def __init__(
        self,
        dataset: Dataset,
        batch_size: int,
        shuffle: bool = False,
        drop_last: bool = False,
        transform: Transform | None = None,
        seed: int = 0,
        prefetch: int = 2,
    ) -> None:
        self.dataset = dataset
        self.batch_size = _at_least("batch_size", batch_size, 1)
        self.shuffle = shuffle
        self.drop_last = drop_last
        self.transform = ToFloat() if transform is None else transform
        self.seed = _at_least("seed", seed, 0)
        self.prefetch = _at_least("prefetch", prefetch, 0)
        self.epoch = 0
        if len(dataset) == 0:
            raise ValueError(f"Loader: nothing to load: {dataset!r}")
        if len(self) == 0:
            raise ValueError(
                f"Loader: batch_size {batch_size} with drop_last leaves no batch of {dataset!r}. "
                "Use a smaller batch_size or drop_last=False"
            )

    def __len__(self) -> int:
        """Number of batches in an epoch."""
        whole, rest = divmod(len(self.dataset), self.batch_size)
        return whole + (rest > 0 and not self.drop_last)

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch whose order and augmentation the next iteration has; the first is 0."""
        self.epoch = _at_least("epoch", epoch, 0)

    def __iter__(self) -> Iterator[Batch]:
        batches = self.batches()
        return prefetched(batches, self.prefetch) if self.prefetch else batches

    def batches(self) -> Iterator[Batch]:
        """The same batches, each prepared when it is asked for, by whoever asks."""
        return self._batches(self.epoch)

    def _batches(self, epoch: int) -> Iterator[Batch]:
        images = to_nhwc(self.dataset.images)
        for picked, generator in self.picks(epoch):
            x = self.transform(to_nchw(images[picked]), generator)
            if x.dtype != np.float32:
                raise TypeError(f"Loader: {self.transform!r} gives {x.dtype}, expected float32")
            if len(x) != len(picked):
                raise ValueError(
                    f"Loader: {self.transform!r} gives {len(x)} images for {len(picked)}"
                )
            yield x, self.dataset.labels[picked]

    def picks(self, epoch: int) -> Iterator[tuple[NDArray[np.int64], np.random.Generator]]:
        """Of each batch of an epoch: which images it has, and what its augmentation draws from."""
        order = np.arange(len(self.dataset))
        if self.shuffle:
            order = self._generator(epoch, 0).permutation(order)
        for b in range(len(self)):
            picked = order[b * self.batch_size : (b + 1) * self.batch_size]
            yield picked, self._generator(epoch, b + 1)

    def _generator(self, epoch: int, stream: int) -> np.random.Generator:
        seed = np.random.SeedSequence(self.seed, spawn_key=(epoch, stream))
        return np.random.default_rng(seed)

    def __repr__(self) -> str:
        return (
            f"Loader({self.dataset!r}, batch_size={self.batch_size}, shuffle={self.shuffle}, "
            f"drop_last={self.drop_last}, transform={self.transform!r}, seed={self.seed})"
        )


def _at_least(name: str, value: int, least: int) -> int:
    try:
        value = operator.index(value)
    except TypeError:
        raise TypeError(f"Loader: {name} must be an integer, got {value!r}") from None
    if value < least:
        raise ValueError(f"Loader: {name} must be at least {least}, got {value}")
    return value


@dataclass
class _End:
    """Last thing in the queue: the batches are over, by an error or not."""

    error: BaseException | None


def prefetched(batches: Iterator[T], ahead: int) -> Generator[T, None, None]:
    """The same batches, prepared by a thread that is at most `ahead` of the reader."""
    ready: queue.Queue[T | _End] = queue.Queue(maxsize=ahead)
    stop = threading.Event()

    def work() -> None:
        end = _End(None)
        try:
            for batch in batches:
                ready.put(batch)
                if stop.is_set():
                    return
        except BaseException as error:  # handed to the reader, who raises it
            end.error = error
        ready.put(end)

    # A daemon, so that a half-read iterator kept alive somewhere cannot hold up the interpreter.
    thread = threading.Thread(target=work, name="minires-loader", daemon=True)
    thread.start()
    try:
        while not isinstance(item := ready.get(), _End):
            yield item
        if item.error is not None:
            raise item.error
    finally:
        stop.set()
        # The thread may be waiting for room. It puts at most one more item after this, for which
        # emptying the queue makes room.
        while not ready.empty():
            ready.get_nowait()
        # When the interpreter shuts down the thread is gone, and Python 3.14 refuses to join it.
        if not sys.is_finalizing():
            thread.join()
