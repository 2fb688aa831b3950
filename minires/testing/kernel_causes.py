"""From failing calls of a kernel to the likely cause.

Three sources: what kind of failure it is (an exception, a guard zone written to); a list of wrong
kernels whose results are compared with what came out (`kernel_variants.py` for convolutions, a few
below for any operation); and what failing cases have in common that no passing case has.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from minires.kernels import ConvGeometry
from minires.testing.kernel_inputs import CONVOLUTION_ARRAYS
from minires.testing.kernel_report import KINDS, Finding, KernelCase
from minires.testing.kernel_variants import TILES, VARIANTS, right

Array = np.ndarray
Prediction = Callable[[Finding], Any]
"""What a wrong kernel would have returned for a failing call; None if it does not apply."""

MOST_CASES = 10
LARGEST = 30_000
"""Multiply-adds of a case on which wrong kernels are tried."""

ADVICE = {
    "results": "a kernel returns one array, or a tuple of as many as its signature says",
    "mutated": "works on its argument in place: copy it, or write to a fresh array",
    "aliased": "returns a view: return a fresh array (copy() what is a view of an input)",
    "random": "memory that is read before it is written, or threads that write to the same place",
    "threads": "a race: threads add to or write the same elements; give each its own and sum up",
    "unwritten": "the tail is not written: what no whole tile covers, or a loop that ends early",
    "outside read": "reads out of bounds: a border without a check, or a tail in whole tiles",
    "outside write": "writes out of bounds: a tail in whole tiles, or an index off by one",
    "nonfinite": "skips elements, compares with them, or multiplies by a mask: a NaN must come out",
}
"""What a kind of finding comes from, where its numbers tell no more."""


def explain(findings: Sequence[Finding], passed: Sequence[KernelCase]) -> list[str]:
    """The likely causes, the likelier ones first; at least one."""
    with np.errstate(all="ignore"):  # a wrong kernel may return anything
        return _explain(findings, passed)


def _explain(findings: Sequence[Finding], passed: Sequence[KernelCase]) -> list[str]:
    kinds = {finding.kind for finding in findings}
    causes: list[str] = []
    common = _common(findings, passed)
    raised = [finding for finding in findings if finding.kind == "raised"]
    if raised:
        causes.append(_exception(raised, common))
    causes += [ADVICE[kind] for kind in KINDS if kind in kinds and kind in ADVICE]
    wrong = [finding for finding in findings if finding.kind == "wrong"]
    if wrong and not (kinds & {"mutated"} or kinds == {"wrong", "random"}):
        found = _numbers(wrong, passed)
        if found:
            causes = [found, *causes]
        elif common and not raised:
            causes.append(f"wrong only where {common}")
    return causes or ["none of the mistakes that are known here; compare the arrays"]


def _exception(raised: list[Finding], common: str) -> str:
    text = raised[0].text
    where = f", only where {common}" if common else ""
    return f"{text}{where}; what a kernel does not take, `only=` should rule out"


def _numbers(wrong: list[Finding], passed: Sequence[KernelCase]) -> str | None:
    """What wrong kernel the numbers look like."""
    layouts = {finding.layout for finding in wrong}
    if "contiguous" not in layouts and any(case.layout == "contiguous" for case in passed):
        return (
            "assumes contiguous memory: inputs may have any strides (np.ascontiguousarray copies "
            "what is not)"
        )
    shape = next((f for f in wrong if f.result.shape != f.expected.shape), None)
    if shape is not None:
        return _shape(shape)
    dtype = next((f for f in wrong if f.result.dtype != f.dtype and f.dtype == "float32"), None)
    if dtype is not None:
        return f"computes in {dtype.result.dtype} and returns it: make arrays of the input's dtype"
    digits = _digits(wrong)
    if digits:
        return digits
    usable = [f for f in wrong if _work(f) <= LARGEST]
    usable = [f for f in usable if f.result.any()] or usable or wrong
    usable = sorted(usable, key=_work)
    # Small ones look alike; take some of every size.
    chosen = usable[:: max(1, len(usable) // MOST_CASES)][:MOST_CASES]
    for text, predict in _candidates(chosen[0]):
        predicted = [predict(f) for f in chosen]
        # Zeros are what many mistakes come to.
        says_something = any(p is not None and p.any() for p in predicted)
        if says_something and all(map(_agrees, predicted, chosen)):
            return text
    if not any(f.result.any() for f in chosen):
        return "returns zeros only"
    return _tail(wrong)


def _shape(finding: Finding) -> str:
    result, right_shape = finding.result.shape, finding.expected.shape
    if sorted(result) == sorted(right_shape):
        return f"axes are swapped: shape {result} where {right_shape} belongs"
    if isinstance(finding.case.geometry, ConvGeometry):
        return "the output size is computed wrongly: use g.out, or g.y_shape"
    return f"the result has shape {result} where {right_shape} belongs"


def _digits(wrong: list[Finding]) -> str | None:
    """Whether the errors are those of computing in a lower precision."""
    worst = 0.0
    for f in wrong:
        scale = float(np.max(np.abs(f.expected), initial=0.0)) or 1.0
        error = float(np.max(np.abs(f.result - f.expected), initial=0.0)) / scale
        if not error < 2e-2:
            return None
        worst = max(worst, error)
    if worst < 1e-5 and all(f.dtype == "float64" for f in wrong):
        return "computes in single precision: float64 results have float32's digits"
    return (
        f"loses digits (relative error {worst:.1g}): a sum kept in lower precision, or an "
        "algorithm that trades accuracy for speed"
    )


def _candidates(first: Finding) -> Iterator[tuple[str, Prediction]]:
    """Wrong kernels in words, and what they return."""
    operation = _operation(first)
    yield "the sign is wrong", lambda f: -f.expected
    if operation is not None:
        for text, change in VARIANTS.values():
            def predict(f: Finding, change: Any = change) -> Array:
                tables = change(right(f.case.geometry))
                return np.asarray(getattr(tables, operation)(*f.case.values[:2]))

            yield text, predict
        yield from _of_passes(operation)
    yield "image and result have height and width swapped", _transposed
    yield "the first image's result is returned for every image", _first_image
    yield from _factors()
    if len(first.case.values) == 3 and operation is None:  # linear
        yield "the bias is not added", lambda f: _bias(f, 0)
        yield "the bias is added twice", lambda f: _bias(f, 2)


def _of_passes(operation: str) -> Iterator[tuple[str, Prediction]]:
    if operation == "conv2d_grad_input":
        yield (
            "windows that overlap replace each other's share instead of adding up (+= is needed)",
            lambda f: right(f.case.geometry).overwritten(*f.case.values[:2]),
        )
    if operation == "conv2d_grad_weight":
        yield "only the last image counts: sum over the batch (+= is needed)", _one_image(-1)
        yield "only the first image counts: sum over the batch", _one_image(0)


def _one_image(which: int) -> Prediction:
    def predict(f: Finding) -> Array:
        kept = np.zeros(f.case.geometry.N)
        kept[which] = 1
        x, gy = f.case.values[:2]
        return right(f.case.geometry).conv2d_grad_weight(x * kept[:, None, None, None], gy)

    return predict


def _transposed(f: Finding) -> Any:
    e = f.expected
    return e.swapaxes(2, 3) if e.ndim == 4 and e.shape[2] == e.shape[3] else e


def _first_image(f: Finding) -> Any:
    return np.broadcast_to(f.expected[:1], f.expected.shape) if f.expected.ndim else f.expected


def _factors() -> Iterator[tuple[str, Prediction]]:
    def pixels(f: Finding) -> Any:
        g = f.case.geometry
        return f.expected / (g.out[0] * g.out[1]) if hasattr(g, "out") else None

    yield "a mean over the images where a sum belongs", lambda f: f.expected / _images(f)
    yield "a mean over the output pixels where a sum belongs", pixels
    yield "counted twice: exactly 2 times too large", lambda f: 2 * f.expected
    yield "exactly half of what it should be", lambda f: f.expected / 2

    def constant(f: Finding) -> Any:
        at = np.argmax(np.abs(f.expected))
        ratio = f.result.flat[at] / f.expected.flat[at] if f.expected.size else np.nan
        return f.expected * ratio if np.isfinite(ratio) and ratio else None

    yield "off by a constant factor", constant


def _images(f: Finding) -> int:
    return int(f.case.values[0].shape[0]) if f.case.values[0].ndim else 1


def _bias(f: Finding, times: int) -> Any:
    bias = f.case.values[2]
    return f.expected + (times - 1) * bias if isinstance(bias, np.ndarray) else f.expected


def _agrees(predicted: Any, f: Finding) -> bool:
    """Whether a wrong kernel would have returned just this."""
    if predicted is None or predicted.shape != f.result.shape or not np.isfinite(f.result).all():
        return False
    scale = float(np.max(np.abs(f.expected), initial=0.0)) or 1.0
    return bool(np.max(np.abs(f.result - predicted), initial=0.0) <= 1e-4 * scale)


def _tail(wrong: list[Finding]) -> str | None:
    """Whether everything wrong lies at the end of one axis, beyond the last whole tile."""
    names = {"conv2d": ("images", "output channels", "rows", "columns"),
             "conv2d_grad_input": ("images", "input channels", "rows", "columns"),
             "conv2d_grad_weight": ("output channels", "input channels", "kernel rows",
                                    "kernel columns")}  # fmt: skip
    masks = [~np.isclose(f.result, f.expected, rtol=1e-3, atol=1e-4) for f in wrong]
    masks = [mask for mask in masks if mask.any()]
    for axis in range(max((mask.ndim for mask in masks), default=0)):
        starts = [(int(np.argwhere(mask)[:, axis].min()), mask.shape[axis]) for mask in masks
                  if mask.ndim > axis]  # fmt: skip
        exact = {tile: [start == size // tile * tile for start, size in starts if size >= tile]
                 for tile in TILES}  # fmt: skip
        fitting = [tile for tile in TILES if exact[tile] and all(exact[tile])]
        if fitting:
            tile = max(fitting, key=lambda tile: len(exact[tile]))
            operation = _operation(wrong[0])
            name = names[operation][axis] if operation else f"axis {axis}"
            return (
                f"the tail is not written: {name} of the result are wrong beyond the last whole "
                f"{tile}"
            )
    return None


def _common(findings: Sequence[Finding], passed: Sequence[KernelCase]) -> str:
    """What holds for every failing convolution and for no passing one; "" if nothing."""
    failing = {f.case.geometry for f in findings if isinstance(f.case.geometry, ConvGeometry)}
    fine = {c.case.geometry for c in passed if isinstance(c.case.geometry, ConvGeometry)} - failing
    if not failing or not fine:
        return ""
    for text, holds in FEATURES.items():
        if all(map(holds, failing)) and not any(map(holds, fine)):
            return text
    return ""


FEATURES: dict[str, Callable[[ConvGeometry], bool]] = {
    "there is padding": lambda g: max(g.padding) > 0,
    "the stride is not 1": lambda g: max(g.stride) > 1,
    "the dilation is not 1": lambda g: max(g.dilation) > 1,
    "there are groups": lambda g: g.groups > 1,
    "there are several images": lambda g: g.N > 1,
    "there are several input channels": lambda g: g.C > 1,
    "the kernel is larger than 1x1": lambda g: max(g.kernel) > 1,
    "the kernel is not square": lambda g: g.kernel[0] != g.kernel[1],
    "the image is not square": lambda g: g.H != g.W,
    "the stride differs between height and width": lambda g: g.stride[0] != g.stride[1],
    "the padding differs between height and width": lambda g: g.padding[0] != g.padding[1],
    "the stride is larger than the kernel": lambda g: any(
        s > k for s, k in zip(g.stride, g.kernel, strict=True)
    ),
    "the kernel is larger than the image": lambda g: g.kernel[0] > g.H or g.kernel[1] > g.W,
    **{
        f"{text} not a multiple of {tile}": (
            lambda g, count=count, tile=tile: count(g) % tile != 0  # type: ignore[misc]
        )
        for tile in TILES
        for text, count in {
            "the number of output pixels is": lambda g: g.out[0] * g.out[1],
            "the output's width is": lambda g: g.out[1],
            "the output's height is": lambda g: g.out[0],
            "the number of input channels is": lambda g: g.C,
            "the number of output channels is": lambda g: g.O,
        }.items()
    },
}
"""What a convolution may have that another has not."""


def _operation(finding: Finding) -> str | None:
    """The pass of a convolution that a finding is about."""
    if not isinstance(finding.case.geometry, ConvGeometry):
        return None
    return finding.operation if finding.operation in CONVOLUTION_ARRAYS else None


def _work(finding: Finding) -> int:
    g = finding.case.geometry
    return g.multiply_adds if isinstance(g, ConvGeometry) else finding.case.values[0].size
