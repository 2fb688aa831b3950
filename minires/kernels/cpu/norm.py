"""Batch norm in as few passes over memory as there are barriers in its mathematics.

Forward needs the statistics before it can write: two reads and a write. Backward needs two sums
before it can write: two reads of both x and gy, and a write. The formulas are in
kernels/reference/norm.py.

Sums are taken of x - shift, with the mean of a few rows as the shift, so that a mean of 1e4 with a
deviation of 1 does not cancel; in blocks of rows in the array's own precision, and over blocks in
float64. Workers own fixed ranges of rows and their sums are added in order: same bits every time.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit, prange

from minires.kernels.cpu.simd import fill, fmuladd, lanes, load, store
from minires.kernels.layout import from_rows, rows
from minires.kernels.threads import num_threads

BLOCK = 256  # rows whose sums are kept in the array's own precision


@njit(cache=True, parallel=True)
def _moments(x, R, C, shift, workers, L):
    """Per worker and channel: sum of x - shift, and of its square, in float64."""
    sums = np.zeros((workers, 2, C))
    for worker in prange(workers):
        total, square = sums[worker, 0], sums[worker, 1]
        begin, end = worker * R // workers, (worker + 1) * R // workers
        part = np.empty(2 * L, x.dtype)
        for block in range(begin, end, BLOCK):
            stop = min(block + BLOCK, end)
            for c in range(0, C, L):
                s, a, b = load(shift, c), fill(x, 0.0), fill(x, 0.0)
                for r in range(block, stop):
                    d = load(x, r * C + c) - s
                    a = a + d
                    b = fmuladd(d, d, b)
                store(part, 0, a)
                store(part, L, b)
                for i in range(L):
                    total[c + i] += part[i]
                    square[c + i] += part[L + i]
    return sums.sum(axis=0)


@njit(cache=True, parallel=True)
def _normalise(x, R, C, mean, scale, beta, y, workers, L):
    """y = (x - mean) * scale + beta."""
    for worker in prange(workers):
        for r in range(worker * R // workers, (worker + 1) * R // workers):
            for c in range(0, C, L):
                d = load(x, r * C + c) - load(mean, c)
                store(y, r * C + c, fmuladd(d, load(scale, c), load(beta, c)))


@njit(cache=True, parallel=True)
def _gradient_sums(gy, x, R, C, mean, workers, L):
    """Per channel: sum of gy, and of gy * (x - mean), in float64."""
    sums = np.zeros((workers, 2, C))
    for worker in prange(workers):
        plain, centred = sums[worker, 0], sums[worker, 1]
        begin, end = worker * R // workers, (worker + 1) * R // workers
        part = np.empty(2 * L, x.dtype)
        for block in range(begin, end, BLOCK):
            stop = min(block + BLOCK, end)
            for c in range(0, C, L):
                m, a, b = load(mean, c), fill(x, 0.0), fill(x, 0.0)
                for r in range(block, stop):
                    g = load(gy, r * C + c)
                    a = a + g
                    b = fmuladd(g, load(x, r * C + c) - m, b)
                store(part, 0, a)
                store(part, L, b)
                for i in range(L):
                    plain[c + i] += part[i]
                    centred[c + i] += part[L + i]
    return sums.sum(axis=0)


@njit(cache=True, parallel=True)
def _input_gradient(gy, x, R, C, mean, scale, along, offset, gx, workers, L):
    """gx = scale * gy - along * (x - mean) - offset."""
    for worker in prange(workers):
        for r in range(worker * R // workers, (worker + 1) * R // workers):
            for c in range(0, C, L):
                at = r * C + c
                d = load(x, at) - load(mean, c)
                g = load(gy, at) * load(scale, c) - load(offset, c)
                store(gx, at, g - d * load(along, c))


def batch_norm_train(x: Any, gamma: Any, beta: Any, eps: float) -> tuple[Any, Any, Any, Any]:
    """Statistics in one read, normalisation in one read and one write."""
    flat, dtype = rows(x), x.dtype
    R, C = flat.shape
    shift = flat[:16].mean(axis=0)
    workers, L = num_threads(), lanes(dtype)
    total, square = _moments(flat.reshape(-1), R, C, shift, workers, L) / R
    mean, var = shift + total, np.maximum(square - total * total, 0.0)
    inv_std = (1.0 / np.sqrt(var + eps)).astype(dtype)
    scale = inv_std if gamma is None else gamma * inv_std
    shifted = np.zeros(C, dtype) if beta is None else np.ascontiguousarray(beta)
    mean, var = mean.astype(dtype), var.astype(dtype)
    y = np.empty_like(flat)
    _normalise(flat.reshape(-1), R, C, mean, scale, shifted, y.reshape(-1), workers, L)
    return from_rows(y, x.shape), mean, var, inv_std


def batch_norm_grad(gy: Any, x: Any, gamma: Any, mean: Any, inv_std: Any) -> tuple[Any, Any, Any]:
    """Both sums in one read, the input gradient in one read and one write."""
    dy, flat, dtype = rows(gy), rows(x), x.dtype
    R, C = flat.shape
    workers, L = num_threads(), lanes(dtype)
    mean = np.ascontiguousarray(mean)
    sums = _gradient_sums(dy.reshape(-1), flat.reshape(-1), R, C, mean, workers, L)
    gbeta, ggamma = sums[0], sums[1] * inv_std
    scale = inv_std.astype(np.float64) if gamma is None else gamma * inv_std.astype(np.float64)
    along, offset = scale * inv_std * ggamma / R, scale * gbeta / R
    gx = np.empty_like(flat)
    _input_gradient(
        dy.reshape(-1), flat.reshape(-1), R, C, mean, scale.astype(dtype), along.astype(dtype),
        offset.astype(dtype), gx.reshape(-1), workers, L,
    )  # fmt: skip
    return from_rows(gx, x.shape), ggamma.astype(dtype), gbeta.astype(dtype)
