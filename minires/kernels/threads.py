"""One number of threads for everything that computes: BLAS and our own kernels.

By default one thread per core that this process may use; `MINIRES_THREADS` or `set_num_threads`
choose another number. With the same number, the same seed gives the same bits.

Two pools of threads must not take turns: BLAS's threads keep spinning for a while after a product
and hold up whoever comes next, by milliseconds. So once our own parallel kernels are in use BLAS
works on one thread, and what is left for it to do is small. For the same reason our own threads
do not spin for long: with one other busy process on two cores, a training step of ResNet-20 took
five times as long with threads that did (`kernels/cpu/team.py` says how ours wait). The threads of
a user's own `prange` are OpenMP's, which sleep unless OMP_WAIT_POLICY says otherwise.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable

VARIABLE = "MINIRES_THREADS"

_count: int | None = None
_shared = False  # whether our own parallel kernels are in use
_waiting: list[Callable[[], None]] = []
_watching: list[Callable[[], None]] = []


def available_cores() -> int:
    """The cores this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def num_threads() -> int:
    """The number of threads in force."""
    global _count
    if _count is None:
        text = os.environ.get(VARIABLE, "").strip()
        if text and not text.isdecimal():
            raise ValueError(f"{VARIABLE} must be a whole number, got {text!r}")
        _count = _checked(int(text), VARIABLE) if text else available_cores()
    return _count


def set_num_threads(count: int | None = None) -> int:
    """Compute with `count` threads from now on; returns the number in force.

    None takes the variable MINIRES_THREADS, or else one thread per core.
    Raises TypeError for what is no whole number, ValueError for one that is not between 1 and the
    available cores.
    """
    global _count
    _count = None if count is None else _checked(count, "threads")
    _apply()
    for call in _watching:
        call()
    return num_threads()


def at_change(call: Callable[[], None]) -> None:
    """Call something whenever the number of threads is set."""
    _watching.append(call)


def use_own_threads() -> None:
    """Called when the first parallel kernel of ours is loaded."""
    global _shared
    if not _shared:
        _shared = True
        # Read by the OpenMP runtime when it is loaded, with the first parallel function.
        os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
        _apply()
        while _waiting:
            _waiting.pop()()


def at_first_kernel(call: Callable[[], None]) -> Callable[[], None]:
    """Call something when the first parallel kernel of ours is loaded, or now if one is.

    Returns what calls it off.
    """
    if _shared:
        call()
    else:
        _waiting.append(call)
    return lambda: _waiting.remove(call) if call in _waiting else None


def _checked(count: int, source: str) -> int:
    if isinstance(count, bool) or not hasattr(count, "__index__"):
        raise TypeError(f"{source} must be a whole number, got {count!r}")
    cores = available_cores()
    if not 1 <= count <= cores:
        raise ValueError(f"{source} must be from 1 to {cores}, the available cores; got {count}")
    return int(count)


def _apply() -> None:
    import threadpoolctl

    threadpoolctl.threadpool_limits(1 if _shared else num_threads(), user_api="blas")
    if "numba" in sys.modules:
        import numba

        numba.set_num_threads(min(num_threads(), numba.config.NUMBA_NUM_THREADS))
    else:  # read when Numba is imported
        os.environ["NUMBA_NUM_THREADS"] = str(num_threads())
