"""Winograd convolution where the transformed weight is large: the last stages of ImageNet's nets.

With 512 channels U takes 37 MB, more than the layer's activations: written to memory and read back
it costs as much as the products. So all tiles are transformed first, and then each worker takes a
few output channels at a time: it transforms a block of their weights into its cache, multiplies
all tiles with it, goes on to the next block of input channels, and transforms the sums back when
the last one is done. U never exists as a whole. The weight gradient runs the same way around:
blocks of dU are summed over all tiles, in cache, and transformed back at once.

Transformed tiles lie in blocks of channels, v[c // BLOCK, e, t, c % BLOCK], so that rows which are
read one after the other follow one another; rows a power of two apart would compete for the same
places of the first-level cache.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from minires.kernels import memory
from minires.kernels.cpu.finishing import Finish, part_of
from minires.kernels.cpu.simd import lanes
from minires.kernels.cpu.team import parallel
from minires.kernels.cpu.winograd_products import ELEMENTS, ROWS, accumulate, multiply
from minires.kernels.cpu.winograd_tiles import (
    constants,
    load_gradient_tiles,
    load_tiles,
    store_tiles,
)
from minires.kernels.cpu.winograd_weights import GROUP, inverse_block, transform_block

BLOCK = 64  # channels


@parallel
def _load(worker, x, before, shape, tiles, pad, block, v, workers, work, L):
    """V of all tiles: each worker's, of all channels."""
    C, k = shape[2], constants(x)
    total = x.size // (shape[0] * shape[1] * C) * tiles[0] * tiles[1]
    first, last = worker * total // workers, (worker + 1) * total // workers
    for c in range(0, C, block):
        channels = min(block, C - c)
        at = c // block * ELEMENTS * total * block + first * channels
        load_tiles(
            x, before, shape, tiles, pad, first, last - first, c, channels, v, at, total * block,
            work[worker], L, k,
        )  # fmt: skip


@parallel
def _load_gradient(worker, gy, out, tiles, block, w, workers, work, L):
    """The same of the gradient's tiles."""
    O, k = out[2], constants(gy)
    total = gy.size // (out[0] * out[1] * O) * tiles[0] * tiles[1]
    first, last = worker * total // workers, (worker + 1) * total // workers
    for o in range(0, O, block):
        channels = min(block, O - o)
        at = o // block * ELEMENTS * total * block + first * channels
        load_gradient_tiles(
            gy, out, tiles, first, last - first, o, channels, w, at, total * block, work[worker],
            L, k,
        )  # fmt: skip


@parallel
def _convolve(
    worker, v, total, C, weight, columns, swap, y, finish, out, tiles, block, panel, chunks,
    workers, work, L, wide,
):  # fmt: skip
    """y from V: each worker's panels of output channels, of one chunk of the tiles at a time."""
    v_step, most = total * block, (total + chunks - 1) // chunks + ROWS
    u_step, m_step, units = block * panel, most * panel, out[2] // panel * chunks
    k = constants(y)
    u = work[worker, : ELEMENTS * u_step]
    m = work[worker, ELEMENTS * u_step : ELEMENTS * (u_step + m_step)]
    rest = work[worker, ELEMENTS * (u_step + m_step) :]
    for unit in range(worker * units // workers, (worker + 1) * units // workers):
        o, chunk = unit // chunks * panel, unit % chunks
        first, last = chunk * total // chunks, (chunk + 1) * total // chunks
        for c in range(0, C, block):
            channels = min(block, C - c)
            transform_block(
                weight, columns, swap, o, panel, c, channels, u, 0, u_step, rest, L
            )  # fmt: skip
            for e in range(ELEMENTS):
                at = (c // block * ELEMENTS + e) * v_step + first * channels
                multiply(
                    v, at, channels, u, e * u_step, m, e * m_step, panel, last - first, L,
                    wide, c > 0,
                )  # fmt: skip
        store_tiles(
            m, m_step, out, tiles, first, last - first, o, panel, y, False, True,
            part_of(finish, chunk), rest, L, k,
        )  # fmt: skip


@parallel
def _weight_gradient(worker, v, w, total, weight, C, O, block, workers, work, L, wide):
    """dg from V and W: each worker's blocks of dU, summed over all tiles."""
    step, across = total * block, (C + block - 1) // block
    units = (O + block - 1) // block * across
    du = work[worker, : ELEMENTS * block * block]
    buffer = work[worker, ELEMENTS * block * block :]
    for unit in range(worker * units // workers, (worker + 1) * units // workers):
        row, col = unit // across, unit % across
        outputs, inputs = min(block, O - row * block), min(block, C - col * block)
        du_step = outputs * inputs
        for e in range(ELEMENTS):
            accumulate(
                w, (row * ELEMENTS + e) * step, outputs, v, (col * ELEMENTS + e) * step,
                inputs, du, e * du_step, total, L, wide, False,
            )  # fmt: skip
        for o in range(outputs):
            to = ((row * block + o) * C + col * block) * 9
            inverse_block(
                du, o * inputs, du_step, 0, 1, inputs, weight, to, buffer, L
            )  # fmt: skip


def _blocks(total: int, channels: int, block: int, dtype: Any) -> Any:
    """Room for all transformed tiles, and for the last register tile."""
    return memory.empty((-(-channels // block) * ELEMENTS * total + ROWS) * block, dtype)


def _panel(O: int, dtype: Any) -> int:
    L = lanes(dtype)
    return 2 * L if O % (2 * L) == 0 else L


def chunks(total: int, O: int, dtype: Any, workers: int) -> int:
    """Parts of the tiles, where there are more workers than panels of outputs."""
    return min(-(-workers // (O // _panel(O, dtype))), total)


def convolve(
    x: Any, before: Any, weight: Any, swap: bool, y: Any, finish: Finish, tiles: tuple[int, int],
    pad: Any, chunks: int, workers: int,
) -> None:  # fmt: skip
    """y (N, OH, OW, O) from x (N, H, W, C), with `weight` or with its adjoint if `swap`.

    before, finish: what `finishing.py` says, finish with a part for each of the chunks.
    """
    dtype, L, O = x.dtype, lanes(x.dtype), y.shape[3]
    panel, total = _panel(O, dtype), len(x) * tiles[0] * tiles[1]
    most = -(-total // chunks) + ROWS
    room = ELEMENTS * (BLOCK * panel + most * panel + BLOCK) + 27 * GROUP * panel
    work = memory.empty((workers, room), dtype)
    v = _blocks(total, x.shape[3], BLOCK, dtype)
    _load(x.reshape(-1), before, x.shape[1:], tiles, pad, BLOCK, v, workers, work, L)
    _convolve(
        v, total, x.shape[3], np.ascontiguousarray(weight).reshape(-1), weight.shape[1], swap,
        y.reshape(-1), finish, y.shape[1:], tiles, BLOCK, panel, chunks, workers, work, L,
        panel > L,
    )  # fmt: skip


def weight_gradient(
    x: Any, before: Any, gy: Any, gweight: Any, tiles: tuple[int, int], pad: Any, workers: int
) -> None:
    """gweight (O, C, 3, 3) from x (N, H, W, C) and gy (N, OH, OW, O)."""
    dtype, L, C, O = x.dtype, lanes(x.dtype), x.shape[3], gy.shape[3]
    wide = C % (2 * L) == 0
    total = len(x) * tiles[0] * tiles[1]
    work = memory.empty((workers, ELEMENTS * BLOCK * BLOCK + ELEMENTS * BLOCK), dtype)
    v, w = (_blocks(total, channels, BLOCK, dtype) for channels in (C, O))
    _load(x.reshape(-1), before, x.shape[1:], tiles, pad, BLOCK, v, workers, work, L)
    _load_gradient(gy.reshape(-1), gy.shape[1:], tiles, BLOCK, w, workers, work, L)
    _weight_gradient(v, w, total, gweight.reshape(-1), C, O, BLOCK, workers, work, L, wide)
