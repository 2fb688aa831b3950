"""Receptive fields, computed exactly from the tape, and the patches that excite a channel most."""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from minires.anatomy.features import look, to_show
from minires.anatomy.parts import Array, as_images
from minires.autograd import Function, Tensor, elementwise
from minires.autograd.shaping import Cast, Clone, Concatenate, GetItem, Pad, Transfer
from minires.functional.activation import AddReLU, Dropout, ReLU
from minires.functional.conv import Conv2d
from minires.functional.norm import BatchNormEval, Normalise
from minires.functional.pool import AdaptiveAvgPool2d, AvgPool2d, MaxPool2d
from minires.nn import Module

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Pair = tuple[int, int]

POINTWISE = (ReLU, AddReLU, Dropout, BatchNormEval, Normalise, Cast, Clone, Transfer)
"""Operations that work on each pixel alone, beside those of `minires.autograd.elementwise`."""


@dataclass(frozen=True)
class Reach:
    """What a unit depends on along one axis.

    inside: the positions in the image, ascending. low, high: the first and last position with
    padding counted in, at every layer, as if there were image outside the image.
    """

    inside: tuple[int, ...]
    low: int
    high: int

    def join(self, other: Reach) -> Reach:
        """What two uses of one map depend on together."""
        inside = tuple(sorted({*self.inside, *other.inside}))
        return Reach(inside, min(self.low, other.low), max(self.high, other.high))

    def window(self, size: int, kernel: int, stride: int, padding: int, dilation: int) -> Reach:
        """From the output of a sliding window to its input of this size."""
        inside = {
            o * stride - padding + k * dilation for o in self.inside for k in range(kernel)
        }
        return Reach(
            tuple(sorted(i for i in inside if 0 <= i < size)),
            self.low * stride - padding,
            self.high * stride - padding + (kernel - 1) * dilation,
        )


@dataclass(frozen=True)
class ReceptiveField:
    """The pixels that one unit of a layer depends on: those in `rows` and `columns`.

    layer, unit: whose; unit is (i, j) in the layer's maps.
    rows, columns: with `inside`, where pixels have influence, and the whole extent, which may
        reach beyond the image into the zeros around it.
    """

    layer: str
    unit: Pair
    rows: Reach
    columns: Reach

    @property
    def size(self) -> Pair:
        """(height, width) of the whole extent: the same for all units."""
        return self.rows.high - self.rows.low + 1, self.columns.high - self.columns.low + 1

    @property
    def window(self) -> tuple[slice, slice]:
        """The whole extent as slices; they may start below 0 and stop beyond the image."""
        return (
            slice(self.rows.low, self.rows.high + 1),
            slice(self.columns.low, self.columns.high + 1),
        )


def receptive_field(
    model: Module, layer: str, image_shape: Sequence[int], unit: Pair | None = None
) -> ReceptiveField:
    """The receptive field of a unit of a layer, in evaluation mode.

    It is found by walking the tape from the unit back to the image, taking at each operation the
    positions that it reads: no formula for a kind of network, and shortcuts are ways like others.
    rows and columns are exact; with strides, a row may count for some of the columns only.

    layer: full name of a module that returns maps (N, K, h, w). image_shape: (C, H, W).
    unit: (i, j); None for the one in the middle.

    Raises ValueError for a unit outside the maps, TypeError for an operation not known here.
    """
    maps = _maps(model, layer, image_shape)
    h, w = maps.shape[2:]
    chosen = (h // 2, w // 2) if unit is None else unit
    if not (0 <= chosen[0] < h and 0 <= chosen[1] < w):
        raise ValueError(f"receptive_field: {layer} has maps of {h}x{w}, no unit {tuple(chosen)}")
    return _field(maps, layer, chosen)


def _maps(model: Module, layer: str, image_shape: Sequence[int]) -> Tensor:
    """The layer's output for one black image, on the tape."""
    if len(image_shape) != 3:
        raise ValueError(f"receptive_field: image_shape is (C, H, W), got {tuple(image_shape)}")
    maps = look(
        "receptive_field", model, np.zeros((1, *image_shape), np.float32), [layer]
    ).layers[layer]
    if maps.ndim != 4:
        raise ValueError(f"receptive_field: {layer} returns {maps.shape}, not maps (N, K, h, w)")
    return maps


def _field(maps: Tensor, layer: str, unit: Pair) -> ReceptiveField:
    start = tuple(Reach((i,), i, i) for i in unit)
    if maps.grad_fn is None:  # the layer returns the image itself
        return ReceptiveField(layer, unit, *start)
    reached = {id(maps.grad_fn): start}
    heap = [(-maps.grad_fn.sequence, maps.grad_fn)]
    image: tuple[Reach, ...] = ()
    while heap:  # newest first: all uses of a map are known before what it was made from
        _, node = heapq.heappop(heap)
        ends = reached.pop(id(node))
        for edge, known in zip(node.edges or (), node.inputs, strict=True):
            if edge is None or known is None:  # a constant
                continue
            before = _before(node, ends, known[0])
            if not all(reach.inside for reach in before):  # it reads nothing but padding
                before = tuple(Reach((), reach.low, reach.high) for reach in before)
            if isinstance(edge, Tensor):
                image = _joined(image, before)
                continue
            if id(edge[0]) not in reached:
                heapq.heappush(heap, (-edge[0].sequence, edge[0]))
            reached[id(edge[0])] = _joined(reached.get(id(edge[0]), ()), before)
    return ReceptiveField(layer, unit, *image)


def _joined(a: tuple[Reach, ...], b: tuple[Reach, ...]) -> tuple[Reach, ...]:
    return tuple(x.join(y) for x, y in zip(a, b, strict=True)) if a else b


def _before(
    node: Function, ends: tuple[Reach, ...], shape: tuple[int, ...]
) -> tuple[Reach, ...]:
    """What an operation's input of this shape must be known at, for its output to be known."""
    if isinstance(node, Conv2d | MaxPool2d | AvgPool2d):
        g = node.g
        return tuple(
            reach.window(size, *settings)
            for reach, size, *settings in zip(
                ends, shape[2:], g.kernel, g.stride, g.padding, g.dilation, strict=True
            )
        )
    if isinstance(node, AdaptiveAvgPool2d):
        return tuple(
            Reach(
                tuple(sorted({r for o in reach.inside for r in _cell(o, size, out)})),
                _cell(reach.low, size, out).start,
                _cell(reach.high, size, out).stop - 1,
            )
            for reach, size, out in zip(ends, shape[2:], node.out, strict=True)
        )
    if isinstance(node, GetItem | Pad) and len(shape) == 4:
        maps = [_affine(node, axis, shape[axis]) for axis in (2, 3)]
        return tuple(
            Reach(
                tuple(i for o in reach.inside if 0 <= (i := start + step * o) < size),
                start + step * reach.low,
                start + step * reach.high,
            )
            for reach, size, (start, step) in zip(ends, shape[2:], maps, strict=True)
        )
    pointwise = isinstance(node, POINTWISE) or type(node).__module__ == elementwise.__name__
    if len(shape) == 4 and (pointwise or (isinstance(node, Concatenate) and node.axis == 1)):
        if shape[2:] == node.outputs[0][0][2:]:
            return ends
        if shape[2:] == (1, 1):  # broadcast: every unit reads the only one
            return (Reach((0,), 0, 0),) * 2
    raise TypeError(f"receptive_field: how {node.name} spreads over the image is not known here")


def _cell(o: int, size: int, out: int) -> range:
    """The positions that adaptive pooling averages for output o."""
    return range(o * size // out, -(-(o + 1) * size // out))


def _affine(node: GetItem | Pad, axis: int, size: int) -> Pair:
    """(start, step): output position o of slicing or padding is input position start + step * o."""
    if isinstance(node, Pad):
        return -node.widths[axis][0], 1
    index = node.index if isinstance(node.index, tuple) else (node.index,)
    part = index[axis] if axis < len(index) else slice(None)
    if not all(isinstance(p, slice) for p in index):
        raise TypeError(f"receptive_field: indexing by {node.index} is not known here, slices are")
    start, _, step = part.indices(size)
    return start, step


# -- the patches that excite a channel most -------------------------------------------------------


@dataclass(frozen=True)
class TopPatches:
    """Where the images excite each channel most, at most once per image.

    layer, channels: (K,). values: (K, k), descending. where: (K, k, 3), image n and unit (i, j).
    patches: (K, k, C, h, w), the receptive fields of those units, zero where they reach beyond
        the image.
    """

    layer: str
    channels: tuple[int, ...]
    values: Array
    where: np.ndarray
    patches: Array

    def plot(self, path: Any = None) -> Figure:
        """A row of patches for each channel."""
        from minires.anatomy import drawing

        K, k = self.where.shape[:2]
        h, w = self.patches.shape[-2:]
        shown = to_show(self.patches.reshape(-1, *self.patches.shape[2:]))
        with drawing.canvas(
            max(0.72 * k + 0.8, 5.6), 0.72 * K + 0.85, f"What excites {self.layer} most",
            f"Receptive fields of {h}x{w} pixels, the strongest first, one row per channel.", path,
        ) as figure:  # fmt: skip
            grid = figure.subplots(K, k, squeeze=False)
            for axes, patch in zip(grid.flat, shown, strict=True):
                drawing.picture(axes, patch, cmap="gray", vmin=0, vmax=1)
            for axes, channel in zip(grid[:, 0], self.channels, strict=True):
                axes.text(-0.15, 0.5, str(channel), transform=axes.transAxes, ha="right",
                          va="center", fontsize=9)  # fmt: skip
        return figure


def top_patches(
    model: Module,
    layer: str,
    images: Any,
    channels: Sequence[int] | None = None,
    k: int = 9,
    batch_size: int = 128,
) -> TopPatches:
    """The patches of a set of images that a layer's channels answer to most strongly.

    images: (N, C, H, W), as the model takes them. channels: None for the first eight.
    k: patches for each channel, from k different images.

    Raises ValueError for a channel that the layer has not, or fewer than k images.
    """
    x = as_images("top_patches", images, np.asarray(images).dtype)._data
    field = _maps(model, layer, x.shape[1:])
    chosen = tuple(range(min(8, field.shape[1])) if channels is None else map(int, channels))
    if not chosen or min(chosen) < 0 or max(chosen) >= field.shape[1]:
        raise ValueError(
            f"top_patches: {layer} has channels 0 to {field.shape[1] - 1}, got {list(chosen)}"
        )
    if not 1 <= k <= len(x):
        raise ValueError(f"top_patches: k is 1 to {len(x)}, the number of images; got {k}")
    best, at = [], []
    for start in range(0, len(x), batch_size):
        seen = look("top_patches", model, x[start : start + batch_size], [layer], record=False)
        maps = seen.layers[layer]._data[:, chosen]
        flat = maps.reshape(*maps.shape[:2], -1)
        best.append(flat.max(axis=2))
        at.append(flat.argmax(axis=2))
    values, units = np.concatenate(best), np.concatenate(at)  # (N, K)
    order = np.argsort(-values, axis=0, kind="stable")[:k].T  # (K, k) images
    rows = np.arange(len(chosen))[:, None]
    unit = units[order, rows]
    i, j = np.unravel_index(unit, field.shape[2:])
    where = np.stack([order, i, j], axis=-1)
    fields = {u: _field(field, layer, u) for u in {(int(a), int(b)) for _, a, b in
                                                   where.reshape(-1, 3)}}  # fmt: skip
    patches = np.stack([
        np.stack([cut(x[n], fields[int(a), int(b)]) for n, a, b in row]) for row in where
    ])  # fmt: skip
    return TopPatches(layer, chosen, values[order, rows], where, patches)


def cut(image: Array, field: ReceptiveField) -> Array:
    """The field's whole extent from an image (C, H, W), with zeros outside the image."""
    patch = np.zeros((len(image), *field.size), image.dtype)
    inside, place = [], []
    for window, size in zip(field.window, image.shape[1:], strict=True):
        start, stop = max(window.start, 0), min(window.stop, size)
        inside.append(slice(start, stop))
        place.append(slice(start - window.start, stop - window.start))
    patch[:, *place] = image[:, *inside]
    return patch
