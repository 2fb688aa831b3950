"""The tape: operations that remember how to differentiate themselves.

A `Function` object is one call of one operation and, when a gradient may be asked for, one node
of the graph. Its `forward` works on arrays; its `backward` works on tensors with operations that
are themselves differentiable, which is all that gradients of gradients need.
"""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable
from contextlib import ContextDecorator
from types import SimpleNamespace
from typing import Any, ClassVar

import numpy as np

from minires.autograd.buffer import Saved


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


class no_grad(ContextDecorator):  # noqa: N801 - PyTorch's name
    """Operations inside are not recorded: `with mr.no_grad(): ...` or `@mr.no_grad()`."""

    enabled = False

    def __init__(self) -> None:
        self.previous: list[bool] = []  # a stack: a decorated function may call itself

    def __enter__(self) -> None:
        self.previous.append(_mode.enabled)
        _mode.enabled = self.enabled

    def __exit__(self, *exc: object) -> None:
        _mode.enabled = self.previous.pop()


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

    _registry: ClassVar[dict[str, type[Function]]] = {}

    edges: tuple[Any, ...] | None = None
    needs: tuple[bool, ...] = ()
    sequence: int = -1
    hooks: dict[int, list[Callable[[Tensor], Tensor | None]]] | None = None
    outputs: tuple[tuple[tuple[int, ...], Any], ...] = ()
    inputs: tuple[tuple[tuple[int, ...], Any], ...] = ()
    _to_save: dict[str, Any] | None = None
    _saved: dict[str, Any] | None = None
    released = False

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        Function._registry[f"{cls.__module__}.{cls.__qualname__}"] = cls

    def forward(self, *arrays: Any, **_: Any) -> Any:
        raise TypeError(f"{self.name}: an operation defines forward(self, *arrays)")

    def backward(self, *gradients: Any, **_: Any) -> Any:
        raise TypeError(f"{self.name}: an operation defines backward(self, *gradients)")

    @property
    def name(self) -> str:
        return type(self).__name__

    def save(self, **arrays: Any) -> None:
        """Keep arrays for backward under these names: inputs, outputs or anything computed."""
        self._to_save = arrays

    def __call__(self, *tensors: Tensor) -> Any:
        arrays = [tensor._data for tensor in tensors]
        result = self.forward(*arrays)
        record = False
        if _mode.enabled:
            for tensor in tensors:
                if tensor.requires_grad:
                    record = True
                    break
        if type(result) is tuple:
            outputs = tuple(
                Tensor._wrap(array, self if record else None, index, None)
                for index, array in enumerate(result)
            )
            if record:
                self._record(tensors, arrays, outputs)
            return outputs
        shares = self.view and np.may_share_memory(result, arrays[0])
        buffer = tensors[0]._buffer if shares else None
        output = Tensor._wrap(result, self if record else None, 0, buffer)
        if record:
            self._record(tensors, arrays, (output,))
        return output

    def _record(
        self, tensors: tuple[Tensor, ...], arrays: list[Any], outputs: tuple[Tensor, ...]
    ) -> None:
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
                if item.changed():
                    raise RuntimeError(
                        f"{self.name}: {name!r} ({describe(item.array)}) was saved for backward "
                        "and changed in place since, so the gradient would be wrong. Change it "
                        "after backward(), or work on a copy."
                    )
                edge = item.edge
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
        """Call `backward` for the inputs in `needs`; a tuple with one result per input."""
        everything = self.needs
        self.needs = needs
        try:
            results = self.backward(*gradients)
        finally:
            self.needs = everything
        return results if type(results) is tuple else (results,)

    def release(self) -> None:
        """Let go of everything kept for backward."""
        self.released = True
        self._saved = None
        self.edges = None


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
