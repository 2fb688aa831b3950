"""Where operations have kinks, and which side of each one an input lies on.

A difference quotient means nothing if a kink lies between its two ends. Each operation with kinks
has a function here that tells, element by element, which smooth branch was taken (the sign of a
ReLU's input, the place of a maximum). Two evaluations with the same branches everywhere lie in
one smooth piece.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np

from minires.autograd import Function
from minires.autograd.elementwise import Abs, Clip, Maximum
from minires.autograd.reductions import Extreme
from minires.functional.activation import AddReLU, ReLU, ReLUGrad
from minires.functional.norm import Normalise
from minires.functional.norm_training import BatchNormAddReLUTrain, BatchNormReLUTrain
from minires.functional.pool import MaxPool2d
from minires.kernels import operations as ops
from minires.testing.compare import element
from minires.testing.observe import Array, Call, watch_calls

Branches = Callable[[Call], Array]

_branches: dict[type[Function], Branches] = {}


def register_kink(function: type[Function], branches: Branches) -> None:
    """Tell gradcheck about the kinks of an operation (and of its subclasses).

    branches(call) -> integer array: the branch taken by each element, from one call with its
    `.function` (the Function object), `.inputs` and `.outputs` (arrays).

        register_kink(LeakyReLU, lambda call: np.sign(call.inputs[0]))
    """
    _branches[function] = branches


def branches_of(function: type[Function]) -> Branches | None:
    """What was registered for an operation or the nearest class it derives from."""
    return next((_branches[c] for c in function.__mro__ if c in _branches), None)


def side(x: Array) -> Array:
    """-1, 0 or 1 (NaN: 0), as small integers."""
    return (x > 0).astype(np.int8) - (x < 0).astype(np.int8)


def _clip_region(call: Call) -> Array:
    function: Any = call.function
    region = np.zeros(call.inputs[0].shape, np.int8)
    for bound in (function.minimum, function.maximum):
        if bound is not None:
            region += side(call.inputs[0] - bound)
    return region


def _is_extreme(call: Call) -> Array:
    function: Any = call.function
    x, axis = call.inputs[0], function.axis
    axis = axis if axis is None or isinstance(axis, int) else tuple(axis)
    return np.asarray(x == (np.max if function.largest else np.min)(x, axis=axis, keepdims=True))


def _rectified_side(call: Call) -> Array:
    function: Any = call.function
    y = call.outputs[0]
    return side(y) if function.rectify else np.zeros(y.shape, np.int8)


def _maximum_places(call: Call) -> Array:
    function: Any = call.function
    places: Array = ops.max_pool2d(call.inputs[0], function.g)[1]
    return places


register_kink(ReLU, lambda call: side(call.inputs[0]))
register_kink(ReLUGrad, lambda call: side(call.inputs[1]))
register_kink(AddReLU, lambda call: side(call.inputs[0] + call.inputs[1]))
register_kink(BatchNormReLUTrain, lambda call: side(call.outputs[0]))
register_kink(Normalise, _rectified_side)
register_kink(BatchNormAddReLUTrain, lambda call: side(call.outputs[0]))
register_kink(Abs, lambda call: side(call.inputs[0]))
register_kink(Clip, _clip_region)
register_kink(Maximum, lambda call: side(call.inputs[0] - call.inputs[1]))
register_kink(Extreme, _is_extreme)
register_kink(MaxPool2d, _maximum_places)


@dataclass(frozen=True)
class Kink:
    """A branch that differs between two evaluations."""

    operation: str
    index: tuple[int, ...]

    def __str__(self) -> str:
        return element(self.operation, self.index)


class BranchRecord:
    """The branches taken in one evaluation, in the order of the calls."""

    def __init__(self) -> None:
        self.taken: list[tuple[str, Array]] = []

    def add(self, call: Call) -> None:
        branches = branches_of(type(call.function))
        if branches is not None:
            self.taken.append((call.function.name, branches(call)))

    def first_difference(self, other: BranchRecord) -> Kink | None:
        """The first element on different branches; None if both took the same everywhere."""
        for (name, a), (other_name, b) in zip(self.taken, other.taken, strict=False):
            if name != other_name or a.shape != b.shape:
                return Kink(name, ())
            different = a != b
            if different.any():
                return Kink(name, tuple(int(i) for i in np.argwhere(different)[0]))
        if len(self.taken) != len(other.taken):
            return Kink("the number of operations with kinks", ())
        return None

    def count_differences(self, other: BranchRecord) -> int:
        """How many elements are on different branches; 1 where the records do not even match."""
        if [a.shape for _, a in self.taken] != [b.shape for _, b in other.taken]:
            return 1
        pairs = zip(self.taken, other.taken, strict=True)
        return sum(int((a != b).sum()) for (_, a), (_, b) in pairs)


@contextmanager
def record_branches() -> Iterator[BranchRecord]:
    """Record the branch that every element takes inside the block.

        with record_branches() as here:
            fn(x)
        with record_branches() as there:
            fn(x + step)
        here.first_difference(there)  # None: no kink in between
    """
    record = BranchRecord()
    with watch_calls(record.add):
        yield record
