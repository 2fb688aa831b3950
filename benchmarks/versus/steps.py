"""Whole networks in one process: training steps, inference, threads, the share of the limit."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

import minires as mr
from minires.bench.costs import Cost, cost
from minires.bench.gate import PASSES
from minires.bench.layers import conv_layers
from minires.bench.limits import limits
from minires.bench.timing import Reading, Times, interleave
from minires.kernels.threads import num_threads
from versus import cores, ours, theirs
from versus.work import Call, Work

VISIT = 0.4  # seconds of timed steps per visit, about
INTEGERS = "integers"  # what a record calls the times of `cores.py`
AGREEMENT = 1e-3
"""The largest difference of two nets' answers to the same images, as a share of the largest."""


def same_nets(name: str) -> tuple[Any, Any]:
    """A net of ours and one of PyTorch's with the same weights.

    Raises RuntimeError if they do not give the same answers: a faster net that computes something
    else wins nothing.
    """
    mr.manual_seed(0)
    mine, other = ours.net(name), theirs.TorchResNet(name)
    state = {key: torch.tensor(np.array(t.numpy())) for key, t in mine.state_dict().items()}
    other.load_state_dict(state)
    x = Work(name, 2, 32 if other.small else 64).images()
    with mr.no_grad(), torch.no_grad():
        a, b = mine.eval()(mr.Tensor(x)).numpy(), other.eval()(torch.tensor(x)).numpy()
    agree(name, a, b)
    return mine.train(), other.train()


def agree(what: str, a: np.ndarray, b: np.ndarray, allowed: float = AGREEMENT) -> None:
    """Raise RuntimeError if two nets' answers differ by more than this share of the largest."""
    difference = float(np.abs(a - b).max() / np.abs(b).max())
    if not difference <= allowed:
        raise RuntimeError(f"{what}: minires and PyTorch differ by {difference:.1e} of the largest")


def train(work: Work, rounds: int, compiled: bool) -> dict[str, Any]:
    """Training steps of minires and of PyTorch in every way it can be run."""
    mine, _ = same_nets(work.model)
    calls: dict[str, Call] = {"minires": ours.training_step(work, mine)}
    for name, layout, compile_ in theirs.ways(compiled):
        # Each its own net, because a step changes it.
        calls[name] = theirs.training_step(work, layout, compile_, same_nets(work.model)[1])
    return timed(work, calls, rounds)


def infer(work: Work, rounds: int, compiled: bool) -> dict[str, Any]:
    """Answers with batch norm folded into the convolutions; all must agree."""
    mine, _ = same_nets(work.model)
    calls: dict[str, Call] = {"minires": ours.inference(work, mine)}
    for name, layout, compile_ in theirs.ways(compiled):
        calls[name] = theirs.inference(work, layout, compile_, same_nets(work.model)[1])
    first_calls, answers = {}, {}
    for name, call in calls.items():
        start = time.perf_counter()
        answers[name] = call()
        first_calls[name] = time.perf_counter() - start
        agree(f"{work.model}, {name}", answers["minires"], answers[name])
    return timed(work, calls, rounds, first_calls)


def scaling(work: Work, rounds: int) -> dict[str, Any]:
    """Training steps on one thread and on all, ours and PyTorch's eager channels_last."""
    counts = sorted({1, num_threads()})
    steps = {"minires": ours.training_step(work),
             "torch eager channels_last": theirs.training_step(work)}  # fmt: skip
    calls = {
        f"{name}, {count} thread{'s' * (count > 1)}": _on_threads(step, count)
        for name, step in steps.items()
        for count in counts
    }
    return _record(work, interleave(calls, rounds, visit=VISIT))


def _on_threads(step: Call, count: int) -> Call:
    def call() -> Any:
        with on_threads(count):
            return step()

    return call


@contextmanager
def on_threads(count: int) -> Any:
    """Both libraries on this many threads inside the block."""
    before = num_threads(), torch.get_num_threads()
    mr.set_num_threads(count)
    torch.set_num_threads(count)
    try:
        yield
    finally:
        mr.set_num_threads(before[0])
        torch.set_num_threads(before[1])


def timed(
    work: Work, calls: Mapping[str, Call], rounds: int,
    first_calls: Mapping[str, float] | None = None, reading: Reading | None = None,
) -> dict[str, Any]:  # fmt: skip
    """What every contender took, and how much faster we are than the best of the others.

    On the CPU, where no other `reading` is given, also what the cores did meanwhile (`cores.py`).
    """
    probe = {} if reading else {INTEGERS: cores.integers()}
    times = interleave(
        {**calls, **probe}, rounds, first_calls=first_calls, visit=VISIT, reading=reading
    )
    beside = {name: times.pop(name).record() for name in probe}
    found = _record(work, times) | beside
    peer = min((name for name in times if name != "minires"), key=lambda n: times[n].median)
    return {**found, "peer": peer, "ratio": times[peer].median / times["minires"].median}


def _record(work: Work, times: Mapping[str, Times]) -> dict[str, Any]:
    return {
        "batch": work.batch,
        "size": work.size,
        "times": {name: t.record() for name, t in times.items()},
        "images_per_second": {name: work.batch / t.median for name, t in times.items()},
    }


def convolution_cost(work: Work) -> Cost:
    """Operations and bytes of all convolutions of a training step, by the direct algorithm."""
    total = Cost(0, 0)
    nothing = np.empty(0, np.float32)  # the geometry has the shapes
    for layer in conv_layers(work.model, work.batch, work.size):
        for operation in PASSES.values():
            if operation != "conv2d_grad_input" or layer.needs_grad_input:
                one = cost(operation, (nothing, nothing, layer.geometry))
                total += Cost(one.flops * layer.count, one.bytes * layer.count)
    return total


def share(works: Sequence[Work], training: Mapping[str, Any]) -> dict[str, Any]:
    """Of the machine's matrix-product rate: the convolutions' operations over the whole step."""
    rate = limits().rate("float32")
    found = {}
    for work in works:
        if work.model in training:
            flops = convolution_cost(work).flops
            seconds = training[work.model]["times"]["minires"]["median_ms"] / 1e3
            reached = flops / seconds / 1e9
            found[work.model] = {"flops": flops, "gflops": reached, "limit_gflops": rate,
                                 "share": reached / rate}  # fmt: skip
    return found
