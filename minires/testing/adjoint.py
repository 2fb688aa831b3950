r"""Adjoint identities: gradients of linear operations, checked exactly and at full size.

The gradient of a linear operation A is its adjoint A*, and <A x, y> = <x, A* y> for every x and y:
no step, no kink, no truncation, one evaluation whatever the size. For a convolution, linear in
the image and in the weight,

    <conv(x, w), y> = <x, grad_input(y, w)> = <w, grad_weight(x, y)>.

Only rounding separates the sides. The rounding errors of sums of n terms grow like sqrt(n) u for
random data (Higham & Mary, "A new approach to probabilistic rounding error analysis", SIAM J. Sci.
Comput. 41(5), 2019), u being half the machine epsilon, and so do those of the M elements of A x
when they are summed up against random y. With root mean squares r(.), that makes

    |<A x, y> - <x, A* y>| <= c u sqrt(n) (sqrt(M) r(Ax) r(y) + sqrt(N) r(x) r(A*y)),

where c covers constants and algorithms that trade accuracy for speed. The inner products
themselves are taken in float64. x and y must be random for this to hold, as the functions below
draw them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from minires.kernels import operations as ops
from minires.kernels.geometry import ConvGeometry, Pair, PoolGeometry, shape_text
from minires.testing.compare import as_array

SLACK = 8.0
"""c above: plain sums stay below 1."""


@dataclass(frozen=True)
class AdjointResult:
    """Two sides of an identity, their difference, and what rounding can account for."""

    name: str
    left: float
    right: float
    bound: float

    @property
    def error(self) -> float:
        return abs(self.left - self.right)

    @property
    def passed(self) -> bool:
        return self.error <= self.bound

    def __str__(self) -> str:
        return (
            f"{self.name}: {self.left:.12g} and {self.right:.12g}, apart by {self.error:.2g}, "
            f"rounding explains {self.bound:.2g}"
        )


def check_adjoint(
    forward: Callable[[Any], Any],
    adjoint: Callable[[Any], Any],
    x: Any,
    y: Any,
    *,
    name: str = "<A x, y> = <x, A* y>",
    terms: int | None = None,
    slack: float = SLACK,
) -> AdjointResult:
    """Check that `adjoint` is the adjoint of the linear function `forward`.

    forward: x -> an array (or Tensor) of y's shape; adjoint: y -> one of x's shape.
    x, y: arrays or Tensors with random elements; their dtype sets the bound.
    terms: how many products the longest sum has; by default the size of the larger of x and y,
        which is the most it can be.
    slack: the constant c of the bound.

    Returns both sides. Raises AssertionError if they are further apart than rounding explains, and
    ValueError if the shapes do not fit.
    """
    x, y = as_array(x), as_array(y)
    Ax, Ay = as_array(forward(x)), as_array(adjoint(y))
    for what, got, expected in (("forward(x)", Ax, y), ("adjoint(y)", Ay, x)):
        if got.shape != expected.shape:
            raise ValueError(
                f"check_adjoint: {what} has shape {shape_text(got.shape)}, expected "
                f"{shape_text(expected.shape)}"
            )
    terms = max(x.size, y.size) if terms is None else terms
    left, right = inner(Ax, y), inner(x, Ay)
    result = AdjointResult(name, left, right, bound((Ax, y), (x, Ay), terms, slack))
    if not result.passed:
        raise AssertionError(f"not adjoint: {result}")
    return result


def inner(a: Any, b: Any) -> float:
    """<a, b> in float64."""
    return float(np.sum(np.multiply(a, b, dtype=np.float64)))


def bound(left: tuple[Any, Any], right: tuple[Any, Any], terms: int, slack: float) -> float:
    """What rounding may do to the difference of two inner products; see the module."""
    precision = max(np.finfo(a.dtype).eps for a in (*left, *right)) / 2
    total = 0.0
    for a, b in (left, right):
        if a.size:
            total += float(np.linalg.norm(a.ravel()) * np.linalg.norm(b.ravel()) / np.sqrt(a.size))
    return float(slack * precision * np.sqrt(max(terms, 1)) * total)


def _draw(rng: np.random.Generator, dtype: Any, *shapes: tuple[int, ...]) -> list[Any]:
    return [rng.standard_normal(shape).astype(dtype) for shape in shapes]


def check_conv_adjoints(
    geometry: ConvGeometry, dtype: Any = np.float64, *, seed: int = 0, slack: float = SLACK
) -> list[AdjointResult]:
    """<conv(x,w), y> = <x, grad_input(y,w)> = <w, grad_weight(x,y)> through the kernels in use.

    geometry: from `kernels.conv_geometry(x_shape, weight_shape, stride, padding, ...)`.
    slack: the constant of the bound; raise it for kernels that are less accurate by design.

    Select kernels with `kernels.use(conv2d=..., conv2d_grad_input=...)`. Returns the identities,
    raises AssertionError for one that does not hold.
    """
    g = geometry
    x, w, y = _draw(np.random.default_rng(seed), dtype, g.x_shape, g.weight_shape, g.y_shape)
    # Each output sums over its window, each input over the windows that see it, each weight over
    # all output pixels.
    area = g.kernel[0] * g.kernel[1]
    window = (g.C // g.groups) * area
    reach = (g.O // g.groups) * area
    pixels = g.N * g.out[0] * g.out[1]
    return [
        check_adjoint(
            lambda a: ops.conv2d(a, w, g),
            lambda b: ops.conv2d_grad_input(b, w, g),
            x, y, name=f"<conv(x,w), y> = <x, grad_input(y,w)> for {g}",
            terms=max(window, reach), slack=slack,
        ),
        check_adjoint(
            lambda a: ops.conv2d(x, a, g),
            lambda b: ops.conv2d_grad_weight(x, b, g),
            w, y, name=f"<conv(x,w), y> = <w, grad_weight(x,y)> for {g}",
            terms=max(window, pixels), slack=slack,
        ),
    ]  # fmt: skip


def check_pool_adjoints(
    geometry: PoolGeometry, dtype: Any = np.float64, *, seed: int = 0, slack: float = SLACK
) -> list[AdjointResult]:
    """The same for pooling: taking maxima and giving back to them, averaging and sharing out.

    The average is left out if the geometry has a dilation, which averages do not take.
    Raises AssertionError for an identity that does not hold.
    """
    g = geometry
    x, y, z = _draw(np.random.default_rng(seed), dtype, g.x_shape, g.y_shape, g.x_shape)
    _, indices = ops.max_pool2d(z, g)
    area = g.kernel[0] * g.kernel[1]
    results = [
        check_adjoint(
            lambda a: ops.max_pool2d_take(a, indices, g),
            lambda b: ops.max_pool2d_grad(b, indices, g),
            x, y, name="<max_pool2d_take(x), y> = <x, max_pool2d_grad(y)>",
            terms=area, slack=slack,
        )
    ]  # fmt: skip
    if g.dilation == (1, 1):
        results.append(
            check_adjoint(
                lambda a: ops.avg_pool2d(a, g),
                lambda b: ops.avg_pool2d_grad(b, g),
                x, y, name="<avg_pool2d(x), y> = <x, avg_pool2d_grad(y)>",
                terms=area, slack=slack,
            )
        )  # fmt: skip
    return results


def check_adaptive_pool_adjoint(
    x_shape: tuple[int, int, int, int],
    output_size: Pair,
    dtype: Any = np.float64,
    *,
    seed: int = 0,
    slack: float = SLACK,
) -> AdjointResult:
    """The same for adaptive average pooling of x (N, C, H, W) to `output_size`."""
    N, C, H, W = x_shape
    x, y = _draw(np.random.default_rng(seed), dtype, x_shape, (N, C, *output_size))
    return check_adjoint(
        lambda a: ops.adaptive_avg_pool2d(a, output_size),
        lambda b: ops.adaptive_avg_pool2d_grad(b, (H, W)),
        x, y, name="<adaptive_avg_pool2d(x), y> = <x, adaptive_avg_pool2d_grad(y)>",
        terms=H * W, slack=slack,
    )  # fmt: skip
