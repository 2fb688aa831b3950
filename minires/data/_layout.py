"""Views between the logical shape of a batch (N, C, H, W) and channels-last memory (N, H, W, C).

The convolutions like channels-last memory, so everything here works in it and hands back a
transposed view. Both functions cost nothing; the engine's own `to_nhwc` makes memory contiguous.
"""

from __future__ import annotations

from typing import Any

from numpy.typing import NDArray

from minires.kernels.layout import to_nchw

__all__ = ["to_nchw", "to_nhwc"]

Array = NDArray[Any]


def to_nhwc(images: Array) -> Array:
    """(N, C, H, W) seen as (N, H, W, C)."""
    return images.transpose(0, 2, 3, 1)
