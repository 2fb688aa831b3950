"""The convolutions of a network, found by running it: geometries, how often, and where.

The network is run in evaluation mode on a batch of no images: shapes are worked out as in earnest
and nothing is computed.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from minires import nn
from minires.autograd import Tensor, no_grad
from minires.kernels import ConvGeometry, conv_geometry
from minires.models.registry import Shape, create, entry

BATCHES = {32: 128, 224: 16}
"""Images per batch where none is asked for, by the size of image a network is meant for."""


@dataclass(frozen=True)
class ConvLayer:
    """One geometry of convolution in a network.

    names: the layers that have it, in the order in which an image meets them.
    needs_grad_input: False for the first layer, whose input gradient no training asks for.
    """

    names: tuple[str, ...]
    geometry: ConvGeometry
    needs_grad_input: bool = True

    @property
    def count(self) -> int:
        return len(self.names)

    @property
    def label(self) -> str:
        """`layer1.0.conv1`, and how many more are like it."""
        return self.names[0] + (f" (x{self.count})" if self.count > 1 else "")


def conv_layers(
    model: str, batch: int | None = None, size: int | None = None, **options: Any
) -> list[ConvLayer]:
    """The different convolutions of a registered network, in the order an image meets them.

    batch, size: images per batch and their side; by default 128 at 32 or 16 at 224, whichever
        the network is meant for. options: as for `minires.models.create`.

    Raises TypeError for a batch or size that is no integer, ValueError for an unknown network, and
    for images that are too small for it.
    """
    for what, count in (("batch", batch), ("size", size)):
        if count is not None and not isinstance(count, int):
            raise TypeError(f"layers: {what} takes an integer, got {count!r}")
    channels, height, _ = entry(model).input_shape
    channels = options.get("in_channels", channels)
    side = height if size is None else size
    images = BATCHES.get(height, 16) if batch is None else batch
    if images < 1 or side < 1:
        raise ValueError(f"layers: batch and size must be at least 1, got {images} and {side}")
    with nn.init.skip_init():
        net = create(model, **options)
    found = _convolutions(net, (channels, side, side))
    return _distinct([(name, replace(g, N=images)) for name, g in found])


def shape_layer(
    x_shape: tuple[int, ...], weight_shape: tuple[int, ...], **settings: Any
) -> ConvLayer:
    """One convolution by its shapes; settings: stride, padding, dilation, groups as of conv2d."""
    g = conv_geometry(x_shape, weight_shape, **settings)
    return ConvLayer((str(g),), g)


def _convolutions(net: nn.Module, input_shape: Shape) -> list[tuple[str, ConvGeometry]]:
    found: list[tuple[str, ConvGeometry]] = []

    def recorder(name: str) -> Any:
        def record(module: nn.Conv2d, args: Any, output: Tensor) -> None:
            settings = module.stride, module.padding, module.dilation, module.groups
            found.append((name, conv_geometry(args[0].shape, module.weight.shape, *settings)))

        return record

    for name, module in net.named_modules():
        if isinstance(module, nn.Conv2d):
            module.register_forward_hook(recorder(name))
    with no_grad():
        net.eval()(Tensor(np.zeros((0, *input_shape), np.float32)))
    return found


def _distinct(found: Iterable[tuple[str, ConvGeometry]]) -> list[ConvLayer]:
    names: dict[ConvGeometry, list[str]] = {}
    first = None
    for name, g in found:
        first = first or g
        names.setdefault(g, []).append(name)
    return [
        ConvLayer(tuple(those), g, needs_grad_input=g != first or len(those) > 1)
        for g, those in names.items()
    ]
