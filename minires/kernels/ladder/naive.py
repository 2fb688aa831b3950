r"""Rung 1: seven loops.

    y[n, o, i, j] = sum_{c, u, v} x[n, c, i*sh + u*dh - ph, j*sw + v*dw - pw] * weight[o, c, u, v]

with x zero outside of its borders, and c running over the channels of o's group. Four loops go over
the outputs, three over what each is a sum of. The gradients are the same seven loops: every product
of an input, a weight and an upstream gradient that belong together is added where it is wanted.

    gx[n, c, h, w]      += gy[n, o, i, j] * weight[o, c, u, v]
    gweight[o, c, u, v] += gy[n, o, i, j] * x[n, c, h, w]

This is the definition, and the rung that the others are measured by. Numba compiles the loops as
they stand; the same text run by Python itself (`naive-python`) takes some 200 times as long.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit

from minires.kernels.condition import never
from minires.kernels.geometry import ConvGeometry
from minires.kernels.registry import register


def loops(x, weight, y, sh, sw, ph, pw, dh, dw):  # type: ignore[no-untyped-def]
    """The seven loops; y is written."""
    N, O, OH, OW = y.shape
    _, C, KH, KW = weight.shape  # C: channels of a group
    _, channels, H, W = x.shape
    outputs = O // (channels // C)  # of a group
    for n in range(N):
        for o in range(O):
            first = o // outputs * C
            for i in range(OH):
                for j in range(OW):
                    total = y.dtype.type(0)
                    for c in range(C):
                        for u in range(KH):
                            for v in range(KW):
                                h, w = i * sh + u * dh - ph, j * sw + v * dw - pw
                                if 0 <= h < H and 0 <= w < W:
                                    total += x[n, first + c, h, w] * weight[o, c, u, v]
                    y[n, o, i, j] = total


def grad_input_loops(gy, weight, gx, sh, sw, ph, pw, dh, dw):  # type: ignore[no-untyped-def]
    """Adds every product to the input that it came from; gx is zero before."""
    N, O, OH, OW = gy.shape
    _, C, KH, KW = weight.shape
    _, channels, H, W = gx.shape
    outputs = O // (channels // C)
    for n in range(N):
        for o in range(O):
            first = o // outputs * C
            for i in range(OH):
                for j in range(OW):
                    for c in range(C):
                        for u in range(KH):
                            for v in range(KW):
                                h, w = i * sh + u * dh - ph, j * sw + v * dw - pw
                                if 0 <= h < H and 0 <= w < W:
                                    gx[n, first + c, h, w] += gy[n, o, i, j] * weight[o, c, u, v]


def grad_weight_loops(x, gy, gweight, sh, sw, ph, pw, dh, dw):  # type: ignore[no-untyped-def]
    """Adds every product to the weight that it belongs to; gweight is zero before."""
    N, O, OH, OW = gy.shape
    _, C, KH, KW = gweight.shape
    _, channels, H, W = x.shape
    outputs = O // (channels // C)
    for n in range(N):
        for o in range(O):
            first = o // outputs * C
            for i in range(OH):
                for j in range(OW):
                    for c in range(C):
                        for u in range(KH):
                            for v in range(KW):
                                h, w = i * sh + u * dh - ph, j * sw + v * dw - pw
                                if 0 <= h < H and 0 <= w < W:
                                    gweight[o, c, u, v] += gy[n, o, i, j] * x[n, first + c, h, w]


def settings(g: ConvGeometry) -> tuple[int, ...]:
    """sh, sw, ph, pw, dh, dw."""
    return (*g.stride, *g.padding, *g.dilation)


def no_workspace(g: ConvGeometry, dtype: str) -> int:
    """Nothing but arguments and results."""
    return 0


def tiny(g: ConvGeometry) -> bool:
    """At most 20,000 multiply-adds: Python takes a third of a second for a million."""
    return g.multiply_adds <= 20_000


def _plain(*arrays: Any) -> list[Any]:
    """Arrays without gaps, so that the loops are compiled for one layout only."""
    return [np.ascontiguousarray(a) for a in arrays]


_compiled = njit(cache=True)(loops)
_compiled_grad_input = njit(cache=True)(grad_input_loops)
_compiled_grad_weight = njit(cache=True)(grad_weight_loops)


@register("conv2d", name="naive-python", only=tiny, worth=never, workspace=no_workspace)
def conv2d_python(x: Any, weight: Any, g: ConvGeometry) -> Any:
    """Seven loops, run by Python."""
    y = np.empty(g.y_shape, x.dtype)
    loops(x, weight, y, *settings(g))
    return y


@register("conv2d", name="naive", worth=never, workspace=no_workspace)
def conv2d(x: Any, weight: Any, g: ConvGeometry) -> Any:
    """Seven loops, compiled."""
    y = np.empty(g.y_shape, x.dtype)
    _compiled(*_plain(x, weight), y, *settings(g))
    return y


@register("conv2d_grad_input", name="naive", worth=never, workspace=no_workspace)
def conv2d_grad_input(gy: Any, weight: Any, g: ConvGeometry) -> Any:
    """Seven loops that give each product back to its input."""
    gx = np.zeros(g.x_shape, gy.dtype)
    _compiled_grad_input(*_plain(gy, weight), gx, *settings(g))
    return gx


@register("conv2d_grad_weight", name="naive", worth=never, workspace=no_workspace)
def conv2d_grad_weight(x: Any, gy: Any, g: ConvGeometry) -> Any:
    """Seven loops that give each product back to its weight."""
    gweight = np.zeros(g.weight_shape, x.dtype)
    _compiled_grad_weight(*_plain(x, gy), gweight, *settings(g))
    return gweight
