"""Which function computes an operation: registered by operation, backend and algorithm.

    @register("conv2d", backend="cpu", name="mine", only=lambda g: g.kernel == (3, 3))
    def conv2d_mine(x, weight, g): ...

    use(conv2d="mine")             # from here on
    with use(conv2d="mine"): ...   # in this block

Of the kernels that support a call, the last one registered is used, unless a table of measurements
knows a faster one (`selection.py`), or `use` or the variable MINIRES_KERNELS names another
(`environment.py`).
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Hashable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np

from minires._names import unknown
from minires.kernels import environment, selection, threads
from minires.kernels.arrays import xp_of
from minires.kernels.condition import Condition, never
from minires.kernels.geometry import ConvGeometry, PoolGeometry
from minires.kernels.kernel import Kernel, Workspace, loaded

BACKENDS = ("cpu", "cuda")
DTYPES = ("float16", "bfloat16", "float32", "float64")
GEOMETRIES = (ConvGeometry, PoolGeometry)

BY_NAME, BY_TABLE, BY_RULE = "name", "table", "rule"


@dataclass(frozen=True)
class Choice:
    """The kernel of a call, and why: by name, by the table of measurements, or by the conditions.

    measured: seconds of each kernel, where the table has them.
    """

    kernel: Kernel
    why: str
    measured: Mapping[str, float]


class Chosen:
    """The kernel for the calls of one geometry, dtype and kind of array, ready to be called.

    What is asked several times about such calls is found out once. It holds until something is
    registered, preferred or measured: ask the operation again at every call.

    parts: what the kernel can do of other operations on the way (`fusing.py`).
    """

    __slots__ = ("_run", "_run_fused", "kernel", "operation", "parts")

    def __init__(self, operation: Operation, kernel: Kernel, geometry: Any) -> None:
        self.operation, self.kernel = operation, kernel
        self.parts = frozenset(part for part in kernel.fuses if kernel.can_fuse(part, geometry))
        self._run: Callable[..., Any] | None = None  # once they are needed
        self._run_fused: Callable[..., Any] | None = None

    def __call__(self, *args: Any) -> Any:
        if observer is not None:
            return observer(self.operation, self.kernel, args)
        run = self._run
        if run is None:
            run = self._run = loaded(self.kernel.function)
        return run(*args)

    def add_into(self, total: Any, *args: Any) -> Any:
        """total + the result, the same bits, where one pass can do both; else None.

        `total` is given up: its memory becomes the result's.
        """
        kernel = self.kernel
        if kernel.into is None:
            return None
        if observer is not None:
            seen = replace(kernel, function=partial(kernel.into, total))
            return observer(self.operation, seen, args)
        return kernel.into(total, *args)

    def fused(self, *args: Any, **parts: Any) -> Any:
        """The call with parts of other operations done on the way, as `fusing.py` says.

        Raises ValueError if the kernel does nothing on the way; `parts` tells.
        """
        kernel = self.kernel
        if kernel.fused is None:
            raise ValueError(
                f"{self.operation.name}: the kernel {kernel.name!r} does nothing on the way"
            )
        if observer is not None:
            seen = replace(kernel, function=partial(kernel.fused, **parts))
            return observer(self.operation, seen, args)
        run = self._run_fused
        if run is None:
            run = self._run_fused = loaded(kernel.fused)
        return run(*args, **parts)


class Operation:
    """A named operation on arrays with one signature, whatever computes it.

    Calling it picks the backend by the type of the first array, and the kernel by its dtype and
    the geometry, which is the last argument, or the first array's shape where there is none.
    """

    def __init__(self, name: str, signature: str) -> None:
        self.name = name
        self.__doc__ = signature
        self.takes_geometry = ", g) ->" in signature
        self.kernels: list[Kernel] = []
        self._chosen: dict[tuple[type, Any, Any], Chosen] = {}

    def __call__(self, *args: Any) -> Any:
        last = args[-1]
        return self.chosen(args[0], last if type(last) in GEOMETRIES else None)(*args)

    def add_into(self, total: Any, *args: Any) -> Any:
        """As `Chosen.add_into`, of a call with a geometry."""
        return self.chosen(args[0], args[-1]).add_into(total, *args)

    def chosen(self, first: Any, geometry: Any = None) -> Chosen:
        """What computes calls with such a first argument, and this geometry if they have one.

        Raises TypeError for what is no array, and without a geometry where there must be one.
        """
        try:  # a key of what takes no time to find out: a dtype's name alone takes 2 us
            key = type(first), first.shape if geometry is None else geometry, first.dtype
        except AttributeError:
            backend_of(first)  # tells what the arrays are
            raise
        found = self._chosen.get(key)
        if found is None:
            if geometry is None and self.takes_geometry:
                raise TypeError(
                    f"{self.name}: the last argument must be a geometry, made by conv_geometry or "
                    f"pool_geometry: {self.__doc__}"
                )
            kernel = self.select(backend_of(first), key[1], first.dtype.name)
            found = self._chosen[key] = Chosen(self, kernel, key[1])
        return found

    def select(self, backend: str, geometry: Any, dtype: str = "float32") -> Kernel:
        """The kernel that a call on this backend with this geometry and dtype would use.

        Raises ValueError if there is none, or for a MINIRES_KERNELS that names what is not there.
        """
        return self.decide(backend, geometry, dtype).kernel

    def decide(self, backend: str, geometry: Any, dtype: str = "float32") -> Choice:
        """As `select`, with the reason."""
        preferred = _preferred.get(self.name) or _from_shell(self.name)
        usable = self.usable(backend, geometry, dtype)
        entry = selection.entry(self.name, backend, geometry, dtype)
        measured = {} if entry is None else dict(entry.seconds)
        for kernel in usable:
            if kernel.name == preferred:
                return Choice(kernel, BY_NAME, measured)
        ruled = self.ruled(backend, geometry, dtype)
        if entry is not None and ruled.ours:
            eligible = {k.name: k for k in usable if k.ours and k.worth is not never}
            fastest = entry.choose(eligible, ruled.name)
            if fastest is not None:
                return Choice(eligible[fastest], BY_TABLE, measured)
        return Choice(ruled, BY_RULE, measured)

    def ruled(self, backend: str, geometry: Any, dtype: str = "float32") -> Kernel:
        """The kernel that the registered conditions choose: the last that is worth it."""
        usable = self.usable(backend, geometry, dtype)
        worth = (k for k in reversed(usable) if k.worth is None or k.worth(geometry))
        return next(worth, usable[-1])

    def usable(self, backend: str, geometry: Any, dtype: str = "float32") -> list[Kernel]:
        """The kernels that can compute this. Raises ValueError if there is none."""
        exact_only = _exact_only(_preferred)
        found = [
            k
            for k in self.kernels
            if k.backend == backend
            and (k.exact or not exact_only)
            and k.supports(geometry, dtype)
        ]
        if not found:
            exact = "exact " if exact_only else ""
            raise ValueError(
                f"{self.name}: no {exact}kernel on backend {backend!r} takes {dtype} {geometry}; "
                f"known: " + (", ".join(f"{k.backend}/{k.name}" for k in self.kernels) or "none")
            )
        return found

    def add(self, kernel: Kernel) -> None:
        self.kernels = [
            k for k in self.kernels if (k.backend, k.name) != (kernel.backend, kernel.name)
        ]
        self.kernels.append(kernel)
        _count_change()
        self.forget()

    def forget(self) -> None:
        """Choose again at the next call."""
        self._chosen.clear()

    def __repr__(self) -> str:
        return f"<operation {self.__doc__}>"


observer: Callable[[Operation, Kernel, tuple[Any, ...]], Any] | None = None
"""Called in place of every kernel while somebody watches (`minires.bench.profile`)."""

_operations: dict[str, Operation] = {}
_preferred: dict[str, str] = {}  # by operation, and "algorithm"
_late: list[str] = []
_changes = 0  # of what there is to choose from, and of the measurements


def backend_of(array: Any) -> str:
    """The backend that computes on arrays of this type. Raises TypeError for anything else."""
    try:
        return "cpu" if xp_of(array) is np else "cuda"
    except TypeError:
        kind = type(array).__name__
        raise TypeError(f"kernels take NumPy or CuPy arrays, got {kind}") from None


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
    exact: bool = True,
    workspace: Workspace | None = None,
    into: Callable[..., Any] | None = None,
    fused: Callable[..., Any] | None = None,
    fuses: Mapping[str, Condition | None] | None = None,
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Make a function of arrays a kernel of an operation; a name used again is replaced.

    The function takes the operation's arguments (see `operations.py`), changes none of them, and
    returns fresh arrays, none of which shares memory with another or with an argument: the engine
    adds into them. Any subset of an operation's passes will do: conv2d alone leaves its
    gradients to the other kernels.

    only: what it supports, a function of the geometry; others are used elsewhere. Its docstring
        or its expression stands in `minires kernels list`.
    worth: where it is chosen unasked; by default everywhere, `never` for only when named,
        `when_measured` for where a table of measurements says so.
    dtypes: such as ("float32",); by default all.
    exact: False for an algorithm that is not the plain sum of products (Winograd, Fourier).
    workspace: (geometry, dtype) -> bytes that a call takes besides its arguments and results.
    into: a function of (total, *arguments) that adds the result to `total`, in its memory.
    fused, fuses: a function that does parts of other operations on the way, and for which
        geometries it does each part; see `minires/kernels/fusing.py`.

    Raises ValueError for an unknown operation, backend or dtype and a name that is none, and
    TypeError if what is registered cannot be called.
    """
    target = operation(operation_name)
    if backend not in BACKENDS:
        raise ValueError(f"register: {unknown('backend', backend, BACKENDS)}")
    if not isinstance(name, str) or not name or set(name) & set(",= \t\n"):
        raise ValueError(
            f"register: a kernel's name is one word without ',' and '=', got {name!r}"
        )
    if isinstance(dtypes, str):
        dtypes = (dtypes,)
    for dtype in dtypes:
        if dtype not in DTYPES:
            raise ValueError(f"register: {unknown('dtype', dtype, DTYPES)}")

    def add(function: Callable[..., Any]) -> Callable[..., Any]:
        if not callable(function):
            raise TypeError(f"register: a kernel is a function, got {type(function).__name__}")
        options = only, worth, tuple(dtypes), exact, workspace, into, fused, dict(fuses or {})
        target.add(Kernel(operation_name, backend, name, function, *options))
        return function

    return add


def register_later(module: str) -> None:
    """Import a module of kernels when they are first listed or one of them is named.

    For kernels that are never chosen unasked. A name that is taken by then stays as it is.
    """
    _late.append(module)


def _load_late() -> None:
    while _late:
        before = {name: list(op.kernels) for name, op in _operations.items()}
        module = _late.pop(0)  # first, because it may list kernels itself
        try:
            importlib.import_module(module)
        except BaseException:
            _late.insert(0, module)
            raise
        for name, kernels in before.items():
            taken = {(k.backend, k.name) for k in kernels}
            target = _operations[name]
            target.kernels = kernels + [
                k for k in target.kernels if (k.backend, k.name) not in taken
            ]


def _named(operation_name: str, choice: str) -> list[Kernel]:
    """The kernels of this name, one per backend. Raises ValueError if there is none."""
    known = operation(operation_name)
    if not any(k.name == choice for k in known.kernels):
        _load_late()
    found = [k for k in known.kernels if k.name == choice]
    if not found:
        names = {k.name for k in known.kernels}
        raise ValueError(unknown(f"{operation_name} kernel", choice, names))
    return found


def _exact_only(choices: dict[str, str]) -> bool:
    """Whether approximate kernels are ruled out, by these choices or by the shell."""
    return (choices.get("algorithm") or environment.algorithm()) == "exact"


def _from_shell(operation_name: str) -> str | None:
    """The kernel that MINIRES_KERNELS names for this operation, if it names one."""
    chosen = environment.kernels()
    if not chosen:
        return None
    try:
        for name in chosen:
            operation(name)
        if operation_name in chosen:
            _named(operation_name, chosen[operation_name])
    except ValueError as error:
        raise ValueError(
            f"{environment.KERNELS}: {error} (kernels of your own must be loaded before the first "
            "call, with --kernels FILE or an import)"
        ) from None
    return chosen.get(operation_name)


class use(AbstractContextManager["use"]):  # noqa: N801 - reads as a verb, at once or as a block
    """Prefer kernels by name, `use(conv2d="im2col")`: from now on, or inside a `with` block.

    A geometry that the named kernel does not support is computed by another one.

    algorithm: "exact" rules out kernels that are not the plain sum of products but for rounding
        (Winograd, Fourier), so that two programs' results differ by rounding only; "any" lets
        them in again.

    Raises ValueError if an operation has no kernel of that name, or only an approximate one while
    "exact" is in force.
    """

    def __init__(self, *, algorithm: str | None = None, **kernels: str) -> None:
        choices = dict(kernels)
        if algorithm is not None:
            choices["algorithm"] = environment.checked_algorithm(algorithm, "use")
        exact_only = _exact_only(_preferred | choices)
        for name, kernel in kernels.items():
            if not any(k.exact or not exact_only for k in _named(name, kernel)):
                raise ValueError(
                    f"use: {name} kernel {kernel!r} is not exact, and algorithm='exact' rules it "
                    "out; choose another kernel, or algorithm='any'"
                )
        self.previous = {name: _preferred.get(name) for name in choices}
        self._prefer(choices)

    def __exit__(self, *exc: object) -> None:
        self._prefer(self.previous)

    @staticmethod
    def _prefer(choices: Mapping[str, str | None]) -> None:
        for name, choice in choices.items():
            if choice is None:
                _preferred.pop(name, None)
            else:
                _preferred[name] = choice
        _choose_again()


def _choose_again() -> None:
    for op in _operations.values():
        op.forget()


def _count_change() -> None:
    global _changes
    _changes += 1


def _measured_otherwise() -> None:
    _count_change()
    _choose_again()


threads.at_change(_measured_otherwise)  # a table is of one number of threads


def read_tables_again() -> None:
    """Look at the tables of measurements anew, which are otherwise read once."""
    selection.forget()
    _measured_otherwise()


def mark() -> Hashable:
    """Equal to an earlier one if nothing has changed since by which kernels are chosen."""
    return tuple(_preferred.items()), _changes


def choices(backend: str) -> dict[str, Any]:
    """What decides between kernels now, as plain values for a run's record.

    algorithm: "any" or "exact". named: kernels by operation, of `use` and MINIRES_KERNELS.
    table: the file and the hash of the measurements in force, None if the conditions decide.
    """
    named = environment.kernels() | {k: v for k, v in _preferred.items() if k != "algorithm"}
    found = selection.table(backend)
    return {
        "algorithm": "exact" if _exact_only(_preferred) else "any",
        "named": dict(sorted(named.items())),
        "table": None if found is None else {"path": str(found.path), "hash": found.digest},
    }


def available(operation_name: str | None = None) -> list[Kernel]:
    """Every registered kernel, or those of one operation."""
    _load_late()
    chosen = [operation(operation_name)] if operation_name else _operations.values()
    return [kernel for op in chosen for kernel in op.kernels]
