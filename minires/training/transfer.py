"""Batches on their way to a CUDA device, while it computes on the ones before."""

from __future__ import annotations

import queue
from collections.abc import Iterator
from typing import Any

import numpy as np

from minires.data import Loader
from minires.data.loader import prefetched
from minires.kernels.cuda.graph import Workplace

AHEAD = 2
"""Batches that are prepared or on their way while one is computed on."""


class _Slot:
    """Room for a batch on both sides.

    copied: the device has the batch, and the host's memory may be written again.
    used: the device is done with the batch, and its own memory may be.
    """

    def __init__(self, place: Workplace, shape: tuple[int, ...]) -> None:
        self.host_x = place.pinned(shape, np.float32)
        self.host_y = place.pinned(shape[:1], np.int64)
        self.x = place.xp.empty(shape, np.float32)
        self.y = place.xp.empty(shape[:1], np.int64)
        self.copied = place.cuda.Event(disable_timing=True)
        self.used = place.cuda.Event(disable_timing=True)


class Transfer:
    """Iterates over a loader's batches as arrays of a device.

        for x, y in Transfer(loader, place):    # x float32 (N, C, H, W) channels last, y int64
            ...                                 # inside `with place:`

    A thread prepares batches in pinned memory and copies them on a stream of their own; the
    computing stream waits for the copy of the batch that it is given, never the host. A batch's
    memory is used again once the next one has been asked for.
    """

    def __init__(self, loader: Loader, place: Workplace) -> None:
        self.loader, self.place = loader, place
        with place:
            self.stream = place.cuda.Stream(non_blocking=True)
        self._slots: list[_Slot] = []

    def __len__(self) -> int:
        return len(self.loader)

    def __iter__(self) -> Iterator[tuple[Any, Any]]:
        free: queue.Queue[_Slot | None] = queue.Queue()
        sent = prefetched(self._sent(free), AHEAD)
        try:
            for slot, n in sent:
                self.place.stream.wait_event(slot.copied)
                try:
                    yield slot.x[:n].transpose(0, 3, 1, 2), slot.y[:n]
                finally:
                    self.place.stream.record(slot.used)
                free.put(slot)
        finally:
            free.put(None)  # the thread may be waiting for a slot
            sent.close()

    def _sent(self, free: queue.Queue[_Slot | None]) -> Iterator[tuple[_Slot, int]]:
        """Batches whose copies have begun, with their sizes. Runs in the loader's thread."""
        slots = list(self._slots)
        for x, y in self.loader.batches():
            if len(slots) > 0:
                slot = slots.pop()
            elif len(self._slots) < AHEAD + 2:
                most = min(self.loader.batch_size, len(self.loader.dataset))
                shape = most, *x.shape[2:], x.shape[1]
                with self.place.cuda.Device(self.place.number):
                    slot = _Slot(self.place, shape)
                self._slots.append(slot)
            else:
                freed = free.get()
                if freed is None:
                    return
                slot = freed
            n = len(y)
            slot.copied.synchronize()
            slot.host_x[:n], slot.host_y[:n] = x.transpose(0, 2, 3, 1), y
            with self.place.cuda.Device(self.place.number):
                self.stream.wait_event(slot.used)
                slot.x[:n].set(slot.host_x[:n], stream=self.stream)
                slot.y[:n].set(slot.host_y[:n], stream=self.stream)
                self.stream.record(slot.copied)
            yield slot, n
