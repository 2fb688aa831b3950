"""Sequential and ModuleList."""

from __future__ import annotations

from collections import OrderedDict

import numpy as np
import pytest

import minires as mr
from minires import nn


def test_sequential_calls_in_order() -> None:
    net = nn.Sequential(nn.Flatten(), nn.ReLU(), nn.Identity())
    y = net(mr.Tensor(np.array([[[-1.0, 2.0]]])))
    assert y.tolist() == [[0, 2]]
    assert nn.Sequential()(5) == 5


def test_sequential_with_names() -> None:
    net = nn.Sequential(OrderedDict(first=nn.ReLU(), second=nn.Flatten()))
    assert [n for n, _ in net.named_children()] == ["first", "second"]
    assert net.first is net[0]
    assert isinstance(nn.Sequential({"a": nn.ReLU()}).a, nn.ReLU)


def test_indexing_and_slicing() -> None:
    layers = [nn.ReLU(), nn.Flatten(), nn.Identity()]
    net = nn.Sequential(*layers)
    assert len(net) == 3
    assert list(net) == layers
    assert net[-1] is layers[2]
    assert net[np.int64(1)] is layers[1]
    part = net[1:]
    assert type(part) is nn.Sequential
    assert list(part) == layers[1:]
    assert [n for n, _ in part.named_children()] == ["1", "2"]  # names are kept, as in PyTorch
    assert list(net[::-1]) == layers[::-1]
    assert len(net[5:]) == 0
    with pytest.raises(IndexError):
        net[3]


def test_append() -> None:
    net = nn.Sequential(nn.ReLU())
    assert net.append(nn.Flatten()) is net
    assert [type(m).__name__ for m in net] == ["ReLU", "Flatten"]


def test_only_modules() -> None:
    for bad in (lambda x: x, None, nn.ReLU):
        with pytest.raises(TypeError, match=r"expected (a )?Module"):
            nn.Sequential(nn.ReLU(), bad)  # type: ignore[arg-type]
        with pytest.raises(TypeError, match="ModuleList: expected a Module, got"):
            nn.ModuleList([bad])  # type: ignore[list-item]


def test_module_list() -> None:
    layers = [nn.Linear(1, 1), nn.ReLU()]
    net = nn.ModuleList(layers)
    net.append(nn.Linear(1, 2)).extend([nn.Identity()])
    assert len(net) == 4
    assert net[0] is layers[0]
    assert net[-1] is list(net)[3]
    assert [n for n, _ in net.named_parameters()] == ["0.weight", "0.bias", "2.weight", "2.bias"]
    part = net[:2]
    assert type(part) is nn.ModuleList
    assert list(part) == layers
    with pytest.raises(TypeError, match=r"ModuleList defines no forward\(\)"):
        net(1)
    assert len(nn.ModuleList()) == 0
    assert len(nn.ModuleList(nn.ReLU() for _ in range(3))) == 3
