"""What is timed of PyTorch: the same networks in its own layers, with torchvision's names."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
import torch.nn.functional as TF
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from versus.work import SETTINGS, Call, Work

LAYOUTS = {"NCHW": torch.contiguous_format, "channels_last": torch.channels_last}
COUNTS = {"resnet18": (2, 2, 2, 2), "resnet50": (3, 4, 6, 3), "resnet20": (3, 3, 3),
          "resnet110": (18, 18, 18), "resnet8": (1, 1, 1)}  # fmt: skip
VERSIONS = 64  # compiled nets in one process


class Block(nn.Module):
    """A residual block of convolutions (kernel, width, stride), ReLU after the addition."""

    def __init__(self, inside: int, shapes: list[tuple[int, int, int]], shortcut: Any) -> None:
        super().__init__()
        self.depth = len(shapes)
        for i, (kernel, width, stride) in enumerate(shapes, 1):
            conv = nn.Conv2d(inside, width, kernel, stride, kernel // 2, bias=False)
            setattr(self, f"conv{i}", conv)
            setattr(self, f"bn{i}", nn.BatchNorm2d(width))
            inside = width
        self.downsample = shortcut

    def forward(self, x: Any) -> Any:
        y = x
        for i in range(1, self.depth + 1):
            y = getattr(self, f"bn{i}")(getattr(self, f"conv{i}")(y))
            if i < self.depth:
                y = TF.relu(y, inplace=True)
        return TF.relu(y + (x if self.downsample is None else self.downsample(x)), inplace=True)


class PadShortcut(nn.Module):
    """Option A: every second pixel, and zeros for the channels that are new."""

    def forward(self, x: Any) -> Any:
        return TF.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, 0, x.shape[1]))


class TorchResNet(nn.Module):
    """ResNet-18 and -50 for ImageNet, -20 and -110 for CIFAR-10."""

    def __init__(self, name: str) -> None:
        super().__init__()
        counts, deep = COUNTS[name], name == "resnet50"
        self.small = len(counts) == 3
        inside = base = 16 if self.small else 64
        stem = (3, 1, 1) if self.small else (7, 2, 3)
        self.conv1 = nn.Conv2d(3, inside, *stem, bias=False)
        self.bn1 = nn.BatchNorm2d(inside)
        self.stages = [f"layer{i}" for i in range(1, len(counts) + 1)]
        for i, (stage, count) in enumerate(zip(self.stages, counts, strict=True)):
            width, blocks = base * 2**i, []
            out = width * (4 if deep else 1)
            for j in range(count):
                stride = 2 if i and not j else 1
                shapes = [(3, width, stride), (3, width, 1)]
                if deep:
                    shapes = [(1, width, 1), (3, width, stride), (1, out, 1)]
                blocks.append(Block(inside, shapes, self._shortcut(inside, out, stride)))
                inside = out
            setattr(self, stage, nn.Sequential(*blocks))
        self.fc = nn.Linear(inside, 10 if self.small else 1000)

    def _shortcut(self, inside: int, out: int, stride: int) -> Any:
        if stride == 1 and inside == out:
            return None
        if self.small:
            return PadShortcut()
        conv = nn.Conv2d(inside, out, 1, stride, bias=False)
        return nn.Sequential(conv, nn.BatchNorm2d(out))

    def forward(self, x: Any) -> Any:
        x = TF.relu(self.bn1(self.conv1(x)), inplace=True)
        if not self.small:
            x = TF.max_pool2d(x, 3, 2, 1)
        for stage in self.stages:
            x = getattr(self, stage)(x)
        return self.fc(TF.adaptive_avg_pool2d(x, 1).flatten(1))


def fold(net: TorchResNet) -> TorchResNet:
    """Fold every batch norm into the convolution before it, in place. The net is in eval mode."""
    for module in list(net.modules()):
        if isinstance(module, Block | TorchResNet):
            for i in range(1, getattr(module, "depth", 1) + 1):
                conv, bn = getattr(module, f"conv{i}"), getattr(module, f"bn{i}")
                setattr(module, f"conv{i}", fuse_conv_bn_eval(conv, bn))
                setattr(module, f"bn{i}", nn.Identity())
        elif isinstance(module, nn.Sequential) and isinstance(module[0], nn.Conv2d):
            module[0], module[1] = fuse_conv_bn_eval(module[0], module[1]), nn.Identity()
    return net


def _compiled(net: TorchResNet) -> Any:
    """torch.compile: each net is one more version of one `forward`, of which only eight are kept by
    default; the others would run eagerly, with no more than a warning."""
    import torch._dynamo

    torch._dynamo.config.recompile_limit = VERSIONS
    return torch.compile(net)


def training_step(
    work: Work, layout: str = "channels_last", compiled: bool = False, model: Any = None
) -> Call:
    """One training step: forward, cross-entropy, backward, SGD with momentum and decay."""
    net = TorchResNet(work.model) if model is None else model
    net = net.to(memory_format=LAYOUTS[layout])
    optimizer = torch.optim.SGD(net.parameters(), **SETTINGS)
    x = torch.tensor(work.images()).contiguous(memory_format=LAYOUTS[layout])
    labels = torch.tensor(work.labels())
    forward = _compiled(net) if compiled else net

    def step() -> float:
        optimizer.zero_grad()
        loss = TF.cross_entropy(forward(x), labels)
        loss.backward()
        optimizer.step()
        return loss.item()

    return step


def inference(work: Work, layout: str, compiled: bool, model: Any) -> Call:
    """Answers to a batch, batch norm folded into the convolutions."""
    net = fold(model.eval()).to(memory_format=LAYOUTS[layout])
    x = torch.tensor(work.images()).contiguous(memory_format=LAYOUTS[layout])
    forward = _compiled(net) if compiled else net

    def answer() -> np.ndarray:
        with torch.inference_mode():
            return forward(x).numpy()

    return answer


def ways(compiled: bool) -> Iterator[tuple[str, str, bool]]:
    """(name, layout, whether compiled) of the ways to run PyTorch."""
    for way in (False, True) if compiled else (False,):
        for layout in LAYOUTS:
            yield f"torch {'compiled' if way else 'eager'} {layout}", layout, way
