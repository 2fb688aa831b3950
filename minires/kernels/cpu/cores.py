"""The core that a thread wakes on: another than that of the one who wakes it.

Linux may put a thread that is woken on the core of the thread that wakes it, although another is
idle: what the two share is in that core's cache, and the idle core need not be started. But the
caller of a kernel goes on computing, and whom it has woken waits behind it until the kernel is
nearly done: kernels of a millisecond took two. So before the caller wakes the others it takes its
own core out of the set of cores that each of them may run on, and each restores its set when it has
woken. The set is the thread's own, as the user has made it, and is left as it is where it has no
other core.

Other systems have no such sets, or do not number cores; there nothing is done.
"""

from __future__ import annotations

import sys

from numba import njit, types

from minires.kernels.cpu.words import COUNT, LINE, address, load_word, store_word

# A thread's line of words: its number in the system, 0 for nobody; whether it sleeps; 1 + the core
# that is taken out of its set, 0 for none; and its set, a bit for each core.
ID, SLEEPS, AVOIDS, SET = 0, 1, 2, LINE // 2
BYTES = 8 * LINE // 2  # of a set: 1024 cores; where there are more the system refuses to tell
FIRST = 16 * LINE  # the word where the lines begin
MOST = (COUNT - FIRST) // LINE - 1  # threads that have one; the last is for all others
LINUX = sys.platform == "linux"

_i = types.intp
_own_core = types.ExternalFunction("sched_getcpu", types.int32())
_read_set = types.ExternalFunction("sched_getaffinity", types.int32(types.int32, _i, _i))
_write_set = types.ExternalFunction("sched_setaffinity", types.int32(types.int32, _i, _i))


@njit(error_model="numpy")
def _others(place, core):
    """Whether a thread's set has other cores than this one, and this one, too."""
    others = False
    for i in range(BYTES // 8):
        held = load_word(place + SET + i)
        if i == core // 64:
            if held >> core % 64 & 1 == 0:
                return False
            held ^= 1 << core % 64
        others |= held != 0
    return others


@njit(error_model="numpy")
def _avoid(place, core):
    """Take a core out of a sleeping thread's set."""
    thread = load_word(place + ID)
    if load_word(place + AVOIDS) == 0 and _read_set(thread, BYTES, address(place + SET)) != 0:
        return
    if not _others(place, core):
        return
    word = place + SET + core // 64
    held = load_word(word)
    store_word(word, held ^ (1 << core % 64))
    if _write_set(thread, BYTES, address(place + SET)) == 0:
        store_word(place + AVOIDS, core + 1)
    store_word(word, held)


def _leave_core():
    """Let no sleeping thread wake on the caller's core. The caller holds the lock they sleep on."""
    core = _own_core()
    for place in range(FIRST, FIRST + MOST * LINE, LINE):
        if load_word(place + ID) == 0:
            return
        if core >= 0 and load_word(place + SLEEPS) != 0 and load_word(place + AVOIDS) != core + 1:
            _avoid(place, core)


def _restore_set(place):
    """A thread that has woken may run everywhere again."""
    if load_word(place + AVOIDS) != 0:
        _write_set(load_word(place + ID), BYTES, address(place + SET))
        store_word(place + AVOIDS, 0)


def _nothing(*_):
    """What there is to do where cores have no names."""


leave_core = njit(error_model="numpy")(_leave_core if LINUX else _nothing)
restore_set = njit(error_model="numpy")(_restore_set if LINUX else _nothing)
