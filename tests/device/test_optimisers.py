"""Optimisers on a device: one launch for all parameters, states that go anywhere."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import minires as mr
from minires.optim import SGD, Adam

SHAPES = [(3,), (4, 3, 3, 3), (2, 5), ()]


def parameters(device: str, seed: int = 0) -> list[mr.nn.Parameter]:
    rng = np.random.default_rng(seed)
    module = mr.nn.Module()
    for i, shape in enumerate(SHAPES):
        module.register_parameter(f"p{i}", mr.nn.Parameter(rng.standard_normal(shape)))
    return list(module.to(device).parameters())


def take(optimizer: Any, step: int, layout: str = "parameter's") -> None:
    """One step with drawn gradients, laid out as the parameters are, or in C order."""
    rng = np.random.default_rng(100 + step)
    for parameter in optimizer.param_groups[0]["params"]:
        gradient = mr.Tensor(rng.standard_normal(parameter.shape)).to(parameter.device)
        if layout == "parameter's":
            gradient = (parameter.detach() * 0.0).copy_(gradient)
        parameter.grad = gradient
    optimizer.step()


def values(tensors: Any) -> list[np.ndarray]:
    return [t.detach().cpu().numpy().copy() for t in tensors]


def assert_same(got: Any, expected: Any) -> None:
    for a, b in zip(got, expected, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-12)


@pytest.mark.parametrize("layout", ["parameter's", "C"])
@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_gradients_in_any_memory_order(cuda: str, layout: str, momentum: float) -> None:
    here, there = (SGD(parameters(d), 0.1, momentum, weight_decay=1e-2) for d in ("cpu", cuda))
    for step in range(3):
        for optimizer in (here, there):
            take(optimizer, step, layout)
    assert_same(values(there.param_groups[0]["params"]), values(here.param_groups[0]["params"]))


@pytest.mark.parametrize("kind", [SGD, Adam])
def test_states_go_from_device_to_host_and_back(cuda: str, kind: Any) -> None:
    settings: dict[str, Any] = {"momentum": 0.9} if kind is SGD else {}
    optimizers = {d: kind(parameters(d), 0.1, **settings) for d in ("cpu", cuda)}
    for optimizer in optimizers.values():
        take(optimizer, 0)
    states = {d: o.state_dict() for d, o in optimizers.items()}
    for name, array in states["cpu"]["state"][1].items():
        found = states[cuda]["state"][1][name]
        assert type(found) is type(array)
        np.testing.assert_allclose(found, array, atol=1e-12)
    # Each goes on from the other's state.
    optimizers[cuda].load_state_dict(states["cpu"])
    optimizers["cpu"].load_state_dict(states[cuda])
    for optimizer in optimizers.values():
        take(optimizer, 1)
    assert_same(*(values(o.param_groups[0]["params"]) for o in optimizers.values()))


@pytest.mark.parametrize("kind", [SGD, Adam])
def test_state_follows_a_parameter_that_is_moved(cuda: str, kind: Any) -> None:
    settings: dict[str, Any] = {"momentum": 0.9} if kind is SGD else {}
    moved, still = (kind(parameters("cpu"), 0.1, **settings) for _ in range(2))
    for optimizer in (moved, still):
        take(optimizer, 0)
    for parameter in moved.param_groups[0]["params"]:
        parameter.data = parameter.detach().to(cuda)
    for optimizer in (moved, still):
        take(optimizer, 1)
    assert_same(values(moved.param_groups[0]["params"]), values(still.param_groups[0]["params"]))


def test_a_step_is_one_launch(cuda: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from minires.kernels.cuda import sgd

    optimizer = SGD(parameters(cuda), 0.1, 0.9)
    take(optimizer, 0)
    launches = []
    step = sgd.FusedSGD.step
    monkeypatch.setattr(sgd.FusedSGD, "step", lambda self, g, control: (
        launches.append(len(g)), step(self, g, control)
    ))  # fmt: skip
    take(optimizer, 1)
    assert launches == [len(SHAPES)]


def test_the_learning_rate_lies_on_the_device(cuda: str) -> None:
    optimizer = SGD(parameters(cuda), 0.1, 0.9)
    take(optimizer, 0)
    optimizer.lr = 0.01
    optimizer.upload()
    ((fused, _),) = optimizer._fused.values()
    assert fused.settings.get().tolist() == [0.01, 0.9, 0.0, 0.0]


def test_a_gradient_left_behind(cuda: str) -> None:
    (p,) = [mr.Tensor([1.0], requires_grad=True)]
    p.grad = mr.Tensor([1.0])
    p.data = p.detach().to(cuda)
    with pytest.raises(ValueError, match=r"a parameter on cuda:0 has a gradient on cpu; call zero"):
        SGD([p], 0.1).step()
