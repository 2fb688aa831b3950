"""Layers: an operation with its parameters and settings. Names and defaults are PyTorch's."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from minires import functional as F
from minires.autograd import Parameter, Tensor
from minires.functional.conv import NAMED_PADDING, convolution
from minires.functional.norm import normalised
from minires.kernels.geometry import pair
from minires.nn import init
from minires.nn.module import Module

Size = int | tuple[int, int]


def _positive(layer: str, **counts: int) -> None:
    for name, count in counts.items():
        if isinstance(count, bool) or not isinstance(count, int | np.integer):
            raise TypeError(f"{layer}: {name} takes an integer, got {count!r}")
        if count < 1:
            raise ValueError(f"{layer}: {name} must be at least 1, got {count}")


def _zeros(*shape: int) -> Parameter:
    return Parameter(np.zeros(shape, np.float32))


class Conv2d(Module):
    """2-D convolution; weight (out, in/groups, KH, KW), He-initialised (fan_out), bias zero.

    feeds_norm: an attribute, true at first of a convolution without bias, since that is what a
        batch norm behind it wants: in training, the batch norm's sums are made on the way.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: Size,
        stride: Size = 1,
        padding: Size | str = 0,
        dilation: Size = 1,
        groups: int = 1,
        bias: bool = True,
    ) -> None:
        super().__init__()
        _positive("Conv2d", in_channels=in_channels, out_channels=out_channels, groups=groups)
        if in_channels % groups or out_channels % groups:
            raise ValueError(
                f"Conv2d: groups={groups} must divide in_channels={in_channels} and "
                f"out_channels={out_channels}"
            )
        self.in_channels, self.out_channels, self.groups = in_channels, out_channels, groups
        self.kernel_size = pair(kernel_size, "kernel_size", "Conv2d", 1)
        self.stride = pair(stride, "stride", "Conv2d", 1)
        if isinstance(padding, str):
            if padding not in NAMED_PADDING:
                raise ValueError(
                    f"Conv2d: padding is an integer, two, 'same' or 'valid', got {padding!r}"
                )
            if padding == "same" and self.stride != (1, 1):
                raise ValueError(f"Conv2d: padding='same' needs stride 1, got {stride!r}")
            self.padding: Any = padding
        else:
            self.padding = pair(padding, "padding", "Conv2d", 0)
        self.dilation = pair(dilation, "dilation", "Conv2d", 1)
        self.feeds_norm = not bias
        self.weight = _zeros(out_channels, in_channels // groups, *self.kernel_size)
        self.bias = _zeros(out_channels) if bias else None
        if self.bias is None:
            self.register_parameter("bias", None)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw the weight anew."""
        init.kaiming_normal_(self.weight, mode="fan_out")

    def forward(self, x: Tensor) -> Tensor:
        return convolution(
            x, self.weight, self.bias, self.stride, self.padding, self.dilation, self.groups,
            sums=self.feeds_norm and self.training,
        )  # fmt: skip

    def extra_repr(self) -> str:
        text = f"{self.in_channels}, {self.out_channels}, kernel_size={self.kernel_size}"
        for name, default in (("stride", (1, 1)), ("padding", (0, 0)), ("dilation", (1, 1)),
                              ("groups", 1)):  # fmt: skip
            value = getattr(self, name)
            text += f", {name}={value}" if value != default else ""
        return text if self.bias is not None else text + ", bias=False"


class Linear(Module):
    """x @ weight^T + bias; weight (out, in), uniform in +-1/sqrt(in), and the bias likewise."""

    def __init__(self, in_features: int, out_features: int, bias: bool = True) -> None:
        super().__init__()
        _positive("Linear", in_features=in_features, out_features=out_features)
        self.in_features, self.out_features = in_features, out_features
        self.weight = _zeros(out_features, in_features)
        self.bias = _zeros(out_features) if bias else None
        if self.bias is None:
            self.register_parameter("bias", None)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw the weight and the bias anew."""
        bound = 1.0 / math.sqrt(self.in_features)
        for parameter in self.parameters():
            init.uniform_(parameter, -bound, bound)

    def forward(self, x: Tensor) -> Tensor:
        if x.dtype.itemsize == 2 and self.weight.dtype == np.float32:
            x = x.float()  # mixed precision: what comes after the convolutions is float32
        return F.linear(x, self.weight, self.bias)

    def extra_repr(self) -> str:
        return f"{self.in_features}, {self.out_features}, bias={self.bias is not None}"


class BatchNorm2d(Module):
    """Batch normalisation of (N, C, H, W) or (N, C), with running statistics for evaluation.

    eps: added to the variance. momentum: the share of the new batch in the running statistics.

    Raises ValueError or TypeError unless eps > 0 and 0 <= momentum <= 1.
    """

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        momentum: float = 0.1,
        affine: bool = True,
        track_running_stats: bool = True,
    ) -> None:
        super().__init__()
        _positive("BatchNorm2d", num_features=num_features)
        for name, value in (("eps", eps), ("momentum", momentum)):
            if isinstance(value, bool) or not isinstance(value, int | float | np.number):
                raise TypeError(f"BatchNorm2d: {name} takes a number, got {value!r}")
        if not 0.0 < eps < math.inf:
            raise ValueError(f"BatchNorm2d: eps must be greater than 0, got {eps}")
        if not 0.0 <= momentum <= 1.0:
            raise ValueError(f"BatchNorm2d: momentum is a share between 0 and 1, got {momentum}")
        self.num_features, self.eps, self.momentum = num_features, eps, momentum
        self.affine, self.track_running_stats = affine, track_running_stats
        self.register_parameter("weight", Parameter(np.ones(num_features, np.float32)))
        self.register_parameter("bias", _zeros(num_features))
        if not affine:
            self.weight = self.bias = None
        tracked = track_running_stats
        self.register_buffer(
            "running_mean", Tensor(np.zeros(num_features, np.float32)) if tracked else None
        )
        self.register_buffer(
            "running_var", Tensor(np.ones(num_features, np.float32)) if tracked else None
        )
        self.register_buffer(
            "num_batches_tracked", Tensor(np.zeros((), np.int64)) if tracked else None
        )

    def forward(self, x: Tensor) -> Tensor:
        return self._normalise(x)

    def relu(self, x: Tensor) -> Tensor:
        """relu(self(x)) in one pass; in two if somebody listens to this layer's own output, or a
        subclass computes something else."""
        return self._normalise(x, True) if self._alone() else F.relu(self(x))

    def add_relu(self, x: Tensor, shortcut: Tensor) -> Tensor:
        """relu(self(x) + shortcut), the end of a residual block; in one pass as `relu` is."""
        if self._alone():
            return self._normalise(x, True, shortcut)
        return F.add_relu(self(x), shortcut)

    def _alone(self) -> bool:
        """Whether nobody can tell if `forward` is called, or its work done by something else."""
        changed = type(self).forward is not BatchNorm2d.forward
        return not (changed or self._forward_hooks or self._forward_pre_hooks)

    def _normalise(
        self, x: Tensor, rectify: bool = False, shortcut: Tensor | None = None
    ) -> Tensor:
        y = normalised(
            x, self.running_mean, self.running_var, self.weight, self.bias, self.training,
            self.momentum, self.eps, rectify, shortcut,
        )  # fmt: skip
        tracked = self.num_batches_tracked
        if self.training and tracked is not None:
            count = tracked._data
            if type(count) is np.ndarray:
                count[()] = count.item() + 1  # a tenth of the time of `+= 1`, for one number
            else:
                count += 1
        return y

    def extra_repr(self) -> str:
        return f"{self.num_features}, eps={self.eps}, momentum={self.momentum}"


class ReLU(Module):
    """max(x, 0). `inplace` is taken for PyTorch's sake: a new tensor comes out either way."""

    def __init__(self, inplace: bool = False) -> None:
        super().__init__()
        self.inplace = inplace

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(x)


class MaxPool2d(Module):
    """The largest value of each window; the stride defaults to the kernel size."""

    def __init__(
        self, kernel_size: Size, stride: Size | None = None, padding: Size = 0, dilation: Size = 1
    ) -> None:
        super().__init__()
        self.kernel_size, self.padding, self.dilation = kernel_size, padding, dilation
        self.stride = kernel_size if stride is None else stride

    def forward(self, x: Tensor) -> Tensor:
        return F.max_pool2d(x, self.kernel_size, self.stride, self.padding, self.dilation)

    def extra_repr(self) -> str:
        return f"kernel_size={self.kernel_size}, stride={self.stride}, padding={self.padding}"


class AvgPool2d(Module):
    """The mean of each window; the stride defaults to the kernel size."""

    def __init__(
        self,
        kernel_size: Size,
        stride: Size | None = None,
        padding: Size = 0,
        count_include_pad: bool = True,
    ) -> None:
        super().__init__()
        self.kernel_size, self.padding = kernel_size, padding
        self.stride = kernel_size if stride is None else stride
        self.count_include_pad = count_include_pad

    def forward(self, x: Tensor) -> Tensor:
        return F.avg_pool2d(
            x, self.kernel_size, self.stride, self.padding,
            count_include_pad=self.count_include_pad,
        )  # fmt: skip

    def extra_repr(self) -> str:
        return f"kernel_size={self.kernel_size}, stride={self.stride}, padding={self.padding}"


class AdaptiveAvgPool2d(Module):
    """The mean over windows that divide the image into `output_size`."""

    def __init__(self, output_size: Size) -> None:
        super().__init__()
        self.output_size = output_size

    def forward(self, x: Tensor) -> Tensor:
        return F.adaptive_avg_pool2d(x, self.output_size)

    def extra_repr(self) -> str:
        return f"output_size={self.output_size}"


class Flatten(Module):
    """Axes `start_dim` to `end_dim` joined into one."""

    def __init__(self, start_dim: int = 1, end_dim: int = -1) -> None:
        super().__init__()
        self.start_dim, self.end_dim = start_dim, end_dim

    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(self.start_dim, self.end_dim)


class Identity(Module):
    """x itself."""

    def forward(self, x: Tensor) -> Tensor:
        return x


class Dropout(Module):
    """Zeroes elements with probability p while training."""

    def __init__(self, p: float = 0.5) -> None:
        super().__init__()
        if not 0.0 <= p <= 1.0:
            raise ValueError(f"Dropout: p is a probability between 0 and 1, got {p}")
        self.p = p

    def forward(self, x: Tensor) -> Tensor:
        return F.dropout(x, self.p, self.training)

    def extra_repr(self) -> str:
        return f"p={self.p}"


class CrossEntropyLoss(Module):
    """Softmax cross-entropy of logits (N, K) and labels (N,); see functional.cross_entropy."""

    def __init__(
        self,
        weight: Any = None,
        ignore_index: int = -100,
        reduction: str = "mean",
        label_smoothing: float = 0.0,
    ) -> None:
        super().__init__()
        self.register_buffer("weight", None if weight is None else Tensor(weight))
        self.ignore_index, self.reduction = ignore_index, reduction
        self.label_smoothing = label_smoothing

    def forward(self, x: Tensor, target: Any) -> Tensor:
        return F.cross_entropy(
            x, target, self.weight, self.ignore_index, self.reduction, self.label_smoothing
        )
