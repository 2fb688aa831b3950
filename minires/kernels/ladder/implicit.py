r"""Rung 5: no columns at all.

    y[n, i] = sum_{u, v} rows(n, i, u, v) @ W[u, v]           (OW x C) @ (C x O)
    rows(n, i, u, v)[j, c] = padded[n, i*sh + u*dh, j*sw + v*dw, c]

What changed: the sum over taps is taken outside of the product. For one tap, the inputs that a row
of output needs lie sw*C apart in memory already: they are a matrix as they stand, and BLAS is told
its stride instead of being given a copy. What it bought: nothing is copied but the border, and the
workspace is that border. The price: KH*KW small products instead of a large one, each of which
reads and writes y again. `kernels/cpu/direct.py` takes this way where channels are few.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from minires.kernels.condition import never
from minires.kernels.geometry import ConvGeometry
from minires.kernels.layout import to_nchw, to_nhwc
from minires.kernels.reference.conv import channel_groups, pad_nhwc
from minires.kernels.registry import register


def workspace(g: ConvGeometry, dtype: str) -> int:
    """The padded batch, and the product of one tap."""
    padded = g.N * (g.H + 2 * g.padding[0]) * (g.W + 2 * g.padding[1]) * g.C
    product = g.N * g.out[0] * g.out[1] * g.O // g.groups
    return ((padded if max(g.padding) else 0) + product) * np.dtype(dtype).itemsize


def tap(padded: Any, u: int, v: int, g: ConvGeometry) -> Any:
    """A view (N, OH, OW, C): what tap (u, v) of every window reads."""
    (sh, sw), (dh, dw), (OH, OW) = g.stride, g.dilation, g.out
    rows = slice(u * dh, u * dh + sh * (OH - 1) + 1, sh)
    return padded[:, rows, v * dw : v * dw + sw * (OW - 1) + 1 : sw]


@register("conv2d", name="implicit", worth=never, workspace=workspace)
def conv2d(x: Any, weight: Any, g: ConvGeometry) -> Any:
    """One product per tap, read where it lies."""
    padded = pad_nhwc(to_nhwc(x), g)
    y = np.zeros((g.N, *g.out, g.O), x.dtype)
    for c, o in channel_groups(g):
        for u, v in np.ndindex(*g.kernel):
            y[..., o] += tap(padded, u, v, g)[..., c] @ weight[o, :, u, v].T
    return to_nchw(y)


@register("conv2d_grad_input", name="implicit", worth=never, workspace=workspace)
def conv2d_grad_input(gy: Any, weight: Any, g: ConvGeometry) -> Any:
    """One product per tap, added to where its inputs lie."""
    gy, (ph, pw) = to_nhwc(gy), g.padding
    padded = np.zeros((g.N, g.H + 2 * ph, g.W + 2 * pw, g.C), gy.dtype)
    for c, o in channel_groups(g):
        for u, v in np.ndindex(*g.kernel):
            tap(padded, u, v, g)[..., c] += gy[..., o] @ weight[o, :, u, v]
    return to_nchw(np.ascontiguousarray(padded[:, ph : ph + g.H, pw : pw + g.W]))


@register("conv2d_grad_weight", name="implicit", worth=never, workspace=workspace)
def conv2d_grad_weight(x: Any, gy: Any, g: ConvGeometry) -> Any:
    """One product per tap: its inputs, transposed, times the upstream gradient."""
    padded, gy = pad_nhwc(to_nhwc(x), g), to_nhwc(gy)
    gweight = np.empty(g.weight_shape, x.dtype)
    for c, o in channel_groups(g):
        upstream = gy[..., o].reshape(-1, o.stop - o.start)
        for u, v in np.ndindex(*g.kernel):
            inputs = tap(padded, u, v, g)[..., c].reshape(len(upstream), -1)
            gweight[o, :, u, v] = upstream.T @ inputs
    return gweight
