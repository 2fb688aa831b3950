"""Where a step's time goes: by operation, by layer, and as a trace to look at.

    with mr.profile() as profile:
        for x, y in batches:
            train(x, y)
    print(profile.table())                  # or table("layer"), or table("call") for every row
    profile.save_trace("trace.json")        # opens in ui.perfetto.dev and chrome://tracing

Inside the block, on this thread, every call of a module, a differentiable operation, a kernel, a
conversion of layout, a step of backward and of an optimiser is timed. Forward operations belong to
the innermost module they run in, or to the module that owns a parameter they take; backward
operations to the layer of the forward operation they differentiate. A call's time is its own,
without what it called, so that the rows, the engine's Python and the rest sum to the wall time.

Outside the block nothing is watched and nothing is paid. Inside, the watching itself takes some
2 us per call, which count as the engine's.

On a CUDA device the clock is the device's: events among the launches say when it came to them. The
engine's share is then what the device waits for Python, not what Python takes beside it. Steps that
would be CUDA graphs run one launch at a time while they are watched.
"""

from __future__ import annotations

import sys
import threading
import time
import weakref
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from minires.autograd import Function, Parameter, Tensor
from minires.autograd.backward import _Pending
from minires.bench.costs import Cost, bound, cost
from minires.bench.limits import Limits, limits
from minires.bench.places import place_of
from minires.bench.profile_table import Row, table_text
from minires.bench.trace import write_trace
from minires.files import StrPath
from minires.kernels import Kernel, Operation, layout, registry
from minires.kernels.arrays import xp_of
from minires.kernels.cuda.launch import cupy_in_use
from minires.nn import Module
from minires.optim import Optimizer

LEAVES = ("kernel", "operation", "layout", "update")
"""Kinds of spans whose time is work; that of the others is the engine's Python."""

KEYS: dict[str, Callable[[Span], tuple[str, str, str, str]]] = {
    "operation": lambda span: ("", span.phase, span.name, span.algorithm),
    "layer": lambda span: (span.layer, "", "", ""),
    "call": lambda span: (span.layer, span.phase, span.name, span.algorithm),
}
"""What rows are summed by: layer, pass, operation and algorithm, where they tell rows apart."""


@dataclass(eq=False, slots=True)
class Span:
    """One call that was watched.

    kind: "module", "function" (a differentiable operation around a kernel), "operation" (one that
        computes by itself, with NumPy), "kernel", "layout", "backward" (a step of it), "update".
    layer: full name of the module it belongs to; "" outside of one.
    phase: "forward", "backward" or "update". start, end: nanoseconds of the clock, and until the
    block ends what the clock makes of them. inner: nanoseconds of the calls inside.
    algorithm: the kernel's name, of a kernel.
    forward: the span of the operation that a step of backward differentiates.
    """

    kind: str
    name: str
    layer: str
    phase: str
    start: Any
    end: Any = 0
    inner: int = 0
    algorithm: str = ""
    cost: Cost | None = None
    dtype: str = ""
    shapes: str = ""
    forward: Span | None = None
    parent: Span | None = None

    @property
    def own(self) -> float:
        """Seconds without the calls inside."""
        return float(self.end - self.start - self.inner) * 1e-9


class HostClock:
    """The processor's time."""

    now = staticmethod(time.perf_counter_ns)

    def nanoseconds(self, ticks: Sequence[Any]) -> list[int]:
        """What `now` returned, as times since some beginning."""
        return list(ticks)


class DeviceClock:
    """A CUDA device's time, by events on the stream that is current when they are made."""

    def __init__(self, cupy: Any) -> None:
        self.cuda = cupy.cuda
        self.first = self.now()

    def now(self) -> Any:
        event = self.cuda.Event()
        event.record()
        return event

    def nanoseconds(self, ticks: Sequence[Any]) -> list[int]:
        """Waits for the device; events are exact to half a microsecond."""
        self.cuda.Device().synchronize()
        return [round(self.cuda.get_elapsed_time(self.first, event) * 1e6) for event in ticks]


@dataclass
class _Watch:
    """What is known while the block runs."""

    thread: int
    stack: list[Span] = field(default_factory=list)
    roots: list[Module] = field(default_factory=list)
    names: dict[int, str] = field(default_factory=dict)  # of modules, by id; the roots keep them
    owners: dict[int, str] = field(default_factory=dict)  # of parameters
    nodes: weakref.WeakKeyDictionary[Function, Span] = field(
        default_factory=weakref.WeakKeyDictionary
    )


class profile:  # noqa: N801 - reads as a verb: with mr.profile() as ...
    """Watch what runs in a `with` block, on this thread.

    steps: how many steps run inside; times are given per step.
    device: "cpu" or "cuda", whose clock is looked at; by default "cuda" once CuPy is in use.

    spans: every call that was watched, in the order of their beginnings. wall: seconds in the
    block. Raises RuntimeError if another profile is running.
    """

    _running = threading.Lock()

    def __init__(self, steps: int = 1, device: str | None = None) -> None:
        if steps < 1:
            raise ValueError(f"profile: steps must be at least 1, got {steps}")
        self.steps = steps
        self.device = device or ("cpu" if cupy_in_use() is None else "cuda")
        place_of(self.device)  # tells what is missing
        self.clock: HostClock | DeviceClock = HostClock()
        self.spans: list[Span] = []
        self.begun: Any = 0
        self.ended: Any = 0
        self._watch = _Watch(0)
        self._undo: list[Callable[[], None]] = []

    @property
    def wall(self) -> float:
        """Seconds that the block took."""
        return float(self.ended - self.begun) * 1e-9

    # -- watching ----------------------------------------------------------------------------

    def __enter__(self) -> profile:
        if not profile._running.acquire(blocking=False):
            raise RuntimeError("profile: another profile is running; end it first")
        self.spans = []
        self._watch = _Watch(threading.get_ident())
        for owner, name, wrap in (
            (Module, "__call__", self._module),
            (Function, "__call__", self._function),
            (Function, "differentiate", self._differentiate),
            (_Pending, "add", self._add),
            (Optimizer, "step", self._step),
        ):
            self._replace(owner, name, self._only_here(wrap, getattr(owner, name)))
        self._replace(registry, "observer", self._kernel)
        self._replace(layout, "observer", self._convert)
        self.clock = DeviceClock(sys.modules["cupy"]) if self.device == "cuda" else HostClock()
        self.begun = self.clock.now()
        return self

    def __exit__(self, *exc: object) -> None:
        self.ended = self.clock.now()
        while self._undo:
            self._undo.pop()()
        self._watch = _Watch(0)  # lets go of the modules and the graph
        try:
            self._read_clock()
        finally:
            profile._running.release()

    def _read_clock(self) -> None:
        """Turn what the clock made of the times into nanoseconds."""
        ticks = [self.begun, self.ended]
        for span in self.spans:
            ticks += span.start, span.end
        times = iter(self.clock.nanoseconds(ticks))
        self.begun, self.ended = next(times), next(times)
        for span in self.spans:
            span.start, span.end = next(times), next(times)
            if span.parent is not None:
                span.parent.inner += span.end - span.start

    def _replace(self, owner: Any, name: str, value: Any) -> None:
        before = getattr(owner, name)
        setattr(owner, name, value)
        self._undo.append(lambda: setattr(owner, name, before))

    def _only_here(self, wrap: Callable[..., Any], original: Callable[..., Any]) -> Any:
        thread = self._watch.thread

        def call(*args: Any, **kwargs: Any) -> Any:
            if threading.get_ident() != thread:
                return original(*args, **kwargs)
            return wrap(original, *args, **kwargs)

        return call

    def _open(self, kind: str, name: str, layer: str, phase: str = "") -> Span:
        stack = self._watch.stack
        phase = phase or (stack[-1].phase if stack else "forward")
        span = Span(kind, name, layer, phase, self.clock.now())
        span.parent = stack[-1] if stack else None
        stack.append(span)
        self.spans.append(span)
        return span

    def _close(self, span: Span) -> None:
        self._watch.stack.pop()
        span.end = self.clock.now()

    def _here(self) -> str:
        stack = self._watch.stack
        return stack[-1].layer if stack else ""

    def _module(self, original: Callable[..., Any], module: Module, *args: Any, **kw: Any) -> Any:
        watch = self._watch
        if id(module) not in watch.names:
            self._adopt(module)
        span = self._open("module", type(module).__name__, watch.names[id(module)])
        try:
            return original(module, *args, **kw)
        finally:
            self._close(span)

    def _adopt(self, root: Module) -> None:
        """Learn the names of a module that was called from outside, and of what is in it."""
        watch = self._watch
        watch.roots.append(root)
        for name, module in root.named_modules():
            watch.names.setdefault(id(module), name or type(root).__name__)
            for parameter in module._parameters.values():
                if parameter is not None:
                    watch.owners.setdefault(id(parameter), watch.names[id(module)])

    def _function(self, original: Callable[..., Any], function: Function, *tensors: Tensor) -> Any:
        layer = self._here()
        for tensor in tensors:
            if isinstance(tensor, Parameter):
                layer = self._watch.owners.get(id(tensor), layer)
        span = self._open("operation", function.name, layer)
        try:
            return original(function, *tensors)
        finally:
            self._close(span)
            if tensors and isinstance(tensors[0], Tensor):
                span.dtype = str(tensors[0].dtype)  # of the tensor: its array may be pending
            span.shapes = _shapes(t for t in tensors if isinstance(t, Tensor))
            if function.edges is not None:
                self._watch.nodes[function] = span

    def _differentiate(
        self, original: Callable[..., Any], function: Function, gradients: Any, needs: Any
    ) -> Any:
        forward = self._watch.nodes.get(function)
        layer = forward.layer if forward is not None else ""
        span = self._open("backward", f"{function.name} backward", layer, "backward")
        span.forward = forward
        try:
            return original(function, gradients, needs)
        finally:
            self._close(span)

    def _add(self, original: Callable[..., Any], pending: Any, *args: Any) -> Any:
        """Gradients that meet, at a residual join for one."""
        span = self._open("operation", "sum of gradients", self._last_layer(), "backward")
        try:
            return original(pending, *args)
        finally:
            self._close(span)
            span.shapes = _shapes([pending.value._data])
            span.dtype = str(pending.value._data.dtype)

    def _last_layer(self) -> str:
        """Of the step of backward that has just ended."""
        steps = (span for span in reversed(self.spans) if span.kind == "backward")
        return next((span.layer for span in steps), "")

    def _step(self, original: Callable[..., Any], optimizer: Any, *args: Any, **kw: Any) -> Any:
        span = self._open("update", f"{type(optimizer).__name__} step", "", "update")
        try:
            return original(optimizer, *args, **kw)
        finally:
            self._close(span)

    def _kernel(self, operation: Operation, kernel: Kernel, args: tuple[Any, ...]) -> Any:
        watch = self._watch
        if threading.get_ident() != watch.thread:
            return kernel.function(*args)
        if watch.stack and watch.stack[-1].kind == "operation":
            watch.stack[-1].kind = "function"  # it has a kernel that computes
        span = self._open("kernel", operation.name, self._here())
        try:
            return kernel.function(*args)
        finally:
            self._close(span)
            span.algorithm, span.dtype = kernel.name, str(args[0].dtype)
            span.shapes = _shapes(args)
            span.cost = _known_cost(operation.name, args)

    def _convert(self, pixels: Any) -> Any:
        """An image batch being copied into channels-last memory."""
        if threading.get_ident() != self._watch.thread:
            return xp_of(pixels).ascontiguousarray(pixels)
        span = self._open("layout", "to channels-last", self._here())
        try:
            return xp_of(pixels).ascontiguousarray(pixels)
        finally:
            self._close(span)
            span.algorithm, span.dtype = "copy", str(pixels.dtype)
            span.shapes, span.cost = _shapes([pixels]), Cost(0, 2 * pixels.nbytes)

    # -- reading -----------------------------------------------------------------------------

    def rows(self, by: str = "operation", limit: Limits | None = None) -> list[Row]:
        """The work, summed by "operation" (and its algorithm), by "layer" or by "call" (layer,
        pass, operation and algorithm), the longest first.

        limit: of the machine, measured if it is not given. Raises ValueError for another `by`.
        """
        if by not in KEYS:
            raise ValueError(f"profile: by is one of {', '.join(KEYS)}, got {by!r}")
        limit = limit or limits(device=self.device)
        rows: dict[tuple[str, ...], Row] = {}
        for span in self.spans:
            if span.kind in LEAVES:
                key = KEYS[by](span)
                row = rows.setdefault(key, Row(*key))
                row.add(span.phase, span.own, span.cost, _least(span, limit), span.algorithm)
        return sorted(rows.values(), key=lambda row: -row.seconds)

    @property
    def engine(self) -> float:
        """Seconds of Python in modules, functions and steps of backward, around the work."""
        return sum(span.own for span in self.spans if span.kind not in LEAVES)

    @property
    def other(self) -> float:
        """Seconds outside of all that is watched: data, reading the loss, the walk itself."""
        return self.wall - sum(span.own for span in self.spans)

    def table(
        self, by: str = "operation", rows: int | None = None, limit: Limits | None = None
    ) -> str:
        """`rows(by)` as text, with the engine's time, the rest and the sum; the first `rows`."""
        found = self.rows(by, limit)
        return table_text(self, by, found, limit or limits(device=self.device), rows)

    def __str__(self) -> str:
        return self.table()

    def save_trace(self, path: StrPath) -> None:
        """Write a trace in the Trace Event format, which Perfetto and Chrome open."""
        write_trace(path, self)


def _shapes(values: Iterable[Any]) -> str:
    shapes = (getattr(value, "shape", None) for value in values)
    return ", ".join("x".join(map(str, shape)) or "scalar" for shape in shapes if shape is not None)


def _known_cost(operation: str, args: tuple[Any, ...]) -> Cost | None:
    try:
        return cost(operation, args)
    except ValueError:  # an operation of one's own, which nobody counted
        return None


def _least(span: Span, limit: Limits) -> float | None:
    """Seconds that the span's work must take; None where that is not known."""
    precision = "tf32" if "tf32" in span.algorithm else span.dtype
    if span.cost is None or precision not in limit.gflops:
        return None
    return bound(span.cost, limit, precision)
