"""Nothing wrong is timed: a kernel is held to the reference on the timed shape and on a ragged one.

The reference computes in float64 from the same rounded inputs. With u = eps / 2 of the kernel's
dtype and m the same operation on the inputs' absolute values (what rounding errors grow with),
every element must satisfy

    |result - reference| <= 128 u max(m, max(m) / 10)

(`LINEAR_SLACK` of `minires.testing.kernels`, which says where it comes from). The ragged shape has
odd sizes and, where the kernel takes them, channels that no vector divides: what tiles leave over
is where kernels go wrong.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from minires.kernels import ConvGeometry, Kernel, conv_geometry
from minires.testing.compare import element
from minires.testing.kernels import LINEAR_SLACK, laid_out, reference_kernel

PASSES = {
    "forward": "conv2d",
    "grad-input": "conv2d_grad_input",
    "grad-weight": "conv2d_grad_weight",
}
"""The passes of a convolution and their operations."""


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


class Problem:
    """One pass of one convolution: arguments in channels-last memory, and the right answer.

    The weight is scaled so that y has about the variance of x, as in a network.
    """

    def __init__(self, operation: str, g: ConvGeometry, dtype: Any = np.float32, seed: int = 0):
        if operation not in PASSES.values():
            raise ValueError(
                f"gate: expected one of {', '.join(PASSES.values())}, got {operation!r}"
            )
        self.operation, self.geometry, self.dtype = operation, g, np.dtype(dtype)
        rng = np.random.default_rng(seed)
        fan_in = math.prod(g.weight_shape[1:])
        x, weight, gy = (
            rng.standard_normal(shape, dtype=np.float32).astype(self.dtype)
            for shape in (g.x_shape, g.weight_shape, g.y_shape)
        )
        weight /= self.dtype.type(math.sqrt(fan_in))
        x, gy = laid_out(x, "channels last"), laid_out(gy, "channels last")
        pairs = {"conv2d": (x, weight), "conv2d_grad_input": (gy, weight)}
        self.arrays = pairs.get(operation, (x, gy))

    @property
    def args(self) -> tuple[Any, ...]:
        return *self.arrays, self.geometry

    @cached_property
    def expected(self) -> np.ndarray:
        """The reference's answer, in float64."""
        return self._reference(*(a.astype(np.float64) for a in self.arrays))

    @cached_property
    def allowed(self) -> np.ndarray:
        """The largest error that each element may have; see the top of this file."""
        magnitude = self._reference(*map(np.abs, self.arrays)).astype(np.float64)
        floor = 0.1 * float(np.max(magnitude, initial=0.0))
        slack = LINEAR_SLACK * float(np.finfo(self.dtype).eps) / 2
        return slack * np.maximum(magnitude, floor) + np.finfo(self.dtype).tiny

    def _reference(self, a: Any, b: Any) -> Any:
        return reference_kernel(self.operation).function(a, b, self.geometry)

    def check(self, call: Callable[[], Any]) -> Verdict:
        """Hold what a call returns to the reference. The call's arguments are `args`."""
        before = [a.copy() for a in self.arrays]
        start = time.perf_counter()
        try:
            result = np.asarray(call())
        except Exception as error:  # a kernel may fail in any way; each is a reason to refuse it
            return Verdict(f"raised {type(error).__name__}: {error}", math.nan, 0.0)
        seconds = time.perf_counter() - start
        if not all(map(np.array_equal, self.arrays, before)):
            return Verdict("an input was changed in place", math.nan, seconds)
        relative, wrong = self._compare(result)
        return Verdict(wrong, relative, seconds)

    def _compare(self, result: np.ndarray) -> tuple[float, str]:
        expected = self.expected
        if result.shape != expected.shape:
            return math.nan, f"shape {result.shape}, expected {expected.shape}"
        if result.dtype != self.dtype:
            return math.nan, f"dtype {result.dtype}, expected {self.dtype}"
        with np.errstate(over="ignore", invalid="ignore"):
            error = np.abs(result.astype(np.float64) - expected)
            share = np.nan_to_num(error / self.allowed, nan=np.inf)
        # The largest of no numbers at all is 0, and NaN is larger than any.
        largest = float(np.max(np.abs(expected), initial=0.0))
        relative = float(np.max(error, initial=0.0)) / largest if largest else 0.0
        count = int(np.sum(~(error <= self.allowed)))
        if not count:
            return relative, ""
        at = tuple(int(k) for k in np.unravel_index(int(np.argmax(share)), error.shape))
        return relative, (
            f"{count} of {error.size} elements wrong, worst at {element('', at)}: "
            f"{result[at]:.6g}, expected {expected[at]:.6g}, error {error[at]:.2g}, "
            f"allowed {self.allowed[at]:.2g}"
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
