"""What is being checked, in one form: variables in, outputs and gradients out.

`TensorProblem` is a function of Tensors or a Module; `ArrayProblem` a NumPy function with its
hand-written gradient. Both work on float64 copies, so whatever the caller passed stays as it was.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from minires.autograd import Tensor, enable_grad, grad, no_grad
from minires.nn import Module
from minires.testing.numeric import Variable
from minires.testing.observe import Array, input_names
from minires.testing.state import Lent, lifted, put

Params = Module | Mapping[str, Tensor] | Sequence[Tensor] | None


def as_sequence(inputs: Any) -> list[Any]:
    """The arguments of a function; a single tensor or array stands for itself."""
    return list(inputs) if isinstance(inputs, tuple | list) else [inputs]


def name_of(fn: Any) -> str:
    """What to call a function or module in a report."""
    if isinstance(fn, Module):
        return type(fn).__name__
    name: str = getattr(fn, "__name__", type(fn).__name__)
    return "function" if name == "<lambda>" else name


def same_bits(a: Array, b: Array) -> bool:
    """Whether two arrays hold the same values, NaN included."""
    return a.shape == b.shape and bool(np.all((a == b) | ((a != a) & (b != b))))


class TensorProblem:
    """fn(*inputs) as a function of those inputs, and parameters, that require gradients.

    Floating-point Tensors are lifted to float64 copies; other arguments are handed on untouched.
    Parameters (and buffers) of modules are lent by `state`, see `state.lent`.
    """

    def __init__(
        self,
        fn: Callable[..., Any],
        inputs: Any,
        parameters: Mapping[str, Tensor] | None = None,
        modules: Sequence[Module] = (),
        state: Lent | None = None,
    ) -> None:
        self.fn, self.modules, self.state = fn, tuple(modules), state
        self.name = name_of(fn)
        self.arguments = as_sequence(inputs)
        names = input_names(fn.forward if isinstance(fn, Module) else fn, len(self.arguments))
        self.argument_names = names
        self.positions: list[int] = []
        self.variables: list[Variable] = []
        for i, argument in enumerate(self.arguments):
            if isinstance(argument, tuple | list) and any(isinstance(a, Tensor) for a in argument):
                raise TypeError(
                    f"gradcheck: input {i} is a {type(argument).__name__} holding Tensors; pass "
                    "them as inputs of their own: gradcheck(lambda *ts: fn(ts), [a, b])"
                )
            if isinstance(argument, Tensor) and argument.requires_grad:
                self.positions.append(i)
                self.variables.append(Variable(names[i], lifted(argument._data)))
        self.parameters = {k: p for k, p in (parameters or {}).items() if p.requires_grad}
        for name, parameter in self.parameters.items():
            if not parameter.is_leaf:
                raise ValueError(
                    f"gradcheck: parameter {name} was computed by {parameter.grad_fn.name}; "  # type: ignore[union-attr]
                    "parameters must be leaves: pass what it was computed from"
                )
            self.variables.append(Variable(name, lifted(parameter._data)))
        self.kept: list[int] | None = None
        if not self.variables:
            raise ValueError(
                "gradcheck: nothing to check: no input is a Tensor with requires_grad=True, and "
                "there are no parameters; pass mr.Tensor(array, requires_grad=True)"
            )

    def rename(self, names: Sequence[str]) -> None:
        """Give the arguments other names than those of fn's signature."""
        self.argument_names = list(names)
        for k, i in enumerate(self.positions):
            self.variables[k] = Variable(names[i], self.variables[k].value)

    # -- calling -----------------------------------------------------------------------------

    def call(self, values: Sequence[Array]) -> tuple[list[Tensor], list[Any]]:
        """The floating-point outputs of fn and the arguments it was given, from a fresh state."""
        if self.state is not None:
            self.state.reset()
        given: list[Any] = []
        arrays = iter(values)
        for i, argument in enumerate(self.arguments):
            if i in self.positions:
                given.append(Tensor._wrap(next(arrays)).requires_grad_())
            elif isinstance(argument, Tensor):
                given.append(Tensor._wrap(lifted(argument._data)))
            else:
                given.append(argument)
        for parameter in self.parameters.values():
            put(parameter, next(arrays))
        outputs = floating(self.fn(*given))
        if self.kept is not None:
            outputs = [outputs[i] for i in self.kept]
        return outputs, given

    def evaluate(self, values: Sequence[Array]) -> list[Array]:
        with no_grad():
            return [y._data for y in self.call(values)[0]]

    def gradients(self, values: Sequence[Array], upstream: Sequence[Array]) -> list[Array | None]:
        with enable_grad():
            outputs, given = self.call(values)
            leaves = self.leaves(given)
            pairs = [(y, u) for y, u in zip(outputs, upstream, strict=True) if y.requires_grad]
            if not pairs:
                return [None] * len(leaves)
            seeds = [Tensor._wrap(u) for _, u in pairs]
            found = grad([y for y, _ in pairs], leaves, seeds, allow_unused=True)
        return [None if g is None else g._data for g in found]

    def leaves(self, given: Sequence[Any]) -> list[Tensor]:
        """The tensors behind the variables, in one call's arguments and in the parameters."""
        return [*(given[i] for i in self.positions), *self.parameters.values()]

    # -- before anything is differentiated ---------------------------------------------------

    def prepare(self) -> tuple[list[Array], list[str]]:
        """One forward pass: the outputs, and the names of what fn changed in place.

        Outputs that do not require gradients are left out from here on, unless none does.
        """
        values = [np.array(v.value, order="K") for v in self.variables]
        others = {
            name: np.array(a)
            for name, a in zip(self.argument_names, self.arguments, strict=True)
            if isinstance(a, np.ndarray)
        }
        with enable_grad():
            outputs, given = self.call(values)
        changed = [
            v.name
            for v, leaf in zip(self.variables, self.leaves(given), strict=True)
            if not same_bits(leaf._data, v.value)
        ]
        for name, argument, now in zip(self.argument_names, self.arguments, given, strict=True):
            if isinstance(now, np.ndarray):
                intact = same_bits(now, others[name])
                if not intact:
                    now[...] = others[name]
            else:
                intact = (
                    not isinstance(now, Tensor)
                    or now.requires_grad
                    or same_bits(now._data, lifted(argument._data))
                )
            if not intact:
                changed.append(name)
        if any(y.requires_grad for y in outputs):
            self.kept = [i for i, y in enumerate(outputs) if y.requires_grad]
            self.left_out = len(outputs) - len(self.kept)
            outputs = [outputs[i] for i in self.kept]
        else:
            self.left_out = 0
        return [y._data for y in outputs], changed


def floating(result: Any) -> list[Tensor]:
    """The floating-point Tensors that a function returned."""
    results = list(result) if isinstance(result, tuple | list) else [result]
    for r in results:
        if not isinstance(r, Tensor):
            hint = (
                "; pass grad= for a NumPy function with its own gradient"
                if isinstance(r, np.ndarray)
                else ""
            )
            raise TypeError(
                "gradcheck: the function must return a Tensor or a tuple of Tensors, got "
                f"{type(r).__name__}{hint}"
            )
    floating = [r for r in results if r.dtype.kind == "f"]
    if not floating:
        raise TypeError("gradcheck: the function returns no floating-point Tensor")
    return floating


class ArrayProblem:
    """A NumPy function and the function that is said to be its gradient.

    fn(*inputs) -> array(s); gradient(*inputs, *upstream) -> one array per input (None: zero), or
    one per floating-point input.
    """

    modules: tuple[Module, ...] = ()
    left_out = 0

    def __init__(
        self, fn: Callable[..., Any], gradient: Callable[..., Any], inputs: Any
    ) -> None:
        self.fn, self.gradient = fn, gradient
        self.name = name_of(fn)
        self.arguments = [
            a._data if isinstance(a, Tensor) else np.asarray(a) if isinstance(a, float) else a
            for a in as_sequence(inputs)
        ]
        self.argument_names = input_names(fn, len(self.arguments))
        self.positions = [
            i
            for i, a in enumerate(self.arguments)
            if isinstance(a, np.ndarray | np.generic) and a.dtype.kind == "f"
        ]
        if not self.positions:
            raise ValueError("gradcheck: nothing to check: no input is a floating-point array")
        self.variables = [
            Variable(self.argument_names[i], lifted(np.asarray(self.arguments[i])))
            for i in self.positions
        ]

    def _arguments(self, values: Sequence[Array]) -> list[Any]:
        arguments = list(self.arguments)
        for i, value in zip(self.positions, values, strict=True):
            arguments[i] = value
        return arguments

    def evaluate(self, values: Sequence[Array]) -> list[Array]:
        result = self.fn(*self._arguments(values))
        results = result if isinstance(result, tuple | list) else (result,)
        return [np.asarray(r) for r in results]

    def gradients(self, values: Sequence[Array], upstream: Sequence[Array]) -> list[Array | None]:
        result = self.gradient(*self._arguments(values), *upstream)
        results = list(result) if isinstance(result, tuple | list) else [result]
        if len(results) == len(self.arguments):
            results = [results[i] for i in self.positions]
        if len(results) != len(self.positions):
            raise ValueError(
                f"the gradient function returned {len(results)} arrays for {len(self.positions)} "
                "floating-point inputs"
            )
        return [None if g is None else np.asarray(g) for g in results]

    def prepare(self) -> tuple[list[Array], list[str]]:
        """One forward pass: the outputs, and the names of what fn changed in place."""
        arguments = self._arguments([np.array(v.value, order="K") for v in self.variables])
        arguments = [np.array(a, order="K") if isinstance(a, np.ndarray) else a for a in arguments]
        before = [np.array(a) if isinstance(a, np.ndarray) else None for a in arguments]
        result = self.fn(*arguments)
        changed = [
            name
            for name, a, b in zip(self.argument_names, arguments, before, strict=True)
            if b is not None and not same_bits(a, b)
        ]
        results = result if isinstance(result, tuple | list) else (result,)
        return [np.array(r) for r in results], changed
