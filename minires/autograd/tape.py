"""The tape: operations that remember how to differentiate themselves.

A `Function` object is one call of one operation and, when a gradient may be asked for, one node
of the graph. Its `forward` works on arrays; its `backward` works on tensors with operations that
are themselves differentiable, which is all that gradients of gradients need.
"""

from __future__ import annotations

import functools
import inspect
import itertools
import threading
import weakref
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, ClassVar, ParamSpec, TypeVar

import numpy as np

from minires.autograd.buffer import Saved
from minires.autograd.hooks import Hooks

P = ParamSpec("P")
R = TypeVar("R")


class _Mode(threading.local):
    enabled = True


_mode = _Mode()
_sequence = itertools.count()


def is_grad_enabled() -> bool:
    """Whether operations are being recorded on this thread."""
    return _mode.enabled


class set_grad_enabled:  # noqa: N801 - PyTorch's name
    """Turn recording on or off: for the rest of the thread, or for one `with` block.

        mr.set_grad_enabled(False)
        with mr.set_grad_enabled(training): ...
    """

    def __init__(self, enabled: bool) -> None:
        self.previous = _mode.enabled
        _mode.enabled = bool(enabled)

    def __enter__(self) -> None:
        pass

    def __exit__(self, *exc: object) -> None:
        _mode.enabled = self.previous


class no_grad:  # noqa: N801 - PyTorch's name
    """Operations inside are not recorded: `with mr.no_grad(): ...` or `@mr.no_grad()`."""

    enabled = False

    def __init__(self) -> None:
        self.previous: list[bool] = []  # a stack: one object may be entered again inside itself

    def __enter__(self) -> None:
        self.previous.append(_mode.enabled)
        _mode.enabled = self.enabled

    def __exit__(self, *exc: object) -> None:
        _mode.enabled = self.previous.pop()

    def __call__(self, function: Callable[P, R]) -> Callable[P, R]:
        if inspect.isgeneratorfunction(function):
            raise TypeError(
                f"{type(self).__name__} would end before the generator {function.__name__} runs; "
                "use a `with` block inside it"
            )

        @functools.wraps(function)
        def wrapped(*args: P.args, **kwargs: P.kwargs) -> R:
            with type(self)():  # one of its own for each call: threads may call at once
                return function(*args, **kwargs)

        return wrapped


class enable_grad(no_grad):  # noqa: N801 - PyTorch's name
    """Operations inside are recorded, also within a `no_grad` block."""

    enabled = True


class Function:
    """One call of a differentiable operation. Subclass it to add an operation:

        class Square(Function):
            def forward(self, x):              # arrays in, an array (or a tuple of arrays) out
                self.save(x=x)
                return x * x

            def backward(self, gy):            # tensors in, a tensor (or one per input) out
                return 2.0 * gy * self.saved.x

        y = Square()(x)

    Parameters of the operation are attributes set in `__init__`. `backward` returns None for an
    input without gradient; `self.needs[i]` tells whether input i wants one.

    Returning the incoming gradient itself, or a view of it, is fine: the engine never lets two
    tensors share one gradient buffer.
    """

    view: ClassVar[bool] = False
    """Whether the output may share the first input's memory (reshape, slicing, ...)."""

    of_engine: ClassVar[bool] = True
    """Whether backward is known to return new arrays, or views of what it was given or saved."""

    _registry: ClassVar[dict[str, type[Function]]] = {}

    edges: tuple[Any, ...] | None = None
    needs: tuple[bool, ...] = ()
    sequence: int = -1
    hooks: dict[int, Hooks] | None = None
    outputs: tuple[tuple[tuple[int, ...], Any], ...] = ()
    inputs: tuple[tuple[tuple[int, ...], Any], ...] = ()
    retained: dict[int, weakref.ref[Tensor]] | None = None
    _to_save: dict[str, Any] | None = None
    _saved: dict[str, Any] | None = None
    released = False

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        cls.of_engine = cls.__module__.partition(".")[0] == "minires"
        Function._registry[f"{cls.__module__}.{cls.__qualname__}"] = cls

    def forward(self, *arrays: Any, **_: Any) -> Any:
        raise TypeError(f"{self.name}: an operation defines forward(self, *arrays)")

    def backward(self, *gradients: Any, **_: Any) -> Any:
        raise TypeError(f"{self.name}: an operation defines backward(self, *gradients)")

    @property
    def name(self) -> str:
        return type(self).__name__

    def save(self, **arrays: Any) -> None:
        """Keep arrays for backward under these names: inputs, outputs or anything computed.

        Inputs and outputs keep their place in the graph; anything else is a constant there, so
        a gradient of a gradient does not see how it was computed.
        """
        self._to_save = arrays if self._to_save is None else {**self._to_save, **arrays}

    def __call__(self, *tensors: Tensor) -> Any:
        try:
            arrays = [tensor._data for tensor in tensors]
        except AttributeError:
            kinds = ", ".join(type(tensor).__name__ for tensor in tensors)
            raise TypeError(f"{self.name}: takes Tensors, got {kinds}") from None
        if len(arrays) > 1:
            _tell_apart(arrays, tensors)
        result = self.forward(*arrays)
        record = False
        if _mode.enabled:
            for tensor in tensors:
                if tensor.requires_grad:
                    record = True
                    break
        if type(result) is tuple:
            outputs = tuple(
                self._output(array, index, record, tensors, arrays)
                for index, array in enumerate(result)
            )
            if record:
                self._record(tensors, arrays, outputs)
            return outputs
        output = self._output(result, 0, record, tensors, arrays)
        if record:
            self._record(tensors, arrays, (output,))
        return output

    def _output(
        self, array: Any, index: int, record: bool, tensors: tuple[Tensor, ...], arrays: list[Any]
    ) -> Tensor:
        """A result of forward as a tensor; with the buffer of the input whose memory it shares."""
        if not isinstance(array, np.ndarray):
            if not hasattr(array, "dtype"):
                raise TypeError(
                    f"{self.name}.forward returns an array or a tuple of arrays, got "
                    f"{type(array).__name__}"
                )
            if isinstance(array, np.generic):
                array = np.asarray(array)
        buffer = None
        if self.view and np.may_share_memory(array, arrays[0]):
            buffer = tensors[0]._buffer
        else:
            for tensor, known in zip(tensors, arrays, strict=True):
                if array is known:
                    buffer = tensor._buffer
        return Tensor._wrap(array, self if record else None, index, buffer)

    def _record(
        self, tensors: tuple[Tensor, ...], arrays: list[Any], outputs: tuple[Tensor, ...]
    ) -> None:
        if self.sequence >= 0:
            raise RuntimeError(
                f"{self.name}: one object stands for one call; make a new one for each, as in "
                f"{self.name}(...)(x)"
            )
        self.edges = edges = tuple([tensor._edge() for tensor in tensors])
        self.needs = tuple([edge is not None for edge in edges])
        self.inputs = tuple([(array.shape, array.dtype) for array in arrays])
        self.outputs = tuple([(out._data.shape, out._data.dtype) for out in outputs])
        self.sequence = next(_sequence)
        if self._to_save is not None:
            saved: dict[str, Any] = {}
            for name, array in self._to_save.items():
                saved[name] = _saved_as(array, tensors, arrays, edges, outputs)
            self._saved = saved
            self._to_save = None

    @property
    def saved(self) -> Any:
        """What `save` kept, by name, as tensors; inputs and outputs in their place in the graph.

        Raises RuntimeError if the graph was freed, or if an array was changed in place since.
        """
        if self._saved is None:
            raise RuntimeError(f"{self.name}: nothing was saved for backward")
        values = {}
        for name, item in self._saved.items():
            if type(item) is Saved:
                edge = item.edge
                # A leaf whose `.data` was assigned holds other memory than was saved.
                replaced = isinstance(edge, Tensor) and edge._buffer is not item.buffer
                if replaced or item.changed():
                    raise RuntimeError(
                        f"{self.name}: {name!r} ({describe(item.array)}) was saved for backward "
                        "and changed in place since, so the gradient would be wrong. Change it "
                        "after backward(), or work on a copy."
                    )
                if type(edge) is int:
                    edge = (self, edge)
                values[name] = Tensor._of_saved(item, edge)
            else:
                values[name] = Tensor._wrap(item)
        return SimpleNamespace(**values)

    def saved_arrays(self) -> dict[str, Any]:
        """The arrays held for backward, by name; empty once the graph is freed."""
        items = self._saved or {}
        return {name: v.array if type(v) is Saved else v for name, v in items.items()}

    def differentiate(self, gradients: list[Tensor], needs: tuple[bool, ...]) -> tuple[Any, ...]:
        """Call `backward` for the inputs in `needs`; a tuple with one result per input.

        Raises TypeError unless each is a Tensor or None.
        """
        everything = self.needs
        self.needs = needs
        try:
            results = self.backward(*gradients)
        finally:
            self.needs = everything
        if not isinstance(results, tuple):
            results = tuple(results) if isinstance(results, list) else (results,)
        for result in results:
            if not (result is None or isinstance(result, Tensor)):
                raise TypeError(
                    f"{self.name}.backward returns Tensors or None, got {type(result).__name__}"
                )
        return results

    def release(self) -> None:
        """Let go of everything kept for backward."""
        self.released = True
        self._saved = None
        self.edges = None


def _tell_apart(arrays: list[Any], tensors: tuple[Tensor, ...]) -> None:
    """Give different tensors of one array, as x and x.detach() are, an array object each.

    What `save` keeps is traced to its input by identity.
    """
    first: dict[int, Tensor] = {}
    for i, tensor in enumerate(tensors):
        if first.setdefault(id(arrays[i]), tensor) is not tensor:
            arrays[i] = arrays[i].view()


def _saved_as(
    array: Any,
    tensors: tuple[Tensor, ...],
    arrays: list[Any],
    edges: tuple[Any, ...],
    outputs: tuple[Tensor, ...],
) -> Any:
    """`array` with its place in the graph, if it is an input or an output of the operation."""
    for i, known in enumerate(arrays):
        if array is known:
            return Saved(array, tensors[i]._buffer, edges[i])
    for i, output in enumerate(outputs):
        if array is output._data:
            # Only the index: an edge to the node itself would be a reference cycle.
            return Saved(array, output._buffer, i)
    return array


def describe(array: Any) -> str:
    """`8x3x32x32 float32`: a shape as it reads in an error."""
    shape = "x".join(map(str, array.shape)) or "scalar"
    return f"{shape} {array.dtype}"


def functions() -> dict[str, type[Function]]:
    """Every differentiable operation that exists, by qualified name."""
    return dict(Function._registry)


# Tensor needs Function for its operators and Function makes Tensors: the package imports the
# tape first, so Function is complete when the tensor module asks for it here.
from minires.autograd.tensor import Tensor  # noqa: E402
