"""Which function computes an operation: registered by operation, backend and algorithm.

    @register("conv2d", backend="cpu", name="mine", only=lambda g: g.kernel == (3, 3))
    def conv2d_mine(x, weight, g): ...

    use(conv2d="mine")             # from here on
    with use(conv2d="mine"): ...   # in this block

Of the kernels that support a call, the last one registered is used, unless `use` names another.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import numpy as np

from minires._names import unknown
from minires.kernels.geometry import ConvGeometry, PoolGeometry

Condition = Callable[[Any], bool]


@dataclass(frozen=True)
class Kernel:
    """One implementation of one operation.

    only: the geometries it supports; None for all.
    worth: those among them for which it is chosen unasked; None for all.
    dtypes: the dtypes it supports, by name; empty for all.
    """

    operation: str
    backend: str
    name: str
    function: Callable[..., Any]
    only: Condition | None = None
    worth: Condition | None = None
    dtypes: tuple[str, ...] = ()

    def supports(self, geometry: Any, dtype: str) -> bool:
        """Whether it can compute this."""
        fits = self.only is None or bool(self.only(geometry))
        return fits and (not self.dtypes or dtype in self.dtypes)

    @property
    def summary(self) -> str:
        """The first line of the function's docstring."""
        return (self.function.__doc__ or "").strip().split("\n")[0]


class Operation:
    """A named operation on arrays with one signature, whatever computes it.

    Calling it picks the backend by the type of the first array, and the kernel by its dtype and
    the geometry, which is the last argument, or the first array's shape where there is none.
    """

    def __init__(self, name: str, signature: str) -> None:
        self.name = name
        self.__doc__ = signature
        self.kernels: list[Kernel] = []
        self._chosen: dict[tuple[str, Any, str], Callable[..., Any]] = {}

    def __call__(self, *args: Any) -> Any:
        first, last = args[0], args[-1]
        backend = backend_of(first)
        geometry = last if isinstance(last, ConvGeometry | PoolGeometry) else first.shape
        key = (backend, geometry, first.dtype.name)
        function = self._chosen.get(key)
        if function is None:
            function = self._chosen[key] = self.select(*key).function
        return function(*args)

    def select(self, backend: str, geometry: Any, dtype: str = "float32") -> Kernel:
        """The kernel that a call on this backend with this geometry and dtype would use."""
        usable = [k for k in self.kernels if k.backend == backend and k.supports(geometry, dtype)]
        if not usable:
            raise ValueError(
                f"{self.name}: no kernel on backend {backend!r} takes {dtype} {geometry}; known: "
                + (", ".join(f"{k.backend}/{k.name}" for k in self.kernels) or "none")
            )
        preferred = _preferred.get(self.name)
        for kernel in usable:
            if kernel.name == preferred:
                return kernel
        worth = (k for k in reversed(usable) if k.worth is None or k.worth(geometry))
        return next(worth, usable[-1])

    def add(self, kernel: Kernel) -> None:
        self.kernels = [
            k for k in self.kernels if (k.backend, k.name) != (kernel.backend, kernel.name)
        ]
        self.kernels.append(kernel)
        self.forget()

    def forget(self) -> None:
        """Choose again at the next call."""
        self._chosen.clear()

    def __repr__(self) -> str:
        return f"<operation {self.__doc__}>"


_operations: dict[str, Operation] = {}
_preferred: dict[str, str] = {}


def backend_of(array: Any) -> str:
    """The backend that computes on arrays of this type. Raises TypeError for anything else."""
    if isinstance(array, np.ndarray):
        return "cpu"
    if type(array).__module__.partition(".")[0] == "cupy":
        return "cuda"
    raise TypeError(f"kernels take NumPy or CuPy arrays, got {type(array).__name__}")


def define(name: str, signature: str) -> Operation:
    """Add an operation to the table; its kernels are registered separately."""
    _operations[name] = Operation(name, signature)
    return _operations[name]


def operation(name: str) -> Operation:
    """The operation of this name. Raises ValueError for an unknown one."""
    if name not in _operations:
        raise ValueError(unknown("operation", name, _operations))
    return _operations[name]


def register(
    operation_name: str,
    *,
    backend: str = "cpu",
    name: str,
    only: Condition | None = None,
    worth: Condition | None = None,
    dtypes: tuple[str, ...] = (),
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Make a function of arrays a kernel of an operation; a name used again is replaced.

    The function takes the operation's arguments (see `available()`), changes none of them, and
    returns fresh arrays.
    """
    target = operation(operation_name)

    def add(function: Callable[..., Any]) -> Callable[..., Any]:
        target.add(Kernel(operation_name, backend, name, function, only, worth, dtypes))
        return function

    return add


class use(AbstractContextManager["use"]):  # noqa: N801 - reads as a verb, at once or as a block
    """Prefer kernels by name, `use(conv2d="im2col")`: from now on, or inside a `with` block.

    A geometry that the named kernel does not support is computed by another one.
    Raises ValueError if an operation has no kernel of that name.
    """

    def __init__(self, **choices: str) -> None:
        for name, choice in choices.items():
            names = [k.name for k in operation(name).kernels]
            if choice not in names:
                raise ValueError(unknown(f"{name} kernel", choice, names))
        self.previous = {name: _preferred.get(name) for name in choices}
        self._prefer(dict(choices))

    def __exit__(self, *exc: object) -> None:
        self._prefer(self.previous)

    @staticmethod
    def _prefer(choices: dict[str, str] | dict[str, str | None]) -> None:
        for name, choice in choices.items():
            if choice is None:
                _preferred.pop(name, None)
            else:
                _preferred[name] = choice
            operation(name).forget()


def available(operation_name: str | None = None) -> list[Kernel]:
    """Every registered kernel, or those of one operation."""
    chosen = [operation(operation_name)] if operation_name else _operations.values()
    return [kernel for op in chosen for kernel in op.kernels]
