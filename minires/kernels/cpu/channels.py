"""Numbers per channel, between the passes over memory: each step of batch norm in one call.

The arithmetic is a few hundred operations. In NumPy it is forty calls per layer and step, and after
a kernel has swept the caches each takes several microseconds. The operations are those that NumPy
would do, in their order and precision, and so are the bits.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit


@njit(cache=True)
def merge(kept, sums, counts, mean, squares):
    """What workers have summed, of so many rows each, into mean (zeros) and variance (zeros)."""
    n = 0
    for part in range(len(counts)):
        count = counts[part]
        if count == 0:
            continue
        for o in range(len(mean)):
            d, d2 = sums[part, 0, o], sums[part, 1, o]
            delta = kept[part, o] + d / count - mean[o]
            mean[o] += delta * (count / (n + count))
            own = max(d2 - d * d / count, 0.0)
            squares[o] += own + delta * delta * (n * count / (n + count))
        n += count
    for o in range(len(mean)):
        squares[o] /= n


def merged(kept: Any, sums: Any, counts: Any) -> tuple[Any, Any]:
    """Mean and biased variance in float64 of what workers have summed; see `finishing.py`.

    counts: each worker's rows, at least one in all.
    """
    O = sums.shape[2]
    mean, squares = np.zeros(O), np.zeros(O)
    merge(kept, sums, counts, mean, squares)
    return mean, squares


@njit(cache=True)
def _normaliser(mean, var, eps, gamma, beta, out):
    for c in range(len(mean)):
        v = max(var[c], 0.0)
        out[0, c], out[1, c] = mean[c], v
        out[2, c] = 1.0 / np.sqrt(v + eps)
        out[3, c] = gamma[c] * out[2, c] if gamma.size else out[2, c]
        out[4, c] = beta[c] if beta.size else 0


def normaliser(moments: tuple[Any, Any], eps: float, gamma: Any, beta: Any, dtype: Any) -> Any:
    """Mean, variance, inverse deviation, scale (gamma times that), and a copy of beta: rows."""
    mean, var = moments
    out = np.empty((5, len(mean)), dtype)
    if gamma is None:
        gamma = beta = out[0, :0]
    _normaliser(mean, var, eps, gamma, beta, out)
    return out


@njit(cache=True)
def move(mean, var, batch_mean, batch_var, momentum, unbiased):
    """Running statistics towards a batch's, in place; `unbiased` makes its variance all images'."""
    kind = mean.dtype.type
    rest, of_mean, of_var = kind(1 - momentum), kind(momentum), kind(momentum * unbiased)
    for c in range(len(mean)):
        mean[c] = rest * mean[c] + of_mean * batch_mean[c]
        var[c] = rest * var[c] + of_var * batch_var[c]


@njit(cache=True)
def _gradient_factors(sums, gamma, inv_std, R, factors, ggamma, gbeta):
    for c in range(len(inv_std)):
        s = np.float64(inv_std[c])
        along_xhat = sums[1, c] * s
        wide = s if gamma.size == 0 else gamma[c] * s
        factors[0, c] = wide
        factors[1, c] = wide * s * along_xhat / R
        factors[2, c] = wide * sums[0, c] / R
        ggamma[c], gbeta[c] = along_xhat, sums[0, c]


def gradient_factors(sums: Any, gamma: Any, inv_std: Any, R: int) -> tuple[Any, Any, Any]:
    """From the sums over R rows of gy and of gy * (x - mean): what the input gradient

        gx = factors[0] * gy - factors[1] * (x - mean) - factors[2]

    is made with, and the gradients of gamma and beta.
    """
    C, dtype = len(inv_std), inv_std.dtype
    factors, ggamma, gbeta = np.empty((3, C), dtype), np.empty(C, dtype), np.empty(C, dtype)
    _gradient_factors(
        sums, factors[0, :0] if gamma is None else gamma, inv_std, R, factors, ggamma, gbeta
    )
    return factors, ggamma, gbeta
