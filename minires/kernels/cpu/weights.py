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
from minires.kernels.cpu.copying import clear_run, copy_run
from minires.kernels.cpu.simd import lanes

BLOCK = 16  # channels moved at a time, so that both sides of a transposition stay in cache


@njit(cache=True, parallel=True)
def _pack(weight, O, C, taps, panel, out):
    panels = (O + panel - 1) // panel
    for p in prange(panels):
        columns = min(panel, O - p * panel)
        for c0 in range(0, C, BLOCK):
            c1 = min(c0 + BLOCK, C)
            for j in range(columns):
                at = ((p * panel + j) * C + c0) * taps
                for c in range(c0, c1):
                    for tap in range(taps):
                        out[((p * taps + tap) * C + c) * panel + j] = weight[at]
                        at += 1
        if columns < panel:
            for row in range(p * taps * C, (p + 1) * taps * C):
                for j in range(columns, panel):
                    out[row * panel + j] = 0


@njit(cache=True, parallel=True)
def _pack_transposed(weight, O, C, taps, panel, out, L):
    K = C * taps
    panels = (K + panel - 1) // panel
    for p in prange(panels):
        columns = min(panel, K - p * panel)
        for o in range(O):
            k, to = p * panel, (p * O + o) * panel
            if taps == 1:
                copy_run(weight, o * C + k, out, to, columns, L)
            else:
                tap, c = k // C, k % C
                for j in range(columns):
                    out[to + j] = weight[(o * C + c) * taps + tap]
                    c += 1
                    if c == C:
                        tap, c = tap + 1, 0
            clear_run(out, to + columns, panel - columns, L)


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


@njit(cache=True, parallel=True)
def _taps_last(parts, row, O, C, taps, weight):
    for o in prange(O):
        at, to = o * row, o * C * taps
        for tap in range(taps):
            for c in range(C):
                total = parts[0, at + tap * C + c]
                for part in range(1, len(parts)):
                    total += parts[part, at + tap * C + c]
                weight[to + c * taps + tap] = total


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
    flat = np.ascontiguousarray(weight).reshape(-1)
    _pack_transposed(flat, O, C, KH * KW, panel, out, lanes(weight.dtype))
    return out


def taps_last(parts: Any, row: int, shape: tuple[int, int, int, int]) -> Any:
    """(parts, O*row) with window elements (u, v, c) along a row: their sum as (O, C, KH, KW)."""
    O, C, KH, KW = shape
    if len(parts) == 1 and row == C and KH * KW == 1:
        return parts.reshape(shape)
    weight = memory.empty(shape, parts.dtype)
    _taps_last(parts, row, O, C, KH * KW, weight.reshape(-1))
    return weight


def unpacked_sum(sums: Any, shape: tuple[int, int, int, int]) -> Any:
    """Per-worker gradients of W, (workers, K*O), added up in order: (O, C, KH, KW)."""
    O, C, KH, KW = shape
    weight = memory.empty(shape, sums.dtype)
    _unpack_sum(sums, O, C, KH * KW, weight.reshape(-1))
    return weight
