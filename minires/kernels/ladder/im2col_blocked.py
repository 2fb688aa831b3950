r"""Rung 4: im2col a few rows of output at a time.

    for each image n and block of output rows i0 <= i < i1:
        columns[(i, j), (u, v, c)] = padded[n, i*sh + u*dh, j*sw + v*dw, c]
        y[n, i0:i1] = columns @ W

What changed: the matrix of rung 3 is made in pieces of half a megabyte, each in the place of the
one before. What it bought: a piece is multiplied while it is still in cache, so the matrix is never
written to memory, and the workspace no longer grows with the batch. `kernels/cpu/columns.py` does
the same with pieces of 48 pixels, products of its own and all threads.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from minires.kernels.condition import never
from minires.kernels.geometry import ConvGeometry
from minires.kernels.layout import to_nchw, to_nhwc
from minires.kernels.reference.conv import channel_groups, flat_weight, pad_nhwc, windows
from minires.kernels.registry import register

BLOCK_BYTES = 512 << 10


def _rows(g: ConvGeometry, itemsize: int) -> int:
    """Output rows whose columns take about BLOCK_BYTES."""
    KH, KW = g.kernel
    row = g.out[1] * KH * KW * (g.C // g.groups) * itemsize
    return min(max(1, BLOCK_BYTES // row), g.out[0])


def _blocks(g: ConvGeometry, itemsize: int) -> Iterator[tuple[int, slice]]:
    """(image, output rows)."""
    step = _rows(g, itemsize)
    for n in range(g.N):
        for start in range(0, g.out[0], step):
            yield n, slice(start, min(start + step, g.out[0]))


def workspace(g: ConvGeometry, dtype: str) -> int:
    """One block of columns, and the padded batch."""
    KH, KW = g.kernel
    itemsize = np.dtype(dtype).itemsize
    columns = _rows(g, itemsize) * g.out[1] * KH * KW * (g.C // g.groups)
    padded = g.N * (g.H + 2 * g.padding[0]) * (g.W + 2 * g.padding[1]) * g.C
    return (columns + (padded if max(g.padding) else 0)) * itemsize


@register("conv2d", name="im2col-blocked", worth=never, workspace=workspace)
def conv2d(x: Any, weight: Any, g: ConvGeometry) -> Any:
    """One product per block of output rows."""
    view = windows(pad_nhwc(to_nhwc(x), g), g)
    y = np.empty((g.N, *g.out, g.O), x.dtype)
    for c, o in channel_groups(g):
        w = flat_weight(weight[o])
        columns = np.empty((_rows(g, x.itemsize), g.out[1], w.shape[0]), x.dtype)
        for n, rows in _blocks(g, x.itemsize):
            piece = columns[: rows.stop - rows.start]
            source = view[n, rows, ..., c]
            piece.reshape(source.shape)[...] = source
            y[n, rows, :, o] = piece @ w
    return to_nchw(y)
