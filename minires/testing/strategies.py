"""Hypothesis strategies: arrays, tensors, geometries, small nets. `pip install hypothesis` first.

    from hypothesis import given
    import minires as mr
    from minires.testing import strategies as st

    @given(st.tensors())
    def test_gelu(x):
        mr.testing.assert_gradients(gelu, x)

    @given(st.small_nets())
    def test_my_join(net):
        mr.testing.assert_gradients(net.model, net.x, second_order=False)

What shrinks is what a failure depends on: shapes, geometries, layouts, the number of parts of a
net. Numbers are random ones from a seed that is drawn, since a gradient checked at zeros and ones
proves little; `elements` draws each number, where their values matter.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from minires import nn
from minires.autograd import Tensor
from minires.kernels.geometry import (
    ConvGeometry,
    Pair,
    PoolGeometry,
    conv_geometry,
    pool_geometry,
    shape_text,
)
from minires.testing.small_nets import Block, PreActivation, away_from_start

try:
    from hypothesis import strategies as st
    from hypothesis.extra import numpy as hnp
except ImportError as error:
    raise ImportError(
        "minires.testing.strategies draws with Hypothesis, which is not installed: "
        "pip install hypothesis"
    ) from error

Array = np.ndarray
Shape = tuple[int, ...]
Strategy = st.SearchStrategy

LAYOUTS = ("contiguous", "channels last", "transposed", "sliced", "reversed")
"""Memory layouts, from the plainest: of the same values, with other strides."""


def laid_out(array: Array, layout: str) -> Array:
    """The same values in another memory layout, which kernels must not care about.

    Raises ValueError for a name that is not in LAYOUTS.
    """
    if layout not in LAYOUTS:
        raise ValueError(f"laid_out: layout is one of {', '.join(LAYOUTS)}, got {layout!r}")
    if array.ndim == 0 or layout == "contiguous":
        return np.ascontiguousarray(array).reshape(array.shape)
    if layout == "channels last":
        return np.moveaxis(np.ascontiguousarray(np.moveaxis(array, min(1, array.ndim - 1), -1)),
                           -1, min(1, array.ndim - 1))  # fmt: skip
    if layout == "transposed":
        return np.ascontiguousarray(array.T).T
    if layout == "reversed":
        return np.ascontiguousarray(array[..., ::-1])[..., ::-1]
    wide = np.zeros((*array.shape[:-1], 2 * array.shape[-1]), array.dtype)
    wide[..., ::2] = array
    return wide[..., ::2]


def _drawn(value: Any, default: Strategy[Any]) -> Strategy[Any]:
    """What a setting is drawn from: the default, a strategy, or always the given value."""
    if value is None:
        return default
    return value if isinstance(value, st.SearchStrategy) else st.just(value)


def _pair(value: Any) -> Pair:
    return (value, value) if isinstance(value, int) else tuple(value)


def shapes(min_dims: int = 0, max_dims: int = 4, min_side: int = 1, max_side: int = 5) -> Any:
    """Shapes; sides of 0 only if asked for."""
    return hnp.array_shapes(
        min_dims=min_dims, max_dims=max_dims, min_side=min_side, max_side=max_side
    )


@st.composite
def arrays(
    draw: Any,
    shape: Shape | Strategy[Shape] | None = None,
    dtype: Any = np.float64,
    *,
    layout: str | Strategy[str] | None = None,
    elements: Strategy[float] | None = None,
    scale: float = 1.0,
    shift: float = 0.0,
) -> Array:
    """Arrays of random numbers, shift + scale * N(0, 1), in all memory layouts.

    shape: one, or a strategy; by default 1 to 4 axes of 1 to 5.
    dtype: a floating-point one, or a strategy of them.
    layout: one of LAYOUTS; by default any, shrinking to contiguous.
    elements: draws every number by itself, instead of all from a seed.
    """
    size = draw(_drawn(shape, shapes(min_dims=1)))
    kind = np.dtype(draw(dtype if isinstance(dtype, st.SearchStrategy) else st.just(dtype)))
    if elements is not None:
        values = draw(hnp.arrays(np.float64, size, elements=elements, fill=st.nothing()))
    else:
        values = np.random.default_rng(draw(seeds())).standard_normal(size)
    array = np.asarray(shift + scale * values).astype(kind)
    return laid_out(array, draw(_drawn(layout, st.sampled_from(LAYOUTS))))


def seeds() -> Strategy[int]:
    """Seeds for np.random.default_rng."""
    return st.integers(0, 2**32 - 1)


@st.composite
def tensors(
    draw: Any,
    shape: Shape | Strategy[Shape] | None = None,
    dtype: Any = np.float64,
    *,
    requires_grad: bool = True,
    **options: Any,
) -> Tensor:
    """Tensors that require gradients; options as for `arrays`."""
    return Tensor(draw(arrays(shape, dtype, **options)), requires_grad=requires_grad)


@st.composite
def conv_geometries(
    draw: Any,
    *,
    kernel: Any = None,
    stride: Any = None,
    padding: Any = None,
    dilation: Any = None,
    groups: Any = None,
    batch: Any = None,
    channels: Any = None,
    max_size: int = 8,
) -> ConvGeometry:
    """Convolutions of every kind that fits: kernels above the image size (with padding), strides
    above the kernel, leftover rows, dilation, groups up to depthwise, 1x1, one pixel.

    kernel, stride, padding, dilation: an integer, a pair, or a strategy of either.
    groups, batch: an integer or a strategy. channels: a strategy of channels per group, in and out.
    max_size: how many pixels an image may have more than it needs, per axis.

    Shrinks to a 1x1 convolution of one pixel. For x, weight and y of these shapes see
    `conv_arrays`.
    """
    size = _pair(draw(_drawn(kernel, _pairs(1, 4))))
    strides = _pair(draw(_drawn(stride, _pairs(1, 4))))
    dilations = _pair(draw(_drawn(dilation, _pairs(1, 3))))
    pads = _pair(draw(_drawn(padding, _pairs(0, 3))))
    G = draw(_drawn(groups, st.integers(1, 3)))
    each = _drawn(channels, st.integers(1, 3))
    C, O = G * draw(each), G * draw(each)
    H, W = (draw(_sides(k, d, p, max_size))
            for k, d, p in zip(size, dilations, pads, strict=True))  # fmt: skip
    N = draw(_drawn(batch, st.integers(1, 3)))
    return conv_geometry((N, C, H, W), (O, C // G, *size), strides, pads, dilations, G)


@st.composite
def pool_geometries(
    draw: Any,
    *,
    kernel: Any = None,
    stride: Any = None,
    padding: Any = None,
    dilation: Any = 1,
    count_include_pad: bool | None = None,
    batch: Any = None,
    channels: Any = None,
    max_size: int = 8,
) -> PoolGeometry:
    """Poolings that fit: padding up to half the kernel, strides above and below it.

    Settings as for `conv_geometries`; dilation is for maxima alone, and 1 unless asked for.
    """
    size = _pair(draw(_drawn(kernel, _pairs(1, 4))))
    strides = _pair(draw(_drawn(stride, _pairs(1, 4))))
    dilations = _pair(draw(_drawn(dilation, _pairs(1, 3))))
    half = st.tuples(*(st.integers(0, k // 2) for k in size))
    pads = _pair(draw(_drawn(padding, half)))
    H, W = (draw(_sides(k, d, p, max_size))
            for k, d, p in zip(size, dilations, pads, strict=True))  # fmt: skip
    N, C = draw(_drawn(batch, st.integers(1, 3))), draw(_drawn(channels, st.integers(1, 4)))
    counted = draw(_drawn(count_include_pad, st.booleans()))
    return pool_geometry("pool", (N, C, H, W), size, strides, pads, dilations, counted)


def _pairs(low: int, high: int) -> Strategy[Pair]:
    return st.tuples(st.integers(low, high), st.integers(low, high))


def _sides(kernel: int, dilation: int, padding: int, more: int) -> Strategy[int]:
    """Sizes of an image that a window fits into."""
    least = max(1, dilation * (kernel - 1) + 1 - 2 * padding)
    return st.integers(least, least + more)


@st.composite
def conv_arrays(
    draw: Any, g: ConvGeometry, dtype: Any = np.float64, **options: Any
) -> tuple[Array, Array, Array]:
    """x, weight and an upstream gradient for a geometry; options as for `arrays`."""
    found = [draw(arrays(s, dtype, **options)) for s in (g.x_shape, g.weight_shape, g.y_shape)]
    return found[0], found[1], found[2]


# -- nets ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class DrawnNet:
    """A model with an input that fits it. text: its parts, and the shape of the input."""

    model: nn.Module
    x: Tensor
    text: str

    def __repr__(self) -> str:
        return f"DrawnNet({self.text})"


@dataclass(frozen=True)
class _Part:
    """A layer for images of C channels. O: how many it returns; halves: whether it halves them."""

    text: str
    build: Callable[[], nn.Module]
    O: int
    halves: bool = False


def _parts(C: int, O: int) -> list[_Part]:
    """What a net may go on with, from the plainest."""
    wide = max(C, O)
    return [
        _Part("relu", nn.ReLU, C),
        _Part(f"conv3x3({C}, {O})", partial(nn.Conv2d, C, O, 3, padding=1), O),
        _Part(f"conv1x1({C}, {O})", partial(nn.Conv2d, C, O, 1, bias=False), O),
        _Part(f"batch_norm({C})", partial(nn.BatchNorm2d, C), C),
        _Part("max_pool", partial(nn.MaxPool2d, 3, 2, 1), C, True),
        _Part("avg_pool", partial(nn.AvgPool2d, 2, 2, 1), C, True),
        _Part(f"conv3x3({C}, {O}, stride 2)", partial(nn.Conv2d, C, O, 3, 2, 1), O, True),
        _Part(f"block({C})", partial(Block, C, C, 1, "identity"), C),
        _Part(f"block({C}, {O}, projection)", partial(Block, C, O, 2, "projection"), O, True),
        _Part(f"block({C}, {wide}, option A)", partial(Block, C, wide, 2, "zeros"), wide, True),
        _Part(f"pre_activation({C})", partial(PreActivation, C), C),
    ]


@st.composite
def small_nets(
    draw: Any,
    *,
    max_parts: int = 4,
    head: bool | None = None,
    training: bool | None = None,
    dtype: Any = np.float64,
) -> DrawnNet:
    """Small nets of convolutions, batch norms, pooling and residual blocks, and images for them.

    Sequential, at most `max_parts` parts of one to four channels, parameters and running statistics
    away from their initial values, with some 300 to 3,000 numbers in all.
    head: end in global average pooling and a linear layer; by default either way.
    training: the mode; by default either, shrinking to training.

    Shrinks to fewer and plainer parts, fewer channels and smaller images.
    """
    C = draw(st.integers(1, 3))
    N, size = draw(st.integers(2, 3)), (draw(st.integers(3, 7)), draw(st.integers(3, 7)))
    x_shape = (N, C, *size)
    parts: list[_Part] = []
    while not parts or (len(parts) < max_parts and draw(st.booleans())):
        room = _parts(C, draw(st.integers(1, 4)))
        if min(size) < 3:  # batch norm wants several pixels to the end
            room = [part for part in room if not part.halves]
        part = draw(st.sampled_from(room))
        parts.append(part)
        C = part.O
        if part.halves:
            size = ((size[0] + 1) // 2, (size[1] + 1) // 2)
    texts, builds = [part.text for part in parts], [part.build for part in parts]
    if draw(_drawn(head, st.booleans())):
        builds += [partial(nn.AdaptiveAvgPool2d, 1), nn.Flatten, partial(nn.Linear, C, 3)]
        texts.append(f"head({C}, 3)")
    rng = np.random.default_rng(draw(seeds()))
    model = away_from_start(lambda: nn.Sequential(*(build() for build in builds)), rng)
    mode = draw(_drawn(training, st.sampled_from([True, False])))
    model.train(mode)
    x = Tensor(rng.standard_normal(x_shape).astype(dtype), requires_grad=True)
    text = f"{' - '.join(texts)}, {'training' if mode else 'evaluation'}, x {shape_text(x_shape)}"
    return DrawnNet(model, x, text)
