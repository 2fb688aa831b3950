"""Log-softmax and cross-entropy. The mathematics: src/softmax.cu."""

from __future__ import annotations

from typing import Any

import numpy as np

from minires.kernels.cuda.arrays import THREADS, accumulator, ceil_div
from minires.kernels.cuda.launch import Device, device_of

WARPS = THREADS // 32


def log_softmax(x: Any, axis: int) -> Any:
    """x - log(sum(exp(x))) along an axis."""
    return _along("log_softmax", axis, x)


def log_softmax_grad(gy: Any, y: Any, axis: int) -> Any:
    """gy - softmax * sum(gy), with softmax = exp(y)."""
    return _along("log_softmax_grad", axis, gy, y)


def cross_entropy(
    x: Any, labels: Any, ignore_index: int = -100, label_smoothing: float = 0.0
) -> tuple[Any, Any]:
    """The loss of each row of logits (N, K) for its label, and the loss's gradient, in one pass.

    labels: (N,) int64. Returns losses (N,), float32 or float64, and the gradient of each row's
    loss by its logits, (N, K). A label of `ignore_index` gives 0, any other one outside [0, K) NaN.
    """
    device = device_of(x)
    x = device.xp.ascontiguousarray(x)
    labels = device.xp.ascontiguousarray(labels, np.int64)
    N, K = x.shape
    losses = device.xp.empty(N, accumulator(x.dtype))
    gx = device.xp.empty((N, K), x.dtype)
    if N:
        kernel = device.module("softmax.cu", ELEMENT=x.dtype).kernel("cross_entropy")
        args = (x, labels, int(ignore_index), np.float64(label_smoothing), losses, gx, N,
                np.int32(K))  # fmt: skip
        kernel(_grid(device, N), (THREADS,), args)
    return losses, gx


def _grid(device: Device, rows: int) -> tuple[int]:
    """A warp per row, as many blocks as the device holds."""
    return (min(ceil_div(rows, WARPS), 8 * device.multiprocessors),)


def _along(name: str, axis: int, *arrays: Any) -> Any:
    """Run a kernel of rows along an axis, which is brought to the end if it is not there."""
    device = device_of(arrays[0])
    xp = device.xp
    given = [xp.ascontiguousarray(xp.moveaxis(a, axis, -1)) for a in arrays]
    result = xp.empty(given[0].shape, given[0].dtype)
    K = result.shape[-1]
    if result.size:
        kernel = device.module("softmax.cu", ELEMENT=result.dtype).kernel(name)
        rows = result.size // K
        kernel(_grid(device, rows), (THREADS,), (*given, result, rows, np.int32(K)))
    return xp.moveaxis(result, -1, axis)
