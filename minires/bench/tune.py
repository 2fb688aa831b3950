"""Which kernel is the fastest here: measured once, for every run that follows.

    mr.tune("resnet18", batch=16)          # writes the table that `minires.kernels.selection` reads

Every kernel that may be chosen is held to the reference, called a few times, and, unless it takes
twice as long as the fastest, timed in turn with the others (`timing.py`).
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from minires._names import unknown
from minires.bench.conv import Progress, checked_on_ragged
from minires.bench.gate import PASSES, Problem, precision_of
from minires.bench.layers import ConvLayer, conv_layers
from minires.bench.places import Call, Place, place_of
from minires.bench.timing import interleave
from minires.files import StrPath
from minires.kernels import Kernel, never, operation, registry, selection
from minires.kernels.cpu import DTYPES
from minires.kernels.selection import Entry

TRIES = 3  # single calls, of which the best says whether a kernel is worth timing
HOPELESS = 2.0
"""Kernels that take so many times the fastest one's seconds are not timed further."""

@dataclass(frozen=True)
class Tuned:
    """One pass of one layer: what the conditions choose, and what was measured."""

    layer: ConvLayer
    operation: str
    ruled: str
    entry: Entry

    @property
    def chosen(self) -> str:
        """The kernel that will be used."""
        return self.entry.choose(self.entry.seconds, self.ruled) or self.ruled

    @property
    def gain(self) -> float:
        """How many times as fast that is as the kernel of the conditions."""
        was, now = self.entry.seconds.get(self.ruled), self.entry.seconds.get(self.chosen)
        return was / now if was and now else 1.0


def tune(
    model: str = "resnet20",
    batch: int | None = None,
    size: int | None = None,
    *,
    layers: Sequence[ConvLayer] | None = None,
    device: str | Place = "cpu",
    dtype: str = "float32",
    rounds: int = 5,
    path: StrPath | None = None,
    progress: Progress | None = None,
) -> list[Tuned]:
    """Measure the kernels of a network's convolutions, and use the fastest from now on.

    model, batch, size: as of `minires.bench.layers.conv_layers`. layers: these instead.
    dtype: "float32" or "float64"; on a CUDA device "float16" and "bfloat16" too.
    path: of the table, by default this machine's, which later runs find by themselves.

    What is measured replaces what the table had of these geometries; the rest stays.

    Raises ValueError for unknown names and with MINIRES_TUNING=off, OSError if the table cannot be
    written, and as `place_of` and `conv_layers`.
    """
    place = place_of(device)
    known = registry.DTYPES if place.backend == "cuda" else DTYPES
    if dtype not in known:
        raise ValueError(f"tune: {unknown('dtype', dtype, known)}")
    target = selection.table_path(place.backend) if path is None else Path(path)
    found: list[Tuned] = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", selection.TuningWarning)  # it is about to be replaced
        for layer in conv_layers(model, batch, size) if layers is None else layers:
            for name in PASSES.values():
                if name == "conv2d_grad_input" and not layer.needs_grad_input:
                    continue
                if progress is not None:
                    progress(f"{layer.label}, {name}")
                found.append(_tuned(layer, name, dtype, place, rounds))
    entries = {
        selection.key_of(one.operation, dtype, one.layer.geometry): one.entry for one in found
    }
    selection.store(place.backend, entries, target)
    registry.read_tables_again()
    return found


def candidates(name: str, backend: str, geometry: Any, dtype: str) -> list[Kernel]:
    """The kernels between which a table may choose: those of minires that may be used unasked."""
    usable = operation(name).usable(backend, geometry, dtype)
    return [k for k in usable if k.ours and k.worth is not never]


def _tuned(layer: ConvLayer, name: str, dtype: str, place: Place, rounds: int) -> Tuned:
    problem = Problem(name, layer.geometry, dtype, place=place)
    calls: dict[str, Call] = {}
    refused: dict[str, str] = {}
    for kernel in candidates(name, place.backend, layer.geometry, dtype):
        wrong, _, _ = checked_on_ragged(kernel, problem)
        call = place.call(kernel.function, problem.args)
        wrong = wrong or problem.check(call, precision_of(kernel, dtype)).wrong
        if wrong:
            refused[kernel.name] = wrong
        else:
            calls[kernel.name] = call
    seconds = {
        kernel: min(place.reading(call, 1) for _ in range(TRIES)) for kernel, call in calls.items()
    }
    fastest = min(seconds.values(), default=0.0)
    hopeful = {k: c for k, c in calls.items() if seconds[k] <= HOPELESS * fastest}
    if len(hopeful) > 1:
        times = interleave(
            hopeful, rounds, first_calls=dict.fromkeys(hopeful, 0.0), reading=place.reading
        )
        seconds |= {kernel: times[kernel].median for kernel in hopeful}
    ruled = operation(name).ruled(place.backend, layer.geometry, dtype)
    return Tuned(layer, name, ruled.name, Entry(seconds, refused))
