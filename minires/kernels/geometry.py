"""Where a window falls: output sizes, padding and offsets, written once for every backend.

Shape letters: N images, C input channels, H W input size, O output channels, KH KW kernel size,
OH OW output size, G groups. Window o of a row starts at input position o * stride - padding and
touches every `dilation`-th position, so (rounding down)

    OH = (H + 2 * padding - dilation * (KH - 1) - 1) // stride + 1
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from operator import index
from typing import Any

Pair = tuple[int, int]


def shape_text(shape: Sequence[int]) -> str:
    """`8x3x32x32`, as shapes read in errors and tables."""
    return "x".join(map(str, shape)) or "scalar"


def pair(value: int | Sequence[int], name: str, operation: str, minimum: int) -> Pair:
    """A setting for height and width: one integer for both, or two.

    Raises TypeError if it is not made of integers, ValueError if one is below `minimum`.
    """
    values = tuple(value) if isinstance(value, Sequence) else (value, value)
    if len(values) == 1:
        values *= 2
    if len(values) != 2:
        raise ValueError(f"{operation}: {name} takes one integer or two, got {value!r}")
    try:
        high, wide = map(index, values)
    except TypeError:
        raise TypeError(f"{operation}: {name} takes integers, got {value!r}") from None
    if high < minimum or wide < minimum:
        raise ValueError(f"{operation}: {name} must be at least {minimum}, got {value!r}")
    return _one_object(high, wide)


@lru_cache(maxsize=1024)
def _one_object(high: int, wide: int) -> Pair:
    """The same object for equal pairs: `conv_geometry` knows a layer's settings by identity."""
    return high, wide


def output_size(size: int, kernel: int, stride: int, padding: int, dilation: int = 1) -> int:
    """How many windows fit, rounding down; may be zero or negative if none does."""
    return (size + 2 * padding - dilation * (kernel - 1) - 1) // stride + 1


class _Hashed:
    """A hash worked out once: kernels are looked up by geometry at every call."""

    __slots__ = ("_hash",)

    _hash: int

    def __hash__(self) -> int:
        try:
            return self._hash
        except AttributeError:
            names = self.__dataclass_fields__  # type: ignore[attr-defined]
            object.__setattr__(self, "_hash", hash(tuple(getattr(self, n) for n in names)))
            return self._hash


@dataclass(frozen=True, slots=True)
class ConvGeometry(_Hashed):
    """Every size of one convolution; hashable, so that algorithms can be chosen per geometry."""

    __hash__ = _Hashed.__hash__

    N: int
    C: int
    H: int
    W: int
    O: int
    kernel: Pair
    stride: Pair
    padding: Pair
    dilation: Pair
    groups: int
    out: Pair
    pointwise: bool = field(init=False, repr=False, compare=False)
    window_sizes: tuple[int, ...] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        """Work out once what every call of a kernel asks for.

        pointwise: whether this is a plain matrix product: 1x1, unpadded, ungrouped.
        window_sizes: H W C KH KW, stride, padding, dilation, OH OW: all that a window's place
            depends on.
        """
        pointwise = self.kernel == (1, 1) and self.padding == (0, 0) and self.groups == 1
        object.__setattr__(self, "pointwise", pointwise)
        where = *self.kernel, *self.stride, *self.padding, *self.dilation
        sizes = self.H, self.W, self.C, *where, *self.out
        object.__setattr__(self, "window_sizes", sizes)

    @property
    def x_shape(self) -> tuple[int, int, int, int]:
        return self.N, self.C, self.H, self.W

    @property
    def weight_shape(self) -> tuple[int, int, int, int]:
        return self.O, self.C // self.groups, *self.kernel

    @property
    def y_shape(self) -> tuple[int, int, int, int]:
        return self.N, self.O, *self.out

    @property
    def multiply_adds(self) -> int:
        """Multiply-adds of one pass by the definition, whatever algorithm computes it."""
        KH, KW = self.kernel
        OH, OW = self.out
        return self.N * self.O * OH * OW * (self.C // self.groups) * KH * KW

    def __str__(self) -> str:
        text = f"{shape_text(self.x_shape)} * {shape_text(self.weight_shape)}"
        if self.stride != (1, 1):
            text += f" stride {shape_text(self.stride)}"
        if self.padding != (0, 0):
            text += f" padding {shape_text(self.padding)}"
        if self.dilation != (1, 1):
            text += f" dilation {shape_text(self.dilation)}"
        return text + (f" groups {self.groups}" if self.groups != 1 else "")


def conv_geometry(
    x_shape: tuple[int, ...],
    weight_shape: tuple[int, ...],
    stride: int | Sequence[int] = 1,
    padding: int | Sequence[int] = 0,
    dilation: int | Sequence[int] = 1,
    groups: int = 1,
) -> ConvGeometry:
    """The geometry of conv2d(x, weight, ...).

    Raises ValueError for shapes that do not fit and TypeError for settings that are not integers.
    """
    call = x_shape, weight_shape, stride, padding, dilation, groups
    try:
        g, strides, pads, dilations, group_count = _found_before(*call)
    except TypeError:  # a setting is wrong, or a list, which cannot be looked up
        return _with_settings(*call)
    # Equal settings need not be right: 1.0 == 1. The same objects are.
    if (
        strides is stride
        and pads is padding
        and dilations is dilation
        and group_count is groups
    ):
        return g
    return _with_settings(*call)


def _with_settings(
    x_shape: tuple[int, ...],
    weight_shape: tuple[int, ...],
    stride: int | Sequence[int],
    padding: int | Sequence[int],
    dilation: int | Sequence[int],
    groups: int,
) -> ConvGeometry:
    """The geometry, once the settings have been found to be right."""
    try:
        group_count = index(groups)
    except TypeError:
        raise TypeError(f"conv2d: groups takes an integer, got {groups!r}") from None
    return _conv_geometry(
        tuple(x_shape),
        tuple(weight_shape),
        pair(stride, "stride", "conv2d", 1),
        pair(padding, "padding", "conv2d", 0),
        pair(dilation, "dilation", "conv2d", 1),
        group_count,
    )


@lru_cache(maxsize=4096)
def _found_before(*call: Any) -> tuple[ConvGeometry, Any, Any, Any, Any]:
    """The geometry of a call, and the settings that it was called with."""
    _, _, stride, padding, dilation, groups = call
    return _with_settings(*call), stride, padding, dilation, groups


@lru_cache(maxsize=4096)
def _conv_geometry(
    x_shape: tuple[int, ...],
    weight_shape: tuple[int, ...],
    strides: Pair,
    pads: Pair,
    dilations: Pair,
    groups: int,
) -> ConvGeometry:
    shapes = f"(x {shape_text(x_shape)}, weight {shape_text(weight_shape)})"
    if len(x_shape) != 4 or len(weight_shape) != 4:
        raise ValueError(
            f"conv2d: expected x of shape (N, C, H, W) and weight (O, C/groups, KH, KW) {shapes}"
        )
    N, C, H, W = x_shape
    O, C_group, KH, KW = weight_shape
    if groups < 1:
        raise ValueError(f"conv2d: groups must be at least 1, got {groups}")
    if min(O, C_group, KH, KW) < 1:
        raise ValueError(f"conv2d: weight has a size of zero {shapes}")
    if C % groups or O % groups:
        raise ValueError(
            f"conv2d: groups={groups} must divide the {C} input and {O} output channels {shapes}"
        )
    if C_group * groups != C:
        raise ValueError(
            f"conv2d: weight expects {C_group * groups} input channels, x has {C} {shapes}"
        )
    OH = output_size(H, KH, strides[0], pads[0], dilations[0])
    OW = output_size(W, KW, strides[1], pads[1], dilations[1])
    if OH < 1 or OW < 1:
        raise ValueError(
            f"conv2d: the kernel does not fit: {dilations[0] * (KH - 1) + 1}x"
            f"{dilations[1] * (KW - 1) + 1} with dilation, on {H + 2 * pads[0]}x{W + 2 * pads[1]} "
            f"with padding {shapes}"
        )
    return ConvGeometry(
        N, C, H, W, O, (KH, KW), strides, pads, dilations, groups, (OH, OW)
    )  # fmt: skip


@dataclass(frozen=True, slots=True)
class PoolGeometry(_Hashed):
    """Every size of one pooling."""

    __hash__ = _Hashed.__hash__

    N: int
    C: int
    H: int
    W: int
    kernel: Pair
    stride: Pair
    padding: Pair
    dilation: Pair
    out: Pair
    count_include_pad: bool = True

    @property
    def x_shape(self) -> tuple[int, int, int, int]:
        return self.N, self.C, self.H, self.W

    @property
    def y_shape(self) -> tuple[int, int, int, int]:
        return self.N, self.C, *self.out


def pool_geometry(
    operation: str,
    x_shape: tuple[int, ...],
    kernel: int | Sequence[int],
    stride: int | Sequence[int] | None = None,
    padding: int | Sequence[int] = 0,
    dilation: int | Sequence[int] = 1,
    count_include_pad: bool = True,
) -> PoolGeometry:
    """The geometry of a pooling; `stride` defaults to the kernel size.

    Raises ValueError for shapes that do not fit, and for padding over half the kernel, where a
    window could lie in the padding alone; TypeError for settings that are not integers.
    """
    size = pair(kernel, "kernel_size", operation, 1)
    return _pool_geometry(
        operation,
        tuple(x_shape),
        size,
        size if stride is None else pair(stride, "stride", operation, 1),
        pair(padding, "padding", operation, 0),
        pair(dilation, "dilation", operation, 1),
        bool(count_include_pad),
    )


@lru_cache(maxsize=4096)
def _pool_geometry(
    operation: str,
    x_shape: tuple[int, ...],
    kernel: Pair,
    strides: Pair,
    pads: Pair,
    dilations: Pair,
    count_include_pad: bool,
) -> PoolGeometry:
    if len(x_shape) != 4:
        raise ValueError(f"{operation}: expected x (N, C, H, W), got {shape_text(x_shape)}")
    N, C, H, W = x_shape
    KH, KW = kernel
    if pads[0] > KH // 2 or pads[1] > KW // 2:
        raise ValueError(
            f"{operation}: padding {shape_text(pads)} is more than half of the kernel "
            f"{shape_text((KH, KW))}, so windows could contain nothing but padding"
        )
    OH = output_size(H, KH, strides[0], pads[0], dilations[0])
    OW = output_size(W, KW, strides[1], pads[1], dilations[1])
    if OH < 1 or OW < 1:
        raise ValueError(
            f"{operation}: the {KH}x{KW} window does not fit x {shape_text(x_shape)} with padding "
            f"{shape_text(pads)} and dilation {shape_text(dilations)}"
        )
    return PoolGeometry(
        N, C, H, W, (KH, KW), strides, pads, dilations, (OH, OW), count_include_pad
    )  # fmt: skip


def adaptive_windows(size: int, out: int) -> list[Pair]:
    """Start and end of each of `out` windows over `size` positions, as PyTorch's adaptive pooling.

    Window i covers floor(i * size / out) up to ceil((i + 1) * size / out); windows overlap where
    `out` does not divide `size`.
    """
    return [(i * size // out, -((-(i + 1) * size) // out)) for i in range(out)]


def same_padding(kernel: Pair, dilation: Pair) -> tuple[Pair, Pair]:
    """((top, bottom), (left, right)) that keep the size at stride 1; the odd one goes last."""
    total = [d * (k - 1) for k, d in zip(kernel, dilation, strict=True)]
    (top, left) = (t // 2 for t in total)
    return (top, total[0] - top), (left, total[1] - left)
