"""Deep copies and pickles of modules: complete, and independent of the original."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import minires as mr
from minires import nn
from minires.testing.compare import assert_close


def model() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(1, 2, 3, padding=1), nn.BatchNorm2d(2), nn.ReLU(), nn.MaxPool2d(2),
        nn.Dropout(0.5), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(2, 3),
        nn.ModuleList([nn.AvgPool2d(2), nn.Identity()])[1],
    )  # fmt: skip


def unpickled(x: Any) -> Any:
    return pickle.loads(pickle.dumps(x))


COPIES = [copy.deepcopy, unpickled]
X = np.linspace(-1, 1, 32, dtype=np.float32).reshape(2, 1, 4, 4)


@pytest.mark.parametrize("copied", COPIES)
def test_a_copy_computes_the_same_and_is_independent(copied: Callable[[Any], Any]) -> None:
    net = model()
    net(mr.Tensor(X)).sum().backward()
    net.eval()
    twin = copied(net)
    assert repr(twin) == repr(net)
    assert not twin.training
    assert_close(twin(mr.Tensor(X)), net(mr.Tensor(X)), rtol=0, atol=0)
    for (name, a), (other, b) in zip(
        net.named_parameters(), twin.named_parameters(), strict=True
    ):
        assert name == other
        assert type(b) is nn.Parameter
        assert a is not b
        assert b.requires_grad
        assert not np.shares_memory(a._data, b._data)
        assert_close(b.grad, a.grad, rtol=0, atol=0)
        assert not np.shares_memory(a.grad._data, b.grad._data)

    before = {name: t.numpy().copy() for name, t in net.state_dict().items()}
    twin.train()
    twin.zero_grad()
    twin(mr.Tensor(X)).sum().backward()
    with mr.no_grad():
        for p in twin.parameters():
            p -= 0.5 * p.grad
    for name, t in net.state_dict().items():
        np.testing.assert_array_equal(t.numpy(), before[name])
    assert all(p.grad is not None for p in net.parameters())
    changed = [n for n, t in twin.state_dict().items() if not np.array_equal(t, before[n])]
    assert "0.weight" in changed
    assert "1.running_mean" in changed


@pytest.mark.parametrize("copied", COPIES)
def test_sharing_inside_is_kept(copied: Callable[[Any], Any]) -> None:
    net = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    net[1].weight = net[0].weight
    twin = copied(nn.Sequential(net, net))
    assert twin[0] is twin[1]
    assert twin[0][0].weight is twin[0][1].weight


def test_averaging_weights() -> None:
    """What people copy models for."""
    net = nn.Linear(1, 1, bias=False)
    average = copy.deepcopy(net).requires_grad_(False)
    with mr.no_grad():
        net.weight.copy_([[3.0]])
        average.weight.copy_([[1.0]])
        for p, q in zip(average.parameters(), net.parameters(), strict=True):
            p *= 0.75
            p += 0.25 * q
    assert average.weight.tolist() == [[1.5]]
    assert net.weight.tolist() == [[3]]


def test_hooks_are_copied_with_the_module() -> None:
    net = nn.Identity()
    handle = net.register_forward_hook(lambda m, a, y: y * 2)
    twin = copy.deepcopy(net)
    handle.remove()
    assert net(mr.Tensor([1.0])).tolist() == [1]
    assert twin(mr.Tensor([1.0])).tolist() == [2]


def test_copied_parameters_are_guarded_too() -> None:
    twin = copy.deepcopy(nn.Linear(2, 1))
    x = mr.Tensor([[1.0, 2.0]], requires_grad=True)
    y = twin(x)
    twin.weight.numpy()[...] = 0
    with pytest.raises(RuntimeError, match="changed in place"):
        y.backward()
