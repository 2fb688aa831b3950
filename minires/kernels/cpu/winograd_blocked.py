r"""Winograd convolution where the transformed weight is large: the last stages of ImageNet's nets.

The mathematics is that of `winograd_tiles.py`, with one product less where 4 leaves a rest. Of

    y0 = m0 + m1 + m2 +       m3 +       m4               m = (G g) . (B^T d)
    y1 =     a (m1 - m2) +   b (m3 - m4)
    y2 =   a^2 (m1 + m2) + b^2 (m3 + m4)
    y3 =   a^3 (m1 - m2) + b^3 (m3 - m4) + m5

the first three do without m5, the product at infinity: a tile of 3 is a tile of 4 whose last output
and last element are not there. Nothing else changes, neither U nor the transforms nor the error. An
image of 7 is cut into 4 + 3, one of 14 into 4 + 4 + 3 + 3 (`tilings.py`): in two dimensions 121
products per image where fours alone take 144, or 484 for 576. In the adjoint, W = A gy A^T, y3 is
zero and dU's last row (column) is summed over the tiles of 4 alone.

With 512 channels U takes 37 MB, more than the layer's activations: written to memory and read back
it costs as much as the products. So all tiles are transformed first, and then each worker takes a
few output channels at a time: it transforms a block of their weights into its cache, multiplies
all tiles with it, goes on to the next block of input channels, and transforms the sums back when
the last one is done. U never exists as a whole. The weight gradient runs the same way around:
blocks of dU are summed over all tiles, in cache, and transformed back at once. What comes next from
further away, filters or transformed tiles, is asked for during the products before.

Transformed tiles lie in blocks of channels, v[c // BLOCK, e, t, c % BLOCK], so that rows which are
read one after the other follow one another; rows a power of two apart would compete for the same
places of the first-level cache.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit

from minires.kernels import memory
from minires.kernels.cpu.copying import clear_run
from minires.kernels.cpu.finishing import Finish, part_of
from minires.kernels.cpu.product import (
    panel_width,
    product,
    product_address,
    product_to_memory,
)
from minires.kernels.cpu.simd import lanes
from minires.kernels.cpu.team import parallel
from minires.kernels.cpu.tile import FRESH, ONWARD
from minires.kernels.cpu.tilings import Tiling, place, ranges
from minires.kernels.cpu.winograd_products import ELEMENTS
from minires.kernels.cpu.winograd_tiles import (
    constants,
    load_gradient_tile,
    load_tile,
    store_tile,
)
from minires.kernels.cpu.winograd_weights import (
    TRANSFORMED,
    ask_for_taps,
    inverse_block,
    transform_block,
)

BLOCK = 64  # channels


@njit(cache=True)
def _rows(e, tiles, count):
    """The first and one behind the last of `count` tiles that have element e."""
    tall, low, high = tiles
    first, end = (low, high) if e % 6 == 5 else (0, count)
    return first, max(min(end, tall) if e >= 30 else end, first)


@parallel
def _load(worker, x, before, shape, tiling, total, pad, block, v, step, workers, work, L):
    """V of all tiles: each worker's, of all channels."""
    C, k, patch = shape[2], constants(x), work[worker]
    first, last = worker * total // workers, (worker + 1) * total // workers
    for c in range(0, C, block):
        channels, at = min(block, C - c), c // block * ELEMENTS * step
        for t in range(first, last):
            n, top, left, _, _ = place(t, tiling)
            load_tile(
                x, before, shape, n, top - pad[0], left - pad[1], c, channels, v,
                at + t * channels, step, patch, L, k,
            )  # fmt: skip


@parallel
def _load_gradient(worker, gy, out, tiling, total, block, w, step, workers, work, L):
    """The same of the gradient's tiles."""
    OH, OW, O = out
    k, patch = constants(gy), work[worker]
    first, last = worker * total // workers, (worker + 1) * total // workers
    for o in range(0, O, block):
        channels, at = min(block, O - o), o // block * ELEMENTS * step
        for t in range(first, last):
            n, top, left, tall, wide = place(t, tiling)
            height, width = min(4 if tall else 3, OH - top), min(4 if wide else 3, OW - left)
            load_gradient_tile(
                gy, ((n * OH + top) * OW + left) * O + o, OW * O, O, height, width, channels, w,
                at + t * channels, step, patch, L, k,
            )  # fmt: skip


@parallel
def _convolve(
    worker, address, v, v_step, C, weight, columns, swap, y, finish, counts, out, tiling, total,
    block, panel, wide, chunks, workers, work, L,
):  # fmt: skip
    """y from V: each worker's panels of output channels, of one chunk of the tiles at a time."""
    (OH, OW, O), k = out, constants(y)
    u_step, m_step = block * panel + L, (total + chunks - 1) // chunks * panel + L
    u = work[worker, : ELEMENTS * u_step]
    m = work[worker, ELEMENTS * u_step : ELEMENTS * (u_step + m_step)]
    rest = work[worker, ELEMENTS * (u_step + m_step) :]
    units = O // panel * chunks
    for unit in range(worker * units // workers, (worker + 1) * units // workers):
        o, chunk = unit // chunks * panel, unit % chunks
        begin, last = chunk * total // chunks, (chunk + 1) * total // chunks
        part, tiles = part_of(finish, chunk), ranges(tiling, begin, last - begin)
        for c in range(0, C, block):
            channels = min(block, C - c)
            transform_block(
                weight, columns, swap, o, panel, c, channels, u, 0, u_step, rest, L
            )  # fmt: skip
            o_next, c_next = (o, c + block) if c + block < C else (o + panel, 0)
            for e in range(ELEMENTS):
                ask_for_taps(
                    weight, columns, swap, o_next, panel, c_next, block, e, ELEMENTS, L
                )  # fmt: skip
                first, end = _rows(e, tiles, last - begin)
                at = (c // block * ELEMENTS + e) * v_step + (begin + first) * channels
                product(
                    address, v, at, channels, 1, end - first, u, e * u_step, panel, 0, panel, wide,
                    panel, m, e * m_step + first * panel, panel, channels,
                    ONWARD if c > 0 else FRESH,
                )  # fmt: skip
        # What a tile of 3 has no product for is not set: it gets into the outputs left out alone.
        for t in range(begin, last):
            n, top, left, tall, wide_tile = place(t, tiling)
            height, width = min(4 if tall else 3, OH - top), min(4 if wide_tile else 3, OW - left)
            store_tile(
                m, (t - begin) * panel, m_step, y, ((n * OH + top) * OW + left) * O + o, OW * O, O,
                height, width, o, panel, False, t == begin, part, rest, L, k,
            )  # fmt: skip
            if o == 0:
                counts[chunk] += height * width


@parallel
def _weight_gradient(
    worker, address, v, v_step, w, w_step, tiling, total, weight, C, O, block, panel, wide,
    workers, work, L,
):  # fmt: skip
    """dg from V and W: each worker's blocks of dU, summed over all tiles."""
    across, du_step, tiles = (C + block - 1) // block, block * block + L, ranges(tiling, 0, total)
    units = (O + block - 1) // block * across
    du, buffer = work[worker, : ELEMENTS * du_step], work[worker, ELEMENTS * du_step :]
    for unit in range(worker * units // workers, (worker + 1) * units // workers):
        row, col = unit // across, unit % across
        outputs, inputs = min(block, O - row * block), min(block, C - col * block)
        for e in range(ELEMENTS):
            first, end = _rows(e, tiles, total)
            if first == end:
                clear_run(du, e * du_step, outputs * inputs, L)
                continue
            w_at, v_at = (row * ELEMENTS + e) * w_step, (col * ELEMENTS + e) * v_step
            w_next, v_next = w_at + w_step, v_at + v_step
            if e == ELEMENTS - 1:
                w_next = (unit + 1) // across * ELEMENTS * w_step
                v_next = (unit + 1) % across * ELEMENTS * v_step
            for c in range(0, inputs, panel):  # with the first panel W is asked for, then V
                source, ask, count = (w, w_next, outputs) if c == 0 else (v, v_next, inputs)
                product_to_memory(
                    address, w, w_at + first * outputs, 1, outputs, outputs,
                    v, v_at + first * inputs + c, inputs, panel, panel, wide, panel,
                    du, e * du_step + c, inputs, end - first, FRESH, 1, 0, 0,
                    source, ask, total * count if c <= panel else 0,
                )  # fmt: skip
        for o in range(outputs):
            to = ((row * block + o) * C + col * block) * 9
            inverse_block(
                du, o * inputs, du_step, 0, 1, inputs, weight, to, buffer, L
            )  # fmt: skip


def _transformed(total: int, channels: int, block: int, dtype: Any) -> tuple[Any, int]:
    """Room for all transformed tiles, and from one element to the next.

    With a vector between: distances of a power of two would compete for the same places of the
    cache.
    """
    step = total * block + lanes(dtype)
    return memory.empty(-(-channels // block) * ELEMENTS * step, dtype), step


def chunks(total: int, O: int, dtype: Any, workers: int) -> int:
    """Parts of the tiles, where there are more workers than panels of outputs."""
    return max(min(-(-workers // (O // panel_width(O, lanes(dtype)))), total), 1)


def convolve(
    x: Any, before: Any, weight: Any, swap: bool, y: Any, finish: Finish, pad: Any, chunks: int,
    workers: int,
) -> Any:  # fmt: skip
    """y (N, OH, OW, O) from x (N, H, W, C), with `weight` or with its adjoint if `swap`.

    before, finish: what `finishing.py` says, finish with a part for each of the chunks. Returns how
    many pixels each part has.
    """
    dtype, L, (N, *out, O) = x.dtype, lanes(x.dtype), y.shape
    tiling, panel = Tiling.of(N, *out), panel_width(O, L)
    total, C = tiling.tiles, x.shape[3]
    room = ELEMENTS * (BLOCK * panel + -(-total // chunks) * panel + 2 * L)
    room += max(ELEMENTS * BLOCK, TRANSFORMED * panel)
    work = memory.empty((workers, room), dtype)
    (v, step), counts = _transformed(total, C, BLOCK, dtype), np.zeros(chunks, np.intp)
    _load(
        x.reshape(-1), before, x.shape[1:], tiling, total, pad, BLOCK, v, step, workers, work, L
    )  # fmt: skip
    _convolve(
        product_address(dtype), v, step, C, np.ascontiguousarray(weight).reshape(-1),
        weight.shape[1], swap, y.reshape(-1), finish, counts, (*out, O), tiling, total, BLOCK,
        panel, panel > L, chunks, workers, work, L,
    )  # fmt: skip
    return counts


def weight_gradient(x: Any, before: Any, gy: Any, gweight: Any, pad: Any, workers: int) -> None:
    """gweight (O, C, 3, 3) from x (N, H, W, C) and gy (N, OH, OW, O)."""
    dtype, L, C, (N, *out, O) = x.dtype, lanes(x.dtype), x.shape[3], gy.shape
    tiling, panel = Tiling.of(N, *out), panel_width(C, L)
    total = tiling.tiles
    work = memory.empty((workers, ELEMENTS * (BLOCK * BLOCK + L + BLOCK)), dtype)
    (v, v_step), (w, w_step) = (_transformed(total, n, BLOCK, dtype) for n in (C, O))
    _load(
        x.reshape(-1), before, x.shape[1:], tiling, total, pad, BLOCK, v, v_step, workers, work, L
    )  # fmt: skip
    _load_gradient(
        gy.reshape(-1), gy.shape[1:], tiling, total, BLOCK, w, w_step, workers, work, L
    )  # fmt: skip
    _weight_gradient(
        product_address(dtype), v, v_step, w, w_step, tiling, total, gweight.reshape(-1), C, O,
        BLOCK, panel, panel > L, workers, work, L,
    )  # fmt: skip
