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
from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any, ClassVar, ParamSpec, TypeVar, cast

import numpy as np
from numpy import ndarray

from minires.autograd.buffer import Buffer, Rebuilt, changed, checksum
from minires.autograd.hooks import Hooks
from minires.kernels.arrays import active, device_of

P = ParamSpec("P")
R = TypeVar("R")


LARGE = 1 << 20  # bytes: below it, memory is not worth the time of making an array again


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

    returns_new: ClassVar[bool] = False
    """Whether backward returns arrays that are new, each in memory of its own. Not inherited."""

    adds: ClassVar[bool] = False
    """Whether backward may add to the gradient of input 0 that is `waiting` for it at a join.

    If it does, it returns the sum as that input's gradient, and sets `waiting` to None.
    """
    takes_pending: ClassVar[bool] = False
    """Whether forward is given what is `Pending` as it is, where an input has no array yet."""

    waiting: Any = None  # an array that nobody else needs; its memory may become the sum's

    completes: Function | None = None
    """What made input 0, during backward of an operation that `adds`: if what it returns, with what
    is `waiting`, is the whole gradient of that, and nobody else is shown it. It may then do part of
    that operation's backward on the way.
    """

    passes_on: ClassVar[bool] = False
    """Whether what is done to its output's gradient on the way is done to its input's with it; so
    that neither is, if anybody is shown one of them.
    """

    _registry: ClassVar[dict[str, type[Function]]] = {}

    edges: Sequence[Any] | None = None
    needs: tuple[bool, ...] = ()
    sequence: int = -1
    consumers: int = 0  # how often an output became the input of a recorded operation
    hooks: dict[int, Hooks] | None = None
    outputs: Sequence[tuple[tuple[int, ...], Any]] = ()  # their shapes and dtypes
    retained: dict[int, weakref.ref[Tensor]] | None = None
    _to_save: dict[str, Any] | None = None
    _saved: dict[str, Any] | None = None
    released = False
    _rebuilt: Any = None  # what `rebuild` made, until this node is freed: several may ask for it

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        cls.of_engine = cls.__module__.partition(".")[0] == "minires"
        cls.returns_new = vars(cls).get("returns_new", False)
        Function._registry[f"{cls.__module__}.{cls.__qualname__}"] = cls

    def forward(self, *arrays: Any, **_: Any) -> Any:
        raise TypeError(f"{self.name}: an operation defines forward(self, *arrays)")

    def backward(self, *gradients: Any, **_: Any) -> Any:
        raise TypeError(f"{self.name}: an operation defines backward(self, *gradients)")

    def can_rebuild(self) -> bool:
        """Whether `rebuild` can make the output again, so that nobody need keep it."""
        return False

    def rebuild(self) -> Any:
        """The output's array again, bit for bit, from what is saved."""
        raise TypeError(f"{self.name}: an operation that can_rebuild defines rebuild(self)")

    def keeps_output(self) -> bool:
        """Whether an output of this operation is among what it keeps for backward."""
        items = (self._saved or {}).values()
        return any(type(item) is tuple and type(item[2]) is int for item in items)

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
        arrays: list[Any] = []
        takes_pending, on_host, wanted = self.takes_pending, True, False
        try:
            for tensor in tensors:
                if takes_pending and type(tensor) is Deferred:
                    array = array_or_pending(tensor)
                else:
                    array = tensor._data
                arrays.append(array)
                if type(array) is not ndarray and not isinstance(array, Pending):
                    on_host = False
                if tensor.requires_grad:
                    wanted = True
        except AttributeError:
            kinds = ", ".join(type(tensor).__name__ for tensor in tensors)
            raise TypeError(f"{self.name}: takes Tensors, got {kinds}") from None
        record = wanted and _mode.enabled
        if on_host:
            return self._apply(tensors, arrays, record)
        tensors = on_one_device(self.name, tensors)
        with active(tensors[0]._data):
            return self._apply(tensors, [tensor._data for tensor in tensors], record)

    def _apply(self, tensors: tuple[Tensor, ...], arrays: list[Any], record: bool) -> Any:
        """Compute the outputs and, if a gradient may be asked for, become a node."""
        if record and len(arrays) > 1:
            _tell_apart(arrays, tensors)
        result = self.forward(*arrays)
        if type(result) is tuple:
            outputs = tuple([self._output(array, tensors, arrays) for array in result])
            if record:
                self._record(tensors, arrays, outputs)
            return outputs
        output = self._output(result, tensors, arrays)
        if record:
            self._record(tensors, arrays, (output,))
        return output

    def _output(self, array: Any, tensors: tuple[Tensor, ...], arrays: list[Any]) -> Tensor:
        """A result of forward as a tensor; with the buffer of the input whose memory it shares."""
        if type(array) is not ndarray:
            if isinstance(array, Pending):
                if array.soon or not tensors[0]._buffer.exposed:
                    return Deferred.around(array, tensors[0])
                array = array.make()
            array = self._as_array(array)
        if self.view and np.may_share_memory(array, arrays[0]):
            return Tensor._wrap(array, buffer=tensors[0]._buffer)
        for i, known in enumerate(arrays):
            if array is known:
                return Tensor._wrap(array, buffer=tensors[i]._buffer)
        return Tensor._wrap(array, buffer=Buffer(array))  # what comes next will save it

    def _as_array(self, result: Any) -> Any:
        """A result of forward that is a number, or an array that is not NumPy's."""
        if not hasattr(result, "dtype"):
            raise TypeError(
                f"{self.name}.forward returns an array or a tuple of arrays, got "
                f"{type(result).__name__}"
            )
        return np.asarray(result) if isinstance(result, np.generic) else result

    def _record(
        self, tensors: tuple[Tensor, ...], arrays: list[Any], outputs: tuple[Tensor, ...]
    ) -> None:
        """Become a node of the graph."""
        if self.sequence >= 0:
            raise RuntimeError(
                f"{self.name}: one object stands for one call; make a new one for each, as in "
                f"{self.name}(...)(x)"
            )
        self.sequence = next(_sequence)
        edges: list[Any] = []
        needs: list[bool] = []
        places: dict[int, tuple[Tensor, Any]] = {}  # tensors and edges, by their arrays' identity
        for i, tensor in enumerate(tensors):
            array, node = arrays[i], tensor._node
            if node is not None:
                node.consumers += 1
                edge: Any = (node, tensor._index)
            else:
                edge = tensor if tensor.requires_grad else None
            edges.append(edge)
            needs.append(edge is not None)
            if type(array) is not ndarray and isinstance(array, Pending):
                array = array_or_pending(tensor)  # forward may have made it
            places[id(array)] = tensor, edge
        self.edges, self.needs = edges, tuple(needs)
        self.outputs = shapes = []
        for index, output in enumerate(outputs):
            output.requires_grad, output._node, output._index = True, self, index
            result = array_or_pending(output) if type(output) is Deferred else output._data
            shapes.append((result.shape, result.dtype))
            # Only the index: an edge to the node would be a reference cycle.
            places.setdefault(id(result), (output, index))
        to_save = self._to_save
        if to_save is not None:
            self._to_save = None
            self._saved = saved = {}
            for name, array in to_save.items():
                place = places.get(id(array))
                if place is None:
                    if type(array) is tuple:
                        raise TypeError(f"{self.name}: save() keeps arrays; {name!r} is a tuple")
                    saved[name] = array
                    continue
                tensor, edge = place
                maker, buffer = tensor._node, tensor._memory or tensor._buffer
                if maker is not None and array.nbytes >= LARGE and _can_rebuild(maker, buffer):
                    saved[name] = Rebuilt(buffer, edge)
                    continue
                if type(array) is not ndarray:
                    array = made(array)
                then = checksum(buffer.array) if buffer.exposed else None
                saved[name] = array, buffer, edge, buffer.version, then

    @property
    def inputs(self) -> list[tuple[tuple[int, ...], Any] | None]:
        """Shape and dtype of each input that a gradient may go to; None for the others."""
        return [None if edge is None else shape_and_dtype(edge) for edge in self.edges or ()]

    @property
    def saved(self) -> Any:
        """What `save` kept, by name, as tensors; inputs and outputs in their place in the graph.

        Raises RuntimeError if the graph was freed, or if an array was changed in place since.
        """
        if self._saved is None:
            raise RuntimeError(f"{self.name}: nothing was saved for backward")
        return SimpleNamespace(**{name: self.recall(name) for name in self._saved})

    def keeps(self, name: str) -> bool:
        """Whether `save` kept something under this name."""
        return self._saved is not None and name in self._saved

    def recall(self, name: str) -> Tensor:
        """One of the tensors of `saved`, without the others."""
        array = self.recall_array(name)
        item = self._saved[name]  # type: ignore[index]
        if type(item) is not tuple:
            if type(item) is not Rebuilt:
                return Tensor._wrap(array)
            node, index = (self, item.edge) if type(item.edge) is int else item.edge
            return Tensor._wrap(array, node, index)
        _, buffer, edge, _, _ = item
        if type(edge) is tuple:
            return Tensor._wrap(array, edge[0], edge[1], buffer)
        if edge is None:
            return Tensor._wrap(array, buffer=buffer)
        if type(edge) is int:
            return Tensor._wrap(array, self, edge, buffer)
        return cast(Tensor, edge)

    def recall_array(self, name: str) -> Any:
        """The array of `recall(name)`: for backward passes that are not recorded themselves."""
        if self._saved is None:
            raise RuntimeError(f"{self.name}: nothing was saved for backward")
        item = self._saved[name]
        if type(item) is tuple:
            array, buffer, edge, version, _ = item
            if (
                buffer.version != version
                or (buffer.exposed and changed(item))
                # A leaf whose `.data` was assigned holds other memory than was saved.
                or (isinstance(edge, Tensor) and edge._memory is not buffer)
            ):
                raise RuntimeError(
                    f"{self.name}: {name!r} ({describe(array)}) was saved for backward "
                    "and changed in place since, so the gradient would be wrong. Change it "
                    "after backward(), or work on a copy."
                )
            return array
        if type(item) is Rebuilt:
            array = item.kept()
            if array is None:
                node = self if type(item.edge) is int else item.edge[0]
                if node._rebuilt is None:
                    node._rebuilt = node.rebuild()
                array = node._rebuilt
            return array
        return item

    def maker_of(self, name: str) -> Function | None:
        """The operation that would have to make a saved array again; None if it is at hand."""
        item = self._saved[name] if self._saved is not None else None
        if type(item) is not Rebuilt or item.kept() is not None:
            return None
        node = self if type(item.edge) is int else item.edge[0]
        return node if node._rebuilt is None else None

    def saved_arrays(self) -> dict[str, Any]:
        """The arrays held for backward, by name; empty once the graph is freed."""
        items = {k: v for k, v in (self._saved or {}).items() if type(v) is not Rebuilt}
        return {name: v[0] if type(v) is tuple else v for name, v in items.items()}

    def differentiate(self, gradients: list[Tensor], needs: tuple[bool, ...]) -> tuple[Any, ...]:
        """Call `backward` for the inputs in `needs`; a tuple with one result per input.

        Raises TypeError unless each is a Tensor or None.
        """
        if needs is self.needs:
            results = self.backward(*gradients)
        else:
            everything, self.needs = self.needs, needs
            try:
                results = self.backward(*gradients)
            finally:
                self.needs = everything
        if not isinstance(results, tuple):
            results = tuple(results) if isinstance(results, list) else (results,)
        for result in results:
            if type(result) is not Tensor and not (result is None or isinstance(result, Tensor)):
                raise TypeError(
                    f"{self.name}.backward returns Tensors or None, got {type(result).__name__}"
                )
        return results

    def release(self) -> None:
        """Let go of everything kept for backward."""
        self.released = True
        self._saved = self._rebuilt = None
        self.edges = None


def _can_rebuild(maker: Function, buffer: Buffer) -> bool:
    """Whether an output need not be kept: its operation can make it again, and nobody holds it."""
    return maker.can_rebuild() and not buffer.exposed


def _tell_apart(arrays: list[Any], tensors: tuple[Tensor, ...]) -> None:
    """Give different tensors of one array, as x and x.detach() are, an array object each.

    What `save` keeps is traced to its input by identity.
    """
    if len(arrays) == 2:
        if arrays[0] is not arrays[1]:
            return
    elif len(set(map(id, arrays))) == len(arrays):
        return
    first: dict[int, Tensor] = {}
    for i, tensor in enumerate(tensors):
        if first.setdefault(id(arrays[i]), tensor) is not tensor:
            arrays[i] = arrays[i].view()


def on_one_device(operation: str, tensors: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """The operands of an operation, numbers among them brought to the device of the others.

    Raises ValueError if operands that are more than a number live on different devices.
    """
    homes = [device_of(tensor._data) for tensor in tensors]
    if len(set(homes)) == 1:
        return tensors
    arrays = {home for home, tensor in zip(homes, tensors, strict=True) if tensor._data.ndim}
    if len(arrays) > 1:
        home = min(arrays - {"cpu"})
        raise ValueError(
            f"{operation.lower()}: operands live on {' and '.join(sorted(arrays))}; bring them "
            f"together with .to({home!r}) or .cpu()"
        )
    home = arrays.pop() if arrays else min(set(homes) - {"cpu"})
    return tuple([tensor.to(home) for tensor in tensors])


def shape_and_dtype(edge: Any) -> tuple[tuple[int, ...], Any]:
    """Of the tensor that an edge leads to."""
    if type(edge) is tuple:
        node, index = edge
        return node.outputs[index]
    return edge._data.shape, edge._data.dtype


def describe(array: Any) -> str:
    """`8x3x32x32 float32`: a shape as it reads in an error."""
    shape = "x".join(map(str, array.shape)) or "scalar"
    return f"{shape} {array.dtype}"


def functions() -> dict[str, type[Function]]:
    """Every differentiable operation that exists, by qualified name."""
    return dict(Function._registry)


# Tensor needs Function for its operators and Function makes Tensors: the package imports the
# tape first, so Function is complete when the tensor module asks for it here.
from minires.autograd.tensor import Tensor  # isort: skip  # noqa: E402
from minires.autograd.pending import Deferred, Pending, array_or_pending, made  # noqa: E402
