"""Arguments for every kernel operation: the shapes that break kernels, and random ones.

Odd sizes, one pixel, kernels larger than the image, strides larger than the kernel, groups,
dilation, leftover rows that no window covers, and channel counts that no block size divides.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from minires.kernels import (
    ConvGeometry,
    PoolGeometry,
    conv_geometry,
    pool_geometry,
)
from minires.kernels.geometry import shape_text

Rng = np.random.Generator
Draw = Callable[[tuple[int, ...]], Any]


@dataclass(frozen=True)
class Arguments:
    """One call of an operation.

    values: float64 arrays, to be cast to the dtype under test, and whatever else it takes.
    linear: whether the result is linear in each array, so that |rounding error| is bounded by
        a multiple of the result for the arrays' absolute values.
    """

    text: str
    values: tuple[Any, ...]
    linear: bool = False

    @property
    def geometry(self) -> Any:
        """What kernels are selected by: the last argument, or the first array's shape."""
        last = self.values[-1]
        return last if isinstance(last, ConvGeometry | PoolGeometry) else self.values[0].shape


Inputs = Callable[[Rng], Iterator[Arguments]]

_inputs: dict[str, Inputs] = {}


def inputs_for(operation: str) -> Callable[[Inputs], Inputs]:
    """Register the generator of an operation's arguments, for `check_kernel`.

        @inputs_for("relu")
        def relu_inputs(rng):
            yield Arguments("one element", (rng.standard_normal(1),))
    """

    def add(function: Inputs) -> Inputs:
        _inputs[operation] = function
        return function

    return add


def arguments(operation: str, rng: Rng) -> Iterator[Arguments]:
    """Everything an operation is checked with. Raises ValueError if nothing is known of it."""
    if operation not in _inputs:
        raise ValueError(
            f"check_kernel: no inputs are known for operation {operation!r}; add them with "
            "minires.testing.kernel_inputs.inputs_for"
        )
    return _inputs[operation](rng)


def known_operations() -> list[str]:
    """The operations that have inputs here."""
    return sorted(_inputs)


# -- convolution ---------------------------------------------------------------------------------

CONVOLUTIONS: dict[str, ConvGeometry] = {
    "3x3, odd sizes": conv_geometry((2, 3, 7, 5), (4, 3, 3, 3), 1, 1),
    "one pixel, one channel": conv_geometry((1, 1, 1, 1), (1, 1, 1, 1)),
    "one pixel, 3x3": conv_geometry((1, 5, 1, 1), (3, 5, 3, 3), 1, 1),
    "kernel larger than the image": conv_geometry((2, 2, 3, 2), (3, 2, 5, 5), 1, 2),
    "stride larger than the kernel": conv_geometry((1, 3, 9, 8), (2, 3, 2, 2), 3),
    "no padding": conv_geometry((2, 4, 8, 9), (5, 4, 3, 3)),
    "padding 2": conv_geometry((1, 4, 6, 7), (5, 4, 3, 3), 1, 2),
    "stride 2, even size": conv_geometry((2, 3, 8, 8), (4, 3, 3, 3), 2, 1),
    "stride 2, odd size": conv_geometry((2, 3, 9, 7), (4, 3, 3, 3), 2, 1),
    "stem, 7x7 stride 2": conv_geometry((1, 3, 17, 15), (4, 3, 7, 7), 2, 3),
    "1x1": conv_geometry((2, 7, 5, 3), (9, 7, 1, 1)),
    "1x1, stride 2": conv_geometry((2, 6, 7, 6), (5, 6, 1, 1), 2),
    "1x1, padded": conv_geometry((1, 2, 3, 3), (3, 2, 1, 1), 1, 1),
    "leftover rows": conv_geometry((1, 2, 11, 10), (3, 2, 3, 3), 4),
    "different per axis": conv_geometry((2, 3, 6, 11), (2, 3, 1, 4), (1, 3), (0, 2)),
    "dilation 2": conv_geometry((1, 2, 9, 7), (3, 2, 3, 2), 1, (2, 1), 2),
    "dilation and stride": conv_geometry((1, 3, 12, 11), (2, 3, 3, 3), 2, 2, (2, 3)),
    "2 groups": conv_geometry((2, 4, 7, 7), (6, 2, 3, 3), 1, 1, 1, 2),
    "depthwise": conv_geometry((2, 4, 5, 6), (4, 1, 3, 3), 1, 1, 1, 4),
    "depthwise, two outputs each": conv_geometry((1, 3, 6, 5), (6, 1, 3, 3), 2, 1, 1, 3),
    "ragged channels": conv_geometry((1, 17, 6, 7), (19, 17, 3, 3), 1, 1),
    "whole tiles": conv_geometry((2, 8, 12, 12), (16, 8, 3, 3), 1, 1),
    "ragged tiles": conv_geometry((3, 16, 13, 10), (20, 16, 3, 3), 1, 1),
}


def draw_convolution(rng: Rng) -> ConvGeometry:
    """A random geometry that fits."""
    while True:
        groups = int(rng.choice([1, 1, 1, 2, 3]))
        C, O = (groups * int(rng.integers(1, 6)) for _ in range(2))
        N, H, W = int(rng.integers(1, 4)), int(rng.integers(1, 13)), int(rng.integers(1, 13))
        KH, KW = (int(rng.integers(1, 6)) for _ in range(2))
        stride, padding, dilation = (
            (int(rng.integers(low, high)), int(rng.integers(low, high)))
            for low, high in ((1, 4), (0, 4), (1, 3))
        )
        try:
            return conv_geometry(
                (N, C, H, W), (O, C // groups, KH, KW), stride, padding, dilation, groups
            )
        except ValueError:  # the kernel does not fit: draw again
            continue


VECTOR = 16
"""Kernels that work on whole vectors of channels want multiples of this."""


def in_vectors(g: ConvGeometry, *, inputs: bool) -> ConvGeometry:
    """The same with output (and input) channels in whole vectors, one to three of them."""
    C = VECTOR * (1 + g.C % 3) if inputs else g.C
    O = VECTOR * (1 + g.O % 3)
    return conv_geometry(
        (g.N, C, g.H, g.W), (O, C, *g.kernel), g.stride, g.padding, g.dilation
    )


def _convolutions(rng: Rng) -> Iterator[tuple[str, ConvGeometry]]:
    yield from CONVOLUTIONS.items()
    drawn = [draw_convolution(rng) for _ in range(20)]
    for g in drawn:
        yield "drawn", g
    ungrouped = {t: g for t, g in CONVOLUTIONS.items() if g.groups == 1}
    ungrouped |= {f"drawn, {i}": g for i, g in enumerate(drawn[:8])}
    for text, g in ungrouped.items():
        yield f"{text}, vectors out", in_vectors(g, inputs=False)
        yield f"{text}, vectors in and out", in_vectors(g, inputs=True)


CONVOLUTION_ARRAYS = {
    "conv2d": ("x", "weight"),
    "conv2d_grad_input": ("gy", "weight"),
    "conv2d_grad_weight": ("x", "gy"),
}
"""The arrays that each pass of a convolution takes."""


def convolution(operation: str, g: ConvGeometry, text: str = "") -> Arguments:
    """One pass of a convolution of any geometry: the same numbers every time."""
    rng = np.random.default_rng(zlib.crc32(f"{operation} {g}".encode()))
    shapes = {"x": g.x_shape, "weight": g.weight_shape, "gy": g.y_shape}
    arrays = [rng.standard_normal(shapes[name]) for name in CONVOLUTION_ARRAYS[operation]]
    return Arguments(f"{text}: {g}" if text else str(g), (*arrays, g), linear=True)


@inputs_for("conv2d")
def conv2d_inputs(rng: Rng) -> Iterator[Arguments]:
    for text, g in _convolutions(rng):
        yield convolution("conv2d", g, text)


@inputs_for("conv2d_grad_input")
def conv2d_grad_input_inputs(rng: Rng) -> Iterator[Arguments]:
    for text, g in _convolutions(rng):
        yield convolution("conv2d_grad_input", g, text)


@inputs_for("conv2d_grad_weight")
def conv2d_grad_weight_inputs(rng: Rng) -> Iterator[Arguments]:
    for text, g in _convolutions(rng):
        yield convolution("conv2d_grad_weight", g, text)


@inputs_for("linear")
def linear_inputs(rng: Rng) -> Iterator[Arguments]:
    for N, I, O in ((3, 5, 4), (1, 1, 1), (7, 17, 33), (2, 64, 10)):
        x, w, b = (rng.standard_normal(shape) for shape in ((N, I), (O, I), (O,)))
        yield Arguments(f"{N}x{I} to {O}", (x, w, b), linear=True)
        yield Arguments(f"{N}x{I} to {O}, no bias", (x, w, None), linear=True)


# -- pooling ---------------------------------------------------------------------------------------

POOLINGS: dict[str, PoolGeometry] = {
    "2x2": pool_geometry("pool", (2, 3, 6, 4), 2),
    "3x3 stride 2, padded": pool_geometry("pool", (2, 5, 9, 8), 3, 2, 1),
    "one pixel": pool_geometry("pool", (1, 1, 1, 1), 1),
    "window larger than the image": pool_geometry("pool", (2, 3, 1, 2), 3, 1, 1),
    "stride larger than the window": pool_geometry("pool", (1, 2, 9, 11), 2, 4),
    "leftover rows": pool_geometry("pool", (1, 4, 7, 8), 3),
    "different per axis": pool_geometry("pool", (2, 3, 5, 9), (1, 4), (2, 3), (0, 2)),
    "overlapping": pool_geometry("pool", (1, 17, 6, 7), 3, 1, 1),
    "borders not counted": pool_geometry("pool", (2, 3, 5, 6), 3, 2, 1, 1, False),
    "5x5 padded, borders not counted": pool_geometry("pool", (1, 2, 4, 7), 5, 3, 2, 1, False),
}
DILATED: dict[str, PoolGeometry] = {
    "dilation 2": pool_geometry("pool", (2, 3, 8, 7), 3, 1, 1, 2),
    "dilation and stride": pool_geometry("pool", (1, 2, 9, 11), 2, 3, 1, (3, 2)),
}


def _tied(rng: Rng, shape: tuple[int, ...]) -> Any:
    """Small integers: windows with several maxima."""
    return rng.integers(-1, 2, shape).astype(np.float64)


@inputs_for("max_pool2d")
def max_pool2d_inputs(rng: Rng) -> Iterator[Arguments]:
    for text, g in (POOLINGS | DILATED).items():
        yield Arguments(text, (rng.standard_normal(g.x_shape), g))
        yield Arguments(f"{text}, with ties", (_tied(rng, g.x_shape), g))


def _indices(rng: Rng, g: PoolGeometry) -> Any:
    """Places of maxima, by the definition: the first largest pixel of each window."""
    x = rng.standard_normal(g.x_shape)
    (KH, KW), (sh, sw), (ph, pw), (dh, dw) = g.kernel, g.stride, g.padding, g.dilation
    indices = np.zeros(g.y_shape, np.int32)
    for n, c, i, j in np.ndindex(*g.y_shape):
        pixels = {
            u * KW + v: x[n, c, i * sh + u * dh - ph, j * sw + v * dw - pw]
            for u in range(KH)
            for v in range(KW)
            if 0 <= i * sh + u * dh - ph < g.H and 0 <= j * sw + v * dw - pw < g.W
        }
        indices[n, c, i, j] = max(pixels, key=lambda k, p=pixels: p[k])  # type: ignore[misc]
    return indices


@inputs_for("max_pool2d_grad")
def max_pool2d_grad_inputs(rng: Rng) -> Iterator[Arguments]:
    for text, g in (POOLINGS | DILATED).items():
        yield Arguments(text, (rng.standard_normal(g.y_shape), _indices(rng, g), g), linear=True)


@inputs_for("max_pool2d_take")
def max_pool2d_take_inputs(rng: Rng) -> Iterator[Arguments]:
    for text, g in (POOLINGS | DILATED).items():
        yield Arguments(text, (rng.standard_normal(g.x_shape), _indices(rng, g), g), linear=True)


@inputs_for("avg_pool2d")
def avg_pool2d_inputs(rng: Rng) -> Iterator[Arguments]:
    for text, g in POOLINGS.items():
        yield Arguments(text, (rng.standard_normal(g.x_shape), g), linear=True)


@inputs_for("avg_pool2d_grad")
def avg_pool2d_grad_inputs(rng: Rng) -> Iterator[Arguments]:
    for text, g in POOLINGS.items():
        yield Arguments(text, (rng.standard_normal(g.y_shape), g), linear=True)


ADAPTIVE = (((2, 3, 7, 5), (1, 1)), ((1, 1, 1, 1), (1, 1)), ((2, 4, 6, 8), (3, 2)),
            ((1, 2, 7, 5), (3, 4)), ((1, 17, 2, 3), (4, 5)))  # fmt: skip


@inputs_for("adaptive_avg_pool2d")
def adaptive_avg_pool2d_inputs(rng: Rng) -> Iterator[Arguments]:
    for shape, out in ADAPTIVE:
        text = f"{shape_text(shape)} to {shape_text(out)}"
        yield Arguments(text, (rng.standard_normal(shape), out), linear=True)


@inputs_for("adaptive_avg_pool2d_grad")
def adaptive_avg_pool2d_grad_inputs(rng: Rng) -> Iterator[Arguments]:
    for shape, out in ADAPTIVE:
        text = f"{shape_text(out)} back to {shape_text(shape)}"
        gy = rng.standard_normal((*shape[:2], *out))
        yield Arguments(text, (gy, shape[2:]), linear=True)


# -- normalisation, activations --------------------------------------------------------------------

BATCHES = ((4, 3, 5, 7), (2, 1, 1, 1), (5, 4), (3, 17, 4, 4), (2, 8, 9, 1), (3, 16, 5, 3),
           (7, 48), (2, 32, 1, 7), (3, 16, 19, 19))  # fmt: skip


def _statistics(x: Any) -> tuple[Any, Any]:
    axes = (0, *range(2, x.ndim))
    return x.mean(axis=axes), 1.0 / np.sqrt(x.var(axis=axes) + 1e-5)


@inputs_for("batch_norm_relu_train")
@inputs_for("batch_norm_train")
def batch_norm_train_inputs(rng: Rng) -> Iterator[Arguments]:
    for shape in BATCHES:
        C, text = shape[1], shape_text(shape)
        x, gamma, beta = rng.standard_normal(shape), rng.standard_normal(C), rng.standard_normal(C)
        yield Arguments(text, (x, gamma, beta, 1e-5))
        yield Arguments(f"{text}, not affine", (x, None, None, 1e-5))
        yield Arguments(f"{text}, mean 64 deviations", (x + 64.0, gamma, beta, 1e-5))


@inputs_for("batch_norm_statistics")
def batch_norm_statistics_inputs(rng: Rng) -> Iterator[Arguments]:
    for case in batch_norm_train_inputs(rng):
        x, gamma, _, eps = case.values
        if gamma is not None:
            yield Arguments(case.text, (x, eps))


@inputs_for("batch_norm_eval")
def batch_norm_eval_inputs(rng: Rng) -> Iterator[Arguments]:
    for shape in BATCHES:
        C, text = shape[1], shape_text(shape)
        x = rng.standard_normal(shape)
        gamma, beta, mean = (rng.standard_normal(C) for _ in range(3))
        var = rng.uniform(0.5, 2.0, C)
        yield Arguments(text, (x, gamma, beta, mean, var, 1e-5))
        yield Arguments(f"{text}, not affine", (x, None, None, mean, var, 1e-3))


@inputs_for("normalise")
def normalise_inputs(rng: Rng) -> Iterator[Arguments]:
    for shape in BATCHES:
        C, text = shape[1], shape_text(shape)
        x, r = rng.standard_normal(shape), rng.standard_normal(shape)
        mean, scale, shift = (rng.standard_normal(C) for _ in range(3))
        yield Arguments(text, (x, mean, scale, shift, None, False))
        yield Arguments(f"{text}, with ReLU", (x, mean, scale, shift, None, True))
        yield Arguments(f"{text}, bias and ReLU", (x, None, None, shift, None, True))
        yield Arguments(f"{text}, bias, shortcut and ReLU", (x, None, None, shift, r, True))
        yield Arguments(f"{text}, scale and shortcut", (x, None, scale, None, r, False))


@inputs_for("batch_norm_grad")
def batch_norm_grad_inputs(rng: Rng) -> Iterator[Arguments]:
    for shape in BATCHES:
        text = shape_text(shape)
        x, gy, gamma = (rng.standard_normal(s) for s in (shape, shape, shape[1:2]))
        mean, inv_std = _statistics(x)
        yield Arguments(text, (gy, x, gamma, mean, inv_std))
        yield Arguments(f"{text}, not affine", (gy, x, None, mean, inv_std))


@inputs_for("batch_norm_relu_grad")
def batch_norm_relu_grad_inputs(rng: Rng) -> Iterator[Arguments]:
    for case in batch_norm_grad_inputs(rng):
        gy, x, gamma, mean, inv_std = case.values
        beta = None if gamma is None else rng.standard_normal(gamma.shape)
        yield Arguments(case.text, (gy, x, gamma, beta, mean, inv_std))


@inputs_for("batch_norm_add_relu_train")
def batch_norm_add_relu_train_inputs(rng: Rng) -> Iterator[Arguments]:
    for case in batch_norm_train_inputs(rng):
        x, *rest = case.values
        yield Arguments(case.text, (x, rng.standard_normal(x.shape), *rest))


@inputs_for("batch_norm_add_relu_grad")
def batch_norm_add_relu_grad_inputs(rng: Rng) -> Iterator[Arguments]:
    for case in batch_norm_grad_inputs(rng):
        gy, x, *rest = case.values
        y = np.maximum(rng.standard_normal(x.shape), 0)
        yield Arguments(case.text, (gy, x, y, *rest))


SHAPES: tuple[tuple[int, ...], ...] = ((2, 3, 5, 7), (1, 1, 1, 1), (5,), (4, 33), (3, 17, 4, 4), ())


@inputs_for("relu")
def relu_inputs(rng: Rng) -> Iterator[Arguments]:
    for shape in SHAPES:
        yield Arguments(shape_text(shape), (rng.standard_normal(shape),))
        yield Arguments(f"{shape_text(shape)}, with zeros", (_tied(rng, shape),))


@inputs_for("relu_grad")
def relu_grad_inputs(rng: Rng) -> Iterator[Arguments]:
    for shape in SHAPES:
        y = np.maximum(rng.standard_normal(shape), 0)
        yield Arguments(shape_text(shape), (rng.standard_normal(shape), y))
        positive = np.abs(rng.standard_normal(shape)) + 0.5
        yield Arguments(f"{shape_text(shape)}, all on", (rng.standard_normal(shape), positive))


@inputs_for("add")
@inputs_for("add_relu")
def add_relu_inputs(rng: Rng) -> Iterator[Arguments]:
    for shape in SHAPES:
        pair = rng.standard_normal(shape), rng.standard_normal(shape)
        yield Arguments(shape_text(shape), pair)


SOFTMAXES = (((3, 5), 1), ((1, 1), -1), ((4, 7), 0), ((2, 3, 4, 5), 1), ((2, 1000), 1))


@inputs_for("log_softmax")
def log_softmax_inputs(rng: Rng) -> Iterator[Arguments]:
    for shape, axis in SOFTMAXES:
        text = f"{shape_text(shape)}, axis {axis}"
        yield Arguments(text, (rng.standard_normal(shape), axis))
        yield Arguments(f"{text}, large", (300.0 * rng.standard_normal(shape), axis))


@inputs_for("cross_entropy")
def cross_entropy_inputs(rng: Rng) -> Iterator[Arguments]:
    for N, K in ((3, 5), (1, 1), (7, 10), (2, 1000)):
        for smoothing in (0.0, 0.1):
            labels = rng.integers(0, K, N)
            labels[0] = -100 if N > 1 else labels[0]
            values = (3.0 * rng.standard_normal((N, K)), labels, -100, smoothing)
            yield Arguments(f"{N}x{K}, smoothing {smoothing}", values)


@inputs_for("log_softmax_grad")
def log_softmax_grad_inputs(rng: Rng) -> Iterator[Arguments]:
    for shape, axis in SOFTMAXES:
        x = rng.standard_normal(shape)
        y = x - np.log(np.exp(x).sum(axis=axis, keepdims=True))
        yield Arguments(
            f"{shape_text(shape)}, axis {axis}", (rng.standard_normal(shape), y, axis)
        )
