"""Bilinear resizing with antialiasing, as two matrix products.

Output pixel o of a row of n covers the input around its centre c = (o + 1/2) n / n_out. It is the
mean of the input pixels i under a triangle there, with weights max(0, 1 - |i + 1/2 - c| / s): when
the image shrinks, s = n / n_out, so that every input pixel counts; when it grows, s = 1, which is
plain bilinear interpolation. Rows and columns are done one after the other.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]


@lru_cache(maxsize=1024)
def weights(n_in: int, n_out: int) -> NDArray[np.float32]:
    """(n_out, n_in) float32; each row sums to 1."""
    scale = n_in / n_out
    centre = (np.arange(n_out)[:, np.newaxis] + 0.5) * scale
    distance = np.abs(np.arange(n_in) + 0.5 - centre)
    triangle = np.maximum(0.0, 1.0 - distance / max(scale, 1.0))
    result = (triangle / triangle.sum(axis=1, keepdims=True)).astype(np.float32)
    result.flags.writeable = False  # it is shared by the cache
    return result


def resize_nhwc(images: Array, height: int, width: int) -> Array:
    """(N, H, W, C) -> (N, height, width, C), C-ordered, of the same dtype (uint8 or float32)."""
    n, h, w, c = images.shape
    if (h, w) == (height, width):
        return np.array(images, order="C")
    x: Array = images.astype(np.float32, order="C", copy=False)
    if h != height:
        x = weights(h, height) @ x.reshape(n, h, w * c)
    if w != width:
        columns = x.reshape(n, height, w, c).transpose(0, 1, 3, 2).reshape(-1, w)
        x = (columns @ weights(w, width).T).reshape(n, height, c, width).transpose(0, 1, 3, 2)
    x = x.reshape(n, height, width, c)
    if images.dtype == np.uint8:
        return np.rint(x).clip(0, 255).astype(np.uint8, order="C")
    return np.ascontiguousarray(x)
