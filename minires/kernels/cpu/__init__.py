"""The fast CPU kernels: Numba, explicit SIMD, our own threads.

They are listed here and imported when one of them is first called: Numba takes a while to import
and to compile, which small problems should not pay for. `worth` says from which size on a kernel
is chosen unasked; it looks at the geometry alone, so that equal runs make equal choices.

Channels must come in whole vectors; 16 floats are the widest there are.
"""

from __future__ import annotations

import importlib
import math
from collections.abc import Callable, Mapping
from typing import Any

from minires.kernels import reference  # registered first: the last that fits is preferred
from minires.kernels.fusing import AFTER, BEFORE, MOMENTS, POOLED, SUMS
from minires.kernels.geometry import ConvGeometry, PoolGeometry
from minires.kernels.registry import Condition, register
from minires.kernels.threads import use_own_threads

VECTOR = 16
DTYPES = ("float32", "float64")


def _late(module: str, function: str, summary: str) -> Callable[..., Any]:
    """A kernel that imports its module at its first call."""
    found: Callable[..., Any] | None = None

    def load() -> Callable[..., Any]:
        nonlocal found
        if found is None:
            use_own_threads()
            loaded = importlib.import_module(f"minires.kernels.cpu.{module}")
            found = getattr(loaded, function)
        return found

    def kernel(*args: Any, **parts: Any) -> Any:
        return load()(*args, **parts)

    kernel.__doc__ = summary
    kernel.load = load  # type: ignore[attr-defined]
    return kernel


# What is between two kernels of batch norm where the first is a convolution that sums moments:
# what it does to x, from its moments, and running statistics towards a batch's, in place.
_BETWEEN = {"normaliser": "normaliser", "move_statistics": "move"}


def __getattr__(name: str) -> Any:
    """Import one of these when it is first asked for; it is at hand from then on."""
    if name not in _BETWEEN:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    use_own_threads()
    found = getattr(importlib.import_module("minires.kernels.cpu.channels"), _BETWEEN[name])
    globals()[name] = found
    return found


def _winograd(g: ConvGeometry) -> bool:
    """3x3, stride 1, padding at most 2, one group, channels in multiples of 16."""
    return (
        g.kernel == (3, 3)
        and g.stride == g.dilation == (1, 1)
        and g.groups == 1
        and max(g.padding) <= 2
        and g.C % VECTOR == g.O % VECTOR == 0
    )


def _columns(g: ConvGeometry) -> bool:
    """One group, output channels (of 1x1, input channels too) in multiples of 16."""
    return g.groups == 1 and g.O % VECTOR == 0 and (not g.pointwise or g.C % VECTOR == 0)


def _plain_product(g: ConvGeometry) -> bool:
    """1x1, stride 1, unpadded."""
    return g.pointwise and g.stride == (1, 1)


def _direct(g: ConvGeometry) -> bool:
    """One group, no dilation, output channels in multiples of 16."""
    return g.groups == 1 and g.O % VECTOR == 0 and g.dilation == (1, 1)


def _stem(g: ConvGeometry) -> bool:
    """5x5 to 8x8, stride 2, one group, at most 4 channels, output channels in multiples of 32."""
    return (
        5 <= min(g.kernel) <= max(g.kernel) <= 8
        and g.stride == (2, 2)
        and g.dilation == (1, 1)
        and g.groups == 1
        and g.C <= 4
        and g.O % (2 * VECTOR) == 0
    )


def _strided(g: ConvGeometry) -> bool:
    """3x3, stride 2, one group, channels in multiples of 16."""
    return (
        g.kernel == (3, 3)
        and g.stride == (2, 2)
        and g.dilation == (1, 1)
        and g.groups == 1
        and g.C % VECTOR == g.O % VECTOR == 0
    )


def _large(g: ConvGeometry) -> bool:
    """Large enough that compiling pays: a layer of ResNet-20 at batch 8 is, 8x8 digits are not."""
    return g.multiply_adds >= 16_000_000


def _short_rows(g: ConvGeometry) -> bool:
    """A window row of a few vectors: copying it costs more than reading it where it lies."""
    return _large(g) and g.kernel[1] > 1 and g.C * g.kernel[1] <= 6 * VECTOR


def _very_short_rows(g: ConvGeometry) -> bool:
    """One of at most three vectors."""
    return _short_rows(g) and g.C * g.kernel[1] <= 3 * VECTOR


def _twice_as_large(g: ConvGeometry) -> bool:
    """Below that what each call costs, weights and threads, is what the products save."""
    return g.multiply_adds >= 32_000_000


def _rows(shape: tuple[int, ...]) -> bool:
    """(N, C) or (N, C, H, W), channels in multiples of 16."""
    return len(shape) in (2, 4) and shape[1] % VECTOR == 0


def _many(shape: tuple[int, ...]) -> bool:
    """More than a batch of digits has in a layer; less than any layer of ResNet-50 at batch 8."""
    return math.prod(shape) >= 1 << 17


def _many_scores(shape: tuple[int, ...]) -> bool:
    """ImageNet's 1000 classes from a batch of 33 on."""
    return math.prod(shape) >= 1 << 15


def _pooled_vectors(g: PoolGeometry) -> bool:
    """Channels in multiples of 16; windows without gaps, of at most 128 pixels: places are int8."""
    return g.C % VECTOR == 0 and g.dilation == (1, 1) and g.kernel[0] * g.kernel[1] <= 128


def _many_pooled(g: PoolGeometry) -> bool:
    return _many(g.x_shape)


def _add(
    operation: str,
    name: str,
    module: str,
    only: Condition | None,
    worth: Condition,
    summary: str,
    adds: bool = False,
    fuses: Mapping[str, Condition | None] | None = None,
) -> None:
    exact = not name.startswith("winograd")
    into = _late(module, f"add_{operation}", summary) if adds else None
    # A norm's forward pass needs no other function: its kernels do each half on its own.
    own = fuses and not operation.endswith("_train")
    fused = _late(module, f"{operation}_fused", summary) if own else None
    add = register(
        operation, name=name, only=only, worth=worth, dtypes=DTYPES, exact=exact, into=into,
        fused=fused, fuses=fuses,
    )  # fmt: skip
    add(_late(module, operation, summary))


_summary = "im2col a few pixels at a time, in cache."
_add(
    "conv2d", "columns", "columns", _columns, _large, _summary,
    fuses={BEFORE: _plain_product, AFTER: None, MOMENTS: None},
)  # fmt: skip
_add(
    "conv2d_grad_input", "columns", "columns", _columns, _large, _summary, adds=True,
    fuses={SUMS: _plain_product},
)  # fmt: skip
_pass = "conv2d_grad_weight"
_add(
    _pass, "outer", "outer", _columns, _large, "Outer products, in ranges that stay in cache.",
    fuses={BEFORE: None},
)  # fmt: skip
_summary = "Window rows read where they lie."
_add(
    "conv2d", "direct", "direct", _direct, _short_rows, _summary,
    fuses={AFTER: None, MOMENTS: None},
)  # fmt: skip
_add(_pass, "direct", "direct", _direct, _very_short_rows, _summary)
for _pass in ("conv2d", "conv2d_grad_input", "conv2d_grad_weight"):
    _adds = _pass == "conv2d_grad_input"
    _parts = (SUMS,) if _adds else (BEFORE, AFTER, MOMENTS) if _pass == "conv2d" else (BEFORE,)
    _add(
        _pass, "winograd", "winograd", _winograd, _large, "Winograd F(4x4, 3x3).", _adds,
        fuses=dict.fromkeys(_parts),
    )  # fmt: skip
_summary = "Winograd F(4x4, 4x4) of the image's four phases."
_add(
    "conv2d", "winograd-stem", "stem", _stem, _large, _summary, fuses={AFTER: None, MOMENTS: None}
)
_add("conv2d_grad_weight", "winograd-stem", "stem", _stem, _large, _summary)
_summary = "Winograd F(4x4, 2x2) of the phases."
_add(
    "conv2d", "winograd-strided", "strided", _strided, _twice_as_large, _summary,
    fuses=dict.fromkeys((BEFORE, AFTER, MOMENTS)),
)  # fmt: skip
_add(
    "conv2d_grad_input", "winograd-strided", "strided", _strided, _twice_as_large, _summary,
    adds=True, fuses={SUMS: None},
)  # fmt: skip
_add(
    "conv2d_grad_weight", "winograd-strided", "strided_gradient", _strided, _twice_as_large,
    _summary, fuses={BEFORE: None},
)  # fmt: skip
_norm = "simd", "norm", _rows, _many, "Two passes over memory."
for _name in ("batch_norm", "batch_norm_relu", "batch_norm_add_relu"):
    _add(f"{_name}_train", *_norm, fuses={MOMENTS: None})
_add("batch_norm_grad", *_norm)
_add("batch_norm_relu_grad", *_norm, fuses={SUMS: None, POOLED: None})
_add("batch_norm_add_relu_grad", *_norm, fuses={SUMS: None})
for _name in ("batch_norm_statistics", "batch_norm_eval", "normalise"):
    _add(_name, "simd", "norm", _rows, _many, "One pass over memory.")
for _name in ("relu", "relu_grad", "add", "add_relu"):
    # bool: of a shape, "not 0-d"
    _add(_name, "simd", "elementwise", bool, _many, "One pass over memory, on all threads.")
_add("cross_entropy", "threads", "loss", None, _many_scores, "One pass over memory.")
_pool = "threads", "pool", None, _many_pooled, "One pass over memory, on all threads."
_add("max_pool2d", *_pool, fuses={BEFORE: _pooled_vectors})
_add("max_pool2d_grad", *_pool)
