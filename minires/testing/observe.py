"""Watching operations being called and differentiated, without changing what they compute.

For the length of a `with` block, on this thread, `Function.__call__` and `Function.differentiate`
report to the given callbacks. The engine pays nothing for it when nobody watches.
"""

from __future__ import annotations

import copy
import inspect
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np

from minires.autograd import Function, Tensor
from minires.kernels.arrays import device_of, to_device, to_host
from minires.kernels.geometry import shape_text
from minires.nn import Module

Array = np.ndarray


@dataclass(eq=False)
class Call:
    """One call of an operation.

    number: position among all calls, from 1.
    fresh: a copy of the Function from before the call, to be called again.
    where: full name of the module it happened in; "" outside of one.
    """

    number: int
    function: Function
    fresh: Function
    inputs: tuple[Array, ...]
    outputs: tuple[Array, ...]
    where: str
    wanted: tuple[bool, ...]

    def __str__(self) -> str:
        shapes = ", ".join(shape_text(array.shape) for array in self.inputs)
        place = f", in {self.where}" if self.where else ""
        return f"{self.function.name}({shapes}), call {self.number}{place}"

    def input_name(self, position: int) -> str:
        return input_names(self.function.forward, len(self.inputs))[position]


def input_names(function: Callable[..., Any], count: int) -> list[str]:
    """What a function calls its first `count` positional arguments."""
    names: list[str] = []
    try:
        parameters = list(inspect.signature(function).parameters.values())
    except (TypeError, ValueError):  # builtins need not tell
        parameters = []
    for parameter in parameters:
        if parameter.kind in (parameter.POSITIONAL_ONLY, parameter.POSITIONAL_OR_KEYWORD):
            names.append(parameter.name)
        elif parameter.kind is parameter.VAR_POSITIONAL:
            stem = parameter.name
            names.extend(f"{stem}[{i}]" for i in range(count - len(names)))
    names = names[:count]
    return names + [f"inputs[{i}]" for i in range(len(names), count)]


def _patched(owner: type, name: str, wrapper: Callable[[Any], Any]) -> Callable[[], None]:
    """Replace a method of a class; returns what puts it back."""
    original = owner.__dict__[name]
    setattr(owner, name, wrapper(original))
    return lambda: setattr(owner, name, original)


@contextmanager
def watch_calls(callback: Callable[[Call], None], modules: Iterable[Module] = ()) -> Iterator[None]:
    """Call `callback(call)` after every operation; name places by the given modules' trees."""
    thread = threading.get_ident()
    names = {id(m): name for root in modules for name, m in root.named_modules()}
    places = [""]
    count = 0

    def operation(original: Any) -> Any:
        def call(self: Function, *tensors: Tensor) -> Any:
            nonlocal count
            if threading.get_ident() != thread:
                return original(self, *tensors)
            count += 1
            number, fresh = count, copy.copy(self)
            outputs = original(self, *tensors)
            results = outputs if type(outputs) is tuple else (outputs,)
            callback(
                Call(
                    number,
                    self,
                    fresh,
                    tuple(to_host(t._data) for t in tensors),
                    tuple(to_host(t._data) for t in results),
                    places[-1],
                    tuple(t.requires_grad for t in tensors),
                )
            )
            return outputs

        return call

    def module(original: Any) -> Any:
        def call(self: Module, *args: Any, **kwargs: Any) -> Any:
            if threading.get_ident() != thread:
                return original(self, *args, **kwargs)
            places.append(names.get(id(self), places[-1]))
            try:
                return original(self, *args, **kwargs)
            finally:
                places.pop()

        return call

    undo = [_patched(Function, "__call__", operation)]
    if names:
        undo.append(_patched(Module, "__call__", module))
    try:
        yield
    finally:
        for put_back in reversed(undo):
            put_back()


Differentiated = Callable[[Function, list[Array], tuple[Any, ...]], None]


@contextmanager
def watch_backward(
    before: Callable[[Function, list[Array]], None], after: Differentiated
) -> Iterator[None]:
    """Call `before(function, gradients)` and `after(function, gradients, results)` around every
    step of the backward pass; gradients are arrays, results what `Function.backward` returned."""
    thread = threading.get_ident()

    def wrapper(original: Any) -> Any:
        def differentiate(self: Function, gradients: list[Tensor], needs: Any) -> Any:
            if threading.get_ident() != thread:
                return original(self, gradients, needs)
            before(self, [to_host(g._data) for g in gradients])
            results = original(self, gradients, needs)
            after(self, [to_host(g._data) for g in gradients], results)
            return results

        return differentiate

    undo = _patched(Function, "differentiate", wrapper)
    try:
        yield
    finally:
        undo()


@contextmanager
def altered_results(alter: Callable[[Array], Array]) -> Iterator[None]:
    """Replace every floating-point result of an operation, forward and backward, by
    `alter(result)`. Views of an input stay as they are: nothing was computed."""
    thread = threading.get_ident()

    def changed(array: Any, inputs: Iterable[Any]) -> Any:
        computed = getattr(array, "dtype", np.dtype(int)).kind == "f" and not any(
            np.may_share_memory(array, x) for x in inputs
        )
        return to_device(alter(to_host(array)), device_of(array)) if computed else array

    def operation(original: Any) -> Any:
        def call(self: Any, *tensors: Tensor) -> Any:
            if threading.get_ident() != thread:
                return original(self, *tensors)
            forward = self.forward

            def altered(*arrays: Any) -> Any:
                results = forward(*arrays)
                if isinstance(results, tuple):
                    return tuple(changed(r, arrays) for r in results)
                return changed(results, arrays)

            self.forward = altered
            try:
                return original(self, *tensors)
            finally:
                del self.forward

        return call

    def derivative(original: Any) -> Any:
        def differentiate(self: Function, gradients: list[Tensor], needs: Any) -> Any:
            results = original(self, gradients, needs)
            if threading.get_ident() != thread:
                return results
            given = [g._data for g in gradients]
            return tuple(
                None if r is None else Tensor._wrap(changed(r._data, given)) for r in results
            )

        return differentiate

    undo = [
        _patched(Function, "__call__", operation),
        _patched(Function, "differentiate", derivative),
    ]
    try:
        yield
    finally:
        for put_back in reversed(undo):
            put_back()
