"""Stochastic gradient descent with momentum."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np

from minires.autograd import Tensor
from minires.kernels.arrays import active, constants, xp_of
from minires.optim.optimizer import Group, Optimizer, non_negative

FUSED = 1 << 18
"""Elements of a group from which on its steps are compiled: one pass for all its parameters."""

SETTINGS = ("lr", "momentum", "dampening", "weight_decay")


class SGD(Optimizer):
    """Stochastic gradient descent, as torch.optim.SGD.

    With gradient g, parameter p and momentum buffer v (the first time, v = d):

        d = g + weight_decay * p
        v = momentum * v + (1 - dampening) * d
        p = p - lr * v                          with nesterov: p - lr * (d + momentum * v)

    The learning rate multiplies the buffer, so a change of it acts at once (Sutskever et al. and
    Caffe scale the gradient as it enters the buffer instead).

    On a device, one launch updates all parameters of a group.

    Raises ValueError for negative settings, and for nesterov without momentum or with dampening.
    """

    arrays = ("momentum_buffer",)
    capturable = True
    control: Any = None
    """What a device decides by itself: see `FusedSGD.step`; None on the CPU."""

    def __init__(
        self,
        params: Iterable[Tensor] | Iterable[Group],
        lr: float = 1e-3,
        momentum: float = 0.0,
        dampening: float = 0.0,
        weight_decay: float = 0.0,
        nesterov: bool = False,
    ) -> None:
        self._fused: dict[tuple[Any, ...], tuple[Any, list[Any]]] = {}
        self._compiled: dict[int, Any] = {}  # by the identity of a group, on the host
        super().__init__(
            params,
            lr=lr,
            momentum=momentum,
            dampening=dampening,
            weight_decay=weight_decay,
            nesterov=nesterov,
        )

    def check(self, group: Group) -> None:
        non_negative("SGD", **{name: group[name] for name in SETTINGS})
        if group["nesterov"] and (group["momentum"] == 0 or group["dampening"] != 0):
            raise ValueError(
                f"SGD: nesterov needs momentum and no dampening, got momentum={group['momentum']} "
                f"and dampening={group['dampening']}"
            )

    def update_all(self, changed: list[tuple[Tensor, Any]], group: Group) -> None:
        """On a device in one launch for all, but for the first step with dampening, which differs
        from the later ones."""
        if all(type(parameter._data) is np.ndarray for parameter, _ in changed):
            super().update_all(self._update_compiled(changed, group), group)
            return
        from minires.kernels.cuda.sgd import dense

        others: list[tuple[Tensor, Any]] = []
        together: dict[tuple[str, Any], list[tuple[Tensor, Any]]] = {}
        for parameter, gradient in changed:
            p = parameter._data
            fresh = "momentum_buffer" not in self.state.get(parameter, {})
            if type(p) is np.ndarray or not dense(p) or (fresh and group["dampening"] != 0):
                others.append((parameter, gradient))
            else:
                together.setdefault((parameter.device, p.dtype), []).append((parameter, gradient))
        if others and self.control is not None:
            raise ValueError(
                "SGD: steps that a device may skip need parameters without gaps in memory, and no "
                f"dampening in the first one; got dampening={group['dampening']}"
            )
        super().update_all(others, group)
        for key, pairs in together.items():
            with active(pairs[0][0]._data):
                self._update_together(key, pairs, group)

    def _update_compiled(
        self, changed: list[tuple[Tensor, Any]], group: Group
    ) -> list[tuple[Tensor, Any]]:
        """One pass over all that one can take, if there is enough of it; returns the others."""
        state = self.state
        moving = [pair for pair in changed if "momentum_buffer" in state.get(pair[0], ())]
        if not group["momentum"] or sum(p._data.size for p, _ in moving) < FUSED:
            return changed
        from minires.kernels.cpu import update  # compiled: not for small networks

        parameters, gradients, buffers, taken = [], [], [], set()
        dtype = moving[0][0]._data.dtype
        for parameter, gradient in moving:
            p, v = parameter._data, self.held(parameter, "momentum_buffer")
            if update.can_update(dtype, p, gradient, v):
                parameters.append(p)
                gradients.append(gradient)
                buffers.append(v)
                taken.add(id(parameter))
        if not parameters:
            return changed
        fused = self._compiled.get(id(group))
        if fused is None or not _same(fused.parameters + fused.buffers, parameters + buffers):
            fused = self._compiled[id(group)] = update.FusedSGD(parameters, buffers)
        settings = {name: group[name] for name in (*SETTINGS, "nesterov")}
        fused.step(gradients, **settings)
        return [pair for pair in changed if id(pair[0]) not in taken]

    def _update_together(
        self, key: tuple[str, Any], pairs: list[tuple[Tensor, Any]], group: Group
    ) -> None:
        from minires.kernels.cuda import graph
        from minires.kernels.cuda.sgd import FusedSGD

        parameters = [parameter._data for parameter, _ in pairs]
        buffers = [self._buffer(parameter) for parameter, _ in pairs] if group["momentum"] else []
        settings = {name: group[name] for name in SETTINGS}
        fused, arrays = self._fused.get((id(group), *key), (None, []))
        if fused is None or fused.nesterov != group["nesterov"] or not _same(
            arrays, parameters + buffers
        ):
            fused = FusedSGD(
                parameters, **settings, nesterov=group["nesterov"], buffers=buffers
            )
            self._fused[id(group), *key] = fused, parameters + buffers
        capture = graph.active()
        if capture is None:
            fused.set(**settings)
        else:
            capture.before_launch(self.upload)  # the rate of now is not that of every launch
        gradients = [_laid_out_as(p, g) for p, (_, g) in zip(parameters, pairs, strict=True)]
        fused.step(gradients, self.control)

    def _buffer(self, parameter: Tensor) -> Any:
        """The momentum buffer, in the parameter's memory order; zeros if it has none yet."""
        p, state = parameter._data, self.state.setdefault(parameter, {})
        if "momentum_buffer" not in state:
            state["momentum_buffer"] = xp_of(p).zeros_like(p)
        state["momentum_buffer"] = _laid_out_as(p, self.held(parameter, "momentum_buffer"))
        return state["momentum_buffer"]

    def upload(self) -> None:
        for group in self.param_groups:
            for key, (fused, _) in self._fused.items():
                if key[0] == id(group):
                    fused.set(**{name: group[name] for name in SETTINGS})

    def update(self, parameter: Tensor, gradient: Any, group: Group) -> None:
        p = parameter._data
        lr, momentum, weight_decay = group["lr"], group["momentum"], group["weight_decay"]
        if type(p) is np.ndarray and p.dtype.kind == "f":
            lr, momentum, weight_decay = constants(p.dtype, lr, momentum, weight_decay)
        d = work = self.scratch(p)
        if group["weight_decay"] != 0:
            np.multiply(p, weight_decay, out=d)
            d += gradient
        else:
            np.copyto(d, gradient)
        if group["momentum"] != 0:
            v = self._moved(parameter, d, momentum, group["dampening"])
            if group["nesterov"]:
                ahead = self.scratch(p, slot=1)
                np.multiply(v, momentum, out=ahead)
                d += ahead
            else:
                d = v
        np.multiply(d, lr, out=work)
        p -= work

    def _moved(self, parameter: Tensor, d: Any, momentum: Any, dampening: float) -> Any:
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


def _same(held: list[Any], wanted: list[Any]) -> bool:
    """Whether two lists hold the same arrays."""
    return len(held) == len(wanted) and all(a is b for a, b in zip(held, wanted, strict=True))


def _laid_out_as(p: Any, array: Any) -> Any:
    """The array in the memory order and the dtype of p; itself if it is so already."""
    from minires.kernels.cuda.sgd import dense, order

    if array.dtype == p.dtype and order(array) == order(p) and dense(array):
        return array
    laid_out = xp_of(p).empty_like(p)
    laid_out[...] = array
    return laid_out
