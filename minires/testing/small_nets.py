"""Small blocks and nets to check gradients on: a ResNet in a few hundred numbers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from minires import functional as F
from minires import nn
from minires.autograd import Tensor
from minires.functional.random import generator, get_rng_state, set_rng_state


def away_from_start(build: Callable[[], nn.Module], rng: np.random.Generator) -> nn.Module:
    """A fresh module away from its initial values: gamma = 1 and beta = 0 would hide mistakes.

    The generator of minires is left as it was.
    """
    state = get_rng_state()
    try:
        generator().bit_generator.state = np.random.PCG64(int(rng.integers(2**32))).state
        module = build()
    finally:
        set_rng_state(state)
    for parameter in module.parameters():
        parameter.data = parameter.data + 0.2 * rng.standard_normal(parameter.shape)
    for name, buffer in module.named_buffers():
        if name.endswith("running_mean"):
            buffer.data = buffer.data + 0.3 * rng.standard_normal(buffer.shape)
        elif name.endswith("running_var"):
            buffer.data = buffer.data * rng.uniform(0.5, 2.0, buffer.shape)
    return module


class Block(nn.Module):
    """conv-BN-ReLU-conv-BN and a shortcut, joined by ReLU: He et al. (2015), figure 2."""

    def __init__(self, C: int, O: int, stride: int, shortcut: str) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(C, O, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(O)
        self.conv2 = nn.Conv2d(O, O, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(O)
        self.stride, self.extra = stride, O - C
        self.downsample = (
            nn.Sequential(nn.Conv2d(C, O, 1, stride, bias=False), nn.BatchNorm2d(O))
            if shortcut == "projection"
            else nn.Identity()
        )

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        if isinstance(self.downsample, nn.Identity) and (self.extra or self.stride > 1):
            x = x[:, :, :: self.stride, :: self.stride]
            shortcut = F.pad(x, (0, 0, 0, 0, 0, self.extra))  # option A
        else:
            shortcut = self.downsample(x)
        return F.add_relu(y, shortcut)


class PreActivation(nn.Module):
    """BN-ReLU-conv twice on the branch, nothing on the sum: He et al. (2016), figure 1(b)."""

    def __init__(self, C: int) -> None:
        super().__init__()
        self.bn1, self.bn2 = nn.BatchNorm2d(C), nn.BatchNorm2d(C)
        self.conv1 = nn.Conv2d(C, C, 3, padding=1, bias=False)
        self.conv2 = nn.Conv2d(C, C, 3, padding=1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv1(F.relu(self.bn1(x)))
        return x + self.conv2(F.relu(self.bn2(y)))


class Classifier(nn.Module):
    """A whole net in small: stem, two blocks, pooling, a linear layer and the loss."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(1, 2, 3, padding=1, bias=False), nn.BatchNorm2d(2), nn.ReLU(),
            nn.MaxPool2d(3, 2, 1),
        )  # fmt: skip
        self.layer1 = nn.Sequential(Block(2, 2, 1, "identity"))
        self.layer2 = nn.Sequential(Block(2, 4, 2, "projection"))
        self.pool, self.flatten = nn.AdaptiveAvgPool2d(1), nn.Flatten()
        self.fc, self.loss = nn.Linear(4, 3), nn.CrossEntropyLoss()

    def forward(self, x: Tensor, labels: Any) -> Tensor:
        y = self.layer2(self.layer1(self.stem(x)))
        return self.loss(self.fc(self.flatten(self.pool(y))), labels)
