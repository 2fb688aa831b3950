"""Adam, and AdamW, which decouples the weight decay."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import numpy as np

from minires.autograd import Tensor
from minires.optim.optimizer import Group, Optimizer, non_negative


class Adam(Optimizer):
    """Adam (Kingma & Ba, 2015, algorithm 1), as torch.optim.Adam.

    With gradient g, to which weight_decay * p is added, moments m and v, and t steps so far:

        m = beta1 * m + (1 - beta1) * g
        v = beta2 * v + (1 - beta2) * g^2
        p = p - lr * (m / (1 - beta1^t)) / (sqrt(v / (1 - beta2^t)) + eps)

    Raises ValueError for negative settings, and for betas outside [0, 1).
    """

    arrays = ("exp_avg", "exp_avg_sq")
    decoupled = False

    def __init__(
        self,
        params: Iterable[Tensor] | Iterable[Group],
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
    ) -> None:
        super().__init__(params, lr=lr, betas=betas, eps=eps, weight_decay=weight_decay)

    def check(self, group: Group) -> None:
        name = self._name
        non_negative(name, **{key: group[key] for key in ("lr", "eps", "weight_decay")})
        betas = tuple(group["betas"])
        if len(betas) != 2 or not all(0 <= beta < 1 for beta in betas):
            raise ValueError(f"{name}: betas are two numbers in [0, 1), got {group['betas']!r}")

    def update(self, parameter: Tensor, gradient: Any, group: Group) -> None:
        p, (beta1, beta2), lr = parameter._data, group["betas"], group["lr"]
        g, work = self.scratch(p), self.scratch(p, slot=1)
        np.copyto(g, gradient)
        if group["weight_decay"] != 0:
            if self.decoupled:
                p *= 1 - lr * group["weight_decay"]
            else:
                np.multiply(p, group["weight_decay"], out=work)
                g += work

        state = self.state.setdefault(parameter, {})
        if not state:
            state.update(step=0, exp_avg=np.zeros_like(p), exp_avg_sq=np.zeros_like(p))
        state["step"] += 1
        m, v = self.held(parameter, "exp_avg"), self.held(parameter, "exp_avg_sq")
        t = state["step"]
        m *= beta1
        np.multiply(g, 1 - beta1, out=work)
        m += work
        v *= beta2
        np.multiply(g, g, out=work)
        work *= 1 - beta2
        v += work

        np.sqrt(v, out=work)
        work *= 1 / math.sqrt(1 - beta2**t)
        work += group["eps"]
        np.divide(m, work, out=work)
        work *= lr / (1 - beta1**t)
        p -= work


class AdamW(Adam):
    """Adam with decoupled weight decay (Loshchilov & Hutter, 2019), as torch.optim.AdamW.

    p is scaled by 1 - lr * weight_decay before the step; the moments see the bare gradient.
    """

    decoupled = True

    def __init__(
        self,
        params: Iterable[Tensor] | Iterable[Group],
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 1e-2,
    ) -> None:
        super().__init__(params, lr, betas, eps, weight_decay)
