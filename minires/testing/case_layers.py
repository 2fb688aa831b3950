"""The table of layers and small blocks, each with its parameters; see `cases`."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np

from minires import nn
from minires.testing.cases import Input, add_case
from minires.testing.small_nets import Block, Classifier, PreActivation

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
    "FoldedNorm": ((IMAGES,), {"defaults": nn.FoldedNorm}),
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


add_case("block", "identity", partial(Block, 2, 2, 1, "identity"), (3, 2, 4, 3), module=True)
add_case("block", "projection", partial(Block, 2, 3, 2, "projection"), (3, 2, 5, 4), module=True)
add_case("block", "zeros padded (option A)", partial(Block, 2, 4, 2, "zeros"), (3, 2, 5, 4),
         module=True)  # fmt: skip
add_case("block", "pre-activation", partial(PreActivation, 2), (3, 2, 4, 3), module=True)
add_case("net", "classifier", Classifier, (3, 1, 8, 7), lambda rng: LABELS, module=True)
add_case("net", "classifier, evaluation", lambda: Classifier().eval(), (3, 1, 8, 7),
         lambda rng: LABELS, module=True)  # fmt: skip
