"""Channels-last memory: the one place where layouts are converted.

A batch of images has the logical shape (N, C, H, W). The engine prefers it in channels-last
memory, an NHWC array seen through a transpose, so that a pixel's channels lie side by side: a
convolution is then a matrix product over pixels, and a batch norm a reduction over rows.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from minires.kernels.arrays import xp_of

observer: Callable[[Any], Any] | None = None
"""Called in place of every copy while somebody watches (`minires.bench.profile`)."""


def to_nhwc(x: Any) -> Any:
    """(N, C, H, W) in any memory -> (N, H, W, C) contiguous; copies only if x is not so already."""
    pixels = x.transpose(0, 2, 3, 1)
    if pixels.flags.c_contiguous:
        return pixels
    return xp_of(x).ascontiguousarray(pixels) if observer is None else observer(pixels)


def to_nchw(x: Any) -> Any:
    """(N, H, W, C) -> (N, C, H, W), a view."""
    return x.transpose(0, 3, 1, 2)


def rows(x: Any) -> Any:
    """(N, C, H, W) or (N, C) -> (N*H*W, C): one row per pixel; a view of channels-last memory."""
    if x.ndim == 2:
        return xp_of(x).ascontiguousarray(x)
    return to_nhwc(x).reshape(-1, x.shape[1])


def from_rows(flat: Any, shape: tuple[int, ...]) -> Any:
    """The inverse of `rows`: (N*H*W, C) -> `shape`, a view."""
    if len(shape) == 2:
        return flat.reshape(shape)
    N, C, H, W = shape
    return to_nchw(flat.reshape(N, H, W, C))
