"""ReLU and the residual join, divided among the threads: one read of each input, one write."""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit

from minires.kernels import memory
from minires.kernels.cpu.simd import lanes, load, positive, store, where_positive
from minires.kernels.cpu.team import parallel
from minires.kernels.threads import num_threads


@njit(cache=True)
def _span(size, worker, workers, L):
    """The worker's share of an array, whole vectors and, for the last worker, the rest."""
    vectors = size // L
    begin, end = worker * vectors // workers * L, (worker + 1) * vectors // workers * L
    return begin, end, size if worker == workers - 1 else end


@parallel
def _relu(worker, x, y, workers, L):
    begin, end, rest = _span(x.size, worker, workers, L)
    for i in range(begin, end, L):
        store(y, i, positive(load(x, i)))
    for i in range(end, rest):
        # Written so that NaN, which compares false, stays NaN.
        y[i] = 0 if x[i] <= 0 else x[i]


@parallel
def _relu_grad(worker, gy, y, gx, workers, L):
    begin, end, rest = _span(y.size, worker, workers, L)
    for i in range(begin, end, L):
        store(gx, i, where_positive(load(y, i), load(gy, i)))
    for i in range(end, rest):
        gx[i] = gy[i] if y[i] > 0 else 0


@parallel
def _add_relu(worker, a, b, y, workers, L):
    begin, end, rest = _span(a.size, worker, workers, L)
    for i in range(begin, end, L):
        store(y, i, positive(load(a, i) + load(b, i)))
    for i in range(end, rest):
        total = a[i] + b[i]
        y[i] = 0 if total <= 0 else total


@parallel
def _add(worker, a, b, y, workers, L):
    begin, end, rest = _span(a.size, worker, workers, L)
    for i in range(begin, end, L):
        store(y, i, load(a, i) + load(b, i))
    for i in range(end, rest):
        y[i] = a[i] + b[i]


def _aligned(first: Any, second: Any = None) -> tuple[Any, Any, Any]:
    """Flat views in memory order and an output of the same order; `second` is copied to match."""
    order = np.argsort([-s for s in first.strides], kind="stable")
    inverse = np.argsort(order)
    a = np.ascontiguousarray(first.transpose(order))
    b = None if second is None else np.ascontiguousarray(second.transpose(order)).reshape(-1)
    y = memory.empty(a.shape, a.dtype)
    return a.reshape(-1), b, (y.reshape(-1), y.transpose(inverse))


def relu(x: Any) -> Any:
    """max(x, 0); NaN stays NaN."""
    flat, _, (y, out) = _aligned(x)
    _relu(flat, y, num_threads(), lanes(y.dtype))
    return out


def relu_grad(gy: Any, y: Any) -> Any:
    """gy where y > 0, else 0."""
    kept, g, (gx, out) = _aligned(y, gy)
    _relu_grad(g, kept, gx, num_threads(), lanes(gx.dtype))
    return out


def add(a: Any, b: Any) -> Any:
    """a + b."""
    first, second, (y, out) = _aligned(a, b)
    _add(first, second, y, num_threads(), lanes(y.dtype))
    return out


def add_relu(a: Any, b: Any) -> Any:
    """max(a + b, 0)."""
    first, second, (y, out) = _aligned(a, b)
    _add_relu(first, second, y, num_threads(), lanes(y.dtype))
    return out
