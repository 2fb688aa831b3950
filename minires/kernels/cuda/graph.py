"""CUDA graphs: launches recorded once and sent again as a whole.

    place = Workplace("cuda")
    with place:
        with Capture(place, pool) as capture:   # nothing runs
            y = step(x)
        capture.launch()                        # now, and as often as wanted; y is overwritten

A launch costs the host several microseconds; a graph of hundreds costs hardly more than one. What
is recorded is addresses: a replay reads what lies in the same places by then, and what was a number
of the host stays that number.

What the device cannot record is refused, so that no replay is silently wrong: an array that comes
from the host (its values now would come back at every replay), and reading a value back.

Memory made inside belongs to `pool`, which the graph keeps: nobody else writes to it between
replays. Graphs that never run at the same time may share one.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from types import TracebackType
from typing import Any, Protocol, Self

import numpy as np

from minires.kernels.arrays import parse_device
from minires.kernels.cuda import memory
from minires.kernels.cuda.launch import Device, numbered


class CaptureError(RuntimeError):
    """What was done cannot be part of a graph."""


class Graph(Protocol):
    """Recorded work, as CuPy or the emulator keeps it."""

    def launch(self) -> None: ...


_streams: dict[tuple[int, int], Any] = {}


class Workplace:
    """A CUDA device with the stream that whole steps run on.

    Inside the block, the device is the current one and its stream takes the launches: CUDA captures
    no graph on the default stream. The stream waits for work on the default one and is waited for
    by it, so that arrays made outside of the block can be used in it, and back.

    name: "cuda", "cuda:1". Raises as `to_device` does for a device that is not there.
    """

    def __init__(self, name: str) -> None:
        kind, self.number = parse_device(name)
        if kind != "cuda":
            raise ValueError(f"Workplace: a CUDA device, got {name!r}")
        self.device: Device = numbered(self.number)
        self.xp = self.device.xp
        self.cuda = self.xp.cuda
        with self.cuda.Device(self.number):
            memory.watch(self.xp)
            # One for each device: CuPy's pool gives memory back to the stream that it was made on.
            key = id(self.xp), self.number
            if key not in _streams:
                _streams[key] = self.cuda.Stream()
        self.stream = _streams[key]
        self._entered: list[Any] = []

    def __enter__(self) -> Self:
        for block in (self.cuda.Device(self.number), self.stream):
            block.__enter__()
            self._entered.append(block)
        return self

    def __exit__(self, *exc: object) -> None:
        for _ in range(2):
            self._entered.pop().__exit__(None, None, None)

    def pinned(self, shape: tuple[int, ...], dtype: Any) -> np.ndarray:
        """Memory of the host that the device reads while the host goes on."""
        dtype = np.dtype(dtype)
        count = int(np.prod(shape))
        memory = self.cuda.alloc_pinned_memory(max(1, count * dtype.itemsize))
        return np.frombuffer(memory, dtype, count).reshape(shape)


class Capture:
    """Records what is launched inside the block, on this thread; after it, `launch` does it.

    If the block raises, nothing has run and the error goes on; whoever catches it puts back what
    the block did to Python objects. It keeps what the graph reads.

    CuPy takes memory from an allocator that may be changed for the length of a block, and sends
    arrays of the host through pinned memory, whose allocator is changed likewise: asking for it is
    how a transfer is noticed. Reading back waits for the stream, which CUDA refuses.

    Raises CaptureError for a transfer, or if the device says at the end that it cannot.
    """

    graph: Graph

    def __init__(self, place: Workplace, pool: Any) -> None:
        self.place, self.pool = place, pool
        self._thread = threading.get_ident()
        self._late: list[Callable[[], None]] = []
        self._before: list[Callable[[], None]] = []

    def __enter__(self) -> Self:
        if active() is not None:
            raise CaptureError("a graph is being captured already")
        cuda = self.place.cuda
        self._memory = cuda.using_allocator(self.pool.malloc)
        self._memory.__enter__()
        cuda.set_pinned_memory_allocator(self._pinned)
        try:
            self.place.stream.begin_capture()
        except RuntimeError:
            self._leave()
            raise
        _state.capture = self
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        _state.capture = None
        try:
            self.graph = self.place.stream.end_capture()
        except RuntimeError as refused:
            if error is None:
                raise CaptureError(f"the device refuses ({refused})") from refused
        finally:
            self._leave()
        if error is None:
            for write in self._late:
                write()

    def constant(self, values: np.ndarray) -> Any:
        """An array on the device that the graph reads, written when the capture has ended."""
        table = self.place.xp.empty(values.shape, values.dtype)
        self._late.append(lambda: table.set(values))
        return table

    def before_launch(self, refresh: Callable[[], None]) -> None:
        """Do this before every launch: what the graph reads and the host decides, such as rates."""
        if refresh not in self._before:
            self._before.append(refresh)

    def launch(self) -> None:
        """Do the recorded work, after everything that was launched before."""
        for refresh in self._before:
            refresh()
        self.graph.launch()

    def _pinned(self, size: int) -> Any:
        if threading.get_ident() == self._thread:
            raise CaptureError("an array of the host is sent to the device in every step")
        return self.place.xp.get_default_pinned_memory_pool().malloc(size)

    def _leave(self) -> None:
        pool = self.place.xp.get_default_pinned_memory_pool()
        self.place.cuda.set_pinned_memory_allocator(pool.malloc)
        self._memory.__exit__(None, None, None)


class _State(threading.local):
    capture: Capture | None = None


_state = _State()


def active() -> Capture | None:
    """The capture that this thread is in, or None."""
    return _state.capture
