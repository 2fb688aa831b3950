"""Residual blocks: two pathways and the join where they meet.

    y = relu(F(x) + x)        He et al. (2016), "Deep Residual Learning", equations 1 and 2

A block shows its parts, so that each can be looked at, cut or replaced on its own: `branch(x)` is
F, `shortcut(x)` the way past it, `join(branch, shortcut)` what becomes of the two.
"""

from __future__ import annotations

from typing import ClassVar

from minires import functional as F
from minires import nn
from minires._names import unknown
from minires.autograd import Tensor

SHORTCUTS = ("A", "B", "C", "none")
NORMS = nn.BatchNorm2d, nn.FoldedNorm  # layers that can do the join on the way


def conv3x3(in_channels: int, out_channels: int, stride: int = 1) -> nn.Conv2d:
    """A 3x3 convolution that keeps the size (over the stride)."""
    return nn.Conv2d(in_channels, out_channels, 3, stride, padding=1, bias=False)


def conv1x1(in_channels: int, out_channels: int, stride: int = 1) -> nn.Conv2d:
    """A 1x1 convolution: a linear map of each pixel's channels."""
    return nn.Conv2d(in_channels, out_channels, 1, stride, bias=False)


class PadShortcut(nn.Module):
    """Option A: every stride-th pixel, with zeros for the channels that are added behind.

    No parameters. The gradient is the adjoint: the upstream gradient of the first `in_channels`
    channels at the pixels that were kept, and zero at the others.
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        if out_channels < in_channels:
            raise ValueError(
                f"shortcut 'A' pads channels and cannot drop any: {in_channels} in, "
                f"{out_channels} out; use 'B'"
            )
        self.added, self.stride = out_channels - in_channels, stride

    def forward(self, x: Tensor) -> Tensor:
        s = self.stride
        if s > 1:
            x = x[:, :, ::s, ::s]
        return F.pad(x, (0, 0, 0, 0, 0, self.added)) if self.added else x

    def extra_repr(self) -> str:
        return f"added={self.added}, stride={self.stride}"


def make_shortcut(
    option: str, in_channels: int, out_channels: int, stride: int
) -> nn.Module | None:
    """What a shortcut does to x under option A, B or C; None where x passes as it is.

    A: zero padding where the shape changes. B: a projection there, a 1x1 convolution with batch
    norm. C: a projection on every shortcut. "none": there is no shortcut.
    Section 3.3 of the paper; raises ValueError for any other option.
    """
    if option not in SHORTCUTS:
        raise ValueError(unknown("shortcut option", option, SHORTCUTS))
    changes = stride != 1 or in_channels != out_channels
    if option == "C" or (option == "B" and changes):
        return nn.Sequential(
            conv1x1(in_channels, out_channels, stride), nn.BatchNorm2d(out_channels)
        )
    if option == "A" and changes:
        return PadShortcut(in_channels, out_channels, stride)
    return None


class ResidualBlock(nn.Module):
    """relu(branch(x) + shortcut(x)). Subclasses define the branch, and may replace other parts.

    A branch that ends in a batch norm is given as `before_norm(x)` and `last_norm`: norm, join and
    ReLU then run in one pass. Any other branch replaces `branch(x)` itself.

    in_channels, out_channels: of the block as a whole. stride: by which it shrinks the image.
    downsample: the module on the shortcut, or None where x passes as it is (torchvision's name).
    plain: whether the shortcut is cut, which makes the block relu(branch(x)).

    A subclass ends its `__init__` with `finish(...)`.
    """

    downsample: nn.Module | None

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        self.in_channels, self.out_channels, self.stride = in_channels, out_channels, stride

    def finish(self, shortcut: str, zero_gamma: bool) -> None:
        """Add the shortcut: "A", "B", "C", or "none" for the plain twin.

        zero_gamma: start with the branch's last gamma at 0, so that the block starts as
            relu(shortcut(x)) (Goyal et al., 2017, section 5.1).
        """
        self.plain = shortcut == "none"
        if self.plain and zero_gamma:
            raise ValueError(
                f"{type(self).__name__}: zero_gamma silences the branch, and without a shortcut "
                "nothing would be left"
            )
        # After the branch: the order of torchvision's parameters, which optimisers count on.
        self.downsample = make_shortcut(shortcut, self.in_channels, self.out_channels, self.stride)
        if zero_gamma:
            nn.init.constant_(self.last_norm.weight, 0.0)  # type: ignore[arg-type]

    @property
    def last_norm(self) -> nn.BatchNorm2d:
        """The batch norm that ends the branch."""
        raise TypeError(f"{type(self).__name__} names no last_norm")

    def before_norm(self, x: Tensor) -> Tensor:
        """The branch up to its last norm."""
        raise TypeError(f"{type(self).__name__} defines no branch(x), and no before_norm(x)")

    def branch(self, x: Tensor) -> Tensor:
        """F(x), the residual function: (N, in, H, W) -> (N, out, H/stride, W/stride)."""
        before = self.before_norm(x)
        return self.last_norm(before)

    def shortcut(self, x: Tensor) -> Tensor | None:
        """x in the shape of the branch's output; None in a plain block."""
        if self.plain:
            return None
        return x if self.downsample is None else self.downsample(x)

    def join(self, branch: Tensor, shortcut: Tensor | None) -> Tensor:
        """The block's output from its two pathways."""
        return F.relu(branch) if shortcut is None else F.add_relu(branch, shortcut)

    def forward(self, x: Tensor) -> Tensor:
        if not self._joins_in_norm():
            return self.join(self.branch(x), self.shortcut(x))
        before, shortcut = self.before_norm(x), self.shortcut(x)
        if shortcut is None:
            return self.last_norm.relu(before)
        return self.last_norm.add_relu(before, shortcut)

    def _joins_in_norm(self) -> bool:
        """Whether branch and join are those of this class, so that one pass can do both."""
        kind, replaced = type(self), vars(self)
        return (
            kind.before_norm is not ResidualBlock.before_norm
            and kind.branch is ResidualBlock.branch
            and kind.join is ResidualBlock.join
            and "branch" not in replaced
            and "join" not in replaced
            and isinstance(self.last_norm, NORMS)
        )

    def extra_repr(self) -> str:
        return "plain" if self.plain else ""


class BasicBlock(ResidualBlock):
    """Two 3x3 convolutions of `width` channels (figure 5, left)."""

    def __init__(
        self,
        in_channels: int,
        width: int,
        stride: int = 1,
        shortcut: str = "B",
        zero_gamma: bool = False,
    ) -> None:
        super().__init__(in_channels, width, stride)
        self.conv1 = conv3x3(in_channels, width, stride)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = conv3x3(width, width)
        self.bn2 = nn.BatchNorm2d(width)
        self.finish(shortcut, zero_gamma)

    @property
    def last_norm(self) -> nn.BatchNorm2d:
        return self.bn2

    def before_norm(self, x: Tensor) -> Tensor:
        return self.conv2(self.bn1.relu(self.conv1(x)))


class Bottleneck(ResidualBlock):
    """1x1 down to `width` channels, 3x3, 1x1 up to four times as many (figure 5, right).

    stride_on: the convolution that strides. "3x3" as in torchvision (called v1.5), "1x1" as in
        the paper (v1).
    """

    expansion: ClassVar[int] = 4

    def __init__(
        self,
        in_channels: int,
        width: int,
        stride: int = 1,
        shortcut: str = "B",
        zero_gamma: bool = False,
        stride_on: str = "3x3",
    ) -> None:
        super().__init__(in_channels, width * self.expansion, stride)
        if stride_on not in ("1x1", "3x3"):
            raise ValueError(f"Bottleneck: stride_on is '1x1' or '3x3', got {stride_on!r}")
        first, second = (stride, 1) if stride_on == "1x1" else (1, stride)
        self.conv1 = conv1x1(in_channels, width, first)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = conv3x3(width, width, second)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = conv1x1(width, self.out_channels)
        self.bn3 = nn.BatchNorm2d(self.out_channels)
        self.finish(shortcut, zero_gamma)

    @property
    def last_norm(self) -> nn.BatchNorm2d:
        return self.bn3

    def before_norm(self, x: Tensor) -> Tensor:
        x = self.bn1.relu(self.conv1(x))
        return self.conv3(self.bn2.relu(self.conv2(x)))
