"""Batches out of a data set that lies in device memory. The mathematics: src/batch.cu."""

from __future__ import annotations

from typing import Any

import numpy as np

from minires.kernels.cuda.arrays import THREADS, grid_for, nchw
from minires.kernels.cuda.launch import Device


class ResidentSet:
    """Images and labels in device memory, with their normalisation.

    images: uint8 (N, H, W, C), contiguous. labels: int64 (N,). mean: float32, (C,) or (H, W, C).
    std: float32 (C,), or None. padding: pixels of zero around an image, from which it is cropped.
    All but the padding are arrays of the host, and are copied.
    """

    def __init__(
        self, device: Device, images: Any, labels: Any, mean: Any, std: Any, padding: int
    ) -> None:
        xp = device.xp
        self.device, self.padding = device, padding
        self.images, self.labels = xp.asarray(images), xp.asarray(labels)
        self.mean = xp.asarray(mean)
        self.std = None if std is None else xp.asarray(std)

    def batch(self, draws: Any, cursor: Any, n: int, dtype: Any) -> tuple[Any, Any]:
        """(x (n, C, H, W) in channels-last memory, y int64 (n,)).

        draws: int32 (M, 4) on the device: image, top, left, whether mirrored; the batch is made of
        the n from the one that `cursor`, int64 (1,), points to.
        """
        _, H, W, C = self.images.shape
        x = self.device.xp.empty((n, H, W, C), dtype)
        y = self.device.xp.empty(n, np.int64)
        kernel = self.device.module("batch.cu", ELEMENT=x.dtype).kernel("batch")
        sizes = tuple(map(np.int32, (H, W, C, self.padding)))
        kernel(grid_for(self.device, x.size), (THREADS,), (
            self.images, self.labels, draws, cursor, self.mean, self.std,
            np.int32(self.mean.ndim == 3), x, y, x.size, *sizes,
        ))  # fmt: skip
        return nchw(x), y
