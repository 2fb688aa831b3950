"""Max pooling behind a batch norm and a ReLU whose output, and its gradient, are never written."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import minires as mr
import minires.functional as F
from minires.autograd import backward, tape
from minires.functional.conv import convolution
from minires.kernels import registry, use
from minires.kernels.fusing import BEFORE, POOLED

pytest.importorskip("numba", reason="needs Numba")

C = 16
KERNELS = {
    "conv2d": "winograd", "conv2d_grad_input": "winograd", "conv2d_grad_weight": "winograd",
    "batch_norm_relu_train": "simd", "batch_norm_relu_grad": "simd", "normalise": "simd",
    "max_pool2d": "threads", "max_pool2d_grad": "threads",
}  # fmt: skip


@contextmanager
def compiled() -> Iterator[list[str]]:
    """The fast kernels at any size; yields what they do for pooling, in order."""
    found: list[str] = []

    def watch(operation: Any, kernel: Any, args: Any) -> Any:
        parts = getattr(kernel.function, "keywords", {})
        if operation.name.startswith("max_pool2d"):
            found.append("forward" if BEFORE in parts else operation.name)
        elif POOLED in parts:
            found.append("backward")
        return kernel.function(*args)

    with use(**KERNELS), pytest.MonkeyPatch.context() as patch:
        patch.setattr(tape, "LARGE", 0)
        patch.setattr(backward, "LARGE", 0)
        patch.setattr(registry, "observer", watch)
        yield found


@contextmanager
def apart() -> Iterator[None]:
    """Pooling on its own."""
    can_fuse = registry.Kernel.can_fuse

    def without(kernel: Any, part: str, g: Any) -> bool:
        return kernel.operation != "max_pool2d" and part != POOLED and can_fuse(kernel, part, g)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(registry.Kernel, "can_fuse", without)
        with use():  # what has been chosen is forgotten, before and after
            yield


FUSED = ["forward", "backward"]
APART = ["max_pool2d", "max_pool2d_grad"]
STEPS = (
    "hook on norm", "hook on pool", "norm retained", "pool retained", "norm used twice",
    "pool used twice", "side loss of pool", "norm wanted", "pool wanted", "watched", "summed",
)  # fmt: skip


class Net:
    """conv, batch norm and ReLU, max pooling, conv; and what somebody does with what is between.

    `first`: the gradients that pass through the norm, or make its parameters; `later`: the others;
    `seen`: by hooks, in `grad` and by who asked for it.
    """

    def __init__(self, *steps: str, seed: int = 0, frozen: tuple[int, ...] = ()) -> None:
        self.steps = steps
        rng = np.random.default_rng(seed)
        shapes = (C, C, 3, 3), (C,), (C,), (C, C, 3, 3), (C, C, 3, 3)
        self.parameters = [mr.Tensor(rng.standard_normal(s), requires_grad=True) for s in shapes]
        for i in frozen:
            self.parameters[i].requires_grad_(False)
        self.image = mr.Tensor(rng.standard_normal((2, C, 9, 11)))
        self.seen: list[Any] = []
        self.wanted: list[mr.Tensor] = []
        self.kept: list[mr.Tensor] = []

    def look(self, where: str, x: mr.Tensor) -> None:
        if f"hook on {where}" in self.steps:
            x.register_hook(lambda gradient: self.seen.append(gradient.numpy().copy()))
        if f"{where} retained" in self.steps:
            x.retain_grad()
            self.kept.append(x)
        if f"{where} wanted" in self.steps:
            self.wanted.append(x)

    def loss(self) -> mr.Tensor:
        first, gamma, beta, *others = self.parameters
        z = convolution(self.image, first, None, 1, 1, 1, 1, sums=True)
        z = F.batch_norm_relu(z, None, None, gamma, beta, training=True)
        self.look("norm", z)
        if "watched" in self.steps:
            self.seen.append(z.numpy().copy())
        y = F.max_pool2d(z, 3, 2, 1)
        self.look("pool", y)
        out = F.conv2d(y, others[0], padding=1)
        if "pool used twice" in self.steps:
            out = out + F.conv2d(y, others[1], padding=1)
        if "summed" in self.steps:
            out = out + y
        total = (out * out).mean()
        if "side loss of pool" in self.steps:
            total = total + (y * y * y).mean()
        if "norm used twice" in self.steps:
            total = total + (z * z).mean()
        return total

    def run(self) -> tuple[list[Any], list[Any]]:
        loss = self.loss()
        leaves = [p for p in self.parameters if p.requires_grad]
        if self.wanted:
            gradients = mr.grad(loss, [*leaves, *self.wanted], allow_unused=True)
            found = [None if g is None else g.numpy() for g in gradients]
        else:
            loss.backward()
            found = [None if p.grad is None else p.grad.numpy() for p in leaves]
        return found, self.seen + [t.grad.numpy() for t in self.kept if t.grad is not None]


def same(found: list[Any], expected: list[Any]) -> None:
    assert len(found) == len(expected)
    for a, b in zip(found, expected, strict=True):
        assert (a is None) == (b is None)
        if b is not None:
            np.testing.assert_allclose(a, b, rtol=0, atol=1e-12 * np.abs(b).max())


def check(*args: Any, **settings: Any) -> list[str]:
    """The gradients fused and apart; what was done, fused."""
    with compiled() as done:
        found, seen = Net(*args, **settings).run()
        what = list(done)
        with apart():
            expected, others = Net(*args, **settings).run()
    same(found, expected)
    for a, b in zip(seen, others, strict=True):
        np.testing.assert_array_equal(a, b)
    return what


def test_neither_the_activation_nor_its_gradient_is_written() -> None:
    assert check() == FUSED


@pytest.mark.parametrize("step", ["hook on norm", "norm retained", "norm wanted"])
def test_who_looks_at_the_gradient_of_the_norm_sees_all_of_it(step: str) -> None:
    assert check(step) == ["forward", "max_pool2d_grad"]


@pytest.mark.parametrize("step", ["hook on pool", "pool retained", "pool wanted"])
def test_who_looks_at_the_gradient_of_the_pool_sees_all_of_it(step: str) -> None:
    assert check(step) == ["forward", "max_pool2d_grad"]


@pytest.mark.parametrize("step", ["pool used twice", "side loss of pool"])
def test_the_last_use_masks_the_sum(step: str) -> None:
    assert check(step) == FUSED


def test_another_use_of_the_norm() -> None:
    assert check("norm used twice") == ["forward", "max_pool2d_grad"]


def test_a_gradient_that_somebody_else_has_too() -> None:
    """A sum hands one array to both sides: nothing is added to that, and nothing masked."""
    assert check("summed") == ["forward", "max_pool2d_grad"]


def test_an_activation_that_was_looked_at_is_pooled_as_it_is() -> None:
    assert check("watched") == APART


@pytest.mark.parametrize("frozen", [(0,), (1, 2), (0, 1), (3,), (0, 1, 2), (0, 3)])
def test_frozen_parameters(frozen: tuple[int, ...]) -> None:
    expected = ["forward"] if frozen == (0, 1, 2) else FUSED
    assert check(frozen=frozen) == expected


@settings(suppress_health_check=[HealthCheck.too_slow], deadline=None)
@given(steps=st.sets(st.sampled_from(STEPS), max_size=4), seed=st.integers(0, 99))
def test_drawn_uses(steps: set[str], seed: int) -> None:
    check(*sorted(steps), seed=seed)


def test_by_finite_differences() -> None:
    with compiled() as done:
        net = Net()
        analytic = net.run()[0]
        assert done == FUSED
        rng = np.random.default_rng(1)
        for parameter, gradient in zip(net.parameters[:4], analytic, strict=False):
            values, direction = parameter.numpy().copy(), rng.standard_normal(parameter.shape)
            losses = []
            for step in (1e-6, -1e-6):
                parameter.data = values + step * direction
                losses.append(net.loss().item())
            parameter.data = values
            slope = (losses[0] - losses[1]) / 2e-6
            assert slope == pytest.approx((gradient * direction).sum(), rel=1e-5)


def test_a_gradient_that_is_differentiated_again() -> None:
    def found() -> list[Any]:
        net = Net()
        first = mr.grad(net.loss(), net.parameters[:4], create_graph=True)
        sum((g * g).sum() for g in first).backward()
        return [p.grad.numpy() for p in net.parameters[:4]]

    with compiled() as done:
        together = found()
        assert done.pop(0) == "forward"
        done.clear()
        with apart():
            same(together, found())


def test_a_second_walk_over_the_same_graph() -> None:
    with compiled() as done:
        net = Net()
        loss = net.loss()
        loss.backward(retain_graph=True)
        once = [p.grad.numpy().copy() for p in net.parameters[:4]]
        loss.backward()
        assert done == ["forward", "backward", "backward"]
        same([p.grad.numpy() for p in net.parameters[:4]], [2 * g for g in once])


def test_what_the_norm_was_made_of_must_not_change() -> None:
    with compiled():
        net = Net()
        loss = net.loss()
        with mr.no_grad():
            net.parameters[1].copy_(np.zeros(C))
        with pytest.raises(RuntimeError, match="changed in place"):
            loss.backward()


def test_a_walk_that_was_interrupted() -> None:
    """Between the convolution that has summed and the pooling, which then meets other gradients."""
    with compiled() as done:
        net = Net()
        loss = net.loss()
        watch = registry.observer

        def interrupted(operation: Any, kernel: Any, args: Any) -> Any:
            if operation.name == "conv2d_grad_weight":
                raise KeyboardInterrupt
            return watch(operation, kernel, args)  # type: ignore[misc]

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(registry, "observer", interrupted)
            with pytest.raises(KeyboardInterrupt):
                loss.backward(retain_graph=True)
        with apart():
            loss.backward()
            found = [p.grad.numpy() for p in net.parameters[:4]]
            same(found, Net().run()[0][:4])
        assert done[:2] == ["forward", "max_pool2d_grad"]


def test_a_norm_s_kernel_of_ones_own_gets_the_whole_gradient() -> None:
    with compiled() as done, use(batch_norm_relu_grad="numpy"):
        found = Net().run()[0]
        assert done == ["forward", "max_pool2d_grad"]
        with apart():
            same(found, Net().run()[0])


@pytest.mark.parametrize("dilation", [1, 2])
def test_what_the_kernel_cannot_do_is_done_apart(dilation: int) -> None:
    with compiled() as done:
        net = Net()
        z = F.batch_norm_relu(net.image.clone(), None, None, *net.parameters[1:3], training=True)
        F.max_pool2d(z, 3, 2, 1, dilation).sum().backward()
    assert done == (["forward", "max_pool2d_grad"] if dilation == 1 else APART)


def test_less_memory_is_held() -> None:
    """The activation is never there; x where the maxima are, and their places, a quarter of it."""

    with compiled():
        loss = Net().loss()
    arrays: dict[int, Any] = {}
    nodes: list[Any] = [loss._node]
    while nodes:
        node = nodes.pop()
        arrays |= {id(a): a for a in node.saved_arrays().values()}
        nodes += [edge[0] for edge in node.edges or () if isinstance(edge, tuple)]
    kept = sorted((a.shape[2:], a.dtype.name) for a in arrays.values() if a.ndim == 4)
    image, pooled = (9, 11), (5, 6)
    assert kept == [
        *[((3, 3), "float64")] * 2,
        *[(pooled, "float64")] * 2, (pooled, "int8"),  # out, x where the maxima are, their places
        *[(image, "float64")] * 2,  # the image, and what is normalised
    ]  # fmt: skip
