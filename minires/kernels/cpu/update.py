"""The optimiser's step in one pass: each number of parameter, gradient and buffer is read once.

In array operations the same step takes five passes over memory, and two arrays to compute in.
"""

from __future__ import annotations

from typing import Any

from minires.kernels.cpu.simd import fill, fmuladd, lanes, load, store
from minires.kernels.cpu.team import parallel
from minires.kernels.threads import num_threads, use_own_threads


@parallel
def _sgd(worker, p, g, v, lr, momentum, fresh, decay, nesterov, workers, L):
    vectors = p.size // L
    begin, end = worker * vectors // workers * L, (worker + 1) * vectors // workers * L
    m, f, w, step = fill(p, momentum), fill(p, fresh), fill(p, decay), fill(p, -lr)
    for i in range(begin, end, L):
        at = load(p, i)
        d = fmuladd(w, at, load(g, i))
        moved = fmuladd(m, load(v, i), f * d)
        store(v, i, moved)
        store(p, i, fmuladd(step, fmuladd(m, moved, d) if nesterov else moved, at))
    for i in range(end, p.size if worker == workers - 1 else end):
        d = g[i] + decay * p[i]
        v[i] = momentum * v[i] + fresh * d
        p[i] -= lr * (d + momentum * v[i] if nesterov else v[i])


def can_update(*arrays: Any) -> bool:
    """Whether `sgd` takes them: contiguous, of one floating-point dtype."""
    first = arrays[0]
    return first.dtype.name in ("float32", "float64") and all(
        a.flags.c_contiguous and a.dtype == first.dtype for a in arrays
    )


def sgd(
    p: Any, g: Any, v: Any, lr: float, momentum: float, dampening: float, decay: float,
    nesterov: bool,
) -> None:  # fmt: skip
    """A step of SGD with momentum: changes p and v. The formulas are in minires/optim/sgd.py."""
    use_own_threads()
    p, g, v = (a.reshape(-1) for a in (p, g, v))
    kind = p.dtype.type
    numbers = kind(lr), kind(momentum), kind(1 - dampening), kind(decay)
    _sgd(p, g, v, *numbers, nesterov, num_threads(), lanes(p.dtype))
