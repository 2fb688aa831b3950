"""Batch normalisation (Ioffe & Szegedy, 2015)."""

from __future__ import annotations

from typing import Any

import numpy as np

from minires.autograd import Function, Tensor, as_tensor, is_grad_enabled, made
from minires.functional.activation import ReLUGrad, add_relu, relu
from minires.functional.checks import channels, floating, same_dtype
from minires.functional.deferred import PendingConvolution
from minires.functional.norm_training import (
    BatchNormAddReLUTrain,
    BatchNormReLUTrain,
    BatchNormTrain,
    BatchStatistics,
    over_rows,
    per_channel,
)
from minires.kernels import cpu
from minires.kernels import operations as ops
from minires.kernels.arrays import active, constants, on_host
from minires.kernels.fusing import MOMENTS
from minires.kernels.geometry import shape_text


class BatchNormEval(Function):
    """Normalise by given statistics, which are constants: a scale and a shift per channel."""

    def __init__(self, mean: Any, var: Any, eps: float) -> None:
        self.mean, self.var, self.eps = mean, var, eps

    def forward(self, x: Any, gamma: Any = None, beta: Any = None) -> Any:
        inv_std = (self.var + self.var.dtype.type(self.eps)) ** -0.5
        kept = {"gamma": gamma} if gamma is not None else {}
        # A copy: the running statistics move on at the next training step.
        self.save(x=x, mean=self.mean.copy(), inv_std=inv_std, **kept)
        return ops.batch_norm_eval(x, gamma, beta, self.mean, self.var, self.eps)

    def backward(self, gy: Tensor) -> tuple[Tensor | None, ...] | Tensor:
        saved, ndim = self.saved, gy.ndim
        inv_std = per_channel(saved.inv_std, ndim)
        if not hasattr(saved, "gamma"):
            return gy * inv_std
        gx = gy * (inv_std * per_channel(saved.gamma, ndim)) if self.needs[0] else None
        if not self.needs[1]:
            return gx, None, over_rows(gy) if self.needs[2] else None
        xhat = (saved.x - per_channel(saved.mean, ndim)) * inv_std
        return gx, over_rows(gy * xhat), over_rows(gy)


class Normalise(Function):
    """(x - mean) * scale + shift + r, or its positive part: all that is per channel is constant."""

    def __init__(self, mean: Any, scale: Any, shift: Any, rectify: bool) -> None:
        self.mean, self.scale, self.shift, self.rectify = mean, scale, shift, rectify

    takes_pending = True  # a folded convolution, which does this on the way

    def forward(self, x: Any, r: Any = None) -> Any:
        r, y = made(r), None
        if isinstance(x, PendingConvolution) and self.mean is None and self.scale is None:
            y = x.finished(self.shift, r, self.rectify)
        if y is None:
            y = ops.normalise(made(x), self.mean, self.scale, self.shift, r, self.rectify)
        if self.rectify:
            self.save(y=y)
        return y

    def backward(self, gy: Tensor) -> tuple[Tensor, ...]:
        g = ReLUGrad()(gy, self.saved.y) if self.rectify else gy
        gx = g if self.scale is None else g * per_channel(Tensor._wrap(self.scale), g.ndim)
        return (gx, g)[: len(self.needs)]


def batch_norm(
    x: Any,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Any = None,
    bias: Any = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor:
    """Batch normalisation over (N, C) or (N, C, H, W), as torch.nn.functional.batch_norm.

    running_mean, running_var: (C,). With `training`, the batch's own statistics normalise, and
        these move towards them: new = (1 - momentum) * old + momentum * batch, with the unbiased
        variance. Without, they normalise. None: the batch's statistics are always used.
    weight, bias: (C,), gamma and beta; both or neither. Of the dtype of x, or float32 for 16-bit
        images, whose statistics are float32 too.
    eps: added to the variance.

    Raises ValueError for shapes that do not fit, or fewer than two values per channel in training;
    TypeError for dtypes, and for running statistics that are no Tensors to be updated.
    """
    return normalised(x, running_mean, running_var, weight, bias, training, momentum, eps)


def batch_norm_relu(
    x: Any,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Any = None,
    bias: Any = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor:
    """relu(batch_norm(...)), with the same arguments, in fewer passes over memory."""
    return normalised(x, running_mean, running_var, weight, bias, training, momentum, eps, True)


def batch_norm_add_relu(
    x: Any,
    shortcut: Any,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Any = None,
    bias: Any = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor:
    """relu(batch_norm(x, ...) + shortcut), the end of a residual block, in fewer passes.

    shortcut: of the shape and dtype of x; raises ValueError or TypeError if it is not.
    """
    return normalised(
        x, running_mean, running_var, weight, bias, training, momentum, eps, True, shortcut
    )


def _as_layers_give_them(data: Any, weight: Any, bias: Any, mean: Any, var: Any) -> bool:
    """Whether all arguments are there and fit, so that the checks one by one would find nothing."""
    try:
        w, b, m, v = weight._data, bias._data, mean._data, var._data
    except AttributeError:  # None, or no Tensor
        return False
    dtype = data.dtype
    return (
        type(data) is type(w) is type(b) is type(m) is type(v) is np.ndarray
        and dtype is w.dtype is b.dtype
        and dtype.kind == "f"
        and data.ndim in (2, 4)
        and w.ndim == b.ndim == m.ndim == v.ndim == 1
        and w.size == b.size == m.size == v.size == data.shape[1]
    )


def _checked(
    x: Tensor, running_mean: Any, running_var: Any, weight: Any, bias: Any
) -> tuple[Tensor, ...]:
    """The affine parameters as tensors, or (), once everything is found to fit."""
    dtype = x._data.dtype
    floating("batch_norm", x=x)
    if x._data.ndim not in (2, 4):
        raise ValueError(f"batch_norm: expected (N, C) or (N, C, H, W), got {shape_text(x.shape)}")
    if (weight is None) != (bias is None):
        raise ValueError("batch_norm: give weight and bias both, or neither")
    if (running_mean is None) != (running_var is None):
        raise ValueError("batch_norm: give running_mean and running_var both, or neither")
    for running in (running_mean, running_var):
        if running is not None and not isinstance(running, Tensor):
            raise TypeError(
                f"batch_norm: running statistics are Tensors, updated in place; got "
                f"{type(running).__name__}"
            )
    affine: tuple[Tensor, ...] = ()
    if weight is not None:
        affine = weight, bias = as_tensor(weight), as_tensor(bias)
        if dtype.itemsize == 2 and weight.dtype == np.float32:
            same_dtype("batch_norm", weight=weight, bias=bias)
        else:
            same_dtype("batch_norm", x=x, weight=weight, bias=bias)
    channels(
        "batch_norm", x,
        running_mean=running_mean, running_var=running_var, weight=weight, bias=bias,
    )  # fmt: skip
    return affine


def normalised(
    x: Any,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Any,
    bias: Any,
    training: bool,
    momentum: float,
    eps: float,
    fuse_relu: bool = False,
    shortcut: Any = None,
) -> Tensor:
    """`batch_norm`, and with a ReLU, and a shortcut in front of that."""
    x = as_tensor(x)
    data = x._data
    if shortcut is not None:
        shortcut = as_tensor(shortcut)
        other = shortcut._data
        if not (data.dtype is other.dtype and data.dtype.kind == "f" and data.shape == other.shape):
            floating("batch_norm_add_relu", x=x)
            _like("batch_norm_add_relu", x, shortcut)
    affine: tuple[Tensor, ...] = (weight, bias)
    if not _as_layers_give_them(data, weight, bias, running_mean, running_var):
        affine = _checked(x, running_mean, running_var, weight, bias)
    if training or running_mean is None or running_var is None:
        m = data.size // max(data.shape[1], 1)
        if m < 2:
            raise ValueError(
                f"batch_norm: training needs more than one value per channel, x has "
                f"{shape_text(x.shape)}; use a larger batch or eval()"
            )
        function: Any
        if shortcut is not None:
            function = BatchNormAddReLUTrain(eps, _moments(x, BatchNormAddReLUTrain))
            y: Tensor = function(x, shortcut, *affine)
        else:
            kind: Any = BatchNormReLUTrain if fuse_relu else BatchNormTrain
            function = kind(eps, _moments(x, kind))
            y = function(x, *affine)
        if training and running_mean is not None and running_var is not None:
            _move(running_mean, running_var, function, momentum, m / (m - 1))
        return y
    sums = np.dtype(np.float32) if x.dtype.itemsize == 2 else x.dtype
    mean, var = (s._data.astype(sums, copy=False) for s in (running_mean, running_var))
    if not (is_grad_enabled() and any(t.requires_grad for t in affine)):
        # Worked out as batch_norm_eval does it: the same bits whether gradients are wanted or not.
        scale = 1.0 / np.sqrt(var + var.dtype.type(eps))
        if affine:
            scale = affine[0]._data * scale
        shift = affine[1]._data.copy() if affine else None
        return Normalise(mean.copy(), scale, shift, fuse_relu)(x, *_given(shortcut))
    normalised: Tensor = BatchNormEval(mean, var, eps)(x, *affine)
    if shortcut is not None:
        return add_relu(normalised, shortcut)
    return relu(normalised) if fuse_relu else normalised


def bias_relu(
    x: Any, bias: Tensor | None = None, shortcut: Tensor | None = None, rectify: bool = True
) -> Tensor:
    """relu(x + bias + shortcut), or without the ReLU: in one pass if the bias is a constant.

    x: (N, C, H, W) or (N, C). bias: (C,). shortcut: as x. What is None is left out.
    Raises ValueError for shapes that do not fit, TypeError for dtypes.
    """
    x = as_tensor(x)
    floating("bias_relu", x=x)
    given = {} if bias is None else {"bias": bias}
    channels("bias_relu", x, **given)
    same_dtype("bias_relu", x=x, **given)
    if shortcut is not None:
        _like("bias_relu", x, shortcut)
    if bias is None or not (is_grad_enabled() and bias.requires_grad):
        shift = None if bias is None else bias._data.copy()
        return Normalise(None, None, shift, rectify)(x, *_given(shortcut))
    x = x + per_channel(bias, x.ndim)
    if shortcut is not None:
        return add_relu(x, shortcut) if rectify else x + shortcut
    return relu(x) if rectify else x


def _moments(x: Tensor, kind: type[BatchStatistics]) -> tuple[Any, Any] | None:
    """Mean and variance of x, if its maker has summed them and our own kernels may use them."""
    buffer = x._memory
    if buffer is None or buffer.moments is None:
        return None
    if x._data is not buffer.array:  # a view has statistics of its own
        return None
    usable = MOMENTS in kind.operation.chosen(buffer.array).parts and buffer.unchanged()
    return buffer.moments if usable else None


def _given(*tensors: Tensor | None) -> tuple[Tensor, ...]:
    return tuple(t for t in tensors if t is not None)


def _like(name: str, x: Tensor, shortcut: Tensor) -> None:
    floating(name, shortcut=shortcut)
    same_dtype(name, x=x, shortcut=shortcut)
    if shortcut.shape != x.shape:
        raise ValueError(
            f"{name}: x has {shape_text(x.shape)} and the shortcut {shape_text(shortcut.shape)}; "
            "they are added, so they must agree"
        )


def _move(mean: Tensor, var: Tensor, batch: Any, momentum: float, unbiased: float) -> None:
    """Running statistics towards a batch's, in place; `unbiased` makes its variance all images'."""
    m, v, batch_mean, batch_var = given = mean._data, var._data, batch.mean, batch.var
    here, dtype = on_host(m), m.dtype
    alike = here and dtype is v.dtype is batch_mean.dtype is batch_var.dtype
    if alike and batch.moments is not None and m.flags.contiguous and v.flags.contiguous:
        cpu.move_statistics(*given, momentum, unbiased)
    elif here or len({a.dtype for a in given}) > 1 or dtype.itemsize == 2:
        factors: Any = 1 - momentum, momentum, momentum * unbiased
        rest, of_mean, of_var = constants(dtype, *factors) if alike else factors
        m *= rest
        m += of_mean * batch_mean
        v *= rest
        v += of_var * batch_var
    else:
        from minires.kernels.cuda.norm import move_statistics

        with active(m):
            move_statistics(*given, momentum, unbiased)
    mean._buffer.version += 1
    var._buffer.version += 1
