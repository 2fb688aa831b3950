"""Lending tensors and modules to a check, and getting them back exactly as they were."""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from minires.autograd import Tensor
from minires.autograd.buffer import Buffer
from minires.functional.random import get_rng_state, set_rng_state
from minires.nn import Module

_TABLES = ("_kinds", "_forward_hooks", "_forward_pre_hooks")


def lifted(array: Any, through: Any = None) -> Any:
    """A copy in the same memory layout, float64 if it is of a floating-point dtype.

    through: a dtype to round floating-point numbers to on the way, so that they are exact in it.
    """
    if array.dtype.kind != "f":
        return array.copy(order="K")
    rounded = array if through is None else array.astype(through)
    return rounded.astype(np.float64, order="K")


class _Randomness:
    """The state of every generator that is shared: minires' own, NumPy's global one, Python's."""

    def __init__(self) -> None:
        self.own, self.python = get_rng_state(), random.getstate()
        self.numpy = np.random.get_state()  # noqa: NPY002 - whoever still uses it

    def put_back(self) -> None:
        set_rng_state(self.own)
        random.setstate(self.python)
        np.random.set_state(self.numpy)  # noqa: NPY002


class _TensorState:
    """What a tensor holds. Its array is set aside, never written to."""

    def __init__(self, tensor: Tensor) -> None:
        self.tensor = tensor
        self.array, self.buffer = tensor._data, tensor._buffer
        self.grad, self.requires_grad = tensor.grad, tensor.requires_grad

    def put_back(self) -> None:
        tensor = self.tensor
        tensor._data, tensor._buffer = self.array, self.buffer
        tensor.grad, tensor.requires_grad = self.grad, self.requires_grad


class _ModuleState:
    """Everything a module refers to: its tables, mode and other attributes."""

    def __init__(self, module: Module) -> None:
        self.module = module
        self.attributes = dict(module.__dict__)
        self.tables = {name: module.__dict__[name].copy() for name in _TABLES}

    def put_back(self) -> None:
        attributes = self.module.__dict__
        attributes.clear()
        attributes.update(self.attributes)
        for name, contents in self.tables.items():
            table = attributes[name]
            table.clear()
            table.extend(contents) if isinstance(table, list) else table.update(contents)


class Lent:
    """Modules and loose tensors while a check has them: float64 copies in place of their arrays.

    `reset()` starts the next evaluation from the same parameters, buffers, attributes and random
    numbers as the one before.

    dtype: of the copies; may be changed between evaluations.
    """

    def __init__(
        self, modules: Iterable[Module], tensors: Iterable[Tensor], through: Any = None
    ) -> None:
        submodules = {id(m): m for root in modules for m in root.modules()}
        held = [t for m in submodules.values() for t in (*m._parameters.values(),
                                                         *m._buffers.values())]  # fmt: skip
        unique = {id(t): t for t in (*held, *tensors) if t is not None}
        self.modules = [_ModuleState(m) for m in submodules.values()]
        self.tensors = [_TensorState(t) for t in unique.values()]
        self.copies = {id(s.tensor): lifted(s.array, through) for s in self.tensors}
        self.dtype: Any = np.float64
        self.randomness = _Randomness()

    def reset(self) -> None:
        for module in self.modules:
            module.put_back()
        for state in self.tensors:
            copy = self.copies[id(state.tensor)]
            dtype = self.dtype if copy.dtype.kind == "f" else copy.dtype
            put(state.tensor, copy.astype(dtype, order="K"))
            state.tensor.grad = None
            state.tensor.requires_grad = state.requires_grad
        self.randomness.put_back()

    def give_back(self) -> None:
        for module in self.modules:
            module.put_back()
        for state in self.tensors:
            state.put_back()
        self.randomness.put_back()


def put(tensor: Tensor, array: Any) -> None:
    """Make a tensor hold another array, whatever its dtype."""
    tensor._data, tensor._buffer = array, Buffer(array)


@contextmanager
def lent(
    modules: Iterable[Module], tensors: Iterable[Tensor], through: Any = None
) -> Iterator[Lent]:
    """Lend modules and tensors for the length of a block; `through`: see `lifted`."""
    state = Lent(modules, tensors, through)
    try:
        yield state
    finally:
        state.give_back()
