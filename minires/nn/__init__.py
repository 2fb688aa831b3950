"""Layers and the Module tree they form."""

from minires.autograd import Parameter
from minires.nn import init
from minires.nn.folding import FoldedNorm, fold_batch_norm, fold_batch_norms
from minires.nn.layers import (
    AdaptiveAvgPool2d,
    AvgPool2d,
    BatchNorm2d,
    Conv2d,
    CrossEntropyLoss,
    Dropout,
    Flatten,
    Identity,
    Linear,
    MaxPool2d,
    ReLU,
)
from minires.nn.module import Module, ModuleList, Sequential
