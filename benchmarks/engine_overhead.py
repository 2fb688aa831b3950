"""What the engine itself costs: Python per operation, forward and backward together.

    python benchmarks/engine_overhead.py [--json FILE]

The kernels are replaced by ones that only return fresh arrays, on tiny images, so that what is left
is the engine: modules, checks, the tape, the walk back. An operation is a node of the graph, such
as one convolution: its time holds its module, its forward, and its backward with the two or three
operations in it. What the stand-in kernels take is measured alone and subtracted.

`nothing` is the floor: operations without modules, checks or anything saved. `parameter us` is what
SGD with momentum and weight decay takes for one parameter, NumPy's arithmetic included.

Step, forward and kernels are measured in turns, window by window, so that a change of the clock or
a busy neighbour meets all of them; each is the least of its windows. `chrt -f 20` in front (as
root) keeps the neighbours away.
"""

from __future__ import annotations

import argparse
import json
import time
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

import minires as mr
from minires import functional as F
from minires.bench import machine
from minires.files import atomic_write_text
from minires.kernels import available, register, registry, use
from minires.models.blocks import BasicBlock
from minires.models.resnet import ResNet
from minires.optim import SGD

GOAL = 15.0  # microseconds per operation
WINDOWS, SECONDS = 20, 0.06  # of each figure, and the length of one


def least(*calls: Callable[[], Any]) -> list[float]:
    """The shortest of many calls of each, in seconds; their windows take turns."""
    best = [float("inf")] * len(calls)
    for _ in range(WINDOWS):
        for i, call in enumerate(calls):
            end = time.perf_counter() + SECONDS
            while (start := time.perf_counter()) < end:
                call()
                best[i] = min(best[i], time.perf_counter() - start)
    return best


def stand_ins(calls: list[tuple[Any, tuple[Any, ...]]]) -> dict[str, str]:
    """For every kernel called in `calls`, one that returns zeros of its results' shapes."""
    chosen: dict[str, str] = {}
    shapes: dict[tuple[Any, ...], Any] = {}
    for kernel, args in calls:
        result = kernel.function(*args)
        shapes[_key(kernel.operation, args)] = (
            [(r.shape, r.dtype) for r in result] if isinstance(result, tuple)
            else (result.shape, result.dtype)
        )  # fmt: skip

    def make(operation: str) -> Callable[..., Any]:
        def zeros(*args: Any) -> Any:
            made = shapes[_key(operation, args)]
            if isinstance(made, list):
                return tuple([np.zeros(*one) for one in made])
            return np.zeros(*made)

        return zeros

    for kernel, _ in calls:
        name = kernel.operation
        if name not in chosen:
            chosen[name] = "stand-in"
            if "stand-in" not in [k.name for k in available(name)]:
                register(name, name="stand-in")(make(name))
    return chosen


def _key(operation: str, args: tuple[Any, ...]) -> tuple[Any, ...]:
    last = args[-1]
    return operation, args[0].shape, None if isinstance(last, np.ndarray | float) else last


def recorded(step: Callable[[], Any]) -> list[tuple[Any, tuple[Any, ...]]]:
    """The kernels that a step calls, with their arguments."""
    calls: list[tuple[Any, tuple[Any, ...]]] = []

    def observe(operation: Any, kernel: Any, args: tuple[Any, ...]) -> Any:
        calls.append((kernel, args))
        return kernel.function(*args)

    registry.observer = observe
    try:
        step()
    finally:
        registry.observer = None
    return calls


def nodes(loss: mr.Tensor) -> Counter[str]:
    """The operations of a graph, by name."""
    seen, stack = set(), [loss.grad_fn]
    while stack:
        node = stack.pop()
        if node is not None and node not in seen:
            seen.add(node)
            stack += [edge[0] for edge in node.edges or () if isinstance(edge, tuple)]
    return Counter(node.name for node in seen)


class Nothing(mr.Function):
    """An operation that takes no time: what is left is the tape and the walk."""

    def forward(self, x: Any) -> Any:
        return x[:]

    def backward(self, gy: mr.Tensor) -> mr.Tensor:
        return gy


def nothing(length: int = 200) -> dict[str, float]:
    """A chain of operations that do nothing."""
    one = np.ones((2, 2), np.float32)

    def forward() -> mr.Tensor:
        y = mr.Tensor(one, requires_grad=True)
        for _ in range(length):
            y = Nothing()(y)
        return y

    def step() -> None:
        forward().backward(one)

    return figures(length, *least(step, forward, lambda: [one[:] for _ in range(length)]))


def chain(length: int = 200) -> dict[str, float]:
    """A chain of additions of 2x2 tensors; NumPy's own additions are subtracted."""
    one = np.ones((2, 2), np.float32)

    def forward() -> mr.Tensor:
        x = y = mr.Tensor(one, requires_grad=True)
        for _ in range(length):
            y = y + x
        return y

    def step() -> None:
        forward().backward(one)

    def numpy_alone() -> None:
        y = gradient = one.copy()
        for _ in range(length):
            y = y + one
            np.add(gradient, one, out=gradient)

    return figures(length, *least(step, forward, numpy_alone))


def residual_net(blocks: int) -> dict[str, float]:
    """A narrow CIFAR ResNet of 6 * blocks + 2 layers on 4x4 images, kernels replaced."""
    model = ResNet(partial(BasicBlock, shortcut="A"), [blocks] * 3, width=4, stem="cifar",
                   num_classes=4)  # fmt: skip
    x, labels = mr.Tensor(np.zeros((2, 3, 4, 4), np.float32)), np.array([0, 1])
    parameters = list(model.parameters())

    def forward() -> mr.Tensor:
        return F.cross_entropy(model(x), labels)

    def step() -> None:
        for parameter in parameters:
            parameter.grad = None
        forward().backward()

    count = sum(nodes(forward()).values())
    calls = recorded(step)
    with use(**stand_ins(calls)):
        replaced = recorded(step)
        ahead = len(recorded(forward))  # kernels of the forward pass

        def kernels_alone() -> None:
            # What forward computes lives until backward has used it, as in a step.
            kept = [kernel.function(*args) for kernel, args in replaced[:ahead]]
            for kernel, args in replaced[ahead:]:
                kernel.function(*args)
            kept.clear()

        found = figures(count, *least(step, forward, kernels_alone))
    optimizer = SGD(parameters, lr=0.1, momentum=0.9, weight_decay=1e-4)
    step()
    optimizer.step()  # makes the momentum buffers
    found["parameter_us"] = least(optimizer.step)[0] / len(parameters) * 1e6
    return found


def figures(operations: int, step: float, forward: float, kernels: float) -> dict[str, float]:
    """Microseconds per operation, whole and without the kernels; seconds are given.

    forward_us holds the kernels of the forward pass.
    """
    return {
        "operations": operations,
        "step_ms": step * 1e3,
        "forward_us": forward / operations * 1e6,
        "kernels_us": kernels / operations * 1e6,
        "engine_us": (step - kernels) / operations * 1e6,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--json", type=Path, help="where to keep the figures")
    options = parser.parse_args()
    record: dict[str, Any] = {"machine": machine(), "goal_us": GOAL, "figures": {}}
    print(f"{'':20s} {'operations':>10s} {'step ms':>8s} {'forward us':>10s} {'kernels us':>10s} "
          f"{'engine us':>9s} {'parameter us':>12s}")  # fmt: skip
    for name, measure in (
        ("nothing", nothing),
        ("chain of additions", chain),
        ("ResNet-20, narrow", partial(residual_net, 3)),
        ("ResNet-110, narrow", partial(residual_net, 18)),
    ):
        row = record["figures"][name] = measure()
        print(f"{name:20s} {row['operations']:10.0f} {row['step_ms']:8.2f} "
              f"{row['forward_us']:10.2f} {row['kernels_us']:10.2f} {row['engine_us']:9.2f} "
              + (f"{row['parameter_us']:12.2f}" if "parameter_us" in row else ""))  # fmt: skip
    engine = record["figures"]["ResNet-110, narrow"]["engine_us"]
    layers = 200  # blocks per stage of ResNet-1202
    operations = 3 * layers * 5  # two convolutions, two batch norms and a join per block
    record["resnet1202_ms"] = engine * operations * 1e-3
    print(f"\nResNet-1202: {operations:,} operations, {record['resnet1202_ms']:.0f} ms of Python "
          "per step, whatever the batch")  # fmt: skip
    if options.json:
        atomic_write_text(options.json, json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
