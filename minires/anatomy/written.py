"""Identities in the kernels of a plain network, written as shortcuts.

This is `to_plain` read backwards. It finds channels that convolutions only copy and that a later
one adds, and draws them as a line past the layers between. Nothing is gained but the weights that
held ones and zeros: the function is the same, and a plain net trained as such has no identity to
find, for nothing makes its kernels copy anything. It also shows what a shortcut is: a way to write
down, and not to have to learn, one particular choice of weights. Which paths a gradient takes, and
how many there are, is a property of the writing and not of the function.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from minires import nn
from minires.anatomy.parts import Array
from minires.anatomy.plain import convolution
from minires.autograd import Tensor
from minires.models import PadShortcut, ResidualBlock


class WrittenBlock(ResidualBlock):
    """relu(branch(x) + shortcut(x)), or relu(branch(x)) where no identity was found.

    body: convolutions with ReLUs between them. downsample: what happens to x on the shortcut, or
    None where it passes as it is. plain: whether there is no shortcut.
    """

    def __init__(
        self, convs: list[nn.Conv2d], downsample: nn.Module | None = None, plain: bool = True
    ) -> None:
        stride = int(np.prod([conv.stride[0] for conv in convs]))
        super().__init__(convs[0].in_channels, convs[-1].out_channels, stride)
        layers: list[nn.Module] = [convs[0]]
        for conv in convs[1:]:
            layers += [nn.ReLU(), conv]
        self.body = nn.Sequential(*layers)
        self.downsample, self.plain = downsample, plain

    def branch(self, x: Tensor) -> Tensor:
        return self.body(x)


class WrittenNet(nn.Module):
    """A plain network with the shortcuts that were found in it; it can be taken apart as a ResNet
    can, into stem, named blocks and head."""

    def __init__(
        self, first: list[nn.Module], blocks: list[WrittenBlock], last: list[nn.Module]
    ) -> None:
        super().__init__()
        self.first, self.blocks = nn.Sequential(*first), nn.Sequential(*blocks)
        self.last = nn.Sequential(*last)

    def stem(self, x: Tensor) -> Tensor:
        return self.first(x)

    def head(self, x: Tensor) -> Tensor:
        return self.last(x)

    def named_blocks(self) -> Iterator[tuple[str, WrittenBlock]]:
        for name, block in self.blocks.named_children():
            yield f"blocks.{name}", block  # type: ignore[misc]

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.blocks(self.stem(x)))

    @property
    def shortcuts(self) -> int:
        """How many blocks have a shortcut."""
        return sum(not block.plain for _, block in self.named_blocks())


def shortcuts_from_identity(plain: nn.Sequential) -> WrittenNet:
    """The same function with every identity that its kernels carry written as a shortcut.

    plain: convolution, ReLU, perhaps pooling; then any number of convolutions with a ReLU behind
    each; then the rest, as from `to_plain`. Channels count as carried if convolution after
    convolution copies them (a single 1 at the centre of the kernel, no bias) and nothing else reads
    them until one convolution adds them, by its centre taps only.

    Where nothing is carried a layer becomes a plain block of its own; `WrittenNet.shortcuts` says
    how many shortcuts were found. The logits are equal up to rounding.

    Raises ValueError for layers in another order.
    """
    first, convs, last = _divided(plain)
    blocks = []
    while convs:
        found = _carried(convs)
        if found is None:
            blocks.append(WrittenBlock([convs.pop(0)]))
        else:
            block, used = found
            blocks.append(block)
            del convs[:used]
    return WrittenNet(first, blocks, last).train(plain.training)


def _divided(plain: nn.Sequential) -> tuple[list[nn.Module], list[nn.Conv2d], list[nn.Module]]:
    """The stem, the convolutions in the middle (a ReLU belongs to each), and the head."""
    layers = list(plain)
    start = 2
    if [type(layer) for layer in layers[:2]] != [nn.Conv2d, nn.ReLU]:
        kinds = ", ".join(type(layer).__name__ for layer in layers[:2])
        raise ValueError(
            f"shortcuts_from_identity: expected a Conv2d and a ReLU first, got {kinds or 'nothing'}"
        )
    while start < len(layers) and isinstance(layers[start], nn.MaxPool2d | nn.AvgPool2d):
        start += 1
    end, convs = start, []
    while end + 1 < len(layers) and isinstance(layers[end], nn.Conv2d):
        if not isinstance(layers[end + 1], nn.ReLU):
            raise ValueError(
                f"shortcuts_from_identity: expected a ReLU behind the convolution at {end}, got "
                f"{type(layers[end + 1]).__name__}"
            )
        convs.append(layers[end])
        end += 2
    return layers[:start], convs, layers[end:]  # type: ignore[return-value]


@dataclass
class _Run:
    """Convolutions that copy channels of x past what they compute.

    branch: what they compute, without the copies. own: its channels among those that come out last.
    rows: the channels that hold copies there, and sources: the channels of x that they are.
    """

    x_channels: int
    branch: list[nn.Conv2d]
    own: Array
    rows: Array
    sources: Array


def _carried(convs: list[nn.Conv2d]) -> tuple[WrittenBlock, int] | None:
    """A block that begins with the first of these convolutions and has a shortcut, and how many
    of them it takes; None if nothing is carried."""
    first = convs[0]
    copies = _copies(first)
    own = _others(copies, first.out_channels)
    if not copies or not len(own):
        return None
    run = _Run(first.in_channels, [_part(first, own, slice(None))], own,
               np.array(list(copies)), np.array(list(copies.values())))  # fmt: skip
    for used, conv in enumerate(convs[1:], 2):
        if not _goes_on(run, conv):
            block = _closed(run, conv)
            return None if block is None else (block, used)
    return None


def _goes_on(run: _Run, conv: nn.Conv2d) -> bool:
    """Whether a convolution copies every carried channel and computes something without them; if
    so, the run includes it."""
    copies = {o: c for o, c in _copies(conv).items() if c in run.rows}
    own = _others(copies, conv.out_channels)
    computed = conv.weight._data[own]
    if sorted(copies.values()) != sorted(run.rows) or not computed.any():
        return False
    if computed[:, run.rows].any():
        return False
    run.branch.append(_part(conv, own, run.own))
    source = dict(zip(run.rows.tolist(), run.sources.tolist(), strict=True))
    run.own, run.rows = own, np.array(list(copies))
    run.sources = np.array([source[c] for c in copies.values()])
    return True


def _closed(run: _Run, conv: nn.Conv2d) -> WrittenBlock | None:
    """The block that ends with this convolution; None if it does not add what is carried pixel by
    pixel."""
    if not _centred(conv):
        return None
    carried = conv.weight._data[:, run.rows]
    KH, KW = conv.kernel_size
    centre = carried[:, :, KH // 2, KW // 2]
    if np.count_nonzero(carried) != np.count_nonzero(centre):
        return None
    matrix = centre @ np.eye(run.x_channels, dtype=carried.dtype)[run.sources]
    convs = [*run.branch, _part(conv, slice(None), run.own)]
    stride = int(np.prod([c.stride[0] for c in convs]))
    return WrittenBlock(convs, _shortcut(matrix, stride), plain=False)


def _shortcut(matrix: Array, stride: int) -> nn.Module | None:
    """A matrix (O, C) on every stride-th pixel as the simplest shortcut that does it."""
    O, C = matrix.shape
    if O >= C and (matrix == np.eye(O, C)).all():
        return None if O == C and stride == 1 else PadShortcut(C, O, stride)
    with nn.init.skip_init():
        projection = nn.Conv2d(C, O, 1, stride, bias=False)
    projection.weight = nn.Parameter(matrix[:, :, None, None])
    return projection


def _copies(conv: nn.Conv2d) -> dict[int, int]:
    """Output channels that are an input channel, unchanged but for the stride: {output: input}."""
    if not _centred(conv):
        return {}
    weight = conv.weight._data
    KH, KW = conv.kernel_size
    single = np.count_nonzero(weight, axis=(1, 2, 3)) == 1
    ones = weight[:, :, KH // 2, KW // 2] == 1
    free = np.ones(len(weight), bool) if conv.bias is None else conv.bias._data == 0
    return {int(o): int(ones[o].argmax()) for o in np.flatnonzero(single & ones.any(1) & free)}


def _centred(conv: nn.Conv2d) -> bool:
    """Whether the kernel's centre tap reads every stride-th pixel, beginning with the first."""
    odd = all(k % 2 and p == k // 2 for k, p in zip(conv.kernel_size, conv.padding, strict=True))
    square = conv.stride[0] == conv.stride[1]
    return odd and square and conv.dilation == (1, 1) and conv.groups == 1


def _others(copies: dict[int, int], channels: int) -> Array:
    return np.array([o for o in range(channels) if o not in copies], int)


def _part(conv: nn.Conv2d, outputs: Any, inputs: Any) -> nn.Conv2d:
    """The convolution between some of its channels."""
    bias = None if conv.bias is None else conv.bias._data[outputs]
    return convolution(conv.weight._data[outputs][:, inputs], bias, conv)
