"""Convolution kernels side by side: checked, timed, held to the machine's limit.

    report = bench_conv(conv_layers("resnet18"), ["winograd", "im2col", "torch"])
    report.rows[0].share                 of the limit that this machine sets
    write_record("today.json", report.record())

Per layer and pass every contender gets the same arrays, in channels-last memory. One that is wrong
on them or on a ragged shape is refused and not timed (`gate.py`). The others are timed in turn
(`timing.py`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from minires._names import unknown
from minires.bench.costs import Cost, bound, cost
from minires.bench.gate import PASSES, Problem, precision_of, ragged
from minires.bench.layers import ConvLayer
from minires.bench.limits import Limits, limits
from minires.bench.machine import machine
from minires.bench.peers import PEERS, check_installed, installed, peer_calls
from minires.bench.places import Call, Place, place_of
from minires.bench.timing import Times, interleave
from minires.kernels import ConvGeometry, Kernel, Operation, available, memory

DEFAULT = "default"
"""Names the kernel that minires would choose."""

PATIENCE = 60.0
"""Seconds that one call may be expected to take; a kernel that needs more is not timed."""

Progress = Callable[[str], None]


@dataclass(frozen=True)
class Row:
    """One contender on one pass of one layer.

    shape: the geometry as text. count: how many layers of the network have it.
    chosen: whether minires would choose this kernel.
    refused: why it was not timed; empty if it was. error: the largest error over the largest
        value, against the float64 reference on the timed shape; None if it could not be found.
    ragged: the ragged shape that was checked; None for a library's own, and for a kernel that
        takes no shape but this.
    workspace: bytes besides arguments and results, as the kernel says or else as the pool of
        large arrays saw in a call; None where neither tells.
    limit: seconds that the machine needs at the least for the arithmetic and the bytes.
    """

    layer: str
    shape: str
    count: int
    operation: str
    kernel: str
    dtype: str
    chosen: bool
    cost: Cost
    limit: float
    refused: str = ""
    error: float | None = None
    ragged: str | None = None
    workspace: int | None = None
    times: Times | None = None

    @property
    def key(self) -> tuple[str, str, str, str]:
        """What is the same thing in another record."""
        return self.shape, self.operation, self.kernel, self.dtype

    @property
    def gflops(self) -> float | None:
        """10^9 operations/s, counted by the direct algorithm."""
        return None if self.times is None else self.cost.flops / self.times.median / 1e9

    @property
    def gbs(self) -> float | None:
        """10^9 bytes/s of those that have to move."""
        return None if self.times is None else self.cost.bytes / self.times.median / 1e9

    @property
    def share(self) -> float | None:
        """Of the limit: 1 is as fast as the machine's two rates allow a direct algorithm."""
        return None if self.times is None else self.limit / self.times.median

    def record(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {
            "layer": self.layer, "shape": self.shape, "count": self.count,
            "operation": self.operation, "kernel": self.kernel, "dtype": self.dtype,
            "chosen": self.chosen, "refused": self.refused, "error": self.error,
            "ragged": self.ragged, "workspace": self.workspace,
            "flops": self.cost.flops, "bytes": self.cost.bytes,
            "intensity": self.cost.intensity, "limit_ms": self.limit * 1e3,
            "times": None if self.times is None else self.times.record(),
            "gflops": self.gflops, "gbs": self.gbs, "share": self.share,
        }  # fmt: skip


@dataclass
class ConvReport:
    """What was timed, and on what.

    unsupported: (layer, operation, kernel) that a kernel does not claim.
    """

    limits: Limits
    rounds: int
    rows: list[Row] = field(default_factory=list)
    unsupported: list[tuple[str, str, str]] = field(default_factory=list)
    device: str = "cpu"

    @property
    def refused(self) -> list[Row]:
        return [row for row in self.rows if row.refused]

    @property
    def timed(self) -> list[Row]:
        return [row for row in self.rows if row.times is not None]

    def record(self) -> dict[str, Any]:
        """Plain values for JSON: the machine, its limits, the settings and the rows."""
        return {
            "kind": "minires kernels bench",
            "format": 1,
            "machine": machine(self.device),
            "limits": {
                "gflops": dict(self.limits.gflops), "copy_gbs": self.limits.copy_gbs,
                "threads": self.limits.threads, "measured": self.limits.measured,
                "device": self.limits.machine,
            },
            "rounds": self.rounds,
            "rows": [row.record() for row in self.rows],
        }  # fmt: skip


def bench_conv(
    layers: Sequence[ConvLayer],
    kernels: Sequence[str] = (),
    passes: Sequence[str] = tuple(PASSES),
    *,
    own: Sequence[Kernel] = (),
    rounds: int = 7,
    dtype: str = "float32",
    device: str | Place = "cpu",
    limit: Limits | None = None,
    progress: Progress | None = None,
) -> ConvReport:
    """Check and time convolution kernels on these layers.

    kernels: names, "default" for what minires chooses, "torch" for PyTorch; by default "default",
        "im2col" and, where it is installed, "torch".
    passes: of "forward", "grad-input", "grad-weight". The input gradient of a network's first
        layer is left out: no training asks for it.
    own: kernels of yours (`minires.kernels.load`), timed first; "default" is what minires would
        choose without them.
    rounds: visits to each contender. limit: of the machine, measured if not given.
    dtype: on a CUDA device "float16", "bfloat16" and "tf32" too, the last for float32 arrays whose
        factors may be rounded.

    Raises ValueError for unknown names, ImportError if PyTorch is asked for and not installed, and
    as `place_of`.
    """
    place = place_of(device)
    names = checked_kernels(kernels or default_kernels(place.backend), passes, place.backend)
    found = limits(device=place.name) if limit is None else limit
    report = ConvReport(found, rounds, device=place.name)
    for layer in layers:
        for name in passes:
            operation_name = PASSES[name]
            if operation_name == "conv2d_grad_input" and not layer.needs_grad_input:
                continue
            storage = "float32" if dtype == "tf32" else dtype
            problem = Problem(operation_name, layer.geometry, storage, place=place)
            _bench_pass(report, layer, problem, names, own, dtype, progress)
    return report


def default_kernels(backend: str = "cpu") -> list[str]:
    """What is compared if nobody says what."""
    plain = "im2col" if backend == "cpu" else "implicit"
    return [DEFAULT, plain, *(peer for peer in PEERS if installed(peer))]


def checked_kernels(
    names: Sequence[str], passes: Sequence[str], backend: str = "cpu"
) -> list[str]:
    """The names without repetition. Raises ValueError for a kernel or pass that does not exist,
    ImportError for a library that is not installed."""
    for name in passes:
        if name not in PASSES:
            raise ValueError(unknown("pass", name, PASSES))
    known = {k.name for name in passes for k in available(PASSES[name]) if k.backend == backend}
    for name in names:
        if name in PEERS:
            check_installed(name)
        elif name not in {DEFAULT, *known}:
            raise ValueError(unknown("convolution kernel", name, {*known, *PEERS, DEFAULT}))
    return list(dict.fromkeys(names))


@dataclass(frozen=True)
class _Contender:
    call: Call
    row: Row
    first_call: float


def _bench_pass(
    report: ConvReport, layer: ConvLayer, problem: Problem, names: Sequence[str],
    own: Sequence[Kernel], dtype: str, progress: Progress | None,
) -> None:  # fmt: skip
    about = f"{layer.label}, {problem.operation}"
    contenders: dict[str, _Contender] = {}
    for row, call, kernel in _contestants(report, layer, problem, names, own, dtype):
        if progress is not None:
            progress(f"{about}: checking {row.kernel}")
        first, precision = None, dtype
        if kernel is not None:
            refused, shape, first = checked_on_ragged(kernel, problem)
            row = replace(row, refused=refused, ragged=shape)
            precision = precision_of(kernel, problem.dtype.name)
        if not row.refused:
            verdict = problem.check(call, precision)
            row = replace(row, error=_number(verdict.error), refused=verdict.wrong)
            first = verdict.first_call if first is None else first
        contenders[row.kernel] = _Contender(call, row, first or 0.0)
    timed = {n: c.call for n, c in contenders.items() if not c.row.refused}
    times = {}
    if timed:
        times = interleave(
            timed,
            report.rounds,
            first_calls={n: contenders[n].first_call for n in timed},
            reading=problem.place.reading,
            progress=progress and (lambda n: progress(f"{about}: timing {n}")),
        )
    report.rows += [replace(c.row, times=times.get(n)) for n, c in contenders.items()]


def _contestants(
    report: ConvReport, layer: ConvLayer, problem: Problem, names: Sequence[str],
    own: Sequence[Kernel], dtype: str,
) -> Iterator[tuple[Row, Call, Kernel | None]]:  # fmt: skip
    """(row, call, kernel of ours) for everyone that can solve the problem, each once."""
    g, backend, place = problem.geometry, problem.place.backend, problem.place
    total = cost(problem.operation, problem.args)
    row = Row(
        layer.label, str(g), layer.count, problem.operation, "", dtype, False, total,
        bound(total, report.limits, dtype),
    )  # fmt: skip
    mine = [k for k in own if k.operation == problem.operation and k.backend == backend]
    # A copy of the operation that does not know the user's kernels.
    usual = Operation(problem.operation, "")
    usual.kernels = [k for k in available(problem.operation) if k not in mine]
    choice = _usual_choice(usual, backend, g, dtype)
    ours = {k.name: k for k in (*usual.kernels, *mine) if k.backend == backend} | {DEFAULT: choice}
    seen: set[str] = set()
    for name in (*(k.name for k in mine), *names):
        if name in PEERS:
            for shown, call in peer_calls(name, problem, dtype).items():
                yield replace(row, kernel=shown), call, None
            continue
        kernel = ours.get(name)
        if kernel is None or not kernel.supports(g, problem.dtype.name):
            report.unsupported.append((layer.label, problem.operation, name))
        elif kernel.name not in seen:
            seen.add(kernel.name)
            found = replace(
                row,
                kernel=kernel.name,
                chosen=kernel is choice,
                workspace=_workspace(kernel, problem),
            )
            yield found, place.call(kernel.function, problem.args), kernel


def _usual_choice(usual: Operation, backend: str, g: ConvGeometry, dtype: str) -> Kernel:
    """What minires computes this with, at this precision."""
    if dtype == "tf32":
        named = [k for k in usual.usable(backend, g) if "tf32" in k.name]
        if named:
            return named[-1]
    return usual.select(backend, g, "float32" if dtype == "tf32" else dtype)


def _workspace(kernel: Kernel, problem: Problem) -> int | None:
    """Bytes besides arguments and result: as stated, or of the arrays that a CPU kernel of ours
    asks for, the large ones at their peak, those too small for the pool added up."""
    stated = kernel.workspace_bytes(problem.geometry, problem.dtype.name)
    if stated is not None or not kernel.function.__module__.startswith("minires.kernels.cpu"):
        return stated
    kernel.function(*problem.args)  # what is kept between calls is there now
    small, original = 0, memory.empty

    def counted(shape: Any, dtype: Any) -> Any:
        nonlocal small
        array = original(shape, dtype)
        small += array.nbytes if array.nbytes < memory.SMALLEST else 0
        return array

    before = memory.statistics().in_use
    memory.reset_high_water()
    memory.empty = counted
    try:
        result = kernel.function(*problem.args)
    finally:
        memory.empty = original
    return memory.statistics().high_water - before + small - int(result.nbytes)


def checked_on_ragged(kernel: Kernel, problem: Problem) -> tuple[str, str | None, float | None]:
    """Hold the kernel to the reference on a ragged shape, which is small: it also shows whether
    the timed one would take forever.

    Returns why it is refused if it is, the shape if there is one, and the seconds of its first
    call.
    """
    g: ConvGeometry | None = ragged(kernel, problem.geometry, problem.dtype.name)
    if g is None:
        return "", None, None
    small = Problem(problem.operation, g, problem.dtype, place=problem.place)
    call = problem.place.call(kernel.function, small.args)
    verdict = small.check(call, precision_of(kernel, problem.dtype.name))
    refused = f"on {g}: {verdict.wrong}" if verdict.wrong else ""
    if not refused:
        times = problem.geometry.multiply_adds / max(g.multiply_adds, 1)
        expected = problem.place.reading(call, 1) * times
        if expected > PATIENCE:
            refused = (
                f"a call would take about {expected:,.0f} s, going by {g}; time a smaller shape"
            )
    return refused, str(g), verdict.first_call


def _number(value: float) -> float | None:
    """JSON has no NaN and no infinity."""
    return float(value) if np.isfinite(value) else None
