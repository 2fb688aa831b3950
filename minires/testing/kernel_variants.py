r"""Wrong convolutions, by what is wrong with them: what a failing kernel is compared with.

A convolution is told by which pixel each tap of each window reads, which channel each output reads
and which weight it multiplies by:

    y[n, o, i, j] = sum_{k, u, v} x[n, channels[o, k], rows[i, u], cols[j, v]] * weight[o, k, u, v]

All three passes follow from these tables, so one table per mistake serves them all. An index of -1
reads zero.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from minires.kernels import ConvGeometry
from minires.kernels.geometry import Pair

Array = np.ndarray


def _unchanged(weight: Array) -> Array:
    return weight


@dataclass(frozen=True)
class Tables:
    """A convolution as tables of indices.

    rows (OH, KH), cols (OW, KW), channels (O, C/G).
    arrange: weight -> the weight in the order in which it is used; arranged twice it is as before.
    """

    g: ConvGeometry
    rows: Array
    cols: Array
    channels: Array
    arrange: Callable[[Array], Array] = _unchanged

    def conv2d(self, x: Array, weight: Array) -> Array:
        windows, w = self._windows(x), self.arrange(weight)
        y = np.empty(self.g.y_shape)
        for o, channels in enumerate(self.channels):
            y[:, o] = np.einsum("nkiujv,kuv->nij", windows[:, channels], w[o], optimize=True)
        return y

    def conv2d_grad_weight(self, x: Array, gy: Array) -> Array:
        windows = self._windows(x)
        gweight = np.empty(self.g.weight_shape)
        for o, channels in enumerate(self.channels):
            gweight[o] = np.einsum("nkiujv,nij->kuv", windows[:, channels], gy[:, o], optimize=True)
        return self.arrange(gweight)

    def conv2d_grad_input(self, gy: Array, weight: Array) -> Array:
        gx = self._empty()
        for _, _, at, share in self._shares(gy, weight):
            np.add.at(gx, at, share)
        return gx[:, :-1, :-1, :-1]

    def overwritten(self, gy: Array, weight: Array) -> Array:
        """The input gradient if each tap replaces what lies there instead of adding to it."""
        gx, total = self._empty(), self._empty()
        steps: dict[tuple[int, int], list[Any]] = {}
        for u, v, at, share in self._shares(gy, weight):
            steps.setdefault((u, v), []).append((at, share))
        for group in steps.values():  # the sum over output channels, tap by tap
            total[:] = 0
            touched = np.zeros(gx.shape, bool)
            for at, share in group:
                np.add.at(total, at, share)
                touched[at] = True
            gx[touched] = total[touched]
        return gx[:, :-1, :-1, :-1]

    def _empty(self) -> Array:
        N, C, H, W = self.g.x_shape
        return np.zeros((N, C + 1, H + 1, W + 1))

    def _windows(self, x: Array) -> Array:
        padded = self._empty()  # the last of each axis stays zero
        padded[:, :-1, :-1, :-1] = x
        return padded[:, :, self.rows][..., self.cols]

    def _shares(self, gy: Array, weight: Array) -> Any:
        """What each tap of each output channel gives to the pixels that it reads."""
        w = self.arrange(weight)
        KH, KW = self.g.kernel
        images = np.arange(self.g.N)[:, None, None, None]
        for u in range(KH):
            for v in range(KW):
                rows = self.rows[None, None, :, u, None]
                cols = self.cols[None, None, None, :, v]
                for o, channels in enumerate(self.channels):
                    at = images, channels[None, :, None, None], rows, cols
                    yield u, v, at, gy[:, o, None] * w[o, None, :, u, v, None, None]


def positions(
    g: ConvGeometry, axis: int, *, stride: int | None = None, padding: int | None = None,
    dilation: int | None = None,
) -> Array:  # fmt: skip
    """The pixel that each tap of each window reads along an axis, borders not yet considered."""
    s = g.stride[axis] if stride is None else stride
    p = g.padding[axis] if padding is None else padding
    d = g.dilation[axis] if dilation is None else dilation
    return np.arange(g.out[axis])[:, None] * s + np.arange(g.kernel[axis])[None] * d - p


def inside(where: Array, size: int) -> Array:
    """Positions, with -1 for those outside of 0, ..., size - 1."""
    return np.where((where >= 0) & (where < size), where, -1)


def right(g: ConvGeometry) -> Tables:
    """The convolution as it should be."""
    C, O = g.C // g.groups, g.O // g.groups
    channels = np.arange(g.O)[:, None] // O * C + np.arange(C)[None]
    return Tables(
        g, inside(positions(g, 0), g.H), inside(positions(g, 1), g.W), channels
    )


Change = Callable[[Tables], Tables]


def _moved(setting: str, change: Callable[[Pair], Pair]) -> Change:
    """With another stride, padding or dilation."""

    def made(t: Tables) -> Tables:
        g = t.g
        pair = change(getattr(g, setting))
        rows = positions(g, 0, **{setting: pair[0]})
        cols = positions(g, 1, **{setting: pair[1]})
        return replace(t, rows=inside(rows, g.H), cols=inside(cols, g.W))

    return made


def _border(how: Callable[[Array, int], Array]) -> Change:
    """With something else than zeros outside."""

    def made(t: Tables) -> Tables:
        rows, cols = how(positions(t.g, 0), t.g.H), how(positions(t.g, 1), t.g.W)
        return replace(t, rows=rows, cols=cols)

    return made


def _reflected(where: Array, size: int) -> Array:
    period = max(2 * size - 2, 1)
    return size - 1 - np.abs(np.mod(where, period) - (size - 1)) if size > 1 else where * 0


def _wrapped_below(where: Array, size: int) -> Array:
    """Negative indices count from the end, as Python's do."""
    return inside(np.where(where < 0, where + size, where), size)


def _weight(arrange: Callable[[Array], Array]) -> Change:
    return lambda t: replace(t, arrange=arrange)


def _square(t: Tables) -> Tables:
    KH, KW = t.g.kernel
    return replace(t, arrange=lambda w: w.swapaxes(2, 3)) if KH == KW else t


def _swapped_channels(t: Tables) -> Tables:
    O, C = t.g.weight_shape[:2]
    return replace(t, arrange=lambda w: w.swapaxes(0, 1)) if O == C else t


def _without(axis: str, which: Any) -> Change:
    """With a tap or a channel left out."""

    def made(t: Tables) -> Tables:
        table = getattr(t, axis).copy()
        table[:, which] = -1
        return replace(t, **{axis: table})

    return made


def _whole(t: Tables, tile: int) -> Tables:
    """Channels beyond the last whole tile of input channels left out."""
    C = t.channels.shape[1]
    return _without("channels", slice(C // tile * tile, None))(t)


def _first_group(t: Tables) -> Tables:
    return replace(t, channels=np.broadcast_to(t.channels[:1], t.channels.shape))


def _interleaved(t: Tables) -> Tables:
    g, C = t.g, t.g.C // t.g.groups
    start = np.arange(g.O)[:, None] % g.groups * C
    return replace(t, channels=start + np.arange(C)[None])


def _less(pair: Pair) -> Pair:
    return max(pair[0] - 1, 0), max(pair[1] - 1, 0)


def _more(pair: Pair) -> Pair:
    return pair[0] + 1, pair[1] + 1


def _swap(pair: Pair) -> Pair:
    return pair[1], pair[0]


VARIANTS: dict[str, tuple[str, Change]] = {
    "flipped": ("the kernel is flipped in both axes (a convolution where deep learning means a "
                "cross-correlation, or the reverse)", _weight(lambda w: w[:, :, ::-1, ::-1])),
    "flipped rows": ("the kernel is flipped from top to bottom", _weight(lambda w: w[:, :, ::-1])),
    "flipped columns": ("the kernel is flipped from left to right",
                        _weight(lambda w: w[:, :, :, ::-1])),
    "kernel axes": ("the kernel's two axes are swapped", _square),
    "weight channels": ("the weight's input and output channels are swapped", _swapped_channels),
    "padding ignored": ("the padding is missing: windows start at i * stride instead of "
                        "i * stride - padding", _moved("padding", lambda p: (0, 0))),
    "padding axes": ("the padding's height and width are swapped", _moved("padding", _swap)),
    "padding + 1": ("windows start one pixel too early: padding off by one",
                    _moved("padding", _more)),
    "padding - 1": ("windows start one pixel too late: padding off by one",
                    _moved("padding", lambda p: (p[0] - 1, p[1] - 1))),
    "edge": ("outside of the image the nearest pixel is read instead of zero: indices are clamped",
             _border(lambda where, size: np.clip(where, 0, size - 1))),
    "wrap": ("outside of the image the opposite side is read instead of zero: indices wrap around",
             _border(np.mod)),
    "wrap below": ("left of and above the image the opposite side is read instead of zero: "
                   "negative indices wrap around", _border(_wrapped_below)),
    "reflect": ("outside of the image its mirror image is read instead of zero",
                _border(_reflected)),
    "stride ignored": ("the stride is ignored", _moved("stride", lambda s: (1, 1))),
    "stride axes": ("the stride's height and width are swapped", _moved("stride", _swap)),
    "stride + 1": ("the stride is off by one (one too many)", _moved("stride", _more)),
    "stride - 1": ("the stride is off by one (one too few)", _moved("stride", _less)),
    "dilation ignored": ("the dilation is ignored", _moved("dilation", lambda d: (1, 1))),
    "dilation axes": ("the dilation's height and width are swapped", _moved("dilation", _swap)),
    "groups ignored": ("groups are ignored: every output reads the first group's channels",
                       _first_group),
    "groups interleaved": ("groups are interleaved: output o reads group o % G instead of "
                           "o // (O / G)", _interleaved),
    "last row": ("the kernel's last row is left out", _without("rows", -1)),
    "first row": ("the kernel's first row is left out", _without("rows", 0)),
    "last column": ("the kernel's last column is left out", _without("cols", -1)),
    "first column": ("the kernel's first column is left out", _without("cols", 0)),
    "last channel": ("the last input channel (of each group) is left out",
                     _without("channels", -1)),
    "first channel only": ("only the first input channel (of each group) is read",
                           _without("channels", slice(1, None))),
}  # fmt: skip
"""What may be wrong, in words, and the tables that it makes of the right ones."""

TILES = (2, 3, 4, 6, 8, 16, 32)

for _tile in reversed(TILES):
    VARIANTS[f"channels in {_tile}s"] = (
        f"input channels beyond the last whole {_tile} are left out: the tail is missing",
        lambda t, tile=_tile: _whole(t, tile),  # type: ignore[misc]
    )
