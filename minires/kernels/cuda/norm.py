"""Batch normalisation: statistics in one pass, the rest fused. The mathematics: src/norm.cu.

Statistics and parameters are float32 for 16-bit images.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from typing import Any

import numpy as np

from minires.kernels.cuda.arrays import (
    THREADS,
    accumulator,
    aligned,
    ceil_div,
    pack,
    power_of_two,
)
from minires.kernels.cuda.launch import Device, Kernel, device_of
from minires.kernels.layout import from_rows, rows


@dataclass(frozen=True)
class Plan:
    """How rows and channels are divided: threads own V channels, blocks own parts of the rows."""

    V: int
    grid: tuple[int, int]
    block: tuple[int, int]
    rows_per_part: int

    @property
    def parts(self) -> int:
        return self.grid[1]


def plan(device: Device, m: int, C: int, V: int) -> Plan:
    """Blocks for m rows of C channels: wide enough for whole memory lines, then down the rows.

    As many parts as keep the device busy, each of 16 rows a thread at least.
    """
    wide = min(32, power_of_two(ceil_div(C, V)))
    high = THREADS // wide
    across = ceil_div(C, V * wide)
    wanted = max(1, 4 * device.multiprocessors // across)
    per_part = max(16 * high, ceil_div(m, wanted))
    return Plan(V, (across, ceil_div(m, per_part)), (wide, high), per_part)


class _Rows:
    """Images as rows on their device, with the kernels that fit them."""

    def __init__(self, *images: Any) -> None:
        self.device = device_of(images[0])
        self.xp = self.device.xp
        self.shape = images[0].shape
        self.given = [rows(i) for i in images]
        self.m, self.C = self.given[0].shape
        self.dtype = images[0].dtype
        self.sums = accumulator(self.dtype)
        self.y = self.xp.empty((self.m, self.C), self.dtype)
        packed = self.C % pack(self.dtype) == 0 and aligned(self.device, *self.given, self.y)
        self.plan = plan(self.device, self.m, self.C, pack(self.dtype) if packed else 1)
        self.module = self.device.module("norm.cu", ELEMENT=self.dtype, PACKED=int(packed))

    @property
    def size(self) -> tuple[int, int, np.int32]:
        """The last arguments of most kernels."""
        return self.m, self.plan.rows_per_part, np.int32(self.C)

    def kernel(self, name: str) -> Kernel:
        return self.module.kernel(name)

    def vector(self) -> Any:
        """A fresh array with a number per channel."""
        return self.xp.empty(self.C, self.sums)

    def parts(self) -> Any:
        return self.xp.empty((self.plan.parts, 2, self.C), self.sums)

    def contiguous(self, vector: Any) -> Any:
        return None if vector is None else self.xp.ascontiguousarray(vector, self.sums)

    def over_rows(self, name: str, *args: Any) -> None:
        """Run a kernel over all rows."""
        self.kernel(name)(self.plan.grid, self.plan.block, (*args, *self.size))

    def per_channel(self, name: str, *args: Any) -> None:
        """Run a kernel that joins the parts of each channel."""
        self.kernel(name)((ceil_div(self.C, 32),), (32, 8), args)

    def statistics(self, eps: float) -> tuple[Any, Any, Any, Any]:
        """Per channel of what was given first: mean in two numbers' precision, as the kernels of
        norm.cu take it; mean, biased variance and inverse deviation."""
        flat, parts = self.given[0], self.parts()
        centre, mean, var, inv_std = self.vector(), self.vector(), self.vector(), self.vector()
        self.over_rows("moments", flat, parts)
        self.per_channel(
            "finish_moments", flat, parts, np.int32(self.plan.parts), self.m,
            self.plan.rows_per_part, np.int32(self.C), np.float64(eps), centre, mean, var, inv_std,
        )  # fmt: skip
        return centre, mean, var, inv_std

    def result(self) -> Any:
        return from_rows(self.y, self.shape)


def batch_norm_train(x: Any, gamma: Any, beta: Any, eps: float) -> tuple[Any, Any, Any, Any]:
    """Normalise by the batch's own mean and biased variance."""
    return normalise_add_relu(x, gamma, beta, eps, relu=False)


def batch_norm_relu_train(x: Any, gamma: Any, beta: Any, eps: float) -> tuple[Any, Any, Any, Any]:
    """max(batch norm, 0), in the same pass."""
    return normalise_add_relu(x, gamma, beta, eps)


def normalise_add_relu(
    x: Any, gamma: Any, beta: Any, eps: float, residual: Any = None, relu: bool = True
) -> tuple[Any, Any, Any, Any]:
    """Batch norm, + residual, then max(., 0) if `relu`; and mean, variance, inverse deviation."""
    r = _Rows(x) if residual is None else _Rows(x, residual)
    flat, other = r.given[0], r.given[1] if residual is not None else None
    centre, mean, var, inv_std = r.statistics(eps)
    r.over_rows(
        "normalise", flat, flat, centre, inv_std, np.float64(-1), r.contiguous(gamma),
        r.contiguous(beta), other, np.int32(relu), r.y,
    )  # fmt: skip
    return r.result(), mean, var, inv_std


def batch_norm_statistics(x: Any, eps: float) -> tuple[Any, Any, Any]:
    """The batch's mean, biased variance and inverse deviation."""
    return _Rows(x).statistics(eps)[1:]


def batch_norm_eval(x: Any, gamma: Any, beta: Any, mean: Any, var: Any, eps: float) -> Any:
    """Normalise by given statistics, in one pass."""
    r = _Rows(x)
    r.over_rows(
        "normalise", r.given[0], None, r.contiguous(mean), r.contiguous(var), np.float64(eps),
        r.contiguous(gamma), r.contiguous(beta), None, np.int32(0), r.y,
    )  # fmt: skip
    return r.result()


def normalise(x: Any, mean: Any, scale: Any, shift: Any, residual: Any, relu: bool) -> Any:
    """(x - mean) * scale + shift + residual, or its positive part, in one pass."""
    r = _Rows(x) if residual is None else _Rows(x, residual)
    centre = r.xp.zeros(r.C, r.sums) if mean is None else r.contiguous(mean)
    factor = r.xp.ones(r.C, r.sums) if scale is None else r.contiguous(scale)
    r.over_rows(
        "normalise", r.given[0], None, centre, factor, np.float64(-1), None, r.contiguous(shift),
        None if residual is None else r.given[1], np.int32(relu), r.y,
    )  # fmt: skip
    return r.result()


def batch_norm_add_relu_train(
    x: Any, r: Any, gamma: Any, beta: Any, eps: float
) -> tuple[Any, Any, Any, Any]:
    """max(batch norm of x + r, 0), in the same pass: the end of a residual block."""
    return normalise_add_relu(x, gamma, beta, eps, r)


def batch_norm_grad(gy: Any, x: Any, gamma: Any, mean: Any, inv_std: Any) -> tuple[Any, Any, Any]:
    """The three gradients of the training-mode batch norm: gy and x are read twice."""
    gx, _, ggamma, gbeta = _grad(Behind.NOTHING, (gy, x), gamma, None, mean, inv_std)
    return gx, ggamma, gbeta


def batch_norm_relu_grad(
    gy: Any, x: Any, gamma: Any, beta: Any, mean: Any, inv_std: Any
) -> tuple[Any, Any, Any]:
    """The gradients of both, in the same passes: the ReLU's mask is computed again from x."""
    gx, _, ggamma, gbeta = _grad(Behind.RELU_AGAIN, (gy, x), gamma, beta, mean, inv_std)
    return gx, ggamma, gbeta


def batch_norm_add_relu_grad(
    gy: Any, x: Any, y: Any, gamma: Any, mean: Any, inv_std: Any
) -> tuple[Any, Any, Any, Any]:
    """The gradients of the join, of what was added too; the ReLU's mask is read off its output.

    The first pass writes the gradient of what was added, gy behind the mask; the second reads it.
    """
    return _grad(Behind.RELU_READ, (gy, x, y), gamma, None, mean, inv_std)


class Behind(IntEnum):
    """What is behind the batch norm, as src/norm.cu numbers it."""

    NOTHING = 0
    RELU_READ = 1
    RELU_AGAIN = 2


def _grad(
    behind: Behind, images: tuple[Any, ...], gamma: Any, beta: Any, mean: Any, inv_std: Any
) -> tuple[Any, Any, Any, Any]:
    """(gx, gresidual, ggamma, gbeta); no gresidual unless a join's output is given."""
    r = _Rows(*images)
    parts, ggamma, gbeta = r.parts(), r.vector(), r.vector()
    gy, x, y = (*r.given, None)[:3]
    vectors = [r.contiguous(v) for v in (gamma, beta, mean, inv_std)]
    gresidual = r.xp.empty_like(r.y) if behind is Behind.RELU_READ else None
    r.over_rows("grad_sums", gy, x, y, np.int32(behind), *vectors, parts, gresidual)
    r.per_channel("finish_grad_sums", parts, np.int32(r.plan.parts), np.int32(r.C), ggamma, gbeta)
    if gresidual is not None:  # gy behind the mask already
        gy, behind = gresidual, Behind.NOTHING
    r.over_rows("grad_input", gy, x, np.int32(behind), *vectors, ggamma, gbeta, r.y)
    joined = None if gresidual is None else from_rows(gresidual, r.shape)
    return r.result(), joined, ggamma, gbeta


def move_statistics(
    mean: Any, var: Any, batch_mean: Any, batch_var: Any, momentum: float, unbiased: float
) -> None:
    """Running statistics (C,), in place, towards a batch's, in one launch: src/running.cu.

    All four of one dtype, float32 or float64, without gaps in memory. unbiased: what makes the
    batch's variance that of all images, m / (m - 1).
    """
    device, C = device_of(mean), mean.size
    kernel = device.module("running.cu", ELEMENT=mean.dtype).kernel("move_statistics")
    args = mean, var, batch_mean, batch_var, np.float64(momentum), np.float64(unbiased), np.int32(C)
    kernel((ceil_div(C, THREADS),), (THREADS,), args)
