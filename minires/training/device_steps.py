"""Training steps on a CUDA device: nothing is read back between them.

    steps = DeviceSteps(model, optimizer, loss_of, place, precision="bf16")
    steps.begin_epoch()
    for x, y in batches:                # arrays on the device
        steps.run(x, y, lr=0.1)
    figures = steps.read()              # waits for the device
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Any

from minires.autograd import Tensor
from minires.kernels.cuda.graph import Workplace
from minires.kernels.cuda.steps import Account, Figures, LossScale
from minires.nn import Module
from minires.optim import SGD
from minires.training.graphs import GraphedStep
from minires.training.precision import MixedPrecision, kernels_of

Source = Callable[..., tuple[Any, Any]]


class DeviceSteps:
    """Steps of an optimiser on a device, with the sums of an epoch kept there.

    loss_of: the loss of logits and labels, a scalar.
    source: where batches come from if they are made on the device: `source(cursor, n)`.
    graph: whether steps that repeat become a CUDA graph; see `GraphedStep`.
    """

    def __init__(
        self,
        model: Module,
        optimizer: SGD,
        loss_of: Callable[[Tensor, Any], Tensor],
        place: Workplace,
        *,
        precision: str = "fp32",
        graph: bool = True,
        source: Source | None = None,
        loss_scale: LossScale | None = None,
    ) -> None:
        self.model, self.optimizer, self.loss_of, self.place = model, optimizer, loss_of, place
        self.precision, self.source = precision, source
        self.mixed = MixedPrecision(model, precision)
        if precision == "fp16" and loss_scale is None:
            loss_scale = LossScale()
        with place:
            self.account = Account(place.device, loss_scale)
        self.graphed = GraphedStep(self._step, model, place, self._settings) if graph else None

    def begin_epoch(self) -> None:
        """Sums from zero."""
        with self.place:
            self.account.begin_epoch()

    def run(self, *batch: Any, lr: float, **made: Hashable) -> None:
        """One step on (x, y), or on what the source makes of `n`."""
        with self.place, kernels_of(self.precision):
            self.optimizer.lr = lr
            (self.graphed or self._step)(*batch, **made)

    def read(self) -> Figures:
        """Wait for the device."""
        with self.place:
            return self.account.read()

    def _settings(self) -> Hashable:
        """What a graph keeps of the optimiser: everything but the learning rate."""
        return tuple(
            (name, value)
            for group in self.optimizer.param_groups
            for name, value in group.items()
            if name not in ("params", "lr")
        )

    def _step(self, *batch: Any, **made: Any) -> None:
        x, y = batch if self.source is None else self.source(self.account.cursor, **made)
        logits = self.mixed(Tensor._wrap(x))
        loss = self.loss_of(logits, Tensor._wrap(y))
        loss.backward(Tensor._wrap(self.account.scale.reshape(loss.shape)))
        self.account.tally(logits._data, y)
        gradients = [p.grad for p in self.model.parameters()]
        found = [gradient._data for gradient in gradients if gradient is not None]
        self.optimizer.control = self.account.check(found)
        self.optimizer.step()
        self.optimizer.zero_grad()
