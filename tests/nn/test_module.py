"""Registration, walking the tree, modes, hooks, conversion, showing."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import minires as mr
from minires import nn
from minires.testing.compare import assert_close


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 2, 3, padding=1, bias=False)
        self.bn = nn.BatchNorm2d(2)
        self.scale = nn.Parameter([2.0])
        self.shortcut: nn.Module | None = None
        self.depth = 3

    def forward(self, x: Any) -> Any:
        return self.bn(self.conv(x)) * self.scale + x


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Sequential(Block(), Block())
        self.fc = nn.Linear(2, 3)

    def forward(self, x: Any) -> Any:
        return self.fc(self.layer(x).mean((2, 3)))


# -- registration ---------------------------------------------------------------------------------


def test_names_in_order() -> None:
    assert [name for name, _ in Net().named_parameters()] == [
        "layer.0.scale", "layer.0.conv.weight", "layer.0.bn.weight", "layer.0.bn.bias",
        "layer.1.scale", "layer.1.conv.weight", "layer.1.bn.weight", "layer.1.bn.bias",
        "fc.weight", "fc.bias",
    ]  # fmt: skip
    assert [name for name, _ in Block().named_buffers()] == [
        "bn.running_mean", "bn.running_var", "bn.num_batches_tracked"
    ]  # fmt: skip
    assert [name for name, _ in Block().named_modules()] == ["", "conv", "bn"]
    assert [name for name, _ in Net().named_modules()][:4] == [
        "", "layer", "layer.0", "layer.0.conv"
    ]  # fmt: skip
    assert [name for name, _ in Net().named_children()] == ["layer", "fc"]


def test_attributes_are_found_where_they_were_put() -> None:
    block = Block()
    assert block._modules["conv"] is block.conv
    assert block._parameters["scale"] is block.scale
    assert block.depth == 3
    assert block.shortcut is None
    block.shortcut = nn.Identity()
    assert dict(block.named_children())["shortcut"] is block.shortcut
    block.shortcut = None
    assert "shortcut" not in dict(block.named_children())
    assert block.shortcut is None


def test_what_is_registered_is_listed_and_not_changed_through_the_list() -> None:
    block = Block()
    with pytest.raises(TypeError, match="does not support item assignment"):
        block._modules["conv"] = nn.Identity()
    assert isinstance(block.conv, nn.Conv2d)


def test_assigning_again_replaces() -> None:
    block = Block()
    block.scale = nn.Parameter([5.0])
    assert block.scale.tolist() == [5]
    block.conv = nn.Identity()
    assert [n for n, _ in block.named_parameters()] == ["scale", "bn.weight", "bn.bias"]
    block.scale = nn.Identity()  # a parameter gives way to a module of its name
    assert "scale" not in dict(block.named_parameters())
    assert list(dict(block.named_children())) == ["conv", "bn", "scale"]
    block.depth = nn.Parameter([1.0])  # and a plain attribute to a parameter
    assert block.depth is dict(block.named_parameters())["depth"]


def test_a_plain_tensor_is_no_parameter() -> None:
    module = nn.Module()
    module.constant = mr.Tensor([1.0])
    assert list(module.parameters()) == []
    assert list(module.state_dict()) == []
    assert module.constant.tolist() == [1]


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("scale", mr.Tensor([1.0]), "Block.scale holds a Parameter; assign a Parameter or None, "
                                    "got Tensor"),
        ("scale", 1.0, "got float"),
        ("conv", lambda x: x, "Block.conv holds a Module; assign a Module or None, got function"),
    ],
)  # fmt: skip
def test_a_registered_name_is_not_hidden_by_something_else(
    name: str, value: Any, message: str
) -> None:
    block = Block()
    with pytest.raises(TypeError, match=message):
        setattr(block, name, value)
    with pytest.raises(TypeError, match=r"BatchNorm2d.running_mean holds a Tensor; assign a Tens"):
        block.bn.running_mean = np.zeros(2)  # type: ignore[assignment]


def test_buffers_can_be_replaced() -> None:
    bn = nn.BatchNorm2d(2)
    bn.running_mean = mr.Tensor([5.0, 6.0])
    assert bn.state_dict()["running_mean"].tolist() == [5, 6]
    bn.running_mean = bn.running_var = None
    assert list(bn.state_dict()) == ["weight", "bias", "num_batches_tracked"]


def test_deleting() -> None:
    block = Block()
    del block.scale, block.conv, block.depth
    assert [n for n, _ in block.named_parameters()] == ["bn.weight", "bn.bias"]
    for name in ("scale", "conv", "depth"):
        assert not hasattr(block, name)
        with pytest.raises(AttributeError):
            delattr(block, name)


@pytest.mark.parametrize("name", ["", "a.b"])
def test_names_that_cannot_be_keys(name: str) -> None:
    module = nn.Module()
    for add, value in (
        (module.add_module, nn.Identity()), (module.register_buffer, mr.Tensor([1.0])),
        (module.register_parameter, nn.Parameter([1.0])),
    ):  # fmt: skip
        with pytest.raises(ValueError, match="cannot name a sub-module or tensor"):
            add(name, value)


@pytest.mark.parametrize("name", ["forward", "train", "parameters", "state_dict"])
def test_names_that_the_class_would_hide(name: str) -> None:
    module = nn.Module()
    with pytest.raises(ValueError, match=f"'{name}' is an attribute of the class, which would"):
        module.add_module(name, nn.Identity())
    with pytest.raises(ValueError, match="is an attribute of the class"):
        setattr(module, name, nn.Parameter([1.0]))


def test_kinds_that_cannot_be_registered() -> None:
    module = nn.Module()
    for add, kind in (
        (module.add_module, "Module"), (module.register_buffer, "Tensor"),
        (module.register_parameter, "Parameter"),
    ):  # fmt: skip
        with pytest.raises(TypeError, match=f"Module.x: expected a {kind} or None, got ndarray"):
            add("x", np.zeros(2))  # type: ignore[operator]
    with pytest.raises(TypeError, match=r"Module\.x: expected a Parameter or None, got"):
        module.register_parameter("x", mr.Tensor([1.0]))  # type: ignore[arg-type]


def test_forgetting_super() -> None:
    class Forgetful(nn.Module):
        def __init__(self) -> None:
            self.fc = nn.Linear(1, 1)

    with pytest.raises(RuntimeError, match=r"Forgetful: call super\(\).__init__\(\) first"):
        Forgetful()


def test_unknown_attributes_suggest() -> None:
    with pytest.raises(AttributeError, match="Net has no attribute 'layers'; did you mean 'layer'"):
        Net().layers  # noqa: B018
    with pytest.raises(AttributeError, match="did you mean 'parameters'"):
        Net().paramters()
    with pytest.raises(AttributeError, match=r"Net has no attribute 'zzz'$"):
        Net().zzz  # noqa: B018
    assert not hasattr(Net(), "layers_of_another_kind")


def test_a_module_without_forward() -> None:
    with pytest.raises(TypeError, match=r"Module defines no forward\(\)"):
        nn.Module()(1)


# -- sharing --------------------------------------------------------------------------------------


def test_shared_parameters_are_counted_once_and_trained_together() -> None:
    a, b = nn.Linear(2, 2, bias=False), nn.Linear(2, 2, bias=False)
    b.weight = a.weight
    model = nn.Sequential(a, b)
    assert [n for n, _ in model.named_parameters()] == ["0.weight"]
    x = np.array([[1.0, 2.0]], np.float32)
    model(mr.Tensor(x)).sum().backward()
    w = a.weight.numpy()
    expected = np.outer(np.ones(2), x @ w.T) + np.outer(w.sum(0), x)
    assert_close(a.weight.grad, expected.astype(np.float32), rtol=1e-5)
    assert b.weight.grad is a.weight.grad


def test_shared_modules_are_walked_once() -> None:
    layer = nn.Linear(2, 2)
    model = nn.Sequential(layer, nn.ReLU(), layer)
    assert len(list(model.modules())) == 3
    assert [n for n, _ in model.named_parameters()] == ["0.weight", "0.bias"]
    assert len(model) == 3


# -- modes and conversion -------------------------------------------------------------------------


def test_train_and_eval_reach_everything() -> None:
    net = Net()
    assert all(m.training for m in net.modules())
    assert net.eval() is net
    assert not any(m.training for m in net.modules())
    net.layer.train()
    assert [m.training for m in net.modules()].count(True) == 7
    net.train(False)
    assert not any(m.training for m in net.modules())


def test_a_module_may_refuse_to_train() -> None:
    class Frozen(nn.BatchNorm2d):
        def train(self, mode: bool = True) -> Frozen:
            return super().train(False)

    model = nn.Sequential(Frozen(2), nn.BatchNorm2d(2)).train()
    assert [m.training for m in model] == [False, True]


def test_requires_grad_and_zero_grad() -> None:
    net = Net()
    net(mr.Tensor(np.ones((2, 2, 3, 3), np.float32))).sum().backward()
    assert all(p.grad is not None for p in net.parameters())
    net.zero_grad()
    assert all(p.grad is None for p in net.parameters())
    assert net.layer.requires_grad_(False) is net.layer
    assert [n for n, p in net.named_parameters() if p.requires_grad] == ["fc.weight", "fc.bias"]


def test_double_and_float() -> None:
    net = Net()
    x = np.ones((2, 2, 3, 3), np.float32)
    net(mr.Tensor(x)).sum().backward()
    parameters = list(net.parameters())
    assert net.double() is net
    assert all(a is b for a, b in zip(net.parameters(), parameters, strict=True))
    assert {str(t.dtype) for t in net.state_dict().values()} == {"float64", "int64"}
    assert {str(p.grad.dtype) for p in net.parameters()} == {"float64"}
    assert net(mr.Tensor(x.astype(np.float64))).dtype == np.float64
    net.float()
    assert {str(t.dtype) for t in net.state_dict().values()} == {"float32", "int64"}
    assert net.to("cpu") is net


def test_conversions_that_are_refused_change_nothing() -> None:
    net = Net()
    with pytest.raises(TypeError, match="to: modules are of floating point, got int32"):
        net.to(np.int32)
    with pytest.raises(ValueError, match="unknown device 'mps'"):
        net.to("mps")
    assert {str(p.dtype) for p in net.parameters()} == {"float32"}


def test_a_shared_parameter_is_converted_once() -> None:
    a, b = nn.Linear(2, 2), nn.Linear(2, 2)
    b.weight = a.weight
    nn.Sequential(a, b).double()
    assert a.weight is b.weight
    assert a.weight.dtype == np.float64


# -- calling --------------------------------------------------------------------------------------


def test_forward_hooks() -> None:
    layer = nn.Identity()
    calls = []
    handles = [
        layer.register_forward_pre_hook(lambda m, args: calls.append(("pre", m, args))),
        layer.register_forward_pre_hook(lambda m, args: (args[0] + 1,)),
        layer.register_forward_pre_hook(lambda m, args: args[0] * 2),
        layer.register_forward_hook(lambda m, args, y: calls.append(("post", args[0], y))),
        layer.register_forward_hook(lambda m, args, y: y + 100),
    ]
    assert layer(mr.Tensor([1.0])).tolist() == [104]
    assert calls[0][:2] == ("pre", layer)
    assert calls[0][2][0].tolist() == [1]
    assert (calls[1][1].tolist(), calls[1][2].tolist()) == ([4], [4])
    for handle in handles:
        handle.remove()
        handle.remove()
    assert layer(mr.Tensor([1.0])).tolist() == [1]


def test_the_same_hook_twice_is_removed_once_each() -> None:
    layer = nn.Identity()
    calls = []

    def hook(module: Any, args: Any, y: Any) -> None:
        calls.append(1)

    first, second = layer.register_forward_hook(hook), layer.register_forward_hook(hook)
    first()
    first()
    layer(mr.Tensor([1.0]))
    assert calls == [1]
    second()
    layer(mr.Tensor([1.0]))
    assert calls == [1]


def test_arguments_are_passed_on() -> None:
    class Scaled(nn.Module):
        def forward(self, x: Any, *, by: float) -> Any:
            return x * by

    assert Scaled()(mr.Tensor([2.0]), by=3.0).tolist() == [6]


def test_apply_visits_children_first() -> None:
    names = []
    net = Net()
    assert net.apply(lambda m: names.append(type(m).__name__)) is net
    assert names == ["Conv2d", "BatchNorm2d", "Block"] * 2 + ["Sequential", "Linear", "Net"]


def test_get_submodule() -> None:
    net = Net()
    assert net.get_submodule("layer.1.conv") is net.layer[1].conv
    assert net.get_submodule("") is net
    with pytest.raises(AttributeError, match=r"no sub-module 'layr\.0'; did you mean 'layer'"):
        net.get_submodule("layr.0")


def test_a_residual_block_learns(rng: np.random.Generator) -> None:
    """All of it together: the loss of a small net falls under plain gradient descent."""
    net = Net()
    x = mr.Tensor(rng.standard_normal((12, 2, 4, 4)).astype(np.float32))
    labels = rng.integers(0, 3, 12)
    losses = []
    for _ in range(60):
        net.zero_grad()
        loss = mr.functional.cross_entropy(net(x), labels)
        loss.backward()
        losses.append(loss.item())
        with mr.no_grad():
            for p in net.parameters():
                p -= p.grad * 0.2
    assert losses[-1] < 0.75 * losses[0]
    assert net.layer[0].bn.num_batches_tracked.item() == 60


# -- showing --------------------------------------------------------------------------------------


def test_repr() -> None:
    assert repr(nn.Linear(2, 3)) == "Linear(2, 3, bias=True)"
    assert repr(nn.ReLU()) == "ReLU()"
    assert repr(nn.Sequential(nn.ReLU(), nn.Sequential(nn.Flatten()))) == (
        "Sequential(\n  (0): ReLU()\n  (1): Sequential(\n    (0): Flatten()\n  )\n)"
    )
    assert repr(Block()).startswith("Block(\n  (conv): Conv2d(2, 2, kernel_size=(3, 3), padding=(1")
