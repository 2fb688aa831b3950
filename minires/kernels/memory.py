"""Large arrays in memory that is used again instead of going back to the system.

Memory fresh from the system has to be cleared page by page when it is first touched, which costs
as much as computing on it: a training step needs the same few hundred megabytes every time. So
large arrays come from here. An array's memory returns to the pool when the array and its last view
are gone, and the next array of about that size lives in the same place.

    x = memory.empty((N, H, W, C), np.float32)
    memory.statistics()         # bytes in use now, at most so far, and taken from the system
    memory.release()            # give back what nobody uses

Free memory is kept by address: neighbours are joined, and a request takes the smallest piece that
holds it. It all lies in one range of addresses if the system allows, half as large as the machine's
memory, of which only pages that were written to take any: so the end of a smaller range wastes
nothing, and the pool grows to little more than the most that was ever in use at one time.

A training step asks for the same sizes in the same order as the one before, and where the free
pieces are equal, so is what becomes of them. So the pool keeps what was asked last time in each
state of the free memory, and what came of it (`_State`): looking there is all that a request or a
return then takes. Python that works it out costs 20 us and more in a step, whose kernels leave
nothing of it in the caches.

Arrays start at whole cache lines, so that no vector straddles two; and sizes that are powers of
two, which networks are made of, are laid out at changing offsets, because addresses that agree in
their last 12 bits compete for the same places of the first-level cache.
"""

from __future__ import annotations

import ctypes
import math
import mmap
import os
import sys
import threading
from bisect import bisect_left, insort
from collections import deque
from dataclasses import dataclass
from typing import Any

import numpy as np

LINE = 64  # bytes: a cache line, and the widest vector
SMALLEST = 1 << 13  # bytes: below it whole pages would be mostly waste
PRIVATE = {"flags": mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS} if hasattr(mmap, "MAP_PRIVATE") else {}
"""Pages of our own: of memory that could be shared, Linux makes no large pages."""
STATES = 1 << 14  # to remember: a step of ResNet-50 passes 550
SEGMENT = 1 << 28  # bytes of addresses asked from the system at a time, at least


@dataclass(frozen=True)
class MemoryStatistics:
    """Bytes of pooled memory: in arrays now, and at most in arrays since the last reset.

    reserved: what the pool holds of the system's memory: up to the highest place that was lent.
    """

    in_use: int
    high_water: int
    reserved: int


class _Lease(ctypes.c_char * (sys.maxsize >> 1)):  # type: ignore[misc]
    """A piece of the pool while an array looks at it; NumPy keeps it alive with the array.

    As a C type, with no end, it is memory to NumPy: an array of it takes a third of the time that
    one takes through `__array_interface__`.
    """

    __slots__ = ("piece", "returned")
    piece: tuple[int, int]  # its address and size
    returned: deque[tuple[int, int]]  # the pool's

    def __del__(self) -> None:
        # Maybe inside a collection that started while the pool was locked: only leave a note.
        self.returned.append(self.piece)


class _State:
    """Which memory is free, and what was done there before.

    free: the pieces, (size, address), sorted. in_use: bytes of arrays.
    lent: by size, the piece that a request of it got, and the state after that.
    returned, taken: the piece that came back next, the last time, and the state after that.
    """

    __slots__ = ("free", "in_use", "lent", "returned", "taken")
    taken: _State

    def __init__(self, free: tuple[tuple[int, int], ...], in_use: int) -> None:
        self.free, self.in_use = free, in_use
        self.lent: dict[int, tuple[tuple[int, int], _State]] = {}
        self.returned: tuple[int, int] | None = None


def _plenty() -> int:
    """Half the machine's memory in bytes, where addresses that nobody writes to cost nothing."""
    if not hasattr(os, "sysconf"):  # Windows counts them all
        return SEGMENT
    physical = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return max(SEGMENT, physical // 2 // SEGMENT * SEGMENT)


class Pool:
    """Memory taken from the system in segments, lent out in pieces. Safe to use from threads.

    segment: bytes of addresses to ask for at a time; less where the system refuses.
    """

    def __init__(self, segment: int | None = None) -> None:
        self.segment = _plenty() if segment is None else segment
        self.returned: deque[tuple[int, int]] = deque()
        self._lock = threading.Lock()
        self._segments: dict[int, tuple[mmap.mmap, int]] = {}  # by address: the map and its size
        self._reached: dict[int, int] = {}  # by a segment's address: bytes up to the highest lent
        # The free pieces of one state, as they are looked for.
        self._by_size: list[tuple[int, int]] = []  # (size, address), sorted
        self._starts: dict[int, int] = {}  # address -> size
        self._ends: dict[int, int] = {}  # end -> address
        self._states: dict[tuple[tuple[int, int], ...], _State] = {}  # those met, by what is free
        self._state = self._tabled = self._known()  # now, and the one of the tables
        self._high_water = 0

    def empty(self, shape: int | tuple[int, ...], dtype: Any) -> Any:
        """An array with arbitrary contents, contiguous, starting at a cache line."""
        dtype = np.dtype(dtype)
        shape = shape if isinstance(shape, tuple) else (shape,)
        size = math.prod(shape) * dtype.itemsize
        if size < SMALLEST:
            raw = np.empty(size + LINE, np.uint8)
            start = -ctypes.addressof(ctypes.c_char.from_buffer(raw)) % LINE
            return np.ndarray(shape, dtype, raw, start)
        # A line more than whole pages: arrays of equal size start at different offsets in theirs.
        size = -(-size // 4096) * 4096 + LINE
        with self._lock:
            piece = self.returned.pop() if self.returned else (0, 0)
            if piece[1] != size:  # else one layer's array goes, the next one's of its size comes
                if piece[1]:
                    self.returned.append(piece)
                state = self._collect()
                piece, self._state = state.lent.get(size) or self._lend(state, size)
                in_use = self._state.in_use
                if in_use > self._high_water:
                    self._high_water = in_use
        lease = _Lease.from_address(piece[0])
        lease.piece, lease.returned = piece, self.returned
        return np.ndarray(shape, dtype, lease)

    def statistics(self) -> MemoryStatistics:
        """How much is in use."""
        with self._lock:
            in_use = self._collect().in_use
            return MemoryStatistics(in_use, self._high_water, sum(self._reached.values()))

    def reset_high_water(self) -> None:
        """Count the most in use from here on."""
        with self._lock:
            self._high_water = self._collect().in_use

    def release(self) -> None:
        """Give the memory in which no array lives back to the system."""
        with self._lock:
            self._tabulate(self._collect())
            for address, (segment, size) in list(self._segments.items()):
                if self._starts.get(address) == size:
                    self._forget(address, size)
                    del self._segments[address], self._reached[address]
                    segment.close()
                else:
                    self._reached[address] = self._drop_free(address, segment, size)
            self._states.clear()  # what is reached, and where segments are, has changed
            self._state = self._known()

    def _drop_free(self, address: int, segment: mmap.mmap, size: int) -> int:
        """Let go of a segment's free pages; returns the bytes up to the highest piece in use."""
        highest = size
        for start, length in self._starts.items():
            if address <= start < address + size:
                first = -(-(start - address) // mmap.PAGESIZE) * mmap.PAGESIZE
                last = (start + length - address) // mmap.PAGESIZE * mmap.PAGESIZE
                if first < last and hasattr(mmap, "MADV_DONTNEED"):
                    segment.madvise(mmap.MADV_DONTNEED, first, last - first)
                if start + length == address + size:
                    highest = start - address
        return highest

    def _lend(self, state: _State, size: int) -> tuple[tuple[int, int], _State]:
        """What a request in this state gets, and the state after it; noted there."""
        self._tabulate(state)
        at = bisect_left(self._by_size, (size, 0))
        if at == len(self._by_size):
            self._grow(size)
            at = bisect_left(self._by_size, (size, 0))
        free, address = self._by_size[at]
        self._forget(address, free)
        if free > size:
            self._remember(address + size, free - size)
        for start, (_, length) in self._segments.items():
            if start <= address < start + length:
                self._reached[start] = max(self._reached[start], address + size - start)
        lent = state.lent[size] = (address, size), self._known()
        return lent

    def _grow(self, size: int) -> None:
        needed = -(-size // SEGMENT) * SEGMENT
        wanted = max(self.segment, needed)
        while True:
            try:
                segment = mmap.mmap(-1, wanted, **PRIVATE)
                break
            except OSError:
                if wanted == needed:
                    raise MemoryError(
                        f"the system has no {size:,} bytes for an array; the pool holds "
                        f"{self._state.in_use:,} in arrays that are in use. Make the batch smaller"
                    ) from None
                wanted = max(wanted // 2 // SEGMENT * SEGMENT, needed)
        if hasattr(mmap, "MADV_HUGEPAGE"):
            segment.madvise(mmap.MADV_HUGEPAGE)
        # An address taken from a view would keep the map from being closed; this one does not.
        address = np.frombuffer(segment, np.uint8).ctypes.data
        self._segments[address], self._reached[address] = (segment, wanted), 0
        self._remember(address, wanted)
        self._states.clear()

    def _collect(self) -> _State:
        """The state once what was returned is free again."""
        state = self._state
        while self.returned:
            piece = self.returned.popleft()
            if state.returned != piece:
                self._take_back(state, piece)
            state = state.taken
        self._state = state
        return state

    def _take_back(self, state: _State, piece: tuple[int, int]) -> None:
        """Join a piece with its free neighbours in the same segment; note that in the state."""
        self._tabulate(state)
        address, size = piece
        before = self._ends.get(address)
        if before is not None and address not in self._segments:
            length = self._starts[before]
            self._forget(before, length)
            address, size = before, size + length
        after = address + size
        if after in self._starts and after not in self._segments:
            length = self._starts[after]
            self._forget(after, length)
            size += length
        self._remember(address, size)
        state.returned, state.taken = piece, self._known()

    def _known(self) -> _State:
        """The state in which what the tables say is free."""
        free = tuple(self._by_size)
        state = self._states.get(free)
        if state is None:
            if len(self._states) >= STATES:
                self._states.clear()
            held = sum(size for _, size in self._segments.values())
            state = self._states[free] = _State(free, held - sum(size for size, _ in free))
        self._tabled = state
        return state

    def _tabulate(self, state: _State) -> None:
        """Let the tables say what is free in this state."""
        if self._tabled is not state:
            self._by_size = list(state.free)
            self._starts = {address: size for size, address in state.free}
            self._ends = {address + size: address for size, address in state.free}
            self._tabled = state

    def _remember(self, address: int, size: int) -> None:
        self._starts[address] = size
        self._ends[address + size] = address
        insort(self._by_size, (size, address))

    def _forget(self, address: int, size: int) -> None:
        del self._starts[address]
        del self._ends[address + size]
        del self._by_size[bisect_left(self._by_size, (size, address))]


_pool = Pool()
empty = _pool.empty
statistics = _pool.statistics
reset_high_water = _pool.reset_high_water
release = _pool.release


def empty_like(array: Any) -> Any:
    """An array of the shape and dtype of `array`, contiguous, with arbitrary contents."""
    return empty(array.shape, array.dtype)


def zeros(shape: int | tuple[int, ...], dtype: Any) -> Any:
    """The same, cleared."""
    array = empty(shape, dtype)
    array.fill(0)
    return array
