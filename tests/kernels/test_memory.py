"""The pool of large arrays: nobody's memory is lent twice, and what comes back is used again."""

from __future__ import annotations

import gc
import itertools
import mmap
import threading
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from minires.kernels import memory
from minires.kernels.memory import LINE, SEGMENT, Pool

BIG = 1 << 16  # float32 numbers in a pooled array of whole pages


@pytest.fixture
def pool() -> Pool:
    return Pool(SEGMENT)


@pytest.mark.parametrize("shape", [0, 5, (3, 0), (), (7, 3), (2 * BIG,), (4, BIG, 3)])
@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.int32])
def test_what_comes_is_an_ordinary_array(pool: Pool, shape: Any, dtype: Any) -> None:
    array = pool.empty(shape, dtype)
    assert array.shape == (shape if isinstance(shape, tuple) else (shape,))
    assert array.dtype == dtype
    assert array.flags.c_contiguous
    assert array.flags.writeable
    assert array.size == 0 or array.ctypes.data % LINE == 0
    array[...] = 3
    assert (array == 3).all()


def test_memory_comes_back_with_the_last_view(pool: Pool) -> None:
    array = pool.empty(BIG, np.float32)
    address, view = array.ctypes.data, array[5:7]
    del array
    assert pool.statistics().in_use > 0
    other = pool.empty(BIG, np.float32)
    assert other.ctypes.data != address
    del view
    assert pool.empty(BIG, np.float32).ctypes.data == address


def test_neighbours_are_joined(pool: Pool) -> None:
    pieces = [pool.empty(BIG, np.float32) for _ in range(8)]
    start = min(piece.ctypes.data for piece in pieces)
    pieces.clear()
    assert pool.empty(8 * BIG, np.float32).ctypes.data == start


def test_a_request_takes_the_smallest_piece_that_holds_it(pool: Pool) -> None:
    sizes = [4 * BIG, BIG, 2 * BIG, BIG]
    arrays = [pool.empty(size, np.float32) for size in sizes]
    places = [array.ctypes.data for array in arrays]
    arrays[0] = arrays[2] = None
    assert pool.empty(2 * BIG, np.float32).ctypes.data == places[2]


def test_equal_sizes_do_not_agree_in_their_last_bits(pool: Pool) -> None:
    arrays = [pool.empty(1 << 20, np.float32) for _ in range(4)]
    assert len({array.ctypes.data % 4096 for array in arrays}) == 4


def test_statistics(pool: Pool) -> None:
    first = pool.empty(BIG, np.float32)
    second = pool.empty(BIG, np.float32)
    used = pool.statistics()
    assert 2 * first.nbytes <= used.in_use <= 2 * first.nbytes + 2 * (4096 + LINE)
    assert used.high_water == used.in_use
    assert used.reserved == used.in_use
    del second
    now = pool.statistics()
    assert (now.in_use, now.high_water) == (used.in_use // 2, used.high_water)
    pool.reset_high_water()
    assert pool.statistics().high_water == used.in_use // 2


def test_a_low_place_lent_again_leaves_what_is_reserved(pool: Pool) -> None:
    low, high = (pool.empty(BIG, np.float32) for _ in range(2))
    reserved, place = pool.statistics().reserved, low.ctypes.data
    del low
    assert pool.empty(BIG, np.float32).ctypes.data == place < high.ctypes.data
    assert pool.statistics().reserved == reserved


def test_release_keeps_what_is_in_use(pool: Pool) -> None:
    large = pool.empty(SEGMENT // 4, np.float32)  # a segment of its own, and a line
    kept = pool.empty(BIG, np.float32)
    freed = pool.empty(BIG, np.float32)
    kept[...] = 7
    reserved = pool.statistics().reserved
    del large, freed
    pool.release()
    assert 0 < pool.statistics().reserved < reserved
    assert (kept == 7).all()
    del kept
    pool.release()
    assert pool.statistics() == memory.MemoryStatistics(0, pool.statistics().high_water, 0)
    assert pool.empty(BIG, np.float32).size == BIG


@pytest.mark.skipif(not hasattr(mmap, "MADV_DONTNEED"), reason="this system keeps free pages")
def test_release_drops_the_pages_between_arrays(pool: Pool) -> None:
    first, middle, last = (pool.empty(BIG, np.float32) for _ in range(3))
    for number, array in enumerate((first, middle, last), 1):
        array[...] = number
    place = middle.ctypes.data
    del middle
    pool.release()
    again = pool.empty(BIG, np.float32)
    assert again.ctypes.data == place
    assert (again[1024:-1024] == 0).all()  # fresh from the system, but for the pages at its ends
    assert (first == 1).all()
    assert (last == 3).all()


def test_no_array_is_turned_away_by_the_end_of_a_segment() -> None:
    pool = Pool(1 << 32)
    arrays = [pool.empty((3 * SEGMENT) // 4, np.uint8) for _ in range(4)]
    used = pool.statistics()
    assert used.reserved == used.in_use < 4 * SEGMENT
    del arrays


def test_addresses_that_the_system_refuses_are_asked_for_in_smaller_ranges(
    pool: Pool, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: list[int] = []
    system = mmap.mmap

    def refuse(number: int, size: int, **flags: int) -> mmap.mmap:
        if size > SEGMENT:
            raise OSError("Cannot allocate memory")
        given.append(size)
        return system(number, size, **flags)

    pool.segment = 1 << 40
    monkeypatch.setattr("minires.kernels.memory.mmap.mmap", refuse)
    assert pool.empty(BIG, np.float32).size == BIG
    assert given == [SEGMENT]
    with pytest.raises(MemoryError, match="Make the batch smaller"):
        pool.empty(SEGMENT, np.float32)
    assert pool.empty(BIG, np.float32).size == BIG


@given(st.lists(st.tuples(st.booleans(), st.integers(1, 40)), max_size=60))
def test_live_arrays_never_overlap(steps: list[tuple[bool, int]]) -> None:
    pool = Pool(SEGMENT)
    live: list[np.ndarray] = []
    array = None
    for number, (free, size) in enumerate(steps):
        if free and live:
            live.pop(size % len(live))
        else:
            array = pool.empty(size * BIG // 4, np.float32)
            array[0] = array[-1] = number
            live.append(array)
        spans = sorted((a.ctypes.data, a.ctypes.data + a.nbytes) for a in live if a.nbytes)
        for (_, end), (start, _) in itertools.pairwise(spans):
            assert end <= start
    array = None
    live.clear()
    assert pool.statistics().in_use == 0
    assert len(pool._by_size) == len(pool._segments)  # everything joined again
    pool.release()


class BestFit:
    """What the pool promises of one segment, worked out anew each time over intervals."""

    def __init__(self) -> None:
        self.free, self.returned = [(0, SEGMENT)], []  # starts and ends; starts and sizes

    def empty(self, size: int) -> int:
        if self.returned and self.returned[-1][1] == size:
            return self.returned.pop()[0]
        for start, length in self.returned:
            self.free.append((start, start + length))
        self.returned.clear()
        joined: list[tuple[int, int]] = []
        for start, end in sorted(self.free):
            if joined and joined[-1][1] == start:
                start = joined.pop()[0]
            joined.append((start, end))
        fits = [(end - start, start, end) for start, end in joined if end - start >= size]
        _, start, end = min(fits)
        self.free = [piece for piece in joined if piece != (start, end)]
        if start + size < end:
            self.free.append((start + size, end))
        return start


@given(
    st.lists(st.tuples(st.booleans(), st.integers(1, 12)), max_size=30),
    st.lists(st.integers(1, 12), max_size=3),
)
def test_what_was_done_before_is_what_would_be_done_now(
    step: list[tuple[bool, int]], between: list[int]
) -> None:
    pool, model = Pool(SEGMENT), BestFit()
    held: list[tuple[np.ndarray, int, int]] = []  # arrays, places, sizes
    origin, high_water = 0, 0

    def request(count: int) -> None:
        nonlocal origin, high_water
        array = pool.empty(count * BIG, np.float32)
        origin = origin or array.ctypes.data  # the first is at the start
        place, size = array.ctypes.data - origin, count * BIG * 4 + LINE
        assert place == model.empty(size)
        held.append((array, place, size))
        high_water = max(high_water, sum(s for *_, s in held))

    def give_back(which: int) -> None:
        _, place, size = held.pop(which % len(held))
        model.returned.append((place, size))

    for repetition in range(4):
        for free, number in step:
            if not free:
                request(number)
            elif held:
                give_back(number)
        for number in between if repetition == 2 else ():  # something else comes in between
            request(number)
        while held:  # in one order, or in the other
            give_back(-(repetition % 2))
    assert pool.statistics().in_use == 0
    assert pool.statistics().high_water == high_water


def test_states_are_forgotten_before_there_are_too_many(
    pool: Pool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(memory, "STATES", 10)
    for count in range(1, 40):
        first, second = (pool.empty(count * BIG, np.float32) for _ in range(2))
        assert abs(first.ctypes.data - second.ctypes.data) >= first.nbytes
        assert len(pool._states) <= 10
        del first, second
    assert pool.statistics().in_use == 0


def test_a_step_that_comes_again_is_not_worked_out_again(
    pool: Pool, monkeypatch: pytest.MonkeyPatch
) -> None:
    def step() -> list[int]:
        arrays = [pool.empty(n * BIG, np.float32) for n in (3, 1, 4, 1, 5)]
        del arrays[1:4]
        arrays.append(pool.empty(2 * BIG, np.float32))
        return [array.ctypes.data for array in arrays]

    places = [step(), step()]
    monkeypatch.setattr(Pool, "_tabulate", lambda *_: pytest.fail("worked out again"))
    assert step() == step() == places[-1]


def test_arrays_freed_by_the_collector_and_by_threads(pool: Pool) -> None:
    wrong: list[str] = []

    def work(mark: int) -> None:
        for _ in range(200):
            array = pool.empty(BIG, np.int32)
            array[::1024] = mark
            cycle: list[Any] = [array]
            cycle.append(cycle)
            if (array[::1024] != mark).any():
                wrong.append("overwritten")

    threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    gc.collect()
    assert not wrong
    assert pool.statistics().in_use == 0
