"""The account of training steps that a device keeps itself. The mathematics: src/step.cu.

    account = Account(device, loss_scale=None)
    account.tally(logits, labels)           # after the forward pass
    control = account.check(gradients)      # after the backward pass; given to FusedSGD.step
    account.read()                          # the only thing that waits for the device
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from minires.kernels.cuda.arrays import THREADS
from minires.kernels.cuda.chunks import chunks_of
from minires.kernels.cuda.launch import Device

CURSOR, IMAGES, RIGHT, STEPS, BROKEN, BROKEN_AT, SKIPPED, GOOD, BAD = range(9)
CAUSES = {1: "the loss", 2: "a gradient"}


@dataclass(frozen=True)
class LossScale:
    """Dynamic loss scaling: float16 ends at 65504, and gradients below 6e-8 vanish in it.

    The loss is multiplied by the scale before the backward pass, and its gradients divided by it.
    An overflow skips the step and halves the scale; `interval` good steps in a row double it.

    smallest: below it, the gradients themselves are at fault and not the scale.
    """

    initial: float = 2.0**16
    interval: int = 2000
    smallest: float = 2.0**-10


@dataclass(frozen=True)
class Figures:
    """What was read. loss: the sum over images. broken: what was not finite first, in words, or
    None; broken_at: at which step since the account was opened. scale: of the loss."""

    loss: float
    images: int
    right: int
    steps: int
    skipped: int
    broken: str | None
    broken_at: int
    scale: float


class Account:
    """Sums over the images of an epoch, and whether the numbers are finite; on the device."""

    def __init__(self, device: Device, loss_scale: LossScale | None = None) -> None:
        xp = device.xp
        self.device, self.loss_scale = device, loss_scale
        self.sums = xp.zeros(1, np.float64)
        self.counts = xp.zeros(9, np.int64)
        self.scale = xp.full(1, loss_scale.initial if loss_scale else 1.0, np.float32)
        self.control = xp.zeros(2, np.float32)

    @property
    def cursor(self) -> Any:
        """int64 (1,): the images of this epoch that were tallied so far."""
        return self.counts[CURSOR : CURSOR + 1]

    def begin_epoch(self) -> None:
        """Count from zero; steps and the loss scale go on."""
        self.sums.fill(0)
        self.counts[CURSOR : RIGHT + 1] = 0

    def tally(self, logits: Any, labels: Any) -> None:
        """Count the images of a batch. logits: (N, K). labels: int64 (N,), on the device."""
        rows, K = logits.shape
        logits = self.device.xp.ascontiguousarray(logits)
        kernel = self.device.module("step.cu", ELEMENT=logits.dtype).kernel("tally")
        kernel((1,), (1024,), (logits, labels, self.sums, self.counts, rows, np.int32(K)))

    def check(self, gradients: Sequence[Any]) -> Any:
        """End a step with gradients of one dtype: returns what `FusedSGD.step` takes as control."""
        chunks = chunks_of(self.device, tuple(g.size for g in gradients))
        module = self.device.module("step.cu", ELEMENT=gradients[0].dtype)
        table = self.device.pointers(gradients)
        module.kernel("find")(chunks.grid, (THREADS,), (table, *chunks.arguments, self.counts))
        interval = self.loss_scale.interval if self.loss_scale else 0
        smallest = self.loss_scale.smallest if self.loss_scale else 0.0
        module.kernel("decide")((1,), (1,), (
            self.counts, self.scale, self.control, interval, np.float32(smallest)
        ))  # fmt: skip
        return self.control

    def read(self) -> Figures:
        """Wait for the device and tell."""
        counts = self.counts.get().tolist()
        return Figures(
            loss=float(self.sums.get()[0]),
            images=counts[IMAGES],
            right=counts[RIGHT],
            steps=counts[STEPS],
            skipped=counts[SKIPPED],
            broken=CAUSES.get(counts[BROKEN]),
            broken_at=counts[BROKEN_AT],
            scale=float(self.scale.get()[0]),
        )

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps: the loss scale and the good steps since it was changed."""
        return {"scale": float(self.scale.get()[0]), "good": int(self.counts.get()[GOOD])}

    def load_state(self, state: dict[str, Any]) -> None:
        """Go on from `state`; without loss scaling there is nothing to go on with."""
        if self.loss_scale is not None:
            self.scale.fill(state["scale"])
            self.counts[GOOD : GOOD + 1] = state["good"]
