"""What an emulated device has besides arrays and kernels: a tape, streams, memory that can run out.

It behaves as CUDA does where that can go wrong. While a graph is captured, nothing runs: work is
noted, and done when the graph is launched. A copy on a side stream is done as late as events allow,
so that a missing wait, or pinned memory used again too early, shows as a wrong number. Memory is
counted, and may be given a limit.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import numpy as np

Work = Callable[[], None]


# -- graphs ----------------------------------------------------------------------------------------


class Tape:
    """The work of a graph, in order."""

    def __init__(self) -> None:
        self.work: list[Work] = []

    def launch(self) -> None:
        with np.errstate(all="ignore"):
            for work in self.work:
                work()


_tape: Tape | None = None


def computed(compute: Callable[[], Any], *inputs: np.ndarray) -> np.ndarray:
    """A result on the device. While a graph is captured it is arbitrary, and each launch writes it.

    inputs: memory that it may be a view of, which needs no work.
    """
    with np.errstate(all="ignore"):
        result = np.asarray(compute())
    tape = _tape
    if tape is not None and not any(np.may_share_memory(result, i) for i in inputs):

        def again() -> None:
            result[...] = compute()

        tape.work.append(again)
    return result


def changed(change: Work) -> None:
    """Work that writes into memory that exists: done now, or noted."""
    if _tape is None:
        with np.errstate(all="ignore"):
            change()
    else:
        _tape.work.append(change)


def waits() -> None:
    """What makes the host wait for the device. Raises RuntimeError while a graph is captured."""
    if _tape is not None:
        raise RuntimeError(
            "cudaErrorStreamCaptureUnsupported: operation not permitted when stream is capturing"
        )


# -- streams ---------------------------------------------------------------------------------------


class Event:
    """A place in the work of a stream."""

    def __init__(self, block: bool = False, disable_timing: bool = False) -> None:
        self.place: tuple[Stream, int] | None = None

    def record(self, stream: Stream) -> None:
        stream.record(self)

    def synchronize(self) -> None:
        if self.place is not None:
            stream, count = self.place
            stream.do(count)


class Stream:
    """Copies in order, done as late as possible. What is no copy is done at once, as if the one
    stream that computes had no work waiting. Threads may use one at once, as CUDA's."""

    def __init__(self, non_blocking: bool = False) -> None:
        self.waiting: list[Work] = []
        self.done = 0  # pieces of work
        self.lock = threading.RLock()

    def add(self, work: Work) -> None:
        with self.lock:
            self.waiting.append(work)

    def do(self, count: int) -> None:
        """Everything up to the piece of this number."""
        with self.lock:
            while self.done < count:
                self.waiting.pop(0)()
                self.done += 1

    def record(self, event: Event) -> Event:
        with self.lock:
            event.place = self, self.done + len(self.waiting)
        return event

    def wait_event(self, event: Event) -> None:
        if event.place is not None and event.place[0] is not self:
            event.synchronize()

    def synchronize(self) -> None:
        waits()
        with self.lock:
            self.do(self.done + len(self.waiting))

    def begin_capture(self) -> None:
        global _tape
        _tape = Tape()

    def end_capture(self) -> Tape:
        global _tape
        tape, _tape = _tape, None
        if tape is None:
            raise RuntimeError("cudaErrorIllegalState: nothing is being captured")
        return tape

    def __enter__(self) -> Stream:
        return self

    def __exit__(self, *exc: object) -> None: ...


class PinnedMemoryPool:
    """Memory of the host that copies may read while the host goes on."""

    def malloc(self, size: int) -> Any:
        return bytearray(size)

    def free_all_blocks(self) -> None: ...


pinned_pool = PinnedMemoryPool()
_pinned_allocator: Callable[[int], Any] = pinned_pool.malloc


def set_pinned_memory_allocator(allocator: Callable[[int], Any]) -> None:
    global _pinned_allocator
    _pinned_allocator = allocator


def alloc_pinned_memory(size: int) -> Any:
    return _pinned_allocator(size)


# -- memory ----------------------------------------------------------------------------------------

TOTAL = 1 << 40
"""Bytes of a device without a limit."""


class OutOfMemoryError(MemoryError):
    """As cupy.cuda.memory.OutOfMemoryError."""


class MemoryHook:
    """Told of what is taken and given back, as cupy.cuda.MemoryHook is."""

    name = "MemoryHook"

    def __enter__(self) -> MemoryHook:
        _hooks[self.name] = self
        return self

    def __exit__(self, *exc: object) -> None:
        del _hooks[self.name]

    def malloc_postprocess(self, **facts: int) -> None: ...

    def free_postprocess(self, **facts: int) -> None: ...


_hooks: dict[str, MemoryHook] = {}


class Memory:
    """The memory of an emulated device, in bytes. limit: what there is, or None for no end."""

    def __init__(self, number: int) -> None:
        self.number, self.in_use = number, 0
        self.limit: int | None = None

    def take(self, size: int) -> int:
        """The size itself. Raises OutOfMemoryError if there is not so much left."""
        if self.limit is not None and self.in_use + size > self.limit:
            raise OutOfMemoryError(
                f"Out of memory allocating {size:,} bytes (allocated so far: {self.in_use:,} bytes)"
            )
        self.in_use += size
        facts = {"device_id": self.number, "mem_size": size, "mem_ptr": 1, "pmem_id": 1}
        for hook in _hooks.values():
            hook.malloc_postprocess(size=size, **facts)
        return size

    def give_back(self, size: int) -> None:
        self.in_use -= size
        for hook in _hooks.values():
            hook.free_postprocess(device_id=self.number, mem_size=size, mem_ptr=1, pmem_id=1)


@cache
def memory(number: int) -> Memory:
    """Of the device of this number."""
    return Memory(number)


class MemoryPool:
    """A pool: here all memory is the process's, and what is freed is gone."""

    def malloc(self, size: int) -> Any:
        raise RuntimeError("memory of an emulated device is made with its arrays")

    def used_bytes(self) -> int:
        return memory(0).in_use

    def free_bytes(self) -> int:
        return 0

    def free_all_blocks(self) -> None: ...


default_pool = MemoryPool()


@contextmanager
def using_allocator(allocator: Callable[[int], Any]) -> Iterator[None]:
    yield
