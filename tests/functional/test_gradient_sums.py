"""Gradients that a convolution masks and sums for the batch norm and ReLU in front of it."""

from __future__ import annotations

import gc
import weakref
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
from minires.functional.norm_training import RectifiedNorm
from minires.kernels import operations, reference, register, registry, use
from minires.kernels.fusing import SUMS, Rectified
from minires.testing import gradcheck

C, SIZE = 4, 5
OPERATIONS = "conv2d_grad_input", "batch_norm_relu_grad", "batch_norm_add_relu_grad"


def masked_and_summed(gx: Any, r: Rectified) -> tuple[Any, Any]:
    """By NumPy, the sums in float64."""
    y = r.y if r.y is not None else operations.normalise(*r[:4], None, True)
    gx = np.where(y > 0, gx, gx.dtype.type(0))
    return gx, sums_of(gx, r.x, r.mean)


def sums_of(g: Any, x: Any, mean: Any) -> Any:
    g, d = g.astype(np.float64), (x - mean[:, None, None]).astype(np.float64)
    return np.stack([g.sum(axis=(0, 2, 3)), (g * d).sum(axis=(0, 2, 3))])


@contextmanager
def kernels_that_fuse() -> Iterator[list[str]]:
    """Kernels written as the passes they stand for, of any size: the bits are those of the passes.

    The norms' check that the sums are those of what they get. Yields the parts in order: "inner"
    or "end" of a block, with "+" if it was added to another gradient.
    """
    parts: list[str] = []
    tables = {name: list(registry.operation(name).kernels) for name in OPERATIONS}
    large = tape.LARGE, backward.LARGE

    def gradient(gy: Any, weight: Any, g: Any, rectified: Rectified, total: Any) -> Any:
        gx = reference.conv.conv2d_grad_input(gy, weight, g)
        kind = "inner" if rectified.y is None else "end"
        parts.append(kind if total is None else f"{kind}+")
        if total is not None:
            total += gx
            gx = total
        return masked_and_summed(gx, rectified)

    def inner(gy: Any, x: Any, gamma: Any, beta: Any, mean: Any, inv_std: Any, sums: Any) -> Any:
        np.testing.assert_allclose(sums, sums_of(gy, x, mean))
        gx, *rest = reference.norm.batch_norm_grad(gy, x, gamma, mean, inv_std)
        gy[...] = gx
        return gy, *rest

    def end(gy: Any, x: Any, y: Any, gamma: Any, mean: Any, inv_std: Any, sums: Any) -> Any:
        np.testing.assert_allclose(sums, sums_of(gy, x, mean))
        gx, *rest = reference.norm.batch_norm_grad(gy, x, gamma, mean, inv_std)
        return gx, gy, *rest

    fused = gradient, inner, end
    modules = reference.conv, reference.norm, reference.norm
    for name, module, function in zip(OPERATIONS, modules, fused, strict=True):
        plain = getattr(module, name)
        register(name, name="fusing", fused=function, fuses={SUMS: None})(plain)
    tape.LARGE = backward.LARGE = 0
    try:
        yield parts
    finally:
        tape.LARGE, backward.LARGE = large
        for name, kernels in tables.items():
            registry.operation(name).kernels = kernels
            registry.operation(name).forget()


@pytest.fixture
def parts() -> Iterator[list[str]]:
    with kernels_that_fuse() as parts:
        yield parts


def apart() -> Any:
    """Without fusing, in the same order of summands."""
    return use(conv2d_grad_input="im2col")


class Net:
    """Parameters made as they are asked for, the same each time."""

    def __init__(self, seed: int = 0, dtype: Any = np.float64) -> None:
        self.rng, self.dtype = np.random.default_rng(seed), dtype
        self.parameters: list[mr.Tensor] = []

    def parameter(self, *shape: int) -> mr.Tensor:
        values = self.rng.standard_normal(shape).astype(self.dtype)
        self.parameters.append(mr.Tensor(values, requires_grad=True))
        return self.parameters[-1]

    def image(self) -> mr.Tensor:
        return mr.Tensor(self.rng.standard_normal((2, C, SIZE, SIZE)).astype(self.dtype))

    def conv(self, x: Any, k: int = 3) -> Any:
        return F.conv2d(x, self.parameter(C, C, k, k), padding=k // 2)

    def inner(self, x: Any) -> Any:
        """conv, batch norm and ReLU."""
        x = self.conv(x)
        affine = self.parameter(C), self.parameter(C)
        return F.batch_norm_relu(x, None, None, *affine, training=True)

    def block(self, x: Any, projected: bool = False) -> Any:
        branch = self.conv(self.inner(x))
        shortcut = self.conv(x, 1) if projected else x
        affine = self.parameter(C), self.parameter(C)
        return F.batch_norm_add_relu(branch, shortcut, None, None, *affine, training=True)

    def gradients(self, loss: Any) -> list[Any]:
        loss.backward()
        return [None if p.grad is None else p.grad.numpy() for p in self.parameters]


def same(a: list[Any], b: list[Any]) -> None:
    for x, y in zip(a, b, strict=True):
        np.testing.assert_array_equal(x, y)


def blocks(count: int = 2, **settings: Any) -> list[Any]:
    net = Net(**settings)
    x = net.inner(net.image())
    for _ in range(count):
        x = net.block(x)
    return net.gradients((x * x).mean())


def test_every_norm_behind_which_a_convolution_stands(parts: list[str]) -> None:
    fused = blocks(3)
    # From the last block on: its inner norm, the end before it and so on, the first norm of all.
    assert parts == ["inner", "end+", "inner", "end+", "inner", "inner+"]
    with apart():
        plain = blocks(3)
    assert len(parts) == 6
    same(fused, plain)


STEPS = ("inner", "block", "projected", "side loss", "hook", "retained", "twice", "activation")


def drawn_net(steps: list[str], seed: int) -> tuple[list[Any], list[Any]]:
    """Gradients of the parameters, and what hooks and retained tensors have seen."""
    net, seen, kept = Net(seed), [], []
    x = net.inner(net.image())
    losses = []
    for step in steps:
        if step == "inner":
            x = net.inner(x)
        elif step in ("block", "projected"):
            x = net.block(x, step == "projected")
        elif step == "side loss":
            losses.append((x * x).mean())
        elif step == "hook":
            x.register_hook(lambda gradient: seen.append(gradient.numpy().copy()))
        elif step == "retained":
            x.retain_grad()
            kept.append(x)
        elif step == "twice":
            x = net.conv(x) + net.conv(x)
        else:
            x = F.relu(x)
    total = sum(losses, (x * x * x).mean())
    gradients = net.gradients(total)
    return gradients, seen + [t.grad.numpy() for t in kept]


@settings(suppress_health_check=[HealthCheck.too_slow], deadline=None)
@given(steps=st.lists(st.sampled_from(STEPS), max_size=6), seed=st.integers(0, 99))
def test_drawn_nets(steps: list[str], seed: int) -> None:
    with kernels_that_fuse():
        fused = drawn_net(steps, seed)
        with apart():
            plain = drawn_net(steps, seed)
    same(fused[0], plain[0])
    same(fused[1], plain[1])


def test_by_finite_differences(parts: list[str]) -> None:
    values = [p.data.copy() for p in _parameters()]

    def f(*tensors: mr.Tensor) -> mr.Tensor:
        net, given = Net(), iter(tensors)
        net.parameter = lambda *shape: next(given)  # type: ignore[method-assign]
        x = net.block(net.block(net.inner(image)))
        return (x * x * x).mean()

    image = Net(5).image()
    gradcheck(f, tuple(mr.Tensor(v, requires_grad=True) for v in values))
    assert {"inner", "end+", "inner+"} <= set(parts)


def _parameters() -> list[mr.Tensor]:
    net = Net()
    net.block(net.block(net.inner(Net(5).image())))
    return net.parameters


@pytest.mark.parametrize("frozen", ["weights", "norms", "first"])
def test_frozen_parameters(frozen: str, parts: list[str]) -> None:
    def found() -> list[Any]:
        net = Net()
        wanted = {"weights": lambda shape: len(shape) < 4, "norms": lambda shape: len(shape) == 4}
        make = net.parameter

        def parameter(*shape: int) -> mr.Tensor:
            keep = wanted[frozen](shape) if frozen in wanted else len(net.parameters) > 3
            return make(*shape).requires_grad_(keep)

        net.parameter = parameter  # type: ignore[method-assign]
        x = net.block(net.block(net.inner(net.image())))
        return net.gradients((x * x).mean())

    fused = found()
    assert parts
    with apart():
        same(fused, found())


def test_the_caller_of_grad_gets_the_whole_gradient(parts: list[str]) -> None:
    def found() -> list[Any]:
        net = Net()
        first = net.inner(net.image())
        y = net.block(first)
        last = net.block(y)
        return [g.numpy() for g in mr.grad((last * last).mean(), [first, y])]

    fused = found()
    assert parts == ["inner", "inner"]
    with apart():
        same(fused, found())


def test_a_gradient_that_is_to_be_differentiated_again(parts: list[str]) -> None:
    def found() -> list[Any]:
        net = Net()
        x = net.block(net.inner(net.image()))
        first = mr.grad((x * x).mean(), net.parameters, create_graph=True)
        assert parts == []
        return net.gradients(sum((g * g).sum() for g in first))

    fused = found()
    parts.clear()
    with apart():
        same(fused, found())


def test_a_second_walk_over_the_same_graph(parts: list[str]) -> None:
    net = Net()
    x = net.block(net.inner(net.image()))
    loss = (x * x).mean()
    loss.backward(retain_graph=True)
    once = [p.grad.numpy().copy() for p in net.parameters]
    loss.backward()
    assert parts == 2 * ["inner", "inner+"]
    same([2 * g for g in once], [p.grad.numpy() for p in net.parameters])


def test_evaluation_and_no_grad(parts: list[str]) -> None:
    net = Net()
    statistics = mr.Tensor(np.zeros(C)), mr.Tensor(np.ones(C))
    affine = net.parameter(C), net.parameter(C)
    x = F.batch_norm_relu(net.conv(net.image()), *statistics, *affine)
    net.conv(x).sum().backward()
    with mr.no_grad():
        y = net.inner(net.image())
    net.conv(y).sum().backward()
    assert parts == []


def test_what_is_saved_must_not_change(parts: list[str]) -> None:
    net = Net()
    x = net.block(net.inner(net.image()))
    with mr.no_grad():
        net.parameters[1].copy_(np.zeros(C))  # gamma, of which the mask is made
    with pytest.raises(RuntimeError, match="changed in place"):
        (x * x).mean().backward()


def test_a_walk_that_was_interrupted_leaves_no_sums_behind(
    parts: list[str], monkeypatch: Any
) -> None:
    """They are of that walk's gradient; the next one has its own, and here none that are summed."""
    net = Net()
    x = net.block(net.inner(net.image()))
    loss = (x * x).mean()

    def interrupted(operation: Any, kernel: Any, args: Any) -> Any:
        if operation.name == "conv2d_grad_weight" and parts:
            raise KeyboardInterrupt
        return kernel.function(*args)

    monkeypatch.setattr(registry, "observer", interrupted)
    with pytest.raises(KeyboardInterrupt):
        loss.backward(retain_graph=True)
    monkeypatch.setattr(registry, "observer", None)
    assert parts == ["inner"]
    with apart():
        found = net.gradients(loss)
        other = Net()
        y = other.block(other.inner(other.image()))
        same(found, other.gradients((y * y).mean()))


def test_the_norm_s_own_kernel_is_asked(parts: list[str]) -> None:
    """One that takes no sums gets the whole gradient."""
    with use(batch_norm_relu_grad="numpy"):
        blocks(2)
    assert parts == ["end+"]


def test_no_gradient_is_left_behind(parts: list[str], monkeypatch: Any) -> None:
    masked: list[weakref.ref[Any]] = []
    original = RectifiedNorm._gradients

    def gradients(norm: Any, gy: Any, *args: Any) -> Any:
        masked.append(weakref.ref(gy))
        return original(norm, gy, *args)

    monkeypatch.setattr(RectifiedNorm, "_gradients", gradients)
    net = Net()
    x = net.block(net.inner(net.image()))
    (x * x).mean().backward(retain_graph=True)
    gc.collect()
    assert [gradient() for gradient in masked] == 3 * [None]


# -- the real kernels ----------------------------------------------------------------------------


def test_a_net_of_compiled_kernels(monkeypatch: Any) -> None:
    """ResNet-20's first two stages on four images; sums are taken in another order."""
    pytest.importorskip("numba", reason="needs Numba")
    monkeypatch.setattr(tape, "LARGE", 0)
    monkeypatch.setattr(backward, "LARGE", 0)
    fused: list[str] = []

    def watch(operation: Any, kernel: Any, args: Any) -> Any:
        if "rectified" in getattr(kernel.function, "keywords", {}):
            fused.append(kernel.name)
        return kernel.function(*args)

    def found() -> list[Any]:
        mr.manual_seed(0)
        model = mr.models.create("resnet20")
        x = np.random.default_rng(0).standard_normal((4, 3, 32, 32)).astype(np.float32)
        F.cross_entropy(model(mr.Tensor(x)), np.arange(4)).backward()
        return [p.grad.numpy() for p in model.parameters()]

    compiled = dict.fromkeys(OPERATIONS[1:], "simd")
    with use(conv2d_grad_input="winograd", **compiled):
        monkeypatch.setattr(registry, "observer", watch)
        together = found()
        monkeypatch.setattr(registry, "observer", None)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(registry.Kernel, "can_fuse", lambda self, part, g: part != SUMS)
            with use(**compiled):  # chosen anew
                separate = found()
    assert len(fused) == 9 + 7  # inner norms, and ends in front of a convolution of stride 1
    for a, b in zip(together, separate, strict=True):
        assert np.abs(a - b).max() <= 2e-5 * np.abs(b).max()
