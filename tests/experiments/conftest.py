"""Nets small enough to train in a blink, under names of their own."""

from __future__ import annotations

import pytest

from minires import experiments
from minires.models import cifar_resnet, registry


def _small(shortcut):
    def build(*, num_classes: int = 10, in_channels: int = 1, shortcut: str = shortcut):
        return cifar_resnet(
            8, width=4, shortcut=shortcut, num_classes=num_classes, in_channels=in_channels
        )

    return build


@pytest.fixture(autouse=True, scope="package")
def small_nets():
    """"resnet8" and "plain8", of four channels."""
    for name, shortcut in (("resnet8", "A"), ("plain8", "none")):
        registry.register(input_shape=(1, 8, 8), name=name)(_small(shortcut))
    yield
    for name in ("resnet8", "plain8"):
        del registry._entries[name]


@pytest.fixture
def small(tmp_path):
    """Settings of a quick experiment of a second: 64 digits, 2 epochs."""

    def choose(**changes):
        given = {"quick": True, "models": ["resnet8"], "epochs": 2, "limit": 64, "seeds": 2}
        return experiments.Settings.choose(tmp_path / "out", **{**given, **changes})

    return choose
