"""How much memory of a CUDA device is in use: counted as arrays are made and freed.

CuPy's pool tells what is in use now. The most that was in use needs somebody who watches: a hook on
the thread that computes. Other threads, such as the one that sends batches, are not watched.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class MemoryUse:
    """Bytes on a device: in arrays now; in arrays at most since the last reset; and what there is
    for arrays, in use or not, if nobody else takes it."""

    in_use: int
    peak: int
    available: int


class _Watch:
    """Counts, per device, what CuPy's pools lend out on this thread."""

    def __init__(self) -> None:
        self.now: dict[int, int] = {}
        self.peak: dict[int, int] = {}

    def malloc_postprocess(
        self, *, device_id: int, size: int, mem_size: int, mem_ptr: int, pmem_id: int
    ) -> None:
        if mem_ptr:  # 0 if there was none left
            now = self.now[device_id] = self.now.get(device_id, 0) + mem_size
            self.peak[device_id] = max(self.peak.get(device_id, 0), now)

    def free_postprocess(
        self, *, device_id: int, mem_size: int, mem_ptr: int, pmem_id: int
    ) -> None:
        self.now[device_id] = self.now.get(device_id, 0) - mem_size


_watches: dict[int, _Watch] = {}  # by the module of arrays


def watch(xp: Any) -> _Watch:
    """The counts of this module's arrays, from the first call on."""
    found = _watches.get(id(xp))
    if found is None:
        made = type("Watch", (_Watch, xp.cuda.MemoryHook), {"name": "minires"})()
        made.__enter__()
        found = _watches[id(xp)] = made
        number = xp.cuda.get_device_id()
        found.now[number] = found.peak[number] = xp.get_default_memory_pool().used_bytes()
    return found


def use(xp: Any, number: int) -> MemoryUse:
    """Of the device of this number."""
    counts = watch(xp)
    with xp.cuda.Device(number):
        free, _ = xp.cuda.runtime.memGetInfo()
        pool = xp.get_default_memory_pool()
        unused = pool.free_bytes()
    now = counts.now.get(number, 0)
    return MemoryUse(now, max(now, counts.peak.get(number, 0)), now + unused + free)


def reset_peak(xp: Any, number: int) -> None:
    """Count the most in use from here on."""
    counts = watch(xp)
    counts.peak[number] = counts.now.get(number, 0)


def empty_cache(xp: Any) -> None:
    """Give back what the pool keeps for later."""
    xp.get_default_memory_pool().free_all_blocks()
    xp.get_default_pinned_memory_pool().free_all_blocks()
