r"""Rungs 6 and 7: Winograd's F(2x2, 3x3) and F(4x4, 3x3).

An m x m piece y of the output depends on a t x t piece d of the input, t = m + 2. Seen as values of
polynomials at t - 1 points p and at infinity (Cook, Toom), their relation is a pointwise product:

    y = A^T [ (G g G^T) . (B^T d B) ] A              t^2 products where the definition has 9 m^2

    M(x) = prod_p (x - p)
    row p of B^T: the coefficients of M(x) / (x - p)         last row: those of M(x)
    row p of G:   (1, p, p^2) / prod_{q != p} (p - q)        last row: (0, 0, 1)
    column p of A^T: (1, p, ..., p^(m-1))                    last column: (0, ..., 0, 1)

Summed over channels, the t^2 pointwise products are t^2 matrix products (tiles x C) @ (C x O). The
transforms are linear, and their adjoints make the gradients:

    gx       the same convolution of gy, with the kernel rotated and its channels swapped
    gweight  G^T [ sum over tiles (B^T d B) . (A gy A^T) ] G

What changed: products were traded for sums, 36 for 16 where m is 2 and 144 for 36 where it is 4.
What it bought: 2.25 and 4 times fewer products, where there are enough channels for the sums to be
few beside them. The price is digits: the transforms take differences of large numbers, and the
larger the points, the more is lost. `error` measures it: the largest error in float32, relative to
the largest output, for 64 channels:

    seven loops   one product   F(2x2, 3x3)   F(4x4, 3x3), points
                                              0 1 -1 2 -2   0 3/4 -3/4 3/2 -3/2
    1.0e-06       4.7e-07       3.4e-07       2.6e-06       7.5e-07

which is why F(4x4) takes the last points here. `kernels/cpu/winograd.py` is the same on explicit
vector instructions. Sources: Winograd, Arithmetic Complexity of Computations (1980); Lavin & Gray
(2015), section 4; Barabasz et al. (2018) on the choice of points.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.lib.stride_tricks import as_strided
from numpy.polynomial import polynomial

from minires.kernels.condition import never
from minires.kernels.geometry import ConvGeometry, conv_geometry
from minires.kernels.layout import to_nchw, to_nhwc
from minires.kernels.registry import register

Points = tuple[float, ...]
Transforms = tuple[Any, Any, Any]

POINTS: dict[int, Points] = {2: (0.0, 1.0, -1.0), 4: (0.0, 0.75, -0.75, 1.5, -1.5)}
"""The finite points by m."""


@lru_cache(maxsize=8)
def transforms(points: Points) -> Transforms:
    """A^T (m, t), G (t, 3) and B^T (t, t) of t - 1 finite points, in float64."""
    t = len(points) + 1
    m = t - 2
    AT, G, BT = np.zeros((m, t)), np.zeros((t, 3)), np.zeros((t, t))
    for k, p in enumerate(points):
        others = [q for q in points if q != p]
        AT[:, k] = p ** np.arange(m)
        G[k] = p ** np.arange(3) / np.prod([p - q for q in others])
        BT[k, : t - 1] = polynomial.polyfromroots(others)
    AT[-1, -1] = G[-1, -1] = 1.0
    BT[-1] = polynomial.polyfromroots(points)
    return AT, G, BT


def supported(g: ConvGeometry) -> bool:
    """3x3, stride 1, one group, padding at most 2."""
    one = (1, 1)
    return (
        g.kernel == (3, 3) and g.stride == g.dilation == one and g.groups == 1
        and max(g.padding) <= 2
    )  # fmt: skip


def _tiles(x: Any, m: int, size: int, counts: tuple[int, int], before: tuple[int, int]) -> Any:
    """(N, H, W, C) -> a view (N, TH, TW, size, size, C): tiles m apart, zeros around the image."""
    N, H, W, C = x.shape
    high, wide = ((count - 1) * m + size for count in counts)
    padded = np.zeros((N, high, wide, C), x.dtype)
    rows, cols = min(H, high - before[0]), min(W, wide - before[1])
    padded[:, before[0] : before[0] + rows, before[1] : before[1] + cols] = x[:, :rows, :cols]
    n, h, w, c = padded.strides
    return as_strided(padded, (N, *counts, size, size, C), (n, m * h, m * w, h, w, c))


def _transform(T: Any, tiles: Any) -> Any:
    """T d T^T for every tile and channel: (N, TH, TW, p, q, C) -> (a, b, tiles, C)."""
    T = T.astype(tiles.dtype)
    half = np.einsum("ap,nijpqc->anijqc", T, tiles, optimize=True)
    whole = np.einsum("bq,anijqc->abnijc", T, half, optimize=True)
    return whole.reshape(*whole.shape[:2], -1, whole.shape[-1])


def _counts(g: ConvGeometry, m: int) -> tuple[int, int]:
    """Tiles along the height and the width of the output."""
    return -(-g.out[0] // m), -(-g.out[1] // m)


def convolve(x: Any, weight: Any, g: ConvGeometry, points: Points) -> Any:
    """The convolution by F(m x m, 3x3), m one less than the number of points."""
    AT, G, BT = transforms(points)
    m, t = AT.shape
    TH, TW = counts = _counts(g, m)
    V = _transform(BT, _tiles(to_nhwc(x), m, t, counts, g.padding))
    kernels = weight.transpose(2, 3, 1, 0)
    U = np.einsum("ap,bq,pqco->abco", G, G, kernels, optimize=True).astype(x.dtype)
    M = (V @ U).reshape(t, t, g.N, TH, TW, g.O)
    AT = AT.astype(x.dtype)
    half = np.einsum("ya,abnijo->ybnijo", AT, M, optimize=True)
    y = np.einsum("xb,ybnijo->niyjxo", AT, half, optimize=True)
    return to_nchw(y.reshape(g.N, TH * m, TW * m, g.O)[:, : g.out[0], : g.out[1]])


def _grad_weight(x: Any, gy: Any, g: ConvGeometry, points: Points) -> Any:
    AT, G, BT = transforms(points)
    m, t = AT.shape
    counts = _counts(g, m)
    V = _transform(BT, _tiles(to_nhwc(x), m, t, counts, g.padding))
    Z = _transform(AT.T, _tiles(to_nhwc(gy), m, m, counts, (0, 0)))
    S = V.swapaxes(2, 3) @ Z
    return np.einsum("ap,bq,abco->ocpq", G, G, S, optimize=True).astype(x.dtype)


def error(points: Points, channels: int = 64, dtype: Any = np.float32) -> float:
    """The largest error of a convolution of normal numbers, relative to the largest output."""
    rng = np.random.default_rng(0)
    g = conv_geometry((2, channels, 24, 24), (16, channels, 3, 3), 1, 1)
    x, weight = (rng.standard_normal(shape).astype(dtype) for shape in (g.x_shape, g.weight_shape))
    exact = convolve(x.astype(np.float64), weight.astype(np.float64), g, POINTS[2])
    y = convolve(x, weight, g, points)
    return float(np.abs(y - exact).max() / np.abs(exact).max())


def _register(m: int) -> None:
    points, name = POINTS[m], f"winograd-{m}x{m}"

    def workspace(g: ConvGeometry, dtype: str) -> int:
        """V, U and M: inputs, kernels and products, transformed."""
        TH, TW = _counts(g, m)
        numbers = g.N * TH * TW * (g.C + g.O) + g.C * g.O
        return (m + 2) ** 2 * numbers * np.dtype(dtype).itemsize

    def conv2d(x: Any, weight: Any, g: ConvGeometry) -> Any:
        return convolve(x, weight, g, points)

    def conv2d_grad_input(gy: Any, weight: Any, g: ConvGeometry) -> Any:
        pads = 2 - g.padding[0], 2 - g.padding[1]
        back = conv_geometry(g.y_shape, (g.C, g.O, 3, 3), 1, pads)
        return convolve(gy, weight[:, :, ::-1, ::-1].swapaxes(0, 1), back, points)

    def conv2d_grad_weight(x: Any, gy: Any, g: ConvGeometry) -> Any:
        return _grad_weight(x, gy, g, points)

    kernels: list[tuple[Callable[..., Any], str]] = [
        (conv2d, f"F({m}x{m}, 3x3)."),
        (conv2d_grad_input, f"F({m}x{m}, 3x3) of the upstream gradient, kernel rotated."),
        (conv2d_grad_weight, f"F({m}x{m}, 3x3), its kernel transform transposed."),
    ]
    for function, text in kernels:
        function.__doc__ = text
        register(
            function.__name__, name=name, only=supported, worth=never, exact=False,
            workspace=workspace,
        )(function)  # fmt: skip


_register(2)
_register(4)
