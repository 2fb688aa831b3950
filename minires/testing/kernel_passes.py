"""Kernels together: do the passes belong to each other, and do finite differences agree?

A kernel that equals the reference has right gradients if its backward kernels equal theirs. That is
what `check_kernel` shows one by one. Here the kernels of one name are in use at the same time, as
in training: adjoint identities at the size of a layer, and `gradcheck` through the tape.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from minires import functional as F
from minires.autograd import Tensor
from minires.kernels import ConvGeometry, Kernel, conv_geometry, use
from minires.testing.adjoint import check_conv_adjoints
from minires.testing.cases import cases, check_all
from minires.testing.gradcheck import gradcheck
from minires.testing.kernel_inputs import CONVOLUTION_ARRAYS, CONVOLUTIONS

LAYERS = {
    "3x3 of ResNet-20": conv_geometry((4, 16, 32, 32), (16, 16, 3, 3), 1, 1),
    "3x3 of stride 2": conv_geometry((4, 16, 32, 32), (32, 16, 3, 3), 2, 1),
    "1x1 of stride 2": conv_geometry((4, 16, 32, 32), (32, 16, 1, 1), 2),
    "3x3, ragged": conv_geometry((1, 17, 13, 11), (19, 17, 3, 3), 1, 1),
}
MOST = 4
"""Geometries that each identity and finite differences are tried on."""


@dataclass(frozen=True)
class PassResult:
    """One check of several kernels together."""

    what: str
    passed: bool
    text: str


def check_passes(kernels: Sequence[Kernel]) -> list[PassResult]:
    """Adjoint identities and finite differences with these kernels in use.

    Kernels of other backends than "cpu" are left out: the tape runs on the arrays it is given.
    """
    results: list[PassResult] = []
    for name in dict.fromkeys(kernel.name for kernel in kernels if kernel.backend == "cpu"):
        mine = [k for k in kernels if k.name == name and k.backend == "cpu"]
        with use(**{kernel.operation: name for kernel in mine}):
            convolutions = [k for k in mine if k.operation in CONVOLUTION_ARRAYS]
            if convolutions:
                results += _adjoints(name, convolutions)
                results += _differences(name, convolutions)
            results += _other_gradients(name, mine)
    return results


def _supported(
    kernels: Sequence[Kernel], known: dict[str, ConvGeometry], dtype: str
) -> dict[str, ConvGeometry]:
    """Geometries that one of the kernels at least takes."""
    return {t: g for t, g in known.items() if any(k.supports(g, dtype) for k in kernels)}


def _adjoints(name: str, kernels: Sequence[Kernel]) -> list[PassResult]:
    what = f"{name}: <conv(x,w), y> = <x, grad_input(y,w)> = <w, grad_weight(x,y)>"
    dtype = "float64" if _supported(kernels, CONVOLUTIONS, "float64") else "float32"
    layers = _supported(kernels, LAYERS, dtype) or _supported(kernels, CONVOLUTIONS, dtype)
    chosen = list(layers.values())[:MOST]
    try:
        worst = max(r.error / r.bound for g in chosen for r in check_conv_adjoints(g, dtype))
    except AssertionError as error:
        return [PassResult(what, False, str(error))]
    sizes = f"{len(chosen)} layers, {dtype}"
    return [PassResult(what, True, f"{sizes}; worst difference {worst:.2g} of rounding's")]


def _differences(name: str, kernels: Sequence[Kernel]) -> list[PassResult]:
    what = f"{name}: finite differences of conv2d"
    small = {t: g for t, g in CONVOLUTIONS.items() if g.multiply_adds < 20_000}
    chosen = list(_supported(kernels, small, "float64").items())[:MOST]
    if not chosen:
        return [PassResult(what, True, "left out: they need float64, on a small geometry")]
    worst = 0.0
    for text, g in chosen:
        rng = np.random.default_rng(0)
        x, weight = (Tensor(rng.standard_normal(shape), requires_grad=True)
                     for shape in (g.x_shape, g.weight_shape))  # fmt: skip
        settings = g.stride, g.padding, g.dilation, g.groups
        report = gradcheck(
            lambda x, weight, s=settings: F.conv2d(x, weight, None, *s), (x, weight),
            raise_exception=False,
        )  # fmt: skip
        report.name = f"conv2d, {text}"
        if not report.passed:
            return [PassResult(what, False, report.summary())]
        worst = max(worst, report.worst_error)
    return [PassResult(what, True, f"{len(chosen)} geometries; worst error {worst:.1e}")]


def _other_gradients(name: str, kernels: Sequence[Kernel]) -> list[PassResult]:
    """gradcheck of the operations that other kernels than convolutions belong to."""
    known = {case.operation for case in cases()} - {"conv2d"}
    roots = {re.sub(r"_(grad|train|eval|take)(?=_|$)", "", k.operation) for k in kernels}
    results = []
    for result in check_all(sorted(roots & known), second_order=False):
        text = f"{result.cases} uses; worst error {result.first_error:.1e}"
        failed = "\n".join(report.summary() for report in result.failures)
        what = f"{name}: finite differences of {result.name}"
        results.append(PassResult(what, result.passed, failed or text))
    return results
