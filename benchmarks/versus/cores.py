"""How much of its cores a virtual machine gets: integer arithmetic, timed among the contenders.

Two hardware threads share a core, and the other one may belong to somebody else's machine. While
that one works, additions, loads, stores and Python run at half to four fifths of their speed; the
clock, the system's load and the time "stolen" show nothing of it. Long chains of multiply-adds
hardly suffer, because they leave most of the core's slots empty. So one program is fast and slow in
turns, and the more so the less of it is multiply-adds. `integers` does nothing but fill those slots
on every core: its best time over its median says with how much of them the others had to make do.
"""

from __future__ import annotations

import numpy as np

from minires.kernels.cpu.team import parallel
from minires.kernels.threads import num_threads
from versus.work import Call

STEPS = 6_000_000  # 16 ms at 3.6 GHz with a core of one's own


@parallel
def _integers(worker, state, steps, workers):
    """Six xorshift generators side by side (Marsaglia 2003): a loop that no compiler shortens."""
    a, b, c = state[worker, 0], state[worker, 1], state[worker, 2]
    d, e, f = state[worker, 3], state[worker, 4], state[worker, 5]
    for _ in range(steps):
        a, b, c = a ^ a << 13, b ^ b << 13, c ^ c << 13
        d, e, f = d ^ d << 13, e ^ e << 13, f ^ f << 13
        a, b, c = a ^ a >> 7, b ^ b >> 7, c ^ c >> 7
        d, e, f = d ^ d >> 7, e ^ e >> 7, f ^ f >> 7
        a, b, c = a ^ a << 17, b ^ b << 17, c ^ c << 17
        d, e, f = d ^ d << 17, e ^ e << 17, f ^ f << 17
    state[worker, 0], state[worker, 1], state[worker, 2] = a, b, c
    state[worker, 3], state[worker, 4], state[worker, 5] = d, e, f


def integers() -> Call:
    """A call that keeps all cores busy for a while with integers."""
    workers = num_threads()
    state = np.arange(1, 6 * workers + 1, dtype=np.uint64).reshape(workers, 6)
    return lambda: _integers(state, STEPS, workers)
