"""What is bound by memory in a training step, as a share of the measured copy bandwidth."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import cycle
from typing import Any

import numpy as np

import minires as mr
from minires.bench.costs import cost
from minires.bench.dry_run import Call, training_calls
from minires.bench.limits import limits
from minires.bench.machine import caches
from minires.bench.timing import interleave
from minires.optim import SGD
from versus.work import SETTINGS, Work

VISIT = 0.03  # seconds of timed calls per visit, about
BEYOND_CACHE = 3  # what a call and those between it and its repetition touch, in last-level caches


def bandwidth(work: Work, rounds: int) -> dict[str, Any]:
    """Every operation of the network's step but convolutions and the classifier, and SGD.

    Each call finds its arrays in memory, not in a cache: copies of them take turns. Bytes are the
    least that has to move (`minires.bench.costs`), so a second reading shows as a smaller share.
    More than 1 is possible: a plain copy reads each line that it is about to overwrite, which does
    not count, so what mostly reads, or writes where it has just read, is faster than a copy.
    An operation's rows are its different sizes added up.
    """
    copy = limits().copy_gbs
    model = mr.models.create(work.model)
    rows: dict[str, dict[str, Any]] = {}
    x_shape = work.batch, 3, work.size, work.size
    for call in training_calls(model, x_shape, every=True):
        if not call.operation.startswith(("conv2d", "linear")):
            name, least = f"{call.operation} ({call.kernel.name})", _bytes(call)
            _add(rows, name, least, _seconds(_turns(call, least), rounds))
    name, least, step = _update(model)
    _add(rows, name, least, _seconds(step, rounds))
    for row in rows.values():
        row["gbs"] = row["bytes"] / row["ms"] / 1e6
        row["share"] = row["gbs"] / copy
    return {"batch": work.batch, "size": work.size, "copy_gbs": copy, "operations": rows}


def _add(rows: dict[str, dict[str, Any]], name: str, least: int, seconds: float) -> None:
    row = rows.setdefault(name, {"sizes": 0, "bytes": 0, "ms": 0.0})
    row["sizes"] += 1
    row["bytes"] += least
    row["ms"] += seconds * 1e3


def _seconds(call: Callable[[], Any], rounds: int) -> float:
    return interleave({"": call}, rounds, visit=VISIT, pause=0.0)[""].median


def _bytes(call: Call) -> int:
    return cost(call.operation, call.values()).bytes


def _turns(call: Call, least: int) -> Callable[[], Any]:
    """The call on as many sets of arguments as no cache holds, one after the other."""
    rng = np.random.default_rng(0)
    count = math.ceil(BEYOND_CACHE * max(caches().values(), default=1 << 25) / max(least, 1 << 16))
    turns = cycle([call.values(rng) for _ in range(count)])
    return lambda: call.kernel.function(*next(turns))


def _update(model: Any) -> tuple[str, int, Callable[[], Any]]:
    """SGD over all parameters: three arrays read, two written."""
    parameters = list(model.parameters())
    for parameter in parameters:
        parameter.grad = mr.Tensor(np.full(parameter.shape, 1e-3, np.float32))
    optimizer = SGD(parameters, **SETTINGS)
    optimizer.step()  # makes the buffers
    return "SGD step", 5 * 4 * sum(p.numel() for p in parameters), optimizer.step
