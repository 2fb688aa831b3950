"""Batch norm in as few passes over memory as there are barriers in its mathematics.

Forward needs the statistics before it can write: two reads and a write. Backward needs two sums
before it can write: two reads of both x and gy, and a write. The formulas are in
kernels/reference/norm.py.

Sums are taken of x - shift, with the mean of a few rows as the shift, so that a mean of 1e4 with a
deviation of 1 does not cancel; in blocks of rows in the array's own precision, and over blocks in
float64. Workers own fixed ranges of rows and their sums are added in order: same bits every time.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numba import njit

from minires.kernels import memory
from minires.kernels.cpu import channels
from minires.kernels.cpu.copying import put
from minires.kernels.cpu.pool import normalised_gradient
from minires.kernels.cpu.simd import (
    fmuladd,
    lanes,
    load,
    positive,
    store,
    streams,
    where_positive,
)
from minires.kernels.cpu.team import parallel
from minires.kernels.fusing import Pooled
from minires.kernels.layout import from_rows, rows
from minires.kernels.threads import num_threads

BLOCK = 256  # rows whose sums are kept in the array's own precision


@njit(cache=True, forceinline=True)
def _add(part, c, C, a, d, e):
    """Add a to the first of two rows of sums, at channels c, c + 1, ..., and d * e to the second.

    In memory, not in registers, so that x is read row by row, as it lies there: channel by channel,
    a block's rows are read a line at a time, hundreds of bytes apart, which no prefetcher foresees.
    """
    store(part, c, load(part, c) + a)
    store(part, C + c, fmuladd(d, e, load(part, C + c)))


@njit(cache=True)
def _end_block(part, C, sums):
    """Move the sums of a block to those in float64."""
    for c in range(C):
        sums[0, c] += part[c]
        sums[1, c] += part[C + c]
    part[:] = 0


@parallel
def _moments(worker, x, R, C, shift, sums, workers, L):
    """Per channel: sum of x - shift, and of its square, added to sums[worker], in float64."""
    begin, end = worker * R // workers, (worker + 1) * R // workers
    part = np.zeros(2 * C, x.dtype)
    for block in range(begin, end, BLOCK):
        for r in range(block, min(block + BLOCK, end)):
            for c in range(0, C, L):
                d = load(x, r * C + c) - load(shift, c)
                _add(part, c, C, d, d, d)
        _end_block(part, C, sums[worker])


@parallel
def _normalise(worker, x, R, C, mean, scale, beta, relu, y, past, workers, L):
    """y = (x - mean) * scale + beta, and its positive part if `relu`."""
    for r in range(worker * R // workers, (worker + 1) * R // workers):
        for c in range(0, C, L):
            d = load(x, r * C + c) - load(mean, c)
            value = fmuladd(d, load(scale, c), load(beta, c))
            put(y, r * C + c, positive(value) if relu else value, past)


@parallel
def _normalise_add(worker, x, shortcut, R, C, mean, scale, beta, relu, y, past, workers, L):
    """y = (x - mean) * scale + beta + shortcut, and its positive part if `relu`."""
    for r in range(worker * R // workers, (worker + 1) * R // workers):
        for c in range(0, C, L):
            at = r * C + c
            d = load(x, at) - load(mean, c)
            value = fmuladd(d, load(scale, c), load(beta, c))
            value = value + load(shortcut, at)
            put(y, at, positive(value) if relu else value, past)


@parallel
def _gradient_sums(worker, gy, x, R, C, mean, scale, beta, relu, sums, workers, L):
    """Per channel: sum of gy, and of gy * (x - mean), added to sums[worker], in float64.

    With `relu`, of gy where the output was positive: the output is computed again, by the same
    operations as in `_normalise`, because reading it would cost more.
    """
    begin, end = worker * R // workers, (worker + 1) * R // workers
    part = np.zeros(2 * C, x.dtype)
    for block in range(begin, end, BLOCK):
        for r in range(block, min(block + BLOCK, end)):
            for c in range(0, C, L):
                g, d = load(gy, r * C + c), load(x, r * C + c) - load(mean, c)
                if relu:
                    g = where_positive(fmuladd(d, load(scale, c), load(beta, c)), g)
                _add(part, c, C, g, g, d)
        _end_block(part, C, sums[worker])


@parallel
def _gradient_sums_add(worker, gy, x, y, R, C, mean, gr, past, sums, workers, L):
    """The same sums of gr = gy where y > 0, which is written: the shortcut's gradient."""
    begin, end = worker * R // workers, (worker + 1) * R // workers
    part = np.zeros(2 * C, x.dtype)
    for block in range(begin, end, BLOCK):
        for r in range(block, min(block + BLOCK, end)):
            for c in range(0, C, L):
                at = r * C + c
                g = where_positive(load(y, at), load(gy, at))
                put(gr, at, g, past)
                _add(part, c, C, g, g, load(x, at) - load(mean, c))
        _end_block(part, C, sums[worker])


@parallel
def _input_gradient(
    worker, gy, x, R, C, mean, scale, beta, gy_scale, along, offset, relu, gx, past, workers, L
):  # fmt: skip
    """gx = gy_scale * gy - along * (x - mean) - offset; gy where the output > 0 if `relu`."""
    for r in range(worker * R // workers, (worker + 1) * R // workers):
        for c in range(0, C, L):
            at = r * C + c
            g, d = load(gy, at), load(x, at) - load(mean, c)
            if relu:
                g = where_positive(fmuladd(d, load(scale, c), load(beta, c)), g)
            g = g * load(gy_scale, c) - load(offset, c)
            put(gx, at, g - d * load(along, c), past)


def _rows_at_once(R: int, C: int, L: int) -> int:
    """How many rows are summed as if they were one: a sum in memory is waited for unless eight
    vectors or so lie between it and its next use."""
    return math.gcd(R, max(1, 8 * L // C))


def _summed(kernel: Any, R: int, C: int, arrays: Any, parameters: Any, *rest: Any) -> Any:
    """What a kernel adds up over R rows: (2, C), in float64.

    arrays: flat, of R * C elements. parameters: (C,).
    """
    workers, L = num_threads(), lanes(arrays[0].dtype)
    times = _rows_at_once(R, C, L)
    sums = np.zeros((workers, 2, times * C))
    parameters = [np.tile(p, times) if times > 1 else p for p in parameters]
    kernel(*arrays, R // times, times * C, *parameters, *rest, sums, workers, L)
    return sums.reshape(workers, 2, times, C).sum(axis=(0, 2))


def batch_norm_statistics(x: Any, eps: float) -> tuple[Any, Any, Any]:
    """Mean, biased variance and inverse deviation of each channel, in one read."""
    flat = rows(x)
    R, C = flat.shape
    shift = flat[:16].mean(axis=0)
    total, square = _summed(_moments, R, C, [flat.reshape(-1)], [shift]) / R
    var = np.maximum(square - total * total, 0.0)
    inv_std = (1.0 / np.sqrt(var + eps)).astype(x.dtype)
    return (shift + total).astype(x.dtype), var.astype(x.dtype), inv_std


def _affine(gamma: Any, beta: Any, inv_std: Any) -> tuple[Any, Any]:
    """Scale and offset: y = (x - mean) * scale + offset."""
    scale = inv_std if gamma is None else gamma * inv_std
    offset = np.zeros_like(inv_std) if beta is None else np.ascontiguousarray(beta)
    return np.ascontiguousarray(scale), offset


def _train(x: Any, gamma: Any, beta: Any, eps: float, relu: bool) -> tuple[Any, Any, Any, Any]:
    flat = rows(x)
    mean, var, inv_std = batch_norm_statistics(flat, eps)
    y = memory.empty_like(flat)
    _normalise(
        flat.reshape(-1), *flat.shape, mean, *_affine(gamma, beta, inv_std), relu,
        y.reshape(-1), streams(y), num_threads(), lanes(x.dtype),
    )  # fmt: skip
    return from_rows(y, x.shape), mean, var, inv_std


def _gradients(
    gy: Any, flat: Any, sums: Any, gamma: Any, beta: Any, mean: Any, inv_std: Any, relu: bool,
    gx: Any,
) -> tuple[Any, Any, Any]:  # fmt: skip
    """gx, rows to be written, and the gradients of gamma and beta from the two sums.

    gx may be gy, whose lines are in the cache when they are written.
    """
    R, dtype, past = len(flat), flat.dtype, gx is not gy and streams(gx)
    factors, ggamma, gbeta = channels.gradient_factors(sums, gamma, inv_std, R)
    scale, offset = _affine(gamma, beta, inv_std) if relu else (mean, mean)  # not read without
    _input_gradient(
        gy.reshape(-1), flat.reshape(-1), *flat.shape, mean, scale, offset, *factors,
        relu, gx.reshape(-1), past, num_threads(), lanes(dtype),
    )  # fmt: skip
    return gx, ggamma, gbeta


def _grad(
    gy: Any, x: Any, gamma: Any, beta: Any, mean: Any, inv_std: Any, relu: bool
) -> tuple[Any, Any, Any]:
    dy, flat, mean = rows(gy), rows(x), np.ascontiguousarray(mean)
    arrays, parameters = (dy.reshape(-1), flat.reshape(-1)), _affine(gamma, beta, inv_std)
    sums = _summed(_gradient_sums, *flat.shape, arrays, (mean, *parameters), relu)
    gx = memory.empty_like(flat)
    gx, ggamma, gbeta = _gradients(dy, flat, sums, gamma, beta, mean, inv_std, relu, gx)
    return from_rows(gx, x.shape), ggamma, gbeta


def batch_norm_train(x: Any, gamma: Any, beta: Any, eps: float) -> tuple[Any, Any, Any, Any]:
    """Statistics in one read, normalisation in one read and one write."""
    return _train(x, gamma, beta, eps, relu=False)


def batch_norm_relu_train(x: Any, gamma: Any, beta: Any, eps: float) -> tuple[Any, Any, Any, Any]:
    """The same with the ReLU in the second pass."""
    return _train(x, gamma, beta, eps, relu=True)


def batch_norm_add_relu_train(
    x: Any, r: Any, gamma: Any, beta: Any, eps: float
) -> tuple[Any, Any, Any, Any]:
    """The same with the shortcut and the ReLU in the second pass."""
    flat = rows(x)
    mean, var, inv_std = batch_norm_statistics(flat, eps)
    y = memory.empty_like(flat)
    _normalise_add(
        flat.reshape(-1), rows(r).reshape(-1), *flat.shape, mean, *_affine(gamma, beta, inv_std),
        True, y.reshape(-1), streams(y), num_threads(), lanes(x.dtype),
    )  # fmt: skip
    return from_rows(y, x.shape), mean, var, inv_std


def normalise(x: Any, mean: Any, scale: Any, shift: Any, r: Any, relu: bool) -> Any:
    """One read of each input, one write."""
    flat, C, dtype = rows(x), x.shape[1], x.dtype
    mean = np.zeros(C, dtype) if mean is None else np.ascontiguousarray(mean)
    scale = np.ones(C, dtype) if scale is None else np.ascontiguousarray(scale)
    shift = np.zeros(C, dtype) if shift is None else np.ascontiguousarray(shift)
    y = memory.empty_like(flat)
    rest = mean, scale, shift, relu, y.reshape(-1), streams(y), num_threads(), lanes(dtype)
    if r is None:
        _normalise(flat.reshape(-1), *flat.shape, *rest)
    else:
        _normalise_add(flat.reshape(-1), rows(r).reshape(-1), *flat.shape, *rest)
    return from_rows(y, x.shape)


def batch_norm_eval(x: Any, gamma: Any, beta: Any, mean: Any, var: Any, eps: float) -> Any:
    """One read, one write."""
    inv_std = 1.0 / np.sqrt(var + x.dtype.type(eps))
    return normalise(x, mean, *_affine(gamma, beta, inv_std), None, relu=False)


def batch_norm_grad(gy: Any, x: Any, gamma: Any, mean: Any, inv_std: Any) -> tuple[Any, Any, Any]:
    """Both sums in one read, the input gradient in one read and one write."""
    return _grad(gy, x, gamma, None, mean, inv_std, relu=False)


def batch_norm_relu_grad(
    gy: Any, x: Any, gamma: Any, beta: Any, mean: Any, inv_std: Any
) -> tuple[Any, Any, Any]:
    """The same with the ReLU's mask computed again in both passes."""
    return _grad(gy, x, gamma, beta, mean, inv_std, relu=True)


def batch_norm_add_relu_grad(
    gy: Any, x: Any, y: Any, gamma: Any, mean: Any, inv_std: Any
) -> tuple[Any, Any, Any, Any]:
    """Mask, shortcut gradient and both sums in one pass, the input gradient in another."""
    flat, mean = rows(x), np.ascontiguousarray(mean)
    gr, arrays = memory.empty_like(flat), [rows(a).reshape(-1) for a in (gy, flat, y)]
    sums = _summed(
        _gradient_sums_add, *flat.shape, arrays, [mean], gr.reshape(-1), streams(gr)
    )
    gx, ggamma, gbeta = _gradients(
        gr, flat, sums, gamma, None, mean, inv_std, False, memory.empty_like(flat)
    )
    return from_rows(gx, x.shape), from_rows(gr, x.shape), ggamma, gbeta


def batch_norm_relu_grad_fused(
    gy: Any, x: Any, gamma: Any, beta: Any, mean: Any, inv_std: Any, sums: Any,
    pooled: Pooled | None = None,
) -> tuple[Any, Any, Any]:  # fmt: skip
    """What is left where gy came masked and with its sums: one pass, in gy's memory.

    In new memory if gy is what max pooling makes of a smaller gradient.
    """
    mean = np.ascontiguousarray(mean)
    if pooled is not None:
        factors, ggamma, gbeta = channels.gradient_factors(
            sums, gamma, inv_std, x.size // x.shape[1]
        )
        return normalised_gradient(pooled, x, mean, factors), ggamma, gbeta
    dy = rows(gy)
    gx, ggamma, gbeta = _gradients(dy, rows(x), sums, gamma, beta, mean, inv_std, False, dy)
    return from_rows(gx, x.shape), ggamma, gbeta


def batch_norm_add_relu_grad_fused(
    gy: Any, x: Any, y: Any, gamma: Any, mean: Any, inv_std: Any, sums: Any
) -> tuple[Any, Any, Any, Any]:
    """The same in new memory: gy is the shortcut's gradient already."""
    flat, mean = rows(x), np.ascontiguousarray(mean)
    gx, ggamma, gbeta = _gradients(
        rows(gy), flat, sums, gamma, None, mean, inv_std, False, memory.empty_like(flat)
    )
    return from_rows(gx, x.shape), gy, ggamma, gbeta
