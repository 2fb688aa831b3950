"""Looking over the backward pass while it runs: what a comparison of numbers cannot see.

Each step is held to the contract of a Function: it changes neither the gradient it is given nor
what was saved, returns the shape and dtype of its input, keeps finite what is finite, and does
not lose half of the digits on the way.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from minires.autograd import Function
from minires.autograd.buffer import checksum
from minires.functional.norm_training import RectifiedNorm
from minires.kernels.arrays import to_host
from minires.kernels.geometry import shape_text
from minires.testing.numeric import Problem
from minires.testing.observe import Array, Call, input_names, watch_backward, watch_calls
from minires.testing.report import Cause

NEGLIGIBLE = 1e-8
"""Gradients this much smaller than those they come from may be what rounding left of zero."""


def largest(array: Array) -> float:
    """The largest absolute value among those that are finite."""
    return float(np.max(np.abs(array), where=np.isfinite(array), initial=0.0))


def single_precision(array: Array, floor: float = 0.0) -> bool:
    """Whether every value could have come out of float32: no digit beyond its 24 bits.

    A number computed in float64 from random ones has this property once in 2**29. Zeros,
    non-finite values and what is not above `floor` (what cancellation leaves has few digits too)
    tell nothing and are left out; False if nothing else is there.
    """
    if array.dtype.kind != "f" or array.dtype.itemsize < 8:
        return array.dtype.kind == "f"
    with np.errstate(over="ignore", under="ignore"):
        telling = array[np.isfinite(array) & (np.abs(array) > floor)]
        return telling.size > 0 and bool(np.all(telling.astype(np.float32) == telling))


def broadcast_of(got: tuple[int, ...], expected: tuple[int, ...]) -> bool:
    """Whether `expected` broadcasts to the larger shape `got`."""
    try:
        return got != expected and np.broadcast_shapes(got, expected) == got
    except ValueError:
        return False


def wrong_shape(name: str, got: tuple[int, ...], expected: tuple[int, ...]) -> tuple[str, str]:
    """(kind, text) for a gradient that has not the shape of its input."""
    text = f"the gradient of {name} has shape {shape_text(got)}, {name} {shape_text(expected)}"
    if broadcast_of(got, expected):
        return "broadcast", f"{text}: sum it over the axes along which {name} was broadcast"
    return "shape", f"{text}: they must be equal"


class Audit:
    """The findings of one backward pass, each kind once per operation.

    flows: every gradient that an operation returned for one of its inputs, with its name.
    """

    def __init__(self) -> None:
        self.causes: list[Cause] = []
        self.flows: list[tuple[str, Array]] = []
        self._before: list[list[tuple[Array, int, str]]] = []

    def note(self, kind: str, text: str, where: str) -> None:
        if not any(c.kind == kind and c.where == where for c in self.causes):
            self.causes.append(Cause(kind, text, where))

    def before(self, function: Function, gradients: list[Array]) -> None:
        kept = [(a, "a saved array") for a in function.saved_arrays().values()]
        if not (isinstance(function, RectifiedNorm) and function.summed):  # which is its own
            kept += [(a, "the gradient it was given") for a in gradients]
        self._before.append([(a, checksum(to_host(a)), what) for a, what in kept])

    def after(self, function: Function, gradients: list[Array], results: tuple[Any, ...]) -> None:
        where = f"{function.name}.backward"
        for array, was, what in self._before.pop():
            if checksum(to_host(array)) != was:
                self.note("mutated", f"it changes {what} in place; work on a copy", where)
        names = input_names(function.forward, len(results))
        given = all(np.isfinite(g).all() for g in gradients)
        floor = NEGLIGIBLE * max(largest(g) for g in gradients)
        full = all(g.dtype == np.float64 for g in gradients) and any(
            g.any() and not single_precision(g) for g in gradients
        )
        for name, expected, result in zip(names, function.inputs, results, strict=False):
            if result is None or expected is None:
                continue
            (shape, dtype), array = expected, to_host(result._data)
            self.flows.append((f"{name} of {function.name}", array))
            if array.shape != shape:
                self.note(*wrong_shape(name, array.shape, shape), where)
                continue
            if given and not np.isfinite(array).all():
                bad = int((~np.isfinite(array)).sum())
                self.note(
                    "nonfinite",
                    f"NaN or infinity first appears in the gradient of {name}, in {bad} of "
                    f"{array.size} elements, from a finite upstream gradient",
                    where,
                )
            elif full and dtype == np.float64 and single_precision(array, floor):
                self.note(
                    "float32",
                    f"the gradient of {name} has float32's digits only "
                    f"(dtype {array.dtype}): something on its way computes in float32",
                    where,
                )


def audited(
    problem: Problem, values: Sequence[Array], upstream: Sequence[Array]
) -> tuple[list[Array | None], Audit]:
    """The analytic gradients and what was noticed on the way.

    An exception in the backward pass is a finding too: there are no gradients then.
    """
    audit = Audit()
    gradients: list[Array | None] = []
    with watch_backward(audit.before, audit.after):
        try:
            gradients = problem.gradients(values, upstream)
        except Exception as error:  # whatever the user's backward may raise is a verdict on it
            if not audit.causes:
                audit.note("error", f"{type(error).__name__}: {error}", "the backward pass")
    return gradients, audit


def first_call(problem: Any, values: Sequence[Array], guilty: Any) -> Call | None:
    """The first operation of the forward pass for which `guilty(call)` holds."""
    found: list[Call] = []

    def look(call: Call) -> None:
        if not found and guilty(call):
            found.append(call)

    with watch_calls(look, problem.modules):
        problem.evaluate(values)
    return found[0] if found else None


def turns_nonfinite(call: Call) -> bool:
    """Whether an operation made NaN or infinity out of finite numbers."""
    return all(np.isfinite(a).all() for a in call.inputs) and not all(
        np.isfinite(a).all() for a in call.outputs
    )


def loses_digits(call: Call) -> bool:
    """Whether an operation made float32's digits out of float64's."""
    doubles = [a for a in call.inputs if a.dtype.kind == "f"]
    return (
        bool(doubles)
        and all(a.dtype == np.float64 and not single_precision(a) for a in doubles)
        and any(single_precision(a) for a in call.outputs)
    )
