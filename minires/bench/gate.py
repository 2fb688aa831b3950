"""Nothing wrong is timed: a kernel is held to the reference on the timed shape and on a ragged one.

The reference computes in float64 from the same rounded inputs. With u = eps / 2 of the kernel's
dtype and m the same operation on the inputs' absolute values (what rounding errors grow with),
every element must satisfy

    |result - reference| <= 128 u max(m, max(m) / 10)

(`LINEAR_SLACK` of `minires.testing.kernels`, which says where it comes from; 16 in place of 128
where factors are rounded to 16 bits or to tf32, since their sums are float32). Of a convolution
that would keep the reference busy for seconds, three images are compared, or in a weight gradient
three output channels, the first, the middle and the last; the others must be finite.

The ragged shape has odd sizes and, where the kernel takes them, channels that no vector divides:
what tiles leave over is where kernels go wrong.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from typing import Any

import numpy as np

from minires.bench.places import PROCESSOR, Place, dtype_of
from minires.kernels import ConvGeometry, Kernel, conv_geometry
from minires.testing.compare import element
from minires.testing.kernels import LINEAR_SLACK, laid_out, reference_kernel

PASSES = {
    "forward": "conv2d",
    "grad-input": "conv2d_grad_input",
    "grad-weight": "conv2d_grad_weight",
}
"""The passes of a convolution and their operations."""

ROUNDOFF = {
    "bfloat16": 2.0**-8, "tf32": 2.0**-11, "float16": 2.0**-11, "float32": 2.0**-24,
    "float64": 2.0**-53,
}  # fmt: skip
"""u of the type that factors are rounded to."""
COARSE_SLACK = 16.0

WHOLE = 1 << 32
"""Multiply-adds up to which every element of a result is compared."""


def precision_of(kernel: Kernel, dtype: str) -> str:
    """What a kernel rounds factors of this dtype to."""
    return "tf32" if "tf32" in kernel.name else dtype


@dataclass(frozen=True)
class Verdict:
    """What the gate found.

    wrong: what is wrong, in words; empty if nothing is. error: the largest error over the largest
    value of the reference. first_call: seconds of the kernel's first call here.
    """

    wrong: str
    error: float
    first_call: float

    def __bool__(self) -> bool:
        return not self.wrong


@lru_cache(maxsize=3)  # passes and precisions of one layer follow each other
def _drawn(g: ConvGeometry, seed: int) -> tuple[np.ndarray, ...]:
    """x, weight and gy in float32, the images in channels-last memory.

    The weight is scaled so that y has about the variance of x, as in a network.
    """
    rng = np.random.default_rng(seed)
    x, weight, gy = (
        rng.standard_normal(shape, dtype=np.float32)
        for shape in (g.x_shape, g.weight_shape, g.y_shape)
    )
    weight /= np.float32(math.sqrt(math.prod(g.weight_shape[1:])))
    return laid_out(x, "channels last"), weight, laid_out(gy, "channels last")


class Problem:
    """One pass of one convolution: arguments in channels-last memory, and the right answer.

    place: whose memory the arguments are in.
    """

    def __init__(
        self, operation: str, g: ConvGeometry, dtype: Any = np.float32, seed: int = 0,
        place: Place = PROCESSOR,
    ) -> None:  # fmt: skip
        if operation not in PASSES.values():
            raise ValueError(
                f"gate: expected one of {', '.join(PASSES.values())}, got {operation!r}"
            )
        self.operation, self.geometry, self.place = operation, g, place
        self.dtype = dtype_of(dtype) if isinstance(dtype, str) else np.dtype(dtype)
        x, weight, gy = _drawn(g, seed)
        pairs = {"conv2d": (x, weight), "conv2d_grad_input": (gy, weight)}
        self.host = tuple(a.astype(self.dtype, order="K") for a in pairs.get(operation, (x, gy)))
        self.arrays = tuple(map(place.put, self.host))

    @property
    def args(self) -> tuple[Any, ...]:
        return *self.arrays, self.geometry

    @cached_property
    def part(self) -> list[int] | slice:
        """Which images, or output channels of a weight gradient, are compared."""
        g = self.geometry
        weights = self.operation == "conv2d_grad_weight"
        count = g.O if weights else g.N
        if g.multiply_adds <= WHOLE or count <= 3 or (weights and g.groups > 1):
            return slice(None)
        return [0, count // 2, count - 1]

    @cached_property
    def expected(self) -> np.ndarray:
        """The reference's answer, in float64, for `part`."""
        return self._reference(*(a.astype(np.float64) for a in self.host))

    @cached_property
    def magnitude(self) -> np.ndarray:
        """What rounding errors grow with; see the top of this file."""
        return self._reference(*(np.abs(a.astype(np.float64)) for a in self.host))

    def allowed(self, precision: str | None = None) -> np.ndarray:
        """The largest error that each element may have, with factors rounded to `precision`."""
        name = precision or self.dtype.name
        slack = LINEAR_SLACK if name in ("float32", "float64") else COARSE_SLACK
        floor = 0.1 * float(np.max(self.magnitude, initial=0.0))
        bound = slack * ROUNDOFF[name] * np.maximum(self.magnitude, floor)
        return np.asarray(bound + np.finfo(np.float32).tiny)

    def _reference(self, a: Any, b: Any) -> Any:
        g, part = self.geometry, self.part
        if isinstance(part, list):
            if self.operation == "conv2d_grad_weight":
                b, g = b[:, part], replace(g, O=len(part))
            else:
                a, g = a[part], replace(g, N=len(part))
        return reference_kernel(self.operation).function(a, b, g)

    def check(self, call: Callable[[], Any], precision: str | None = None) -> Verdict:
        """Hold what a call returns to the reference. The call's arguments are `args`.

        precision: what the call may round factors to, if that is not the dtype.
        """
        before = [a.copy() for a in self.arrays]
        start = time.perf_counter()
        try:
            result = self.place.get(call())
        except Exception as error:  # a kernel may fail in any way; each is a reason to refuse it
            return Verdict(f"raised {type(error).__name__}: {error}", math.nan, 0.0)
        seconds = time.perf_counter() - start
        if not all(bool((a == b).all()) for a, b in zip(self.arrays, before, strict=True)):
            return Verdict("an input was changed in place", math.nan, seconds)
        relative, wrong = self._compare(result, self.allowed(precision))
        return Verdict(wrong, relative, seconds)

    def _compare(self, whole: np.ndarray, allowed: np.ndarray) -> tuple[float, str]:
        g = self.geometry
        shape = {"conv2d": g.y_shape, "conv2d_grad_input": g.x_shape}.get(
            self.operation, g.weight_shape
        )
        if whole.shape != shape:
            return math.nan, f"shape {whole.shape}, expected {shape}"
        if whole.dtype != self.dtype:
            return math.nan, f"dtype {whole.dtype}, expected {self.dtype}"
        expected, result = self.expected, whole[self.part]
        with np.errstate(over="ignore", invalid="ignore"):
            error = np.abs(result.astype(np.float64) - expected)
            share = np.nan_to_num(error / allowed, nan=np.inf)
        # The largest of no numbers at all is 0, and NaN is larger than any.
        largest = float(np.max(np.abs(expected), initial=0.0))
        relative = float(np.max(error, initial=0.0)) / largest if largest else 0.0
        count = int(np.sum(~(error <= allowed)))
        if not count:
            finite = result.size == whole.size or bool(np.isfinite(whole).all())
            return relative, "" if finite else "some elements are not finite"
        at = tuple(int(k) for k in np.unravel_index(int(np.argmax(share)), error.shape))
        place = at
        if isinstance(self.part, list):
            place = self.part[at[0]], *at[1:]
        return relative, (
            f"{count} of {error.size} elements wrong, worst at {element('', place)}: "
            f"{result[at]:.6g}, expected {expected[at]:.6g}, error {error[at]:.2g}, "
            f"allowed {allowed[at]:.2g}"
        )


def ragged(kernel: Kernel, g: ConvGeometry, dtype: str) -> ConvGeometry | None:
    """A small convolution like `g` with sizes that no tile divides; None if it takes none.

    Channels are ragged too if the kernel takes such, or else at most 32 of those of `g`.
    """
    for candidate in _ragged_candidates(g):
        if kernel.supports(candidate, dtype):
            return candidate
    return None


def _ragged_candidates(g: ConvGeometry) -> Iterator[ConvGeometry]:
    reach = [d * (k - 1) + 1 for k, d in zip(g.kernel, g.dilation, strict=True)]
    odd = max(reach) | 1
    few_C, few_O = (g.groups * min(n // g.groups, 32) for n in (g.C, g.O))
    for H, W in ((max(odd, 13), max(odd, 11)), (g.H, g.W)):
        for C, O in ((5 * g.groups, 7 * g.groups), (few_C, few_O), (g.C, g.O)):
            for N in (3, g.N):
                if (N, C, H, W, O) == (g.N, g.C, g.H, g.W, g.O):
                    continue
                yield conv_geometry(
                    (N, C, H, W), (O, C // g.groups, *g.kernel),
                    g.stride, g.padding, g.dilation, g.groups,
                )  # fmt: skip
