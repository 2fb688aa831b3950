"""Graphs that are deep, wide, or large: no recursion, one visit per operation, nothing kept."""

from __future__ import annotations

import gc
import sys
import tracemalloc
import weakref
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

import minires as mr
from minires import functional as F
from minires.testing.compare import assert_close


class Count(mr.Function):
    """x + 1, counting its calls."""

    forwards = backwards = 0

    def forward(self, x: Any) -> Any:
        type(self).forwards += 1
        return x + 1

    def backward(self, gy: Any) -> Any:
        type(self).backwards += 1
        return gy


def chain(x: mr.Tensor, length: int) -> mr.Tensor:
    for _ in range(length):
        x = -x
    return x


@pytest.mark.parametrize("length", [10_000, 100_000])
def test_long_chains(length: int) -> None:
    assert length > sys.getrecursionlimit()
    x = mr.Tensor([2.0], requires_grad=True)
    y = chain(x, length)
    y.backward()
    assert x.grad.tolist() == [1]
    y = chain(x, length)
    assert mr.grad(y, [x])[0].tolist() == [1]


def test_a_long_chain_can_be_dropped_without_backward() -> None:
    x = mr.Tensor([2.0], requires_grad=True)
    y = chain(x, 100_000)
    node = weakref.ref(y.grad_fn)
    del y
    assert node() is None


def test_a_long_chain_of_gradients_of_gradients() -> None:
    x = mr.Tensor([1.0], requires_grad=True)
    y = x
    for _ in range(3000):
        y = y * x
    (g,) = mr.grad(y, [x], create_graph=True)
    assert g.item() == 3001
    (g2,) = mr.grad(g, [x])
    assert g2.item() == 3001 * 3000


def test_diamonds_are_walked_once() -> None:
    """2^60 paths, 60 operations: each is visited when all of its consumers have reported."""
    x = mr.Tensor([1.0], requires_grad=True)
    y = x
    Count.backwards = 0
    for _ in range(60):
        y = Count()(y)
        y = y + y
    y.backward()
    assert Count.backwards == 60
    assert x.grad.item() == 2.0**60


def test_crossing_paths_of_different_length() -> None:
    """A Fibonacci graph: h[k] = h[k-1] + h[k-2]. The derivative of h[k] is a Fibonacci number."""
    x = mr.Tensor(np.ones(1), requires_grad=True)
    older, newer = x * 1, x * 1
    a, b = 1.0, 1.0
    for _ in range(40):
        older, newer = newer, older + newer
        a, b = b, a + b
    newer.backward()
    assert x.grad.item() == b


def test_one_tensor_used_a_thousand_times() -> None:
    x = mr.Tensor(3.0, requires_grad=True)
    total = mr.Tensor(0.0)
    for _ in range(1000):
        total = total + x
    total.backward()
    assert x.grad.item() == 1000


def test_results_do_not_depend_on_the_order_of_use(rng: np.random.Generator) -> None:
    """Same operations, same bits: twice the same graph."""
    array = rng.standard_normal((4, 4)).astype(np.float32)
    gradients = []
    for _ in range(2):
        x = mr.Tensor(array, requires_grad=True)
        h = x @ x
        y = (h * x + h.exp() / (x * x + 1.0) - h.T @ h).sum()
        y.backward()
        gradients.append(x.grad.numpy().tobytes())
    assert gradients[0] == gradients[1]


# -- memory ---------------------------------------------------------------------------------------


@pytest.fixture
def no_collector() -> Iterator[None]:
    """Without the cycle collector, only reference counts free anything."""
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def tracked(watch: list[Any]) -> Any:
    """An operation whose saved array reports its death."""

    class Watched(mr.Function):
        def forward(self, x: Any) -> Any:
            big = x * 2
            self.save(big=big)
            watch.append(weakref.ref(big))
            return x + 1

        def backward(self, gy: Any) -> Any:
            return gy * self.saved.big

    return Watched()


@pytest.mark.usefixtures("no_collector")
def test_backward_frees_what_was_saved() -> None:
    watch: list[Any] = []
    x = mr.Tensor([1.0], requires_grad=True)
    y = tracked(watch)(tracked(watch)(x))
    loss = y.sum()
    assert all(w() is not None for w in watch)
    loss.backward()
    assert all(w() is None for w in watch)  # although loss and y still live
    assert loss.grad_fn is not None
    assert y.grad_fn is not None


@pytest.mark.usefixtures("no_collector")
def test_dropping_the_loss_frees_the_graph_without_the_collector() -> None:
    watch: list[Any] = []
    x = mr.Tensor([1.0, 2.0], requires_grad=True)
    h = tracked(watch)(x)
    h.register_hook(lambda g: None)
    h.retain_grad()
    y = F.softmax(h.exp().log() * h / 2.0, axis=0)[::2].sum()
    nodes = [weakref.ref(t.grad_fn) for t in (h, y)]
    del h, y
    assert all(w() is None for w in [*watch, *nodes])


def noting(outputs: list[Any]) -> Any:
    return lambda module, args, y: outputs.append(weakref.ref(y._data))


@pytest.mark.usefixtures("no_collector")
def test_a_network_leaves_no_cycles(rng: np.random.Generator) -> None:
    model = mr.nn.Sequential(
        mr.nn.Conv2d(2, 4, 3, padding=1), mr.nn.BatchNorm2d(4), mr.nn.ReLU(), mr.nn.MaxPool2d(2),
        mr.nn.Dropout(0.5), mr.nn.AdaptiveAvgPool2d(1), mr.nn.Flatten(), mr.nn.Linear(4, 3),
    )  # fmt: skip
    alive = []
    for backward in (True, False):
        x = mr.Tensor(rng.standard_normal((2, 2, 6, 6)).astype(np.float32))
        outputs: list[Any] = []
        handles = [m.register_forward_hook(noting(outputs)) for m in model]
        loss = mr.nn.CrossEntropyLoss()(model(x), np.array([0, 2]))
        if backward:
            loss.backward()
        del loss
        alive.append(sum(w() is not None for w in outputs))
        assert len(outputs) == 8
        for handle in handles:
            handle.remove()
    assert alive == [0, 0]


def test_training_steps_do_not_grow(rng: np.random.Generator) -> None:
    model = mr.nn.Sequential(mr.nn.Linear(64, 64), mr.nn.ReLU(), mr.nn.Linear(64, 10))
    x = mr.Tensor(rng.standard_normal((128, 64)).astype(np.float32))
    labels = rng.integers(0, 10, 128)

    def step() -> None:
        model.zero_grad()
        F.cross_entropy(model(x), labels).backward()

    gc.disable()
    try:
        for _ in range(3):
            step()
        tracemalloc.start()
        step()
        before = tracemalloc.get_traced_memory()[0]
        for _ in range(10):
            step()
        grown = tracemalloc.get_traced_memory()[0] - before
    finally:
        tracemalloc.stop()
        gc.enable()
    assert grown < 20_000  # one activation alone has 32,768 bytes


def test_activations_are_freed_along_the_way() -> None:
    """The peak of backward stays near what forward holds: saved arrays go as they are used."""
    size = 1 << 18  # 1 MiB of float32
    x = mr.Tensor(np.ones(size, np.float32), requires_grad=True)
    tracemalloc.start()
    try:
        y = x
        for _ in range(16):
            y = y.exp() * 1e-3
        loss = y.sum()
        held = tracemalloc.get_traced_memory()[0]
        tracemalloc.reset_peak()
        loss.backward()
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert held > 16 * 4 * size
    assert peak < held + 8 * 4 * size
    assert_close(x.grad.shape, (size,))


def test_no_grad_saves_nothing() -> None:
    watch: list[Any] = []
    x = mr.Tensor([1.0], requires_grad=True)
    with mr.no_grad():
        y = tracked(watch)(x)
    assert y.grad_fn is None
    assert watch[0]() is None


def test_saved_arrays_can_be_listed() -> None:
    x = mr.Tensor([1.0, 2.0], requires_grad=True)
    y = x * 2
    assert {k: v.tolist() for k, v in y.grad_fn.saved_arrays().items()} == {"a": [1, 2], "b": 2}
    y.sum().backward()
    assert y.grad_fn.saved_arrays() == {}
