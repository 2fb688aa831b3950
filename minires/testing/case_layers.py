"""The table of layers and small blocks, each with its parameters; see `cases`."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np

from minires import functional as F
from minires import nn
from minires.autograd import Tensor
from minires.testing.cases import Input, add_case

LABELS = np.array([1, 0, 2])
IMAGES = (3, 2, 5, 4)

LAYERS: dict[str, tuple[tuple[Input, ...], dict[str, Any]]] = {
    "Conv2d": ((IMAGES,), {
        "defaults": lambda: nn.Conv2d(2, 3, 3),
        "stride, padding, no bias": lambda: nn.Conv2d(2, 4, 3, 2, 1, bias=False),
        "groups, dilation": lambda: nn.Conv2d(2, 4, (3, 2), 1, 1, (1, 2), 2),
    }),
    "BatchNorm2d": ((IMAGES,), {
        "training": lambda: nn.BatchNorm2d(2),
        "evaluation": lambda: nn.BatchNorm2d(2).eval(),
        "not affine": lambda: nn.BatchNorm2d(2, affine=False),
        "no running statistics": lambda: nn.BatchNorm2d(2, track_running_stats=False).eval(),
    }),
    "Linear": (((4, 3),), {
        "defaults": lambda: nn.Linear(3, 5),
        "no bias": lambda: nn.Linear(3, 2, bias=False),
    }),
    "ReLU": ((IMAGES,), {"defaults": nn.ReLU}),
    "MaxPool2d": ((IMAGES,), {"3x3 stride 2, padded": lambda: nn.MaxPool2d(3, 2, 1)}),
    "AvgPool2d": ((IMAGES,), {"2x2": lambda: nn.AvgPool2d(2)}),
    "AdaptiveAvgPool2d": ((IMAGES,), {"global": lambda: nn.AdaptiveAvgPool2d(1)}),
    "Flatten": ((IMAGES,), {"defaults": nn.Flatten}),
    "Identity": ((IMAGES,), {"defaults": nn.Identity}),
    "Dropout": ((IMAGES,), {
        "training": lambda: nn.Dropout(0.4),
        "evaluation": lambda: nn.Dropout(0.4).eval(),
    }),
    "CrossEntropyLoss": (((3, 4), lambda rng: LABELS), {
        "defaults": nn.CrossEntropyLoss,
        "smoothing": lambda: nn.CrossEntropyLoss(label_smoothing=0.1),
    }),
}  # fmt: skip
for layer, (inputs, variants) in LAYERS.items():
    for text, build in variants.items():
        add_case(f"nn.{layer}", text, build, *inputs, module=True)


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


add_case("block", "identity", partial(Block, 2, 2, 1, "identity"), (3, 2, 4, 3), module=True)
add_case("block", "projection", partial(Block, 2, 3, 2, "projection"), (3, 2, 5, 4), module=True)
add_case("block", "zeros padded (option A)", partial(Block, 2, 4, 2, "zeros"), (3, 2, 5, 4),
         module=True)  # fmt: skip
add_case("block", "pre-activation", partial(PreActivation, 2), (3, 2, 4, 3), module=True)
add_case("net", "classifier", Classifier, (3, 1, 8, 7), lambda rng: LABELS, module=True)
add_case("net", "classifier, evaluation", lambda: Classifier().eval(), (3, 1, 8, 7),
         lambda rng: LABELS, module=True)  # fmt: skip
