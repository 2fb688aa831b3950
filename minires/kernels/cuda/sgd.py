"""SGD over all parameters in one launch. The mathematics: src/sgd.cu."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from minires.kernels.cuda.arrays import THREADS, accumulator
from minires.kernels.cuda.chunks import chunks_of
from minires.kernels.cuda.launch import device_of


class FusedSGD:
    """SGD with momentum as torch.optim.SGD, on arrays updated in place.

    parameters: arrays of one dtype on one device, without gaps in memory.
    buffers: the momentum buffers, laid out as the parameters; by default made here, and the first
        step fills them.

    The settings lie on the device: `set` changes the learning rate of a captured graph.

    Raises ValueError if there are no parameters, or they differ in dtype, or have gaps.
    """

    def __init__(
        self,
        parameters: Sequence[Any],
        lr: float,
        momentum: float = 0.0,
        dampening: float = 0.0,
        weight_decay: float = 0.0,
        nesterov: bool = False,
        buffers: Sequence[Any] | None = None,
    ) -> None:
        if not parameters:
            raise ValueError("FusedSGD: got no parameters")
        dtype = parameters[0].dtype
        for i, p in enumerate(parameters):
            if p.dtype != dtype or not dense(p):
                raise ValueError(
                    f"FusedSGD: parameters are {dtype} without gaps in memory, number {i} is "
                    f"{p.dtype} with shape {p.shape} and strides {p.strides}"
                )
        self.device = device_of(parameters[0])
        xp = self.device.xp
        self.parameters = list(parameters)
        self.unfilled = buffers is None
        if not momentum:
            self.buffers = None
        elif buffers is None:
            self.buffers = [xp.zeros(p.size, dtype) for p in parameters]
        else:
            self.buffers = list(buffers)
        self.nesterov = nesterov
        self.written = (lr, momentum, dampening, weight_decay)
        self.settings = xp.asarray(np.array(self.written, accumulator(dtype)))
        self.chunks = chunks_of(self.device, tuple(p.size for p in parameters))
        self.kernel = self.device.module("sgd.cu", ELEMENT=dtype).kernel("sgd")
        self.tables = [self.device.pointers(self.parameters),
                       self.device.pointers(self.buffers) if self.buffers else None]  # fmt: skip

    def set(self, lr: float, momentum: float, dampening: float, weight_decay: float) -> None:
        """Write settings that differ into the device's memory, each as an argument of a launch."""
        wanted = (lr, momentum, dampening, weight_decay)
        for i, (value, written) in enumerate(zip(wanted, self.written, strict=True)):
            if value != written:
                self.settings[i] = value
        self.written = wanted

    def step(self, gradients: Sequence[Any], control: Any = None) -> None:
        """Update every parameter by its gradient, given in the parameters' order and strides.

        control: float32 on the device, {factor of the gradients, whether to change nothing}; see
            `steps.Account`.

        Raises ValueError for gradients of other shapes or memory orders.
        """
        if len(gradients) != len(self.parameters):
            raise ValueError(
                f"FusedSGD: expected {len(self.parameters)} gradients, got {len(gradients)}"
            )
        for i, (p, g) in enumerate(zip(self.parameters, gradients, strict=True)):
            if (g.shape, g.dtype, order(g)) != (p.shape, p.dtype, order(p)) or not dense(g):
                raise ValueError(
                    f"FusedSGD: gradient {i} is {g.dtype}, shape {g.shape}, strides {g.strides}; "
                    f"its parameter {p.dtype}, shape {p.shape}, strides {p.strides}"
                )
        parameters, buffers = self.tables
        args = (
            parameters, self.device.pointers(gradients), buffers, *self.chunks.arguments,
            self.settings, control, np.int32(self.nesterov), np.int32(self.unfilled),
        )  # fmt: skip
        self.kernel(self.chunks.grid, (THREADS,), args)
        self.unfilled = False


def order(array: Any) -> tuple[int, ...]:
    """The strides of the axes that matter: those longer than one element."""
    return tuple(s for n, s in zip(array.shape, array.strides, strict=True) if n > 1)


def dense(array: Any) -> bool:
    """Whether an array fills its memory, in whatever order of axes."""
    expected = array.dtype.itemsize
    axes = sorted(
        (s, n) for n, s in zip(array.shape, array.strides, strict=True) if n > 1
    )  # fmt: skip
    for stride, length in axes:
        if stride != expected:
            return False
        expected *= length
    return array.size > 0
