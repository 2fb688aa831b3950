"""Stochastic gradient descent with momentum."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np

from minires.autograd import Tensor
from minires.optim.optimizer import Group, Optimizer, non_negative

FUSED = 1 << 18
"""Elements of a parameter from which on its step is compiled: one pass instead of five."""


class SGD(Optimizer):
    """Stochastic gradient descent, as torch.optim.SGD.

    With gradient g, parameter p and momentum buffer v (the first time, v = d):

        d = g + weight_decay * p
        v = momentum * v + (1 - dampening) * d
        p = p - lr * v                          with nesterov: p - lr * (d + momentum * v)

    The learning rate multiplies the buffer, so a change of it acts at once (Sutskever et al. and
    Caffe scale the gradient as it enters the buffer instead).

    Raises ValueError for negative settings, and for nesterov without momentum or with dampening.
    """

    arrays = ("momentum_buffer",)

    def __init__(
        self,
        params: Iterable[Tensor] | Iterable[Group],
        lr: float = 1e-3,
        momentum: float = 0.0,
        dampening: float = 0.0,
        weight_decay: float = 0.0,
        nesterov: bool = False,
    ) -> None:
        super().__init__(
            params,
            lr=lr,
            momentum=momentum,
            dampening=dampening,
            weight_decay=weight_decay,
            nesterov=nesterov,
        )

    def check(self, group: Group) -> None:
        names = ("lr", "momentum", "dampening", "weight_decay")
        non_negative("SGD", **{name: group[name] for name in names})
        if group["nesterov"] and (group["momentum"] == 0 or group["dampening"] != 0):
            raise ValueError(
                f"SGD: nesterov needs momentum and no dampening, got momentum={group['momentum']} "
                f"and dampening={group['dampening']}"
            )

    def update(self, parameter: Tensor, gradient: Any, group: Group) -> None:
        p, momentum = parameter._data, group["momentum"]
        started = "momentum_buffer" in self.state.get(parameter, {})
        if started and p.size >= FUSED and type(p) is np.ndarray:
            from minires.kernels.cpu import update  # compiled: not for small networks

            v = self.held(parameter, "momentum_buffer")
            if update.can_update(p, gradient, v):
                update.sgd(
                    p, gradient, v, group["lr"], momentum, group["dampening"],
                    group["weight_decay"], group["nesterov"],
                )  # fmt: skip
                return
        d = self.scratch(p)
        if group["weight_decay"] != 0:
            np.multiply(p, group["weight_decay"], out=d)
            d += gradient
        else:
            np.copyto(d, gradient)
        if momentum != 0:
            v = self._moved(parameter, d, momentum, group["dampening"])
            if group["nesterov"]:
                ahead = self.scratch(p, slot=1)
                np.multiply(v, momentum, out=ahead)
                d += ahead
            else:
                d = v
        step = self.scratch(p)
        np.multiply(d, group["lr"], out=step)
        p -= step

    def _moved(self, parameter: Tensor, d: Any, momentum: float, dampening: float) -> Any:
        """The momentum buffer after taking in d, which is scaled in place by the dampening."""
        state = self.state.setdefault(parameter, {})
        if "momentum_buffer" not in state:
            state["momentum_buffer"] = d.copy()
            return state["momentum_buffer"]
        v = self.held(parameter, "momentum_buffer")
        v *= momentum
        if dampening != 0:
            d *= 1 - dampening
        v += d
        return v
