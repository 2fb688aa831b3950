"""The input gradient of strided layers, one product for each phase of the stride.

    gx[h, w] = sum of gy[i, j] @ W[u, v]^T  over  i*sh + u = h + ph,  j*sw + v = w + pw

Of the KH*KW taps only those with u = h + ph (mod sh) and v = w + pw (mod sw) meet at a pixel: with
u = u0 + a*sh, i = (h + ph) // sh - a, and j alike. So the pixels of one phase (u0, v0) see a window
of stride 1 of gy, whose rows lie where `direct.py` reads its windows: in a band of gy with a zero
border, `across` taps of O numbers side by side, `down` of them one row of the band apart. Taps are
packed last ones first, as i and j then grow. Every pixel is written once, where the columns of
`columns.py` would be added up.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from minires.kernels import memory
from minires.kernels.cpu.copying import clear_run, copy_band
from minires.kernels.cpu.product import panel_width, product_address, product_to_memory
from minires.kernels.cpu.simd import lanes
from minires.kernels.cpu.team import parallel
from minires.kernels.cpu.tile import FRESH
from minires.kernels.cpu.weights import packed_transposed
from minires.kernels.geometry import ConvGeometry
from minires.kernels.layout import to_nchw, to_nhwc
from minires.kernels.threads import num_threads

BAND = 1 << 17  # bytes of gy that are copied at a time: they stay in the second-level cache
LARGE = 1 << 18  # elements: weights beyond the second-level cache, and slow to sort by phase


@parallel
def _grad_input(
    worker, address, gy, weight, starts, gx, mode, N, C, sizes, panel, wide, rows, workers, work, L
):  # fmt: skip
    H, W, O, KH, KW, sh, sw, ph, pw, OH, OW = sizes
    reach_h, reach_w = (KH - 1) // sh, (KW - 1) // sw
    right = max((W - 1 + pw) // sw + 1 - OW, 0)
    row = (reach_w + OW + right) * O
    blocks = (H + rows - 1) // rows
    share = OW * O // (sh * sw)
    band = work[worker]
    for item in range(worker * N * blocks // workers, (worker + 1) * N * blocks // workers):
        n, first = item // blocks, item % blocks * rows
        end = min(first + rows, H)
        top = (first + ph) // sh - reach_h
        height = (end - 1 + ph) // sh + 1 - top
        copy_band(gy, n, top, height, OH, OW * O, reach_w * O, right * O, band, L)
        ask = (n * OH + max(min(top + height, OH), 0)) * OW * O
        for h in range(first, end):
            u = (h + ph) % sh
            down = (KH - u + sh - 1) // sh
            i = (h + ph) // sh + 1 - down - top
            for v in range(sw):
                w = (v - pw) % sw
                across, count = (KW - v + sw - 1) // sw, (W - w + sw - 1) // sw
                to = ((n * H + h) * W + w) * C
                if count <= 0:
                    continue
                if down <= 0 or across <= 0:
                    for t in range(count if mode == FRESH else 0):
                        clear_run(gx, to + t * sw * C, C, L)
                    continue
                j = (w + pw) // sw + reach_w + 1 - across
                run = across * O
                product_to_memory(
                    address, band, i * row + j * O, O, 1, count,
                    weight, starts[u * sw + v], panel, down * run * panel, panel, wide, C,
                    gx, to, sw * C, run, mode, down, row, run * panel, gy, ask, share,
                )  # fmt: skip
                ask += share


def _by_phase(weight: Any, g: ConvGeometry, panel: int) -> tuple[Any, Any]:
    """The taps that meet at a pixel together, last ones first, and where each phase starts."""
    (KH, KW), (sh, sw) = g.kernel, g.stride
    blocks = packed_transposed(weight, panel).reshape(KH, KW, g.C // panel, g.O * panel)
    phases = [blocks[u::sh, v::sw][::-1, ::-1] for u in range(sh) for v in range(sw)]
    starts = np.cumsum([0, *(phase.size for phase in phases[:-1])])
    return np.concatenate([p.transpose(2, 0, 1, 3).reshape(-1) for p in phases]), starts


def fits(g: ConvGeometry, lanes: int) -> bool:
    """A strided window without dilation, input channels in whole vectors, a small weight."""
    return (
        g.stride != (1, 1) != g.kernel
        and g.dilation == (1, 1)
        and g.groups == 1
        and g.C % lanes == 0
        and math.prod(g.weight_shape) <= LARGE
    )


def grad_input(gy: Any, weight: Any, g: ConvGeometry, gx: Any, mode: int) -> Any:
    """gx, (N, H, W, C) in memory, is written or added to; mode: FRESH or ONTO."""
    gy, L = to_nhwc(gy), lanes(gy.dtype)
    panel, workers = panel_width(g.C, L), num_threads()
    weight, starts = _by_phase(weight, g, panel)
    reach = [(k - 1) // s for k, s in zip(g.kernel, g.stride, strict=True)]
    right = max((g.W - 1 + g.padding[1]) // g.stride[1] + 1 - g.out[1], 0)
    row = (reach[1] + g.out[1] + right) * g.O
    fit = BAND // (row * gy.itemsize) - reach[0] - 1
    most = min(max(fit, 1) * g.stride[0], g.H)
    rows = -(-g.H // -(-g.H // most))
    height = (rows - 1) // g.stride[0] + 2 + reach[0]
    _grad_input(
        product_address(gy.dtype), gy.reshape(-1), weight, starts, gx.reshape(-1), mode, g.N, g.C,
        (g.H, g.W, g.O, *g.kernel, *g.stride, *g.padding, *g.out), panel, panel > L, rows,
        workers, memory.empty((workers, height * row), gy.dtype), L,
    )  # fmt: skip
    return to_nchw(gx)
