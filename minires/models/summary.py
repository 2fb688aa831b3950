"""What a model costs: parameters, multiply-adds, layers. All of it from geometry."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np

from minires import nn
from minires.autograd import Tensor, no_grad
from minires.models.registry import Shape, create, entry


@dataclass(frozen=True)
class Layer:
    """One convolution or fully connected layer, as it was met on the way forward.

    output_shape: of one image, (O, OH, OW) or (out,).
    multiply_adds: for one image. shortcut: whether it lies on a shortcut (a projection).
    """

    name: str
    kind: str
    output_shape: tuple[int, ...]
    parameters: int
    multiply_adds: int
    shortcut: bool


@dataclass(frozen=True)
class ModelInfo:
    """What `minires models` shows.

    layers: convolutions and fully connected layers, projections not counted, as the paper counts.
    """

    name: str
    layers: int
    parameters: int
    multiply_adds: int
    input_shape: Shape
    options: tuple[str, ...]


def count_parameters(model: nn.Module) -> int:
    """Numbers that training changes: weights, biases, gammas and betas, each once."""
    return sum(parameter.numel() for parameter in model.parameters())


def weighted_layers(model: nn.Module, input_shape: Shape) -> list[Layer]:
    """The convolutions and fully connected layers in the order in which an image meets them.

    input_shape: (C, H, W). Raises ValueError if it does not fit the model.

    The model is run in evaluation mode on a batch of no images at all: every shape is worked out
    and checked as in earnest, and there is nothing to compute. Its state does not change.
    """
    if len(input_shape) != 3:
        raise ValueError(f"input_shape: expected (C, H, W), got {tuple(input_shape)}")
    found: list[Layer] = []
    with ExitStack() as stack:
        for name, module in model.named_modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                stack.callback(module.register_forward_hook(_recorder(name, found)))
        stack.enter_context(_evaluating(model))
        stack.enter_context(no_grad())
        dtype = next((p.dtype for p in model.parameters()), np.dtype(np.float32))
        model(Tensor(np.zeros((0, *input_shape), dtype)))
    return found


def _recorder(name: str, found: list[Layer]) -> Any:
    def record(module: nn.Conv2d | nn.Linear, args: Any, output: Tensor) -> None:
        weight = module.weight
        found.append(
            Layer(
                name,
                type(module).__name__,
                output.shape[1:],
                sum(p.numel() for p in module.parameters()),
                # Each weight once for every pixel (of which a vector has one).
                weight.numel() * math.prod(output.shape[2:]),
                "downsample" in name.split("."),
            )
        )

    return record


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


def multiply_adds(model: nn.Module, input_shape: Shape) -> int:
    """Multiply-adds of one image's forward pass, in convolutions and fully connected layers.

    Counted by definition, padding and projections included, whatever algorithm computes them;
    batch norm, ReLU, pooling and the additions at the joins are not counted. The figures of the
    paper's table 1 are these, given to one digit, for bottlenecks with stride_on="1x1".
    """
    return sum(layer.multiply_adds for layer in weighted_layers(model, input_shape))


def describe(name: str, **options: Any) -> ModelInfo:
    """Size and cost of the model of this name, for an image of the size it is meant for.

    options: as for `create`. Raises as `create` does.
    """
    found = entry(name)
    with nn.init.skip_init():
        model = create(name, **options)
    channels = options.get("in_channels", found.input_shape[0])
    input_shape = (channels, *found.input_shape[1:])
    layers = weighted_layers(model, input_shape)
    return ModelInfo(
        name=name,
        layers=sum(not layer.shortcut for layer in layers),
        parameters=count_parameters(model),
        multiply_adds=sum(layer.multiply_adds for layer in layers),
        input_shape=input_shape,
        options=found.options,
    )
