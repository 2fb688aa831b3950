"""state_dict and load_state_dict: names, sharing, strictness, all or nothing."""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

import numpy as np
import pytest

import minires as mr
from minires import nn
from minires.testing.compare import assert_close


def model() -> nn.Sequential:
    return nn.Sequential(
        OrderedDict(conv=nn.Conv2d(1, 2, 3, bias=False), bn=nn.BatchNorm2d(2), fc=nn.Linear(2, 3))
    )


NAMES = [
    "conv.weight", "bn.weight", "bn.bias", "bn.running_mean", "bn.running_var",
    "bn.num_batches_tracked", "fc.weight", "fc.bias",
]  # fmt: skip


def arrays(module: nn.Module) -> dict[str, np.ndarray]:
    return {name: tensor.numpy().copy() for name, tensor in module.state_dict().items()}


def test_names_and_order_are_pytorch_s() -> None:
    assert list(model().state_dict()) == NAMES
    assert next(iter(model().state_dict(prefix="net."))) == "net.conv.weight"


def test_it_shares_memory_and_is_outside_the_graph() -> None:
    net = model()
    state = net.state_dict()
    assert not any(t.requires_grad for t in state.values())
    with mr.no_grad():
        net.fc.bias.copy_([1, 2, 3])
    assert state["fc.bias"].tolist() == [1, 2, 3]
    state["fc.bias"].copy_([4, 5, 6])
    assert net.fc.bias.tolist() == [4, 5, 6]


def test_a_round_trip_between_two_models() -> None:
    mr.manual_seed(1)
    a, b = model(), model()
    a.bn(mr.Tensor(np.arange(8, dtype=np.float32).reshape(4, 2)))
    parameters = list(b.parameters())
    assert b.load_state_dict(a.state_dict()) == ([], [])
    for name, array in arrays(a).items():
        assert_close(b.state_dict()[name], array, rtol=0, atol=0, name=name)
        assert not np.shares_memory(b.state_dict()[name]._data, a.state_dict()[name]._data)
    assert all(p is q for p, q in zip(parameters, b.parameters(), strict=True))
    assert all(p.requires_grad for p in b.parameters())


def test_arrays_lists_and_other_dtypes_are_taken() -> None:
    net = model()
    state: dict[str, Any] = {k: v.astype(np.float64) for k, v in arrays(net).items()}
    state["fc.bias"] = [1, 2, 3]
    net.load_state_dict(state)
    assert net.fc.bias.tolist() == [1, 2, 3]
    assert net.fc.bias.dtype == np.float32
    assert net.bn.num_batches_tracked.dtype == np.int64


def test_loading_is_a_change_in_place() -> None:
    net = nn.Linear(2, 1)
    x = mr.Tensor([[1.0, 2.0]], requires_grad=True)
    y = net(x)
    net.load_state_dict(arrays(net))
    with pytest.raises(RuntimeError, match="changed in place"):
        y.backward()


def test_strict_errors_list_everything_and_nothing_is_changed() -> None:
    net = model()
    before = arrays(net)
    state: dict[str, Any] = {name: array + 1 for name, array in before.items()}
    state["conv.weight"] = np.zeros((2, 1, 5, 5))
    state["fc.bias"] = np.zeros(4)
    state["bn.running_var"] = np.array(["a", "b"])
    del state["bn.weight"], state["fc.weight"]
    state["extra"] = state["other.extra"] = np.zeros(1)
    with pytest.raises(ValueError, match="load_state_dict: Sequential does not fit:") as caught:
        net.load_state_dict(state)
    for part in (
        "conv.weight: expected 2x1x3x3, got 2x1x5x5",
        "fc.bias: expected 3, got 4",
        "bn.running_var: expected numbers, got <U1",
        "missing: bn.weight, fc.weight",
        "unexpected: extra, other.extra",
    ):
        assert part in str(caught.value)
    for name, array in arrays(net).items():
        np.testing.assert_array_equal(array, before[name])


def test_many_wrong_shapes_are_all_named() -> None:
    net = nn.Sequential(*(nn.Linear(2, 2) for _ in range(30)))
    state = {name: np.zeros(7) for name in net.state_dict()}
    state["unknown"] = np.zeros(1)
    with pytest.raises(ValueError, match="unexpected: unknown") as caught:
        net.load_state_dict(state)
    assert all(f"{name}: expected" in str(caught.value) for name in net.state_dict())


def test_not_strict() -> None:
    net = model()
    result = net.load_state_dict({"fc.bias": np.ones(3), "head": np.ones(1)}, strict=False)
    assert result.missing_keys == [n for n in NAMES if n != "fc.bias"]
    assert result.unexpected_keys == ["head"]
    assert net.fc.bias.tolist() == [1, 1, 1]
    with pytest.raises(ValueError, match=r"fc\.bias: expected 3, got 4"):  # shapes matter still
        net.load_state_dict({"fc.bias": np.ones(4)}, strict=False)


def test_what_is_shared_is_there_under_each_name() -> None:
    """As in PyTorch: a file written by one loads into the other."""
    layer = nn.Linear(2, 2)
    net = nn.Sequential(layer, nn.ReLU(), layer)
    assert list(net.state_dict()) == ["0.weight", "0.bias", "2.weight", "2.bias"]
    net.load_state_dict(arrays(net))
    tied = nn.Sequential(nn.Linear(2, 2, bias=False), nn.Linear(2, 2, bias=False))
    tied[1].weight = tied[0].weight
    assert list(tied.state_dict()) == ["0.weight", "1.weight"]


def test_running_statistics_are_loaded() -> None:
    a, b = nn.BatchNorm2d(2), nn.BatchNorm2d(2)
    a(mr.Tensor(np.arange(8, dtype=np.float32).reshape(4, 2)))
    b.load_state_dict(a.state_dict())
    x = mr.Tensor(np.ones((1, 2), np.float32))
    assert_close(b.eval()(x), a.eval()(x), rtol=0, atol=0)
    assert b.num_batches_tracked.item() == 1
