"""Whole networks on a device: training steps and inference, beside every way of PyTorch's."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from typing import Any

import numpy as np

from versus import steps
from versus.gpu import ours, theirs
from versus.gpu.machine import Machine, set_precision
from versus.work import Call, Work

AGREEMENT = {"fp32": 1e-3, "tf32": 2e-2, "bf16": 6e-2}
"""The largest difference of two nets' answers, as a share of the largest answer."""

UPDATE = {"fp32": 2e-2, "tf32": 0.15, "bf16": 0.4}
"""The largest distance of the weights after two steps from PyTorch's, as a share of how far these
moved, in float32. A wrong gradient of one layer is farther off than rounding."""

Save = Callable[[str, Any], None]
"""(name, what was found): called as soon as something is known."""


def networks(
    kind: str, found: Machine, works: Sequence[Work], precisions: Sequence[str], rounds: int,
    ways: Sequence[str], save: Save,
) -> None:  # fmt: skip
    """Training steps ("train"), or answers with batch norm folded into the convolutions
    ("inference"), at every precision; each is saved as "model precision"."""
    measure = {"train": _train, "inference": _infer}[kind]
    for work in works:
        for precision in precisions:
            row = _guarded(measure, found, work, precision, rounds, ways)
            save(f"{work.model} {precision}", row)
            found.release()


def _guarded(measure: Callable[..., dict[str, Any]], *args: Any) -> dict[str, Any]:
    """What was measured, or why it could not be: one net out of memory must not end the rest."""
    try:
        return measure(*args)
    except Exception as error:
        return {"failed": f"{type(error).__name__}: {error}"}


def _train(
    found: Machine, work: Work, precision: str, rounds: int, ways: Sequence[str]
) -> dict[str, Any]:
    set_precision(precision)
    moved = compare_updates(found, work, precision)
    with ExitStack() as held:
        mine, _ = steps.same_nets(work.model)
        calls: dict[str, Call] = {"minires": ours.training_step(work, precision, mine)}
        skipped = {}
        for way in ways:
            net = steps.same_nets(work.model)[1]
            try:
                call = theirs.training_step(found, work, precision, way, net, held)
                call()
                calls[way] = call
            except Exception as error:  # a way that PyTorch cannot go is not its best
                skipped[way] = f"{type(error).__name__}: {error}"
        return steps.timed(work, calls, rounds, reading=found.reading) | {
            "precision": precision, "distance": moved, "skipped": skipped,
        }  # fmt: skip


def compare_updates(found: Machine, work: Work, precision: str, count: int = 2) -> float:
    """How far apart the weights are after some steps of ours and of PyTorch's eager mode.

    Raises RuntimeError if that is more than `UPDATE` of how far they moved.
    """
    mine, other = steps.same_nets(work.model)
    before = ours.weights(mine)
    with ExitStack() as held:
        calls = [
            ours.training_step(work, precision, mine),
            theirs.training_step(found, work, precision, "torch eager", other, held),
        ]
        for call in calls:
            for _ in range(count):
                call()
    found.synchronize()
    return compared_updates(before, ours.weights(mine), theirs.weights(other), UPDATE[precision])


def compared_updates(
    before: Mapping[str, np.ndarray], mine: Mapping[str, np.ndarray],
    other: Mapping[str, np.ndarray], allowed: float,
) -> float:  # fmt: skip
    """The distance of two sets of weights over how far the second moved, parameters alone.

    Raises RuntimeError if it is more than allowed.
    """
    names = [name for name in before if "running" not in name and "num_batches" not in name]
    apart = sum(float(np.sum((mine[n] - other[n]) ** 2.0)) for n in names)
    moved = sum(float(np.sum((other[n] - before[n]) ** 2.0)) for n in names)
    distance = float(np.sqrt(apart / moved)) if moved else float("inf")
    if not distance <= allowed:
        raise RuntimeError(
            f"after two steps the weights are {distance:.2g} of their way from PyTorch's, "
            f"{allowed} is allowed: a step that computes something else is not timed"
        )
    return distance


def _infer(
    found: Machine, work: Work, precision: str, rounds: int, ways: Sequence[str]
) -> dict[str, Any]:
    set_precision(precision)
    with ExitStack() as held:
        mine, _ = steps.same_nets(work.model)
        calls: dict[str, Call] = {"minires": ours.inference(work, precision, mine)}
        skipped = {}
        for way in ways:
            net = steps.same_nets(work.model)[1]
            try:
                calls[way] = theirs.inference(found, work, precision, way, net, held)
            except Exception as error:
                skipped[way] = f"{type(error).__name__}: {error}"
        first, answers = {}, {}
        for name, call in calls.items():
            start = time.perf_counter()
            answers[name] = _host(call())
            first[name] = time.perf_counter() - start
            steps.agree(f"{work.model} {precision}, {name}", answers["minires"], answers[name],
                        AGREEMENT[precision])  # fmt: skip
        return steps.timed(work, calls, rounds, first, found.reading) | {
            "precision": precision, "skipped": skipped,
        }  # fmt: skip


def _host(answer: Any) -> np.ndarray:
    if type(answer).__module__ == "torch":
        return np.asarray(answer.float().cpu().numpy())
    from minires.kernels.arrays import to_host

    return to_host(answer)
