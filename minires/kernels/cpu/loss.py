"""Cross-entropy of rows and its gradient, each row while it is in cache.

    L = max_k x_k + log sum_k exp(x_k - max x),   q = (1 - e) [k = label] + e / K
    loss = sum_k q_k (L - x_k),                   gx_k = exp(x_k - L) - q_k
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from minires.kernels.cpu.team import parallel
from minires.kernels.threads import num_threads


@parallel
def _cross_entropy(worker, x, labels, ignored, chosen, other, losses, gx, workers):
    N, K = x.shape
    for n in range(worker * N // workers, (worker + 1) * N // workers):
        label = labels[n]
        if label == ignored:
            losses[n] = 0
            gx[n] = 0
            continue
        largest, total, loss = x[n, 0], x.dtype.type(0), x.dtype.type(0)
        for k in range(K):
            largest = max(largest, x[n, k])
        for k in range(K):
            gx[n, k] = math.exp(x[n, k] - largest)
            total += gx[n, k]
        log_total = math.log(total)
        for k in range(K):
            q = chosen if k == label else other
            if q != 0:  # where it is zero, x counts for nothing, even if it is -infinity
                loss += q * ((largest - x[n, k]) + log_total)
            gx[n, k] = gx[n, k] / total - q
        losses[n] = loss if 0 <= label < K else np.nan


def cross_entropy(
    x: Any, labels: Any, ignore_index: int, label_smoothing: float
) -> tuple[Any, Any]:
    """The loss of each row of x (N, K) for its label, and its gradient."""
    x = np.ascontiguousarray(x)
    K, kind = x.shape[1], x.dtype.type
    losses, gx = np.empty(len(x), x.dtype), np.empty(x.shape, x.dtype)
    other = kind(label_smoothing / K)
    chosen = kind(1 - label_smoothing) + other
    labels = np.ascontiguousarray(labels, np.int64)
    _cross_entropy(x, labels, ignore_index, chosen, other, losses, gx, num_threads())
    return losses, gx
