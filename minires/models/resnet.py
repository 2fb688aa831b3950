"""Residual networks and their plain twins: He et al. (2016), "Deep Residual Learning".

Two families. For ImageNet (table 1): a 7x7/2 stem with a max pool, four stages of `width`, 2, 4
and 8 times `width` channels. For CIFAR-10 (section 4.2): a 3x3 stem, three stages, depth 6n + 2.
The first block of every stage but the first halves the image. The keys of the state dict are
torchvision's.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Literal, TypedDict, Unpack

import numpy as np

from minires import functional as F
from minires import nn
from minires.autograd import Tensor
from minires.models.blocks import BasicBlock, Bottleneck, ResidualBlock
from minires.models.registry import register

MakeBlock = Callable[[int, int, int], ResidualBlock]
Shortcut = Literal["A", "B", "C", "none"]

IMAGENET = (3, 224, 224)
CIFAR = (3, 32, 32)

IMAGENET_STAGES: dict[int, tuple[type[BasicBlock] | type[Bottleneck], tuple[int, ...]]] = {
    18: (BasicBlock, (2, 2, 2, 2)),
    34: (BasicBlock, (3, 4, 6, 3)),
    50: (Bottleneck, (3, 4, 6, 3)),
    101: (Bottleneck, (3, 4, 23, 3)),
    152: (Bottleneck, (3, 8, 36, 3)),
}
"""Depth: the block and how many of it in each stage (table 1 of the paper)."""


class ResNet(nn.Module):
    """A stem, stages of residual blocks, global average pooling and a fully connected layer.

    block: `block(in_channels, width, stride)` makes a block; its other settings are bound before,
        as in `functools.partial(BasicBlock, shortcut="C")`.
    stages: how many blocks each stage has; stage i is called `layer{i + 1}`.
    width: channels in the blocks of the first stage; doubled from stage to stage.
    stem: "imagenet" (7x7/2 and max pooling) or "cifar" (3x3).

    Called with images (N, in_channels, H, W), it returns logits (N, num_classes). Any size of
    image will do that the stem leaves a pixel of.

    Convolutions are initialised as He et al. (2015), equation 14 (normal, variance 2 / fan_out, as
    torchvision's), batch norm with gamma 1 and beta 0, and the fully connected layer uniformly.
    """

    def __init__(
        self,
        block: MakeBlock,
        stages: Sequence[int],
        *,
        width: int = 64,
        stem: Literal["imagenet", "cifar"] = "imagenet",
        num_classes: int = 1000,
        in_channels: int = 3,
    ) -> None:
        super().__init__()
        if stem not in ("imagenet", "cifar"):
            raise ValueError(f"ResNet: stem is 'imagenet' or 'cifar', got {stem!r}")
        if not stages or min(stages) < 1:
            raise ValueError(f"ResNet: every stage needs at least one block, got {list(stages)}")
        for name, count in (
            ("width", width),
            ("num_classes", num_classes),
            ("in_channels", in_channels),
        ):
            if isinstance(count, bool) or not isinstance(count, int | np.integer):
                raise TypeError(f"ResNet: {name} takes an integer, got {count!r}")
            if count < 1:
                raise ValueError(f"ResNet: {name} must be at least 1, got {count}")
        if stem == "imagenet":
            self.conv1 = nn.Conv2d(in_channels, width, 7, stride=2, padding=3, bias=False)
        else:
            self.conv1 = nn.Conv2d(in_channels, width, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.maxpool = nn.MaxPool2d(3, 2, padding=1) if stem == "imagenet" else nn.Identity()
        self._stages = [f"layer{i + 1}" for i in range(len(stages))]
        channels = width
        for i, (name, count) in enumerate(zip(self._stages, stages, strict=True)):
            stage = nn.Sequential()
            for j in range(count):
                made = block(channels, width * 2**i, 2 if i > 0 and j == 0 else 1)
                channels = made.out_channels
                stage.append(made)
            self.add_module(name, stage)
        self.fc = nn.Linear(channels, num_classes)

    def stem(self, x: Tensor) -> Tensor:
        """Images -> what the first block sees."""
        return self.maxpool(self.bn1.relu(self.conv1(x)))

    def head(self, x: Tensor) -> Tensor:
        """What the last block returns -> logits (N, num_classes)."""
        return self.fc(F.adaptive_avg_pool2d(x, 1).flatten(1))

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for _, stage in self.stages():
            x = stage(x)
        return self.head(x)

    def stages(self) -> Iterator[tuple[str, nn.Sequential]]:
        """(`layer1`, its blocks), and so on, in the order of the forward pass."""
        for name in self._stages:
            yield name, getattr(self, name)

    def named_blocks(self) -> Iterator[tuple[str, ResidualBlock]]:
        """(`layer1.0`, the block), and so on, in the order of the forward pass."""
        for stage_name, stage in self.stages():
            for name, block in stage.named_children():
                yield f"{stage_name}.{name}", block  # type: ignore[misc]

    def blocks(self) -> Iterator[ResidualBlock]:
        """All blocks in the order of the forward pass: `head(last(...first(stem(x))))`."""
        for _, block in self.named_blocks():
            yield block


def imagenet_resnet(
    depth: int,
    *,
    num_classes: int = 1000,
    in_channels: int = 3,
    shortcut: Shortcut = "B",
    stride_on: Literal["1x1", "3x3"] | None = None,
    zero_gamma: bool = False,
    width: int = 64,
) -> ResNet:
    """A net of table 1, for images of about 224x224.

    depth: 18 or 34 (basic blocks), 50, 101 or 152 (bottlenecks).
    shortcut: "A" pads with zeros, "B" projects where the shape changes, "C" projects everywhere;
        "none" makes the plain twin.
    stride_on: the convolution of a bottleneck that strides: "3x3" (the default, torchvision's,
        known as v1.5) or "1x1" (the paper's).
    zero_gamma: start every block as relu(shortcut(x)).
    width: channels in the stem and the first stage.

    Raises ValueError for another depth, an unknown setting, or `stride_on` without bottlenecks.
    """
    if depth not in IMAGENET_STAGES:
        depths = ", ".join(map(str, IMAGENET_STAGES))
        raise ValueError(f"imagenet_resnet: depth is one of {depths}, got {depth}")
    block, stages = IMAGENET_STAGES[depth]
    make = partial(block, shortcut=shortcut, zero_gamma=zero_gamma)
    if block is Bottleneck:
        make = partial(make, stride_on=stride_on or "3x3")
    elif stride_on is not None:
        raise ValueError(
            f"imagenet_resnet: stride_on is for bottlenecks; depth {depth} has basic blocks"
        )
    return ResNet(make, stages, width=width, num_classes=num_classes, in_channels=in_channels)


def cifar_resnet(
    depth: int,
    *,
    num_classes: int = 10,
    in_channels: int = 3,
    shortcut: Shortcut = "A",
    zero_gamma: bool = False,
    width: int = 16,
) -> ResNet:
    """A net of section 4.2, for small images: 32x32, and down to 4x4.

    depth: 6n + 2: a stem, three stages of n blocks with two convolutions each, and the
        classifier.
    The other settings are those of `imagenet_resnet`.

    Raises ValueError for another depth or an unknown setting.
    """
    n, rest = divmod(depth - 2, 6)
    if rest or n < 1:
        nearest = [6 * k + 2 for k in (n, n + 1) if k >= 1]
        raise ValueError(
            f"cifar_resnet: depth must be 6n + 2 (three stages of n blocks of two layers, a stem "
            f"and a classifier), got {depth}; try {' or '.join(map(str, nearest or [8]))}"
        )
    return ResNet(
        partial(BasicBlock, shortcut=shortcut, zero_gamma=zero_gamma),
        (n, n, n),
        width=width,
        stem="cifar",
        num_classes=num_classes,
        in_channels=in_channels,
    )


class PlainOptions(TypedDict, total=False):
    """Settings of a net without shortcuts."""

    num_classes: int
    in_channels: int
    width: int


class Options(PlainOptions, total=False):
    """Settings of a residual net of basic blocks."""

    shortcut: Shortcut
    zero_gamma: bool


class BottleneckOptions(Options, total=False):
    """Settings of a residual net of bottlenecks."""

    stride_on: Literal["1x1", "3x3"]


@register(input_shape=IMAGENET)
def resnet18(**options: Unpack[Options]) -> ResNet:
    """ResNet-18; options as for `imagenet_resnet`."""
    return imagenet_resnet(18, **options)


@register(input_shape=IMAGENET)
def resnet34(**options: Unpack[Options]) -> ResNet:
    """ResNet-34; options as for `imagenet_resnet`."""
    return imagenet_resnet(34, **options)


@register(input_shape=IMAGENET)
def resnet50(**options: Unpack[BottleneckOptions]) -> ResNet:
    """ResNet-50; options as for `imagenet_resnet`."""
    return imagenet_resnet(50, **options)


@register(input_shape=IMAGENET)
def resnet101(**options: Unpack[BottleneckOptions]) -> ResNet:
    """ResNet-101; options as for `imagenet_resnet`."""
    return imagenet_resnet(101, **options)


@register(input_shape=IMAGENET)
def resnet152(**options: Unpack[BottleneckOptions]) -> ResNet:
    """ResNet-152; options as for `imagenet_resnet`."""
    return imagenet_resnet(152, **options)


@register(input_shape=IMAGENET)
def plain18(**options: Unpack[PlainOptions]) -> ResNet:
    """ResNet-18 without its shortcuts."""
    return imagenet_resnet(18, shortcut="none", **options)


@register(input_shape=IMAGENET)
def plain34(**options: Unpack[PlainOptions]) -> ResNet:
    """ResNet-34 without its shortcuts."""
    return imagenet_resnet(34, shortcut="none", **options)


@register(input_shape=CIFAR)
def resnet20(**options: Unpack[Options]) -> ResNet:
    """ResNet-20 for CIFAR; options as for `cifar_resnet`."""
    return cifar_resnet(20, **options)


@register(input_shape=CIFAR)
def resnet32(**options: Unpack[Options]) -> ResNet:
    """ResNet-32 for CIFAR; options as for `cifar_resnet`."""
    return cifar_resnet(32, **options)


@register(input_shape=CIFAR)
def resnet44(**options: Unpack[Options]) -> ResNet:
    """ResNet-44 for CIFAR; options as for `cifar_resnet`."""
    return cifar_resnet(44, **options)


@register(input_shape=CIFAR)
def resnet56(**options: Unpack[Options]) -> ResNet:
    """ResNet-56 for CIFAR; options as for `cifar_resnet`."""
    return cifar_resnet(56, **options)


@register(input_shape=CIFAR)
def resnet110(**options: Unpack[Options]) -> ResNet:
    """ResNet-110 for CIFAR; options as for `cifar_resnet`."""
    return cifar_resnet(110, **options)


@register(input_shape=CIFAR)
def resnet1202(**options: Unpack[Options]) -> ResNet:
    """ResNet-1202 for CIFAR; options as for `cifar_resnet`."""
    return cifar_resnet(1202, **options)


@register(input_shape=CIFAR)
def plain20(**options: Unpack[PlainOptions]) -> ResNet:
    """ResNet-20 without its shortcuts."""
    return cifar_resnet(20, shortcut="none", **options)


@register(input_shape=CIFAR)
def plain32(**options: Unpack[PlainOptions]) -> ResNet:
    """ResNet-32 without its shortcuts."""
    return cifar_resnet(32, shortcut="none", **options)


@register(input_shape=CIFAR)
def plain44(**options: Unpack[PlainOptions]) -> ResNet:
    """ResNet-44 without its shortcuts."""
    return cifar_resnet(44, shortcut="none", **options)


@register(input_shape=CIFAR)
def plain56(**options: Unpack[PlainOptions]) -> ResNet:
    """ResNet-56 without its shortcuts."""
    return cifar_resnet(56, shortcut="none", **options)


@register(input_shape=CIFAR)
def plain110(**options: Unpack[PlainOptions]) -> ResNet:
    """ResNet-110 without its shortcuts."""
    return cifar_resnet(110, shortcut="none", **options)
