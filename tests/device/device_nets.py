"""Small nets and sets for the tests of training on a device."""

from __future__ import annotations

from typing import Any

import numpy as np

import minires as mr
from minires import nn
from minires.data import Dataset, digits
from minires.training.recipes import RECIPES, Recipe

RECIPE: Recipe = RECIPES["digits"].replace(epochs=3, batch_size=16)


def small_net(seed: int = 3, channels: int = 1, dropout: float = 0.0) -> nn.Module:
    """Two convolutions, batch norm and a classifier, with weights drawn from the seed."""
    mr.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(channels, 8, 3, padding=1, bias=False),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Dropout(dropout),
        nn.Conv2d(8, 8, 3, padding=1, bias=False),
        nn.BatchNorm2d(8),
        nn.AdaptiveAvgPool2d(2),
        nn.Flatten(),
        nn.Linear(32, 10),
    )


def small_sets() -> tuple[Dataset, Dataset]:
    """40 images to train on, so that a batch of 16 leaves 8; 30 to test on."""
    return digits("train").take(40), digits("test").take(30)


def state_of(model: nn.Module) -> dict[str, np.ndarray]:
    """All parameters and buffers, on the host."""
    return {name: tensor.cpu().numpy() for name, tensor in model.state_dict().items()}


def assert_same(a: dict[str, Any], b: dict[str, Any]) -> None:
    """Bit for bit."""
    assert list(a) == list(b)
    for name in a:
        np.testing.assert_array_equal(a[name], b[name], err_msg=name)


def distance(a: dict[str, Any], b: dict[str, Any]) -> float:
    """The largest difference, relative to the largest value of its tensor."""
    return max(float(np.abs(a[k] - b[k]).max() / max(1e-6, np.abs(a[k]).max())) for k in a)
