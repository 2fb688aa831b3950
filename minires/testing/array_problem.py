"""A NumPy function and what is said to be its gradient, as a problem for the checks."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np

from minires.nn import Module
from minires.testing.numeric import Variable
from minires.testing.observe import Array, input_names
from minires.testing.problem import as_sequence, name_of, same_bits
from minires.testing.state import lifted
from minires.testing.tree import holds_arrays, leaves, rebuilt


class ArrayProblem:
    """fn(*inputs) -> array(s), and its gradient.

    gradient(*inputs, *upstream) -> one array per input (None: zero), or one per floating-point
    input; for an input that is a dict, list or tuple of arrays, another such container. A key
    that a dict of gradients lacks counts as zero.

    gradient True: fn returns (value, gradients) as for scipy.optimize.minimize(jac=True), the
    value being one number; or (value, pull_back), where pull_back(*upstream) -> gradients.
    """

    modules: tuple[Module, ...] = ()
    left_out = 0

    def __init__(
        self, fn: Callable[..., Any], gradient: Callable[..., Any] | bool, inputs: Any,
        through: Any = None,
    ) -> None:  # fmt: skip
        self.fn, self.gradient = fn, gradient
        self.dtype: Any = np.float64
        self.name = name_of(fn)
        self.arguments = [
            a._data if hasattr(a, "_data") else np.asarray(a) if isinstance(a, float) else a
            for a in as_sequence(inputs)
        ]
        names = input_names(fn, len(self.arguments))
        named = [
            part
            for argument, name in zip(self.arguments, names, strict=True)
            for part in leaves(argument, name)
        ]
        self.part_names, self.parts = [n for n, _ in named], [p for _, p in named]
        self.positions = [
            i
            for i, p in enumerate(self.parts)
            if isinstance(p, np.ndarray | np.generic) and p.dtype.kind == "f"
        ]
        if not self.positions:
            raise ValueError("gradcheck: nothing to check: no input is a floating-point array")
        self.variables = [
            Variable(self.part_names[i], lifted(np.asarray(self.parts[i]), through))
            for i in self.positions
        ]

    @contextmanager
    def computing_in(self, dtype: Any) -> Iterator[None]:
        """Evaluate in another dtype inside the block; values are still handed in as float64."""
        self.dtype = dtype
        try:
            yield
        finally:
            self.dtype = np.float64

    def evaluate(self, values: Sequence[Array]) -> list[Array]:
        return self._outputs(self._called(self._parts(values)))

    def gradients(self, values: Sequence[Array], upstream: Sequence[Array]) -> list[Array | None]:
        seeds = [np.asarray(u, self.dtype) for u in upstream]
        parts = self._parts(values)
        if callable(self.gradient):
            found = self.gradient(*self._arguments(parts), *seeds)
        else:
            result = self._called(parts)
            outputs, second = self._outputs(result), result[1]
            if callable(second):
                found = second(*seeds)
            elif len(outputs) == 1 and outputs[0].size == 1:
                found = scaled(second, seeds[0].reshape(()))
            else:
                raise ValueError(
                    "gradcheck: with grad=True, (value, gradients) is for a value that is one "
                    f"number, got shapes {[y.shape for y in outputs]}; return (value, pull_back) "
                    "instead, a function of the upstream gradient"
                )
        return [None if g is None else np.asarray(g) for g in self._matched(found)]

    def prepare(self) -> tuple[list[Array], list[str]]:
        """One forward pass: the outputs, and the names of what fn changed in place."""
        parts = self._parts([v.value for v in self.variables])
        parts = [np.array(p, order="K") if isinstance(p, np.ndarray) else p for p in parts]
        before = [np.array(p) if isinstance(p, np.ndarray) else None for p in parts]
        results = self._outputs(self._called(parts))
        changed = [
            name
            for name, p, b in zip(self.part_names, parts, before, strict=True)
            if b is not None and not same_bits(p, b)
        ]
        return [np.array(r) for r in results], changed

    def _parts(self, values: Sequence[Array]) -> list[Any]:
        parts = list(self.parts)
        for i, value in zip(self.positions, values, strict=True):
            parts[i] = value.astype(self.dtype, order="K", copy=False)
        return parts

    def _arguments(self, parts: Sequence[Any]) -> list[Any]:
        source = iter(parts)
        return [rebuilt(argument, source) for argument in self.arguments]

    def _called(self, parts: Sequence[Any]) -> Any:
        """What fn returns."""
        result = self.fn(*self._arguments(parts))
        if not callable(self.gradient) and not (isinstance(result, tuple) and len(result) == 2):
            raise TypeError(
                "gradcheck: with grad=True the function returns (value, gradients), got "
                f"{type(result).__name__}"
            )
        return result

    def _outputs(self, result: Any) -> list[Array]:
        if not callable(self.gradient):
            result = result[0]
        results = result if isinstance(result, tuple | list) else (result,)
        return [np.asarray(r) for r in results]

    def _matched(self, found: Any) -> list[Any]:
        """The gradient of each variable, out of what the gradient function returned."""
        whole = len(self.arguments) == 1 and holds_arrays(self.arguments[0])
        results = list(found) if isinstance(found, tuple | list) else [found]
        if whole and not (len(results) == 1 and isinstance(found, tuple)):
            results = [found]  # the one container, not a sequence of gradients
        differentiable = [
            any(isinstance(p, np.ndarray | np.generic) and p.dtype.kind == "f"
                for _, p in leaves(a, "")) for a in self.arguments
        ]  # fmt: skip
        if len(results) != len(self.arguments):
            if len(results) != sum(differentiable):
                raise ValueError(
                    f"the gradient function returned {len(results)} arrays for "
                    f"{sum(differentiable)} floating-point inputs"
                )
            source = iter(results)
            results = [next(source) if wanted else None for wanted in differentiable]
        parts = [
            g
            for argument, result in zip(self.arguments, results, strict=True)
            for g in aligned(argument, result)
        ]
        return [parts[i] for i in self.positions]


def aligned(argument: Any, result: Any) -> Iterator[Any]:
    """The parts of a gradient in the order of the argument's; None where there is none."""
    if not holds_arrays(argument):
        yield result
    elif isinstance(argument, Mapping):
        held: Mapping[Any, Any] = {} if result is None else result
        if not isinstance(held, Mapping) or not set(held) <= set(argument):
            got = list(held) if isinstance(held, Mapping) else type(held).__name__
            raise ValueError(
                f"the gradient of a dict with keys {list(argument)} must be a dict with (some of) "
                f"these keys, got {got}"
            )
        for key, item in argument.items():
            yield from aligned(item, held.get(key))
    else:
        items = [None] * len(argument) if result is None else result
        if not isinstance(items, tuple | list) or len(items) != len(argument):
            raise ValueError(
                f"the gradient of a sequence of {len(argument)} must be another of that length"
            )
        for item, part in zip(argument, items, strict=True):
            yield from aligned(item, part)


def scaled(gradients: Any, factor: Any) -> Any:
    """Every array in a container times a number."""
    if gradients is None:
        return None
    if isinstance(gradients, Mapping):
        return {key: scaled(g, factor) for key, g in gradients.items()}
    if isinstance(gradients, tuple | list):
        return [scaled(g, factor) for g in gradients]
    return np.asarray(gradients) * factor
