"""Whole training steps on a device equal the CPU's, and themselves bit for bit."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest

import minires as mr
from minires import functional as F
from minires.models.blocks import BasicBlock
from minires.models.resnet import ResNet

X = np.random.default_rng(0).standard_normal((4, 3, 8, 8)).astype(np.float32)
LABELS = np.array([0, 3, 1, 1])


def tiny(shortcut: str = "A") -> ResNet:
    """ResNet-20's shape with few channels: three stages of three blocks."""
    mr.manual_seed(7)
    return ResNet(partial(BasicBlock, shortcut=shortcut), [3] * 3, width=4, stem="cifar",
                  num_classes=4)  # fmt: skip


def trained(
    device: str, optimiser: Callable[..., Any], steps: int = 3, shortcut: str = "A"
) -> tuple[list[float], dict[str, np.ndarray]]:
    """Losses of some steps, and the state after them, on the host."""
    model = tiny(shortcut)
    optimizer = optimiser(model.parameters())  # before the move: parameters stay themselves
    model.to(device)
    x = mr.Tensor(X).to(device)
    losses = []
    for _ in range(steps):
        optimizer.zero_grad()
        loss = F.cross_entropy(model(x), LABELS)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses, {name: t.cpu().numpy() for name, t in model.state_dict().items()}


OPTIMISERS = {
    "SGD": partial(mr.optim.SGD, lr=0.1),
    "SGD, momentum": partial(mr.optim.SGD, lr=0.05, momentum=0.9, weight_decay=1e-4),
    "SGD, Nesterov": partial(mr.optim.SGD, lr=0.05, momentum=0.9, nesterov=True),
    "SGD, dampening": partial(mr.optim.SGD, lr=0.05, momentum=0.9, dampening=0.3),
    "Adam": partial(mr.optim.Adam, lr=1e-3),
    "AdamW": partial(mr.optim.AdamW, lr=1e-3),
}


@pytest.mark.parametrize("name", OPTIMISERS)
def test_training_steps_equal_the_cpus(cuda: str, name: str) -> None:
    steps = 2 if name.startswith("Adam") else 3  # Adam divides by tiny gradients: rounding grows
    losses, state = trained(cuda, OPTIMISERS[name], steps)
    expected, expected_state = trained("cpu", OPTIMISERS[name], steps)
    np.testing.assert_allclose(losses, expected, rtol=2e-4)
    assert state.keys() == expected_state.keys()
    for key, value in expected_state.items():
        atol = 3e-3 if name.startswith("Adam") else 2e-4
        np.testing.assert_allclose(state[key], value, atol=atol, err_msg=key)


def test_training_is_the_same_bit_for_bit(cuda: str) -> None:
    first, second = (trained(cuda, OPTIMISERS["SGD, momentum"], shortcut="B") for _ in range(2))
    assert first[0] == second[0]
    for key, value in first[1].items():
        np.testing.assert_array_equal(value, second[1][key], err_msg=key)
