"""Whole steps as CUDA graphs: captured once they repeat, sent to the device as one from then on."""

from __future__ import annotations

import warnings
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from minires.autograd import Tensor, is_grad_enabled
from minires.functional.random import get_rng_state
from minires.kernels import registry
from minires.kernels.cuda.graph import Capture, CaptureError, Workplace
from minires.nn import Module

RANDOM = "the host draws random numbers in every step (dropout?)"

Constants = Mapping[str, Hashable]

WARM_UP = 1
"""Steps of a kind that run one launch at a time first: they compile kernels, make the optimiser's
buffers, and show whether the host draws random numbers. The next one is captured."""

MOST = 8
"""Kinds of steps kept; a kind is what inputs of one shape do to a model in one state."""


@dataclass
class _Captured:
    capture: Capture
    inputs: tuple[Any, ...]
    outputs: Any
    tensors: list[Tensor]


class GraphedStep:
    """A step of training (or any other function of device arrays) that becomes a CUDA graph.

        place = Workplace("cuda")
        step = GraphedStep(function, model, place)
        with place:
            loss = step(x, y)           # arrays on the device

    function: takes arrays and returns an array, a tuple of arrays or None. What it changes must
        lie on the device: parameters, buffers, the optimiser's state and settings.
    model: the graph is captured again for inputs of other shapes, another mode (`train`, `eval`),
        other kernels (`minires.kernels.use`), other parameters, and whatever `also` tells.
    place: the device, and the stream that the steps run on.
    also: something hashable that decides what is launched, such as the optimiser's settings.

    A step is captured after it has run once in the ordinary way. Results of a captured step lie in
    the same memory every time: use or copy them before the next one. What cannot be captured runs
    in the ordinary way, and `reason` says why, after a RuntimeWarning: hooks, a running profiler,
    random numbers drawn by the host (dropout), values that are sent or read back.
    """

    def __init__(
        self,
        function: Callable[..., Any],
        model: Module,
        place: Workplace,
        also: Callable[[], Hashable] | None = None,
    ) -> None:
        self.function, self.model, self.place, self.also = function, model, place, also
        self.pool = place.cuda.MemoryPool()
        self.reason: str | None = None
        self.captures = 0  # graphs captured so far
        self.replays = 0
        self._captured: OrderedDict[Hashable, _Captured] = OrderedDict()
        self._seen: dict[Hashable, int] = {}
        self._refused: dict[Hashable, str] = {}

    def __call__(self, *arrays: Any, **constants: Hashable) -> Any:
        """function(*arrays, **constants); other constants, another graph."""
        tensors, modules = list(_tensors(self.model)), list(self.model.modules())
        obstacle = _obstacle(modules, tensors)
        if obstacle is not None:
            return self._plainly(obstacle, arrays, constants)
        key = self._key(arrays, constants, modules, tensors)
        if key in self._refused:
            return self._plainly(self._refused[key], arrays, constants)
        captured = self._captured.get(key)
        if captured is None:
            if self._seen.get(key, 0) < WARM_UP:
                return self._warm_up(key, arrays, constants)
            captured = self._capture(key, arrays, constants, tensors)
            if captured is None:
                return self._plainly(self._refused[key], arrays, constants)
        self._captured.move_to_end(key)
        self.reason = None
        for kept, given in zip(captured.inputs, arrays, strict=True):
            if kept is not given:
                self.place.xp.copyto(kept, given)
        captured.capture.launch()
        self.replays += 1
        for tensor in captured.tensors:  # what the tape saved of them is no longer what they hold
            tensor._buffer.version += 1
        return captured.outputs

    def release(self) -> None:
        """Forget all graphs and give their memory back; the next steps warm up again."""
        self.place.stream.synchronize()
        self._captured.clear()
        self._seen.clear()
        self.pool.free_all_blocks()

    def _key(
        self,
        arrays: Sequence[Any],
        constants: Constants,
        modules: Sequence[Module],
        tensors: Sequence[Tensor],
    ) -> Hashable:
        """All that decides what a step launches, and where its numbers lie."""
        return (
            tuple((a.shape, a.strides, a.dtype.name) for a in arrays),
            tuple(constants.items()),
            tuple([m.training for m in modules]),
            tuple([(id(t._data), t.requires_grad) for t in tensors]),
            is_grad_enabled(),
            registry.mark(),
            None if self.also is None else self.also(),
        )

    def _plainly(self, reason: str, arrays: Sequence[Any], constants: Constants) -> Any:
        """Run in the ordinary way, and say so once for each reason in a row."""
        if reason != self.reason:
            self.reason = reason
            warnings.warn(
                f"steps are not captured as a CUDA graph: {reason}; they run launch by launch",
                RuntimeWarning,
                stacklevel=3,
            )
        return self.function(*arrays, **constants)

    def _warm_up(self, key: Hashable, arrays: Sequence[Any], constants: Constants) -> Any:
        before = get_rng_state()
        result = self.function(*arrays, **constants)
        if get_rng_state() != before:
            self._refused[key] = RANDOM
        self._seen[key] = self._seen.get(key, 0) + 1
        return result

    def _capture(
        self, key: Hashable, arrays: Sequence[Any], constants: Constants, tensors: list[Tensor]
    ) -> _Captured | None:
        """Record a step without running it; None if the device refuses, with the reason noted."""
        if len(self._captured) >= MOST:
            self.place.stream.synchronize()  # it may be running
            self._captured.popitem(last=False)
        inputs = tuple(self.place.xp.empty_like(a) for a in arrays)  # in their memory order
        before, gradients = get_rng_state(), [tensor.grad for tensor in tensors]
        captured = False
        try:
            with Capture(self.place, self.pool) as capture:
                outputs = self.function(*inputs, **constants)
            captured = get_rng_state() == before
            if not captured:
                self._refused[key] = RANDOM
        except CaptureError as error:
            self._refused[key] = str(error)
        except RuntimeError as error:
            # CUDA's own refusal comes as an error of the operation that met it. If the fault is
            # not the capture's, the ordinary step that follows raises it again.
            self._refused[key] = f"the device refuses ({error})"
        finally:
            if not captured:  # what was left there was never computed
                for tensor, gradient in zip(tensors, gradients, strict=True):
                    tensor.grad = gradient
        if not captured:
            return None
        made = self._captured[key] = _Captured(capture, inputs, outputs, tensors)
        self.captures += 1
        return made


def _tensors(model: Module) -> Iterator[Tensor]:
    yield from model.parameters()
    yield from model.buffers()


def _obstacle(modules: Sequence[Module], tensors: Sequence[Tensor]) -> str | None:
    """Why steps of this model must run in the ordinary way now, or None."""
    if registry.observer is not None:
        return "a profiler watches the kernels"
    for module in modules:
        if module._forward_hooks or module._forward_pre_hooks:
            return f"{type(module).__name__} has a hook, which is Python code"
    for tensor in tensors:
        if tensor._hooks:
            return "a parameter has a hook, which is Python code"
    return None
