"""Networks: residual networks and their plain twins, by name and by function."""

from minires.models.blocks import SHORTCUTS, BasicBlock, Bottleneck, PadShortcut, ResidualBlock
from minires.models.registry import Entry, create, entry, list_models, register
from minires.models.resnet import (
    ResNet,
    cifar_resnet,
    imagenet_resnet,
    plain18,
    plain20,
    plain32,
    plain34,
    plain44,
    plain56,
    plain110,
    resnet18,
    resnet20,
    resnet32,
    resnet34,
    resnet44,
    resnet50,
    resnet56,
    resnet101,
    resnet110,
    resnet152,
    resnet1202,
)
from minires.models.summary import (
    Layer,
    ModelInfo,
    count_parameters,
    describe,
    multiply_adds,
    weighted_layers,
)
