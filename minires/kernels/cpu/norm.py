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

from minires.kernels.cpu.simd import (
    fill,
    fmuladd,
    lanes,
    load,
    positive,
    store,
    where_positive,
)
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
def _normalise(x, R, C, mean, scale, beta, relu, y, workers, L):
    """y = (x - mean) * scale + beta, and its positive part if `relu`."""
    for worker in prange(workers):
        for r in range(worker * R // workers, (worker + 1) * R // workers):
            for c in range(0, C, L):
                d = load(x, r * C + c) - load(mean, c)
                value = fmuladd(d, load(scale, c), load(beta, c))
                store(y, r * C + c, positive(value) if relu else value)


@njit(cache=True, parallel=True)
def _gradient_sums(gy, x, y, R, C, mean, relu, workers, L):
    """Per channel: sum of gy, and of gy * (x - mean), in float64; where y > 0 if `relu`."""
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
                    if relu:
                        g = where_positive(load(y, r * C + c), g)
                    a = a + g
                    b = fmuladd(g, load(x, r * C + c) - m, b)
                store(part, 0, a)
                store(part, L, b)
                for i in range(L):
                    plain[c + i] += part[i]
                    centred[c + i] += part[L + i]
    return sums.sum(axis=0)


@njit(cache=True, parallel=True)
def _input_gradient(gy, x, y, R, C, mean, scale, along, offset, relu, gx, workers, L):
    """gx = scale * gy - along * (x - mean) - offset; gy where y > 0 if `relu`."""
    for worker in prange(workers):
        for r in range(worker * R // workers, (worker + 1) * R // workers):
            for c in range(0, C, L):
                at = r * C + c
                d = load(x, at) - load(mean, c)
                g = load(gy, at)
                if relu:
                    g = where_positive(load(y, at), g)
                g = g * load(scale, c) - load(offset, c)
                store(gx, at, g - d * load(along, c))


def _train(x: Any, gamma: Any, beta: Any, eps: float, relu: bool) -> tuple[Any, Any, Any, Any]:
    flat, dtype = rows(x), x.dtype
    R, C = flat.shape
    shift = flat[:16].mean(axis=0)
    workers, L = num_threads(), lanes(dtype)
    total, square = _moments(flat.reshape(-1), R, C, shift, workers, L) / R
    mean, var = shift + total, np.maximum(square - total * total, 0.0)
    inv_std = (1.0 / np.sqrt(var + eps)).astype(dtype)
    scale = inv_std if gamma is None else gamma * inv_std
    offset = np.zeros(C, dtype) if beta is None else np.ascontiguousarray(beta)
    mean, var = mean.astype(dtype), var.astype(dtype)
    y = np.empty_like(flat)
    _normalise(flat.reshape(-1), R, C, mean, scale, offset, relu, y.reshape(-1), workers, L)
    return from_rows(y, x.shape), mean, var, inv_std


def _grad(
    gy: Any, x: Any, y: Any, gamma: Any, mean: Any, inv_std: Any, relu: bool
) -> tuple[Any, Any, Any]:
    dy, flat, out, dtype = rows(gy).reshape(-1), rows(x), rows(y).reshape(-1), x.dtype
    R, C = flat.shape
    workers, L = num_threads(), lanes(dtype)
    mean = np.ascontiguousarray(mean)
    sums = _gradient_sums(dy, flat.reshape(-1), out, R, C, mean, relu, workers, L)
    gbeta, ggamma = sums[0], sums[1] * inv_std
    scale = inv_std.astype(np.float64) if gamma is None else gamma * inv_std.astype(np.float64)
    along, offset = (v.astype(dtype) for v in (scale * inv_std * ggamma / R, scale * gbeta / R))
    gx = np.empty_like(flat)
    _input_gradient(
        dy, flat.reshape(-1), out, R, C, mean, scale.astype(dtype), along, offset, relu,
        gx.reshape(-1), workers, L,
    )  # fmt: skip
    return from_rows(gx, x.shape), ggamma.astype(dtype), gbeta.astype(dtype)


def batch_norm_train(x: Any, gamma: Any, beta: Any, eps: float) -> tuple[Any, Any, Any, Any]:
    """Statistics in one read, normalisation in one read and one write."""
    return _train(x, gamma, beta, eps, relu=False)


def batch_norm_relu_train(x: Any, gamma: Any, beta: Any, eps: float) -> tuple[Any, Any, Any, Any]:
    """The same with the ReLU in the second pass."""
    return _train(x, gamma, beta, eps, relu=True)


def batch_norm_grad(gy: Any, x: Any, gamma: Any, mean: Any, inv_std: Any) -> tuple[Any, Any, Any]:
    """Both sums in one read, the input gradient in one read and one write."""
    return _grad(gy, x, x, gamma, mean, inv_std, relu=False)


def batch_norm_relu_grad(
    gy: Any, x: Any, y: Any, gamma: Any, mean: Any, inv_std: Any
) -> tuple[Any, Any, Any]:
    """The same with the ReLU's mask read off its output in both passes."""
    return _grad(gy, x, y, gamma, mean, inv_std, relu=True)
