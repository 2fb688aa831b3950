"""Activations that are made again instead of kept: the same gradients from less memory."""

from __future__ import annotations

import gc
import weakref
from typing import Any

import numpy as np
import pytest

import minires as mr
import minires.functional as F
from minires.autograd import tape
from minires.kernels import memory
from minires.models import resnet

PIXELS = (8, 16, 32, 32)  # N, C, H, W: 512 KiB a map in float32


@pytest.fixture
def everything_is_large(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tape, "LARGE", 0)


def images(rng: np.random.Generator, shape: tuple[int, ...] = PIXELS) -> Any:
    N, C, H, W = shape
    return rng.standard_normal((N, H, W, C)).astype(np.float32).transpose(0, 3, 1, 2)


def net() -> Any:
    mr.manual_seed(3)
    return resnet.resnet20(num_classes=10)


def gradients(model: Any, x: Any, labels: Any) -> list[Any]:
    model.zero_grad()
    F.cross_entropy(model(mr.Tensor(x)), labels).backward()
    return [p.grad.data.copy() for p in model.parameters()]


def test_the_gradients_are_the_same_bits(
    rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, x, labels = net(), images(rng, (16, 3, 32, 32)), rng.integers(0, 10, 16)
    again = gradients(model, x, labels)  # maps of the first stage have just the size
    monkeypatch.setattr(tape, "LARGE", 1 << 60)
    kept = gradients(model, x, labels)
    for a, b in zip(kept, again, strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.usefixtures("everything_is_large")
def test_gradients_of_gradients(rng: np.random.Generator) -> None:
    x = rng.standard_normal((3, 2, 4, 4))
    w = mr.Tensor(rng.standard_normal((2, 2, 3, 3)), requires_grad=True)
    gamma, beta = (mr.Tensor(rng.standard_normal(2), requires_grad=True) for _ in range(2))

    def f(x: Any) -> Any:
        y = F.batch_norm_relu(x, None, None, gamma, beta, training=True)
        z = F.conv2d(y, w, padding=1)
        first = F.batch_norm_add_relu(z, x, None, None, gamma, beta, training=True)
        second = F.batch_norm_add_relu(z, first, None, None, gamma, beta, training=True)
        return F.conv2d(second, w, padding=1)

    assert mr.gradcheck(f, mr.Tensor(x, requires_grad=True))
    assert mr.gradgradcheck(f, mr.Tensor(x, requires_grad=True))


def chain(x: mr.Tensor, blocks: int) -> list[mr.Tensor]:
    outputs = [x]
    for _ in range(blocks):
        outputs.append(
            F.batch_norm_add_relu(outputs[-1] * 0.5, outputs[-1], None, None, training=True)
        )
    return outputs


@pytest.mark.usefixtures("everything_is_large")
def test_every_other_block_keeps_its_output(rng: np.random.Generator) -> None:
    x = mr.Tensor(images(rng), requires_grad=True)
    held = [output.grad_fn.keeps_output() for output in chain(x, 5)[1:]]
    assert held == [True, False, True, False, True]


@pytest.mark.usefixtures("everything_is_large")
def test_the_activation_is_gone_until_backward(rng: np.random.Generator) -> None:
    x = mr.Tensor(images(rng), requires_grad=True)
    w = mr.Tensor(rng.standard_normal((16, 16, 3, 3)).astype(np.float32), requires_grad=True)
    y = F.batch_norm_relu(x, None, None, training=True)
    z = F.conv2d(y, w, padding=1)
    activation, maker = weakref.ref(y._buffer), y.grad_fn
    assert np.shares_memory(z.grad_fn.saved.x.data, y._data)  # while it lives, it is used
    del y
    gc.collect()
    assert activation() is None
    z.backward(np.ones(z.shape, np.float32))
    assert maker._rebuilt is None


@pytest.mark.usefixtures("everything_is_large")
def test_a_change_of_the_activation_does_not_reach_the_gradient() -> None:
    """What is made again is what forward had, whatever became of the tensor."""
    results = []
    for touch in ("", "from outside", "in place"):
        x = mr.Tensor(images(np.random.default_rng(1)), requires_grad=True)
        w = mr.Tensor(np.full((4, 16, 1, 1), 0.1, np.float32), requires_grad=True)
        y = F.batch_norm_relu(x, None, None, training=True)
        z = F.conv2d(y, w)
        if touch == "from outside":
            y.data[...] = 7
        elif touch == "in place":
            with mr.no_grad():
                y.copy_(np.full(y.shape, 7, np.float32))
        z.backward(np.ones(z.shape, np.float32))
        results.append(w.grad.data)
    for result in results[1:]:
        np.testing.assert_array_equal(result, results[0])


@pytest.mark.usefixtures("everything_is_large")
def test_an_activation_in_hands_of_the_user_is_kept(rng: np.random.Generator) -> None:
    x = mr.Tensor(images(rng), requires_grad=True)
    w = mr.Tensor(np.full((4, 16, 1, 1), 0.1, np.float32), requires_grad=True)
    y = F.batch_norm_relu(x, None, None, training=True)
    values = y.data
    z = F.conv2d(y, w)
    assert z.grad_fn.saved_arrays()["x"] is values
    values[...] = 7
    with pytest.raises(RuntimeError, match="changed in place"):
        z.backward(np.ones(z.shape, np.float32))


@pytest.mark.usefixtures("everything_is_large")
@pytest.mark.parametrize("changed", ["x", "gamma", "block before"])
def test_what_it_is_made_of_must_not_change(changed: str, rng: np.random.Generator) -> None:
    x = mr.Tensor(images(rng), requires_grad=True)
    gamma = mr.Tensor(np.ones(16, np.float32), requires_grad=True)
    beta = mr.Tensor(np.zeros(16, np.float32), requires_grad=True)
    w = mr.Tensor(np.full((4, 16, 1, 1), 0.1, np.float32), requires_grad=True)
    one = F.batch_norm_add_relu(x * 0.5, x, None, None, gamma, beta, training=True)
    inner = one * 2.0
    two = F.batch_norm_add_relu(inner, one, None, None, gamma, beta, training=True)
    z = F.conv2d(two, w)
    del two
    target = {"x": inner, "gamma": gamma, "block before": one}[changed]
    with mr.no_grad():
        target.copy_(target.detach() * 3.0)
    with pytest.raises(RuntimeError, match="changed in place"):
        mr.grad(z, w, np.ones(z.shape, np.float32))


def test_small_activations_are_kept(rng: np.random.Generator) -> None:
    x = mr.Tensor(images(rng), requires_grad=True)
    w = mr.Tensor(np.full((4, 16, 1, 1), 0.1, np.float32), requires_grad=True)
    z = F.conv2d(F.batch_norm_relu(x, None, None, training=True), w)
    assert "x" in z.grad_fn.saved_arrays()


def test_a_step_needs_less_memory(rng: np.random.Generator, monkeypatch: Any) -> None:
    model, x, labels = net(), images(rng, (16, 3, 32, 32)), rng.integers(0, 10, 16)
    peaks = []
    for large in (1 << 60, 1 << 18):
        monkeypatch.setattr(tape, "LARGE", large)
        gradients(model, x, labels)
        memory.reset_high_water()
        before = memory.statistics().in_use
        gradients(model, x, labels)
        peaks.append(memory.statistics().high_water - before)
    assert peaks[1] < 0.8 * peaks[0]
