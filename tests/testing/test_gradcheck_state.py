"""A check leaves no trace: parameters, buffers, mode, gradients and random state stay."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest

import minires as mr
from minires import functional as F
from minires import nn
from minires.functional.random import generator, get_rng_state
from minires.testing import gradcheck, gradgradcheck


class Net(nn.Module):
    """Something of everything that has state."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(2, 3, 3, padding=1), nn.BatchNorm2d(3), nn.ReLU(), nn.Dropout(0.3),
            nn.AdaptiveAvgPool2d(1), nn.Flatten(),
        )  # fmt: skip
        self.fc = nn.Linear(3, 2)
        self.register_buffer("counts", mr.Tensor(np.arange(4)))
        self.calls = 0

    def forward(self, x: mr.Tensor) -> mr.Tensor:
        self.calls += 1
        return self.fc(self.body(x))


def snapshot(model: Net) -> dict[str, Any]:
    """Everything there is to know about a module, down to the bits and the identity of arrays."""
    state: dict[str, Any] = {}
    for kind, named in (("p", model.named_parameters()), ("b", model.named_buffers())):
        for name, t in named:
            grad = None if t.grad is None else (id(t.grad), t.grad.data.tobytes())
            state[f"{kind} {name}"] = (
                id(t), id(t._data), t.dtype, t._data.tobytes(), t._data.strides, t.requires_grad,
                t._buffer.version, id(t._buffer), grad,
            )  # fmt: skip
    state["modes"] = [m.training for m in model.modules()]
    state["hooks"] = [(len(m._forward_hooks), len(m._forward_pre_hooks)) for m in model.modules()]
    state["calls"] = model.calls
    state["random"] = (str(get_rng_state()), id(generator()))
    return state


@pytest.fixture
def model() -> Net:
    mr.manual_seed(3)
    net = Net()
    x = mr.Tensor(np.random.default_rng(1).standard_normal((4, 2, 5, 5)).astype(np.float32))
    F.cross_entropy(net(x), np.array([0, 1, 1, 0])).backward()  # statistics and gradients
    net.body[1].eval()
    net.fc.bias.requires_grad_(False)
    return net


@pytest.mark.parametrize("check", [gradcheck, gradgradcheck])
@pytest.mark.parametrize("training", [True, False])
def test_a_module_is_left_bit_for_bit(model: Net, check: Any, training: bool) -> None:
    if training:
        model.train()
    x = mr.Tensor(np.random.default_rng(0).standard_normal((3, 2, 5, 4)).astype(np.float32), True)
    x.sum().backward()
    before, image = snapshot(model), (x.data.tobytes(), id(x.grad), x.grad.data.tobytes())
    report = check(model, x)
    assert report.worst_error < 1e-7
    assert snapshot(model) == before
    assert (x.data.tobytes(), id(x.grad), x.grad.data.tobytes()) == image


def test_also_after_a_failure_and_an_exception(model: Net) -> None:
    x = mr.Tensor(np.ones((3, 2, 5, 4), np.float32), requires_grad=True)
    before = snapshot(model)

    def detached(x: mr.Tensor) -> mr.Tensor:
        return model(x) * x.detach().sum()

    assert not gradcheck(detached, x, params=model, raise_exception=False)
    assert snapshot(model) == before

    def fails(x: mr.Tensor) -> mr.Tensor:
        model(x)
        raise RuntimeError("no")

    with pytest.raises(RuntimeError, match="no"):
        gradcheck(fails, x, params=model)
    assert snapshot(model) == before


def test_the_state_it_started_from_is_what_is_checked(model: Net) -> None:
    """Every evaluation sees the same running statistics, counters and dropout mask."""
    model.train()
    seen = set()
    x = mr.Tensor(np.random.default_rng(0).standard_normal((3, 2, 5, 4)), requires_grad=True)

    def fn(x: mr.Tensor) -> mr.Tensor:
        norm = model.body[1]
        before = (norm.running_mean.data.tobytes(), int(norm.num_batches_tracked), model.calls)
        y = model(x)
        seen.add((before, generator().random()))
        return y

    assert gradcheck(fn, x, params=model)
    assert len(seen) == 1


def test_a_module_that_binds_attributes_and_buffers_is_reset(rng: np.random.Generator) -> None:
    class Momentum(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("seen", mr.Tensor(np.zeros(3, np.float32)))

        def forward(self, x: mr.Tensor) -> mr.Tensor:
            y = x * (1.0 + self.seen)
            self.seen = self.seen + x.detach().mean(axis=0)
            self.latest = y
            return y

    module = Momentum()
    buffer = module.seen
    assert gradcheck(module, mr.Tensor(rng.standard_normal((2, 3)), requires_grad=True))
    assert module.seen is buffer
    assert not hasattr(module, "latest")
    np.testing.assert_array_equal(buffer.data, 0)


def test_loose_parameters_come_back_too(rng: np.random.Generator) -> None:
    w = mr.Tensor(rng.standard_normal(3).astype(np.float32), requires_grad=True)
    array, bits = w._data, w._data.tobytes()
    w.sum().backward()
    grad = w.grad
    assert gradcheck(lambda x: x * w, mr.Tensor(np.ones((2, 3)), True), params=[w])
    assert w._data is array
    assert array.tobytes() == bits
    assert w.grad is grad


@pytest.mark.parametrize("check", [gradcheck, gradgradcheck])
def test_every_shared_generator_is_reset_and_left_as_it_was(check: Any) -> None:
    """NumPy's global generator and Python's, too: whoever draws from them repeats himself."""
    drawn = set()

    def fn(x: mr.Tensor) -> mr.Tensor:
        scale = 1.0 + np.random.random() + random.random()  # noqa: NPY002
        drawn.add(scale)
        return x * x * scale

    before = str(np.random.get_state()), random.getstate()  # noqa: NPY002
    assert check(fn, mr.Tensor(np.ones(3), requires_grad=True), params=Net())
    assert len(drawn) == 1
    assert (str(np.random.get_state()), random.getstate()) == before  # noqa: NPY002


def test_also_in_another_dtype_and_with_a_report(model: Net) -> None:
    model.train()
    x = mr.Tensor(np.random.default_rng(0).standard_normal((3, 2, 5, 4)), requires_grad=True)
    before = snapshot(model)
    for options in ({"dtype": "float32"}, {"dtype": "float16"}, {"report": True}):
        assert gradcheck(model, x, **options)
        assert snapshot(model) == before
