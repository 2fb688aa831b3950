"""What is being checked, in one form: variables in, outputs and gradients out.

`TensorProblem` is a function of Tensors or a Module; `ArrayProblem` (array_problem.py) a NumPy
function with its hand-written gradient. Both work on float64 copies, so whatever the caller passed
stays as it was. Values are kept on the host, and go to the tensors' device for each evaluation.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np

from minires.autograd import Tensor, enable_grad, grad, no_grad
from minires.kernels.arrays import to_device, to_host
from minires.nn import Module
from minires.testing.numeric import Variable
from minires.testing.observe import Array, input_names
from minires.testing.state import Lent, lifted, put
from minires.testing.tree import leaves, rebuilt

Params = Module | Mapping[str, Tensor] | Sequence[Tensor] | None


def as_sequence(inputs: Any) -> list[Any]:
    """The arguments of a function; anything but a tuple or a list stands for itself."""
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
    Containers are taken apart, see `tree`. Parameters (and buffers) of modules are lent by
    `state`, see `state.lent`.

    through: a dtype in which all values are to be exact, see `state.lifted`.
    """

    def __init__(
        self,
        fn: Callable[..., Any],
        inputs: Any,
        parameters: Mapping[str, Tensor] | None = None,
        modules: Sequence[Module] = (),
        state: Lent | None = None,
        through: Any = None,
    ) -> None:
        self.fn, self.modules, self.state, self.through = fn, tuple(modules), state, through
        self.dtype: Any = np.float64
        self.name = name_of(fn)
        self.arguments = as_sequence(inputs)
        self.parts = [part for a in self.arguments for _, part in leaves(a, "")]
        self.positions = [
            i for i, p in enumerate(self.parts) if isinstance(p, Tensor) and p.requires_grad
        ]
        self.variables = [Variable("", self._lifted(self.parts[i])) for i in self.positions]
        forward = fn.forward if isinstance(fn, Module) else fn
        self.rename(input_names(forward, len(self.arguments)))
        self.parameters = {k: p for k, p in (parameters or {}).items() if p.requires_grad}
        for name, parameter in self.parameters.items():
            if not parameter.is_leaf:
                raise ValueError(
                    f"gradcheck: parameter {name} was computed by {parameter.grad_fn.name}; "  # type: ignore[union-attr]
                    "parameters must be leaves: pass what it was computed from"
                )
            self.variables.append(Variable(name, self._lifted(parameter)))
        self.kept: list[int] | None = None
        self.left_out = 0
        if not self.variables:
            raise ValueError(
                "gradcheck: nothing to check: no input is a Tensor with requires_grad=True, and "
                "there are no parameters; pass mr.Tensor(array, requires_grad=True)"
            )

    def _lifted(self, tensor: Tensor) -> Array:
        array: Array = lifted(to_host(tensor._data), self.through)
        return array

    def rename(self, names: Sequence[str]) -> None:
        """Give the arguments these names instead of those of fn's signature."""
        self.argument_names = list(names)
        self.part_names = [
            name
            for argument, whole in zip(self.arguments, names, strict=True)
            for name, _ in leaves(argument, whole)
        ]
        for k, i in enumerate(self.positions):
            self.variables[k] = Variable(self.part_names[i], self.variables[k].value)

    # -- calling -----------------------------------------------------------------------------

    @contextmanager
    def computing_in(self, dtype: Any) -> Iterator[None]:
        """Evaluate in another dtype inside the block; values are still handed in as float64."""
        self._set_dtype(dtype)
        try:
            yield
        finally:
            self._set_dtype(np.float64)

    def _set_dtype(self, dtype: Any) -> None:
        self.dtype = dtype
        if self.state is not None:
            self.state.dtype = dtype

    def call(self, values: Sequence[Array]) -> tuple[list[Tensor], list[Any]]:
        """The floating-point outputs of fn and the parts of its arguments, from a fresh state."""
        if self.state is not None:
            self.state.reset()
        given: list[Any] = []
        arrays = iter([v.astype(self.dtype, order="K", copy=False) for v in values])
        for i, part in enumerate(self.parts):
            if i in self.positions:
                there = to_device(next(arrays), part.device)
                given.append(Tensor._wrap(there).requires_grad_())
            elif isinstance(part, Tensor):
                array = self._lifted(part)
                kept = array.dtype if array.dtype.kind != "f" else self.dtype
                there = to_device(array.astype(kept, copy=False), part.device)
                given.append(Tensor._wrap(there))
            else:
                given.append(part)
        for parameter in self.parameters.values():
            put(parameter, to_device(next(arrays), parameter.device))
        parts = iter(given)
        outputs = floating(self.fn(*[rebuilt(a, parts) for a in self.arguments]))
        if self.kept is not None:
            outputs = [outputs[i] for i in self.kept]
        return outputs, given

    def evaluate(self, values: Sequence[Array]) -> list[Array]:
        with no_grad():
            return [to_host(y._data) for y in self.call(values)[0]]

    def gradients(self, values: Sequence[Array], upstream: Sequence[Array]) -> list[Array | None]:
        with enable_grad():
            outputs, given = self.call(values)
            wanted = self._behind(given)
            pairs = [(y, u) for y, u in zip(outputs, upstream, strict=True) if y.requires_grad]
            if not pairs:
                return [None] * len(wanted)
            seeds = [
                Tensor._wrap(to_device(u.astype(y.dtype, copy=False), y.device)) for y, u in pairs
            ]
            found = grad([y for y, _ in pairs], wanted, seeds, allow_unused=True)
        return [None if g is None else to_host(g._data) for g in found]

    def leaves(self, arguments: Sequence[Any]) -> list[Tensor]:
        """The tensors behind the variables, in the arguments of a call and in the parameters."""
        return self._behind([part for a in arguments for _, part in leaves(a, "")])

    def _behind(self, parts: Sequence[Any]) -> list[Tensor]:
        return [*(parts[i] for i in self.positions), *self.parameters.values()]

    # -- before anything is differentiated ---------------------------------------------------

    def prepare(self) -> tuple[list[Array], list[str]]:
        """One forward pass: the outputs, and the names of what fn changed in place.

        Outputs that do not require gradients are left out from here on, unless none does.
        """
        values = [np.array(v.value, order="K") for v in self.variables]
        others = {i: np.array(p) for i, p in enumerate(self.parts) if isinstance(p, np.ndarray)}
        with enable_grad():
            outputs, given = self.call(values)
        changed = [
            v.name
            for v, leaf in zip(self.variables, self._behind(given), strict=True)
            if not same_bits(to_host(leaf._data), v.value)
        ]
        for i, now in enumerate(given):
            if isinstance(now, np.ndarray):
                intact = same_bits(now, others[i])
                if not intact:
                    now[...] = others[i]
            else:
                intact = (
                    not isinstance(now, Tensor)
                    or now.requires_grad
                    or same_bits(to_host(now._data), self._lifted(self.parts[i]))
                )
            if not intact:
                changed.append(self.part_names[i])
        if any(y.requires_grad for y in outputs):
            self.kept = [i for i, y in enumerate(outputs) if y.requires_grad]
            self.left_out = len(outputs) - len(self.kept)
            outputs = [outputs[i] for i in self.kept]
        return [to_host(y._data) for y in outputs], changed


def floating(result: Any) -> list[Tensor]:
    """The floating-point Tensors that a function returned, containers opened."""
    results = [part for _, part in leaves(result, "")]
    for r in results:
        if not isinstance(r, Tensor):
            hint = (
                "; pass grad= for a NumPy function with its own gradient"
                if isinstance(r, np.ndarray | np.generic | float)
                else ""
            )
            raise TypeError(
                "gradcheck: the function must return a Tensor, or a tuple or dict of Tensors, got "
                f"{type(r).__name__}{hint}"
            )
    found = [r for r in results if r.dtype.kind == "f"]
    if not found:
        raise TypeError("gradcheck: the function returns no floating-point Tensor")
    return found
