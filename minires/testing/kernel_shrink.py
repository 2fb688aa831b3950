"""From a failing convolution to the smallest that still fails."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

from minires.kernels import ConvGeometry, conv_geometry

MOST_TRIES = 400


def smallest(g: ConvGeometry, fails: Callable[[ConvGeometry], bool]) -> ConvGeometry:
    """Make sizes smaller and settings plainer, one at a time, as long as `fails` says so."""
    tries = 0
    while True:
        for smaller in _smaller(g):
            tries += 1
            if tries > MOST_TRIES:
                return g
            if fails(smaller):
                g = smaller
                break
        else:
            return g


def _smaller(g: ConvGeometry) -> Iterator[ConvGeometry]:
    """Plainer geometries, the boldest steps first."""
    if g.groups > 1:
        yield from _fitting(g, groups=1)
        yield from _fitting(g, groups=2, C=2 * g.C // g.groups, O=2 * g.O // g.groups)
    for name in ("N", "C", "O", "H", "W"):
        size, unit = getattr(g, name), g.groups if name in ("C", "O") else 1
        for less in (1, size // unit // 2, size // unit - 1):
            if 1 <= less < size // unit:
                yield from _fitting(g, **{name: less * unit})
    for name, plain in (("dilation", 1), ("stride", 1), ("padding", 0), ("kernel", 1)):
        pair = getattr(g, name)
        if pair != (plain, plain):
            yield from _fitting(g, **{name: (plain, plain)})
        for axis in (0, 1):
            for value in {plain, pair[axis] - 1}:
                if plain <= value < pair[axis]:
                    changed = (value, pair[1]) if axis == 0 else (pair[0], value)
                    yield from _fitting(g, **{name: changed})


def _fitting(g: ConvGeometry, **changes: object) -> Iterator[ConvGeometry]:
    """The changed geometry, if its window fits."""
    c = replace(g, **changes)  # type: ignore[arg-type]
    try:
        yield conv_geometry(
            c.x_shape, c.weight_shape, c.stride, c.padding, c.dilation, c.groups
        )
    except ValueError:
        return
