"""Hypothesis strategies: geometries of convolution and pooling, and memory layouts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from hypothesis import strategies as st
from oracles import LAYOUTS, window_starts

Pair = tuple[int, int]


def pairs(low: int, high: int) -> st.SearchStrategy[Pair]:
    return st.tuples(st.integers(low, high), st.integers(low, high))


layouts = st.sampled_from(LAYOUTS)
seeds = st.integers(0, 2**32 - 1)


@dataclass(frozen=True)
class ConvCase:
    x_shape: tuple[int, int, int, int]
    weight_shape: tuple[int, int, int, int]
    stride: Pair
    padding: Pair
    dilation: Pair
    groups: int
    y_shape: tuple[int, int, int, int]

    @property
    def settings(self) -> tuple[Pair, Pair, Pair, int]:
        return self.stride, self.padding, self.dilation, self.groups


@st.composite
def conv_cases(draw: Any, empty: bool = True) -> ConvCase:
    """Small convolutions of every kind that fits: kernels above the image size with padding,
    strides above the kernel, dilation, groups up to depthwise, 1x1, one pixel, no image."""
    kernel = draw(st.one_of(st.just((1, 1)), pairs(1, 4)))
    stride, padding, dilation = draw(pairs(1, 5)), draw(pairs(0, 3)), draw(pairs(1, 3))
    extent = [d * (k - 1) + 1 for k, d in zip(kernel, dilation, strict=True)]
    smallest = [max(1, e - 2 * p) for e, p in zip(extent, padding, strict=True)]
    H, W = (draw(st.integers(s, s + 4)) for s in smallest)
    groups = draw(st.integers(1, 3))
    C, O = groups * draw(st.integers(1, 3)), groups * draw(st.integers(1, 3))
    N = draw(st.integers(0 if empty else 1, 3))
    out = [
        len(window_starts(*s))
        for s in zip((H, W), kernel, stride, padding, dilation, strict=True)
    ]
    return ConvCase(
        (N, C, H, W), (O, C // groups, *kernel), stride, padding, dilation, groups, (N, O, *out)
    )


@dataclass(frozen=True)
class PoolCase:
    x_shape: tuple[int, int, int, int]
    kernel: Pair
    stride: Pair
    padding: Pair
    dilation: Pair


@st.composite
def pool_cases(draw: Any, dilated: bool = False) -> PoolCase:
    """Poolings that fit: padding up to half the kernel, strides above and below it."""
    kernel, stride = draw(pairs(1, 4)), draw(pairs(1, 5))
    padding = tuple(draw(st.integers(0, k // 2)) for k in kernel)
    dilation = draw(pairs(1, 3)) if dilated else (1, 1)
    extent = [d * (k - 1) + 1 for k, d in zip(kernel, dilation, strict=True)]
    H, W = (
        draw(st.integers(max(1, e - 2 * p), max(1, e - 2 * p) + 5))
        for e, p in zip(extent, padding, strict=True)
    )
    N, C = draw(st.integers(0, 2)), draw(st.integers(1, 3))
    return PoolCase((N, C, H, W), kernel, stride, padding, dilation)


def normal(seed: int, shape: tuple[int, ...], dtype: Any = np.float64) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(dtype)
