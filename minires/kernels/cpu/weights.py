"""Weights in the order in which register tiles read them, and back.

A weight (O, C, KH, KW) is a matrix W of K = KH*KW*C rows, in the order of a window's elements
(u, v, c), and O columns. `product` wants its columns in panels of one or two vectors, each panel a
contiguous (K, panel) block, so that a tile's reads follow one another.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit, prange

from minires.kernels import memory


@njit(cache=True, parallel=True)
def _pack(weight, O, C, taps, panel, out):
    panels = (O + panel - 1) // panel
    for p in prange(panels):
        for c in range(C):
            for j in range(panel):
                o = p * panel + j
                for tap in range(taps):
                    value = weight[(o * C + c) * taps + tap] if o < O else weight.dtype.type(0)
                    out[((p * taps + tap) * C + c) * panel + j] = value


@njit(cache=True, parallel=True)
def _pack_transposed(weight, O, C, taps, panel, out):
    K = C * taps
    panels = (K + panel - 1) // panel
    for p in prange(panels):
        for j in range(panel):
            k = p * panel + j
            tap, c = k // C, k % C
            for o in range(O):
                value = weight[(o * C + c) * taps + tap] if k < K else weight.dtype.type(0)
                out[(p * O + o) * panel + j] = value


@njit(cache=True, parallel=True)
def _unpack_sum(sums, O, C, taps, weight):
    workers = sums.shape[0]
    for c in prange(C):
        for tap in range(taps):
            at = (tap * C + c) * O
            for o in range(O):
                total = sums[0, at + o]
                for worker in range(1, workers):
                    total += sums[worker, at + o]
                weight[(o * C + c) * taps + tap] = total


def packed(weight: Any, panel: int) -> Any:
    """W in panels of output channels, zeros beyond the last: flat."""
    O, C, KH, KW = weight.shape
    out = memory.empty(-(-O // panel) * panel * C * KH * KW, weight.dtype)
    _pack(np.ascontiguousarray(weight).reshape(-1), O, C, KH * KW, panel, out)
    return out


def packed_transposed(weight: Any, panel: int) -> Any:
    """W^T, (O, K), in panels of window elements, zeros beyond the last: flat."""
    O, C, KH, KW = weight.shape
    out = memory.empty(-(-C * KH * KW // panel) * panel * O, weight.dtype)
    _pack_transposed(np.ascontiguousarray(weight).reshape(-1), O, C, KH * KW, panel, out)
    return out


def unpacked_sum(sums: Any, shape: tuple[int, int, int, int]) -> Any:
    """Per-worker gradients of W, (workers, K*O), added up in order: (O, C, KH, KW)."""
    O, C, KH, KW = shape
    weight = memory.empty(shape, sums.dtype)
    _unpack_sum(sums, O, C, KH * KW, weight.reshape(-1))
    return weight
