"""A residual network written as a plain one, and back.

"The trained residual network can be converted to an identical plain convolutional network" (a
reader's remark on He et al., 2016). Here it is done, for evaluation mode:

    batch norm is folded into the convolution before it;
    a block's input x rides along beside F(x), in channels of its own whose kernels are a single 1
    at the centre. x comes out of a ReLU, so it is not negative and every ReLU passes it unchanged;
    the last convolution of the block adds it to F(x), by a 1 (identity, padding) or by the
    projection's weights at its centre tap. A stride is taken by the centre taps too.

    layer 1    [ W1  0 ... ]  on x          ->  relu  [ u ; x ]
               [ I       ]
    layer 2    [ W2  I ]      on [ u ; x ]  ->  relu( W2 u + x )

The shortcut then costs what it did not cost before: a basic block twice, a bottleneck nearly
sixteen times its weights.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from minires import nn
from minires.anatomy.text import aligned
from minires.autograd import Parameter
from minires.models import BasicBlock, Bottleneck, ResidualBlock, ResNet, count_parameters
from minires.models.summary import weighted_layers
from minires.nn import init

Array = np.ndarray[Any, Any]


def to_plain(model: ResNet) -> nn.Sequential:
    """A plain network of convolutions, ReLUs, pooling and a linear layer that computes the same.

    model: a residual or plain net of basic blocks or bottlenecks in evaluation mode, with any
        shortcut option; left as it is. The logits are equal up to rounding.

    Raises TypeError for another kind of network or block, ValueError in training mode.
    """
    _check(model)
    layers: dict[str, nn.Module] = {
        "conv1": nn.fold_batch_norm(model.conv1, model.bn1),
        "relu1": nn.ReLU(),
    }
    if isinstance(model.maxpool, nn.MaxPool2d):
        pool = model.maxpool
        layers["maxpool"] = nn.MaxPool2d(pool.kernel_size, pool.stride, pool.padding, pool.dilation)
    for name, block in model.named_blocks():
        prefix = name.replace(".", "_")
        for i, conv in enumerate(_plain_block(block), 1):
            layers[f"{prefix}_conv{i}"] = conv
            layers[f"{prefix}_relu{i}"] = nn.ReLU()
    layers |= {
        "avgpool": nn.AdaptiveAvgPool2d(1),
        "flatten": nn.Flatten(),
        "fc": _linear(model.fc),
    }
    return nn.Sequential(layers).eval()


def _check(model: Any) -> None:
    if not isinstance(model, ResNet):
        raise TypeError(f"to_plain: needs a ResNet of minires.models, got {type(model).__name__}")
    for name, block in model.named_blocks():
        if type(block) not in (BasicBlock, Bottleneck):
            raise TypeError(
                f"to_plain: {name} is a {type(block).__name__}; BasicBlock and Bottleneck can be "
                "rewritten, whose input is never negative"
            )
    if any(module.training for module in model.modules()):
        raise ValueError(
            "to_plain: the model is in training mode, where batch norm depends on the batch; call "
            "model.eval() first"
        )


def _linear(fc: nn.Linear) -> nn.Linear:
    with init.skip_init():
        copied = nn.Linear(fc.in_features, fc.out_features, fc.bias is not None)
    copied.to(fc.weight.dtype).load_state_dict(fc.state_dict())
    return copied


def _folded(block: ResidualBlock) -> list[nn.Conv2d]:
    """The branch's convolutions, each with its batch norm."""
    pairs = [(block.conv1, block.bn1), (block.conv2, block.bn2)]
    if isinstance(block, Bottleneck):
        pairs.append((block.conv3, block.bn3))
    return [nn.fold_batch_norm(conv, bn) for conv, bn in pairs]


def _plain_block(block: ResidualBlock) -> list[nn.Conv2d]:
    """The convolutions that compute the block, each with a ReLU behind it."""
    convs = _folded(block)
    if block.plain:
        return convs
    C, O = block.in_channels, block.out_channels
    matrix, bias = _shortcut(block, C, O)
    plain = []
    for i, conv in enumerate(convs):
        weight, last = conv.weight._data, i == len(convs) - 1
        out, inner, KH, KW = weight.shape
        before = 0 if i == 0 else inner  # where x begins among the channels that come in
        wide = np.zeros((out if last else out + C, before + C, KH, KW), weight.dtype)
        wide[:out, :inner] += weight
        below = slice(None) if last else slice(out, None)
        wide[below, before:, KH // 2, KW // 2] += matrix if last else np.eye(C)
        offset = conv.bias._data + bias if last else np.append(conv.bias._data, np.zeros(C))  # type: ignore[union-attr]
        plain.append(convolution(wide, offset.astype(weight.dtype), conv))
    return plain


def _shortcut(block: ResidualBlock, C: int, O: int) -> tuple[Array, Array]:
    """The shortcut as a matrix (O, C) on each pixel that the stride keeps, and a bias (O,)."""
    if isinstance(block.downsample, nn.Sequential):
        projection = nn.fold_batch_norm(block.downsample[0], block.downsample[1])
        return projection.weight._data[:, :, 0, 0], projection.bias._data  # type: ignore[union-attr]
    return np.eye(O, C), np.zeros(O)


def convolution(weight: Array, bias: Array | None, like: nn.Conv2d) -> nn.Conv2d:
    """A convolution of this weight with the stride and padding of another."""
    with init.skip_init():
        conv = nn.Conv2d(
            weight.shape[1], weight.shape[0], weight.shape[2:], like.stride, like.padding,
            bias=bias is not None,
        )  # fmt: skip
    conv.weight = Parameter(weight)
    if bias is not None:
        conv.bias = Parameter(bias)
    return conv


@dataclass(frozen=True)
class PlainCost:
    """One block, with its shortcut and written without. carried: channels that hold x."""

    name: str
    carried: int
    parameters: int
    plain_parameters: int


@dataclass(frozen=True)
class PlainReport:
    """What it costs to do without shortcuts.

    parameters: of the residual net with batch norm folded. plain_parameters: of the plain net.
    plain_nonzero: those of them that are not zero. multiply_adds, plain_multiply_adds: of one
    image's forward pass. blocks: each block's weights and biases.
    """

    blocks: tuple[PlainCost, ...]
    parameters: int
    plain_parameters: int
    plain_nonzero: int
    multiply_adds: int
    plain_multiply_adds: int

    def table(self) -> str:
        """A line per block, and the whole net."""
        lines = [
            (cost.name, f"{cost.carried}", f"{cost.parameters:,}", f"{cost.plain_parameters:,}",
             f"{cost.plain_parameters / cost.parameters:.2f}")
            for cost in self.blocks
        ]  # fmt: skip
        for name, with_shortcuts, without in (
            ("all parameters", self.parameters, self.plain_parameters),
            ("of them not zero", self.parameters, self.plain_nonzero),
            ("multiply-adds", self.multiply_adds, self.plain_multiply_adds),
        ):
            lines.append((name, "", f"{with_shortcuts:,}", f"{without:,}",
                          f"{without / with_shortcuts:.2f}"))  # fmt: skip
        return aligned(("", "carried", "with shortcuts", "plain", "ratio"), lines)


def plain_report(model: ResNet, input_shape: Sequence[int]) -> PlainReport:
    """The cost of `to_plain(model)`, for images of `input_shape`, (C, H, W).

    Raises as `to_plain` does, and ValueError for a shape that does not fit.
    """
    plain = to_plain(model)
    folded = nn.fold_batch_norms(model, input_shape)
    C, H, W = input_shape
    costs = []
    for (name, block), (_, with_shortcut) in zip(
        model.named_blocks(), folded.named_blocks(), strict=True
    ):
        prefix = name.replace(".", "_") + "_conv"
        written = [conv for key, conv in plain.named_children() if key.startswith(prefix)]
        costs.append(
            PlainCost(
                name,
                0 if block.plain else block.in_channels,
                count_parameters(with_shortcut),
                sum(count_parameters(conv) for conv in written),
            )
        )
    return PlainReport(
        blocks=tuple(costs),
        parameters=count_parameters(folded),
        plain_parameters=count_parameters(plain),
        plain_nonzero=sum(int(np.count_nonzero(p._data)) for p in plain.parameters()),
        multiply_adds=sum(x.multiply_adds for x in weighted_layers(model, (C, H, W))),
        plain_multiply_adds=sum(x.multiply_adds for x in weighted_layers(plain, (C, H, W))),
    )
