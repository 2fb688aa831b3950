"""Where training broke: the first module whose output or gradient is not finite."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import numpy as np

from minires.autograd import Tensor
from minires.kernels.arrays import to_host
from minires.nn import Module


class NotFiniteError(FloatingPointError):
    """The loss or a gradient became infinite or NaN.

    epoch: counted from 1. step: of the run, counted from 1. lr: the learning rate of that step.
    place: what was not finite first, in words.
    """

    def __init__(self, epoch: int, step: int, lr: float, place: str) -> None:
        self.epoch, self.step, self.lr, self.place = epoch, step, lr, place
        super().__init__(
            f"training stopped at epoch {epoch}, step {step}, learning rate {lr:g}: {place}. "
            "A smaller learning rate is the usual cure"
        )


def all_finite(arrays: Iterable[Any]) -> bool:
    """Whether no array holds an infinity or a NaN."""
    # A sum is quicker than a look at every element and is finite only if all of them are.
    # It may overflow although they are: then look.
    return all(np.isfinite(array.sum()) or bool(np.isfinite(array).all()) for array in arrays)


def find_not_finite(model: Module, x: Any, loss_of: Callable[[Tensor], Tensor]) -> str:
    """Run one batch again and say what is not finite first, in the order of computation.

    x: images (N, C, H, W). loss_of: the loss of the model's output.
    Changes running statistics and gradients: only for a run that has ended.
    """
    if not np.isfinite(x).all():
        return f"the images hold {_count(x)}"
    held = _first_held(model.named_parameters())  # buffers may be spoilt by the first run
    if held is not None:
        return held

    outputs: list[str] = []
    gradients: list[str] = []
    removers = []

    def watch(name: str, kind: str) -> Callable[[Module, Any, Any], None]:
        what = f"{name} ({kind})" if name else kind

        def on_gradient(gradient: Tensor) -> None:
            if not np.isfinite(gradient._data).all():
                gradients.append(
                    f"the gradient that reaches the output of {what} holds {_count(gradient._data)}"
                )

        def on_output(module: Module, args: Any, output: Any) -> None:
            if not isinstance(output, Tensor):
                return
            if not np.isfinite(output._data).all():
                outputs.append(f"the output of {what} holds {_count(output._data)}")
            if output.requires_grad:
                output.register_hook(on_gradient)

        return on_output

    # Modules end in the order of computation, inner ones before those that hold them.
    for name, module in model.named_modules():
        removers.append(module.register_forward_hook(watch(name, type(module).__name__)))
    model.zero_grad()
    try:
        with np.errstate(all="ignore"):
            loss = loss_of(model(Tensor._wrap(x)))
            if outputs:
                return outputs[0]
            if not np.isfinite(loss.item()):
                return f"every output is finite, but the loss is {loss.item()}"
            loss.backward()
    finally:
        for remove in removers:
            remove()
    if gradients:
        return gradients[0]
    for name, parameter in model.named_parameters():
        if parameter.grad is not None and not np.isfinite(parameter.grad._data).all():
            return f"the gradient of {name} holds {_count(parameter.grad._data)}"
    return "run a second time, the same batch gives finite values"


def find_in_state(model: Module) -> str | None:
    """The first parameter or buffer that is not finite, in words, or None."""
    return _first_held(model.state_dict().items())


def _first_held(tensors: Iterable[tuple[str, Tensor]]) -> str | None:
    for name, tensor in tensors:
        values = to_host(tensor._data)
        if not np.isfinite(values).all():
            return f"{name} holds {_count(values)}"
    return None


def _count(array: Any) -> str:
    """`3 NaN and 5 infinite values of 4,096`."""
    nan, infinite = int(np.isnan(array).sum()), int(np.isinf(array).sum())
    parts = [f"{nan:,} NaN"] if nan else []
    parts += [f"{infinite:,} infinite"] if infinite else []
    return f"{' and '.join(parts)} of {array.size:,} values"
