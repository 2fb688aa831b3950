"""Weights in the order in which register tiles read them, and back.

A weight (O, C, KH, KW) is a matrix W of K = KH*KW*C rows, in the order of a window's elements
(u, v, c), and O columns. `product` wants its columns in panels of one or two vectors, each panel a
contiguous (K, panel) block, so that a tile's reads follow one another.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit

from minires.kernels import memory
from minires.kernels.cpu.copying import AHEAD, clear_run, copy_run, prefetch_run
from minires.kernels.cpu.simd import lanes, transpose
from minires.kernels.cpu.team import parallel
from minires.kernels.threads import num_threads

PANELS = 4  # filled side by side: long runs to read, and few places to write to
SMALL = 1 << 17  # elements: waking a thread takes longer than packing them


@njit(cache=True)
def _pack_columns(weight, O, C, taps, panel, out, o, square, L):
    """Output channels o, ..., o + L - 1: a transposition, its rows put in the order (tap, c).

    With one tap they are in order, and go where they belong without a stop in `square`.
    """
    K, there = C * taps, min(L, O - o)
    base, whole = o // panel * panel * K + o % panel, (K - K % L if there == L else 0)
    for k in range(0, whole, L):
        if taps == 1:
            transpose(weight, o * K + k, K, out, base + k * panel, panel)
            continue
        transpose(weight, o * K + k, K, square, 0, L)
        c, tap = k // taps, k % taps
        for row in range(L):
            copy_run(square, row * L, out, base + (tap * C + c) * panel, L, L)
            tap += 1
            if tap == taps:
                c, tap = c + 1, 0
    for k in range(whole, K):
        to = base + (k % taps * C + k // taps) * panel
        for j in range(there):
            out[to + j] = weight[(o + j) * K + k]
        for j in range(max(there, 0), L):
            out[to + j] = 0


@parallel
def pack(worker, weight, O, C, taps, panel, out, workers, L):
    square, blocks = np.empty(L * L, weight.dtype), (O + panel - 1) // panel * panel // L
    for block in range(worker * blocks // workers, (worker + 1) * blocks // workers):
        _pack_columns(weight, O, C, taps, panel, out, block * L, square, L)


@njit(cache=True)
def _pack_rows(weight, O, C, taps, panel, out, c, count, square, L):
    """Input channels c, ..., c + count - 1 of every output channel: rows of out are short runs.

    L of them at a time are a transposition of (c, tap); it reads on beyond the last tap.
    """
    for o in range(O):
        prefetch_run(weight, ((o + AHEAD) * C + c) * taps, count * taps, L)
        for tap in range(0, taps, L):
            at = (o * C + c) * taps + tap
            there = min(L, taps - tap)
            if count == L and at + (L - 1) * taps + L <= weight.size:
                transpose(weight, at, taps, square, 0, L)
                for t in range(there):
                    k = (tap + t) * C + c
                    copy_run(square, t * L, out, (k // panel * O + o) * panel + k % panel, L, L)
                continue
            for t in range(there):
                for i in range(count):
                    k = (tap + t) * C + c + i
                    out[(k // panel * O + o) * panel + k % panel] = weight[at + i * taps + t]


@njit(cache=True)
def _clear_rest(O, K, panel, out, L):
    """Zeros beyond column K of the last panel."""
    rest = -K % panel
    for o in range(O if rest else 0):
        clear_run(out, (K // panel * O + o) * panel + panel - rest, rest, L)


@njit(cache=True)
def _pack_runs(weight, O, C, panel, out, c, end, L):
    """The same for one tap and channels c, ..., end - 1: runs stay runs."""
    for o in range(O):
        prefetch_run(weight, (o + AHEAD) * C + c, end - c, L)
        for k in range(c, end, panel):
            to = (k // panel * O + o) * panel
            copy_run(weight, o * C + k, out, to, min(panel, end - k), L)


@parallel
def pack_transposed(worker, weight, O, C, taps, panel, out, workers, L):
    size = PANELS * panel if taps == 1 else L
    step = L if C % L == 0 else 1  # a run of channels must not straddle two panels
    square, blocks = np.empty(L * L, weight.dtype), (C + size - 1) // size
    for block in range(worker * blocks // workers, (worker + 1) * blocks // workers):
        c0, c1 = block * size, min(block * size + size, C)
        if taps == 1:
            _pack_runs(weight, O, C, panel, out, c0, c1, L)
        else:
            for c in range(c0, c1, step):
                _pack_rows(weight, O, C, taps, panel, out, c, step, square, L)
    if worker == 0:
        _clear_rest(O, C * taps, panel, out, L)


@parallel
def _unpack_sum(worker, sums, O, C, taps, weight, workers):
    for c in range(worker * C // workers, (worker + 1) * C // workers):
        for tap in range(taps):
            at = (tap * C + c) * O
            for o in range(O):
                total = sums[0, at + o]
                for part in range(1, len(sums)):
                    total += sums[part, at + o]
                weight[(o * C + c) * taps + tap] = total


@parallel
def taps_last(worker, parts, row, O, C, taps, weight, workers):
    """(parts, O*row) with window elements (u, v, c) along a row: their sum as (O, C, KH, KW)."""
    for o in range(worker * O // workers, (worker + 1) * O // workers):
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
    flat = np.ascontiguousarray(weight).reshape(-1)
    workers = num_threads() if weight.size >= SMALL else 1
    pack(flat, O, C, KH * KW, panel, out, workers, lanes(weight.dtype))
    return out


def packed_transposed(weight: Any, panel: int) -> Any:
    """W^T, (O, K), in panels of window elements, zeros beyond the last: flat."""
    O, C, KH, KW = weight.shape
    out = memory.empty(-(-C * KH * KW // panel) * panel * O, weight.dtype)
    flat = np.ascontiguousarray(weight).reshape(-1)
    workers = num_threads() if weight.size >= SMALL else 1
    pack_transposed(flat, O, C, KH * KW, panel, out, workers, lanes(weight.dtype))
    return out


def unpacked_sum(sums: Any, shape: tuple[int, int, int, int]) -> Any:
    """Per-worker gradients of W, (workers, K*O), added up in order: (O, C, KH, KW)."""
    O, C, KH, KW = shape
    weight = memory.empty(shape, sums.dtype)
    _unpack_sum(sums, O, C, KH * KW, weight.reshape(-1), num_threads())
    return weight
