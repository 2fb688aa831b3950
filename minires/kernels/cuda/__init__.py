"""The CUDA kernels: our own sources, launched through CuPy, or emulated where there is no GPU.

They are listed here and imported when one of them is first called: importing minires imports no
CuPy. CuPy arrays come here by themselves (`registry.backend_of`). NumPy arrays may be given to the
functions of `conv`, `norm` and the others inside `with emulate.device():`, which runs the same
sources on the CPU. What the operations do not cover: `norm.normalise_add_relu`,
`softmax.cross_entropy`, `sgd.FusedSGD`, `elementwise.cast`.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

from minires.kernels import operations  # what the kernels below are registered for
from minires.kernels.geometry import ConvGeometry
from minires.kernels.registry import Condition, register

FLOATS = ("float32", "float64", "float16", "bfloat16")


def _late(module: str, function: str, summary: str) -> Callable[..., Any]:
    """A kernel that imports its module at its first call."""

    def kernel(*args: Any) -> Any:
        loaded = importlib.import_module(f"minires.kernels.cuda.{module}")
        return getattr(loaded, function)(*args)

    kernel.__doc__ = summary
    return kernel


def _add(
    operation: str,
    name: str,
    module: str,
    summary: str,
    *,
    function: str = "",
    only: Condition | None = None,
    worth: Condition | None = None,
    dtypes: tuple[str, ...] = FLOATS,
) -> None:
    add = register(operation, backend="cuda", name=name, only=only, worth=worth, dtypes=dtypes)
    add(_late(module, function or operation, summary))


def _few_groups(g: ConvGeometry) -> bool:
    """Groups of 8 channels and more: a product's pieces are not mostly empty."""
    return g.groups == 1 or min(g.C, g.O) >= 8 * g.groups


for _pass in ("conv2d", "conv2d_grad_input", "conv2d_grad_weight"):
    for _name, _worth, _summary in (
        ("im2col", None, "im2col and a tiled product, written out to be read."),
        ("direct", None, "The definition, a thread per result; for grouped convolutions."),
        ("implicit", _few_groups, "A product in registers whose columns are never written."),
    ):
        _add(_pass, _name, "conv", _summary, function=f"{_name}_{_pass}", worth=_worth)
_add("linear", "implicit", "conv", "A 1x1 convolution in registers.")
for _name in ("batch_norm", "batch_norm_relu"):
    _add(f"{_name}_train", "fused", "norm", "Statistics in one pass, the rest in another.")
    _add(f"{_name}_grad", "fused", "norm", "Sums in one pass, the gradient in another.")
_add("batch_norm_eval", "fused", "norm", "One pass.")
for _name in ("relu", "relu_grad", "add_relu"):
    _add(_name, "packed", "elementwise", "One pass, 16 bytes at a time.")
for _name in ("max_pool2d", "avg_pool2d", "adaptive_avg_pool2d"):
    _add(_name, "packed", "pool", "A thread per output, 16 bytes of channels at a time.")
    _add(f"{_name}_grad", "packed", "pool", "Gathered by each input, in a fixed order.")
_add("max_pool2d_take", "packed", "pool", "A thread per output, 16 bytes of channels at a time.")
for _name in ("log_softmax", "log_softmax_grad"):
    _add(_name, "warp", "softmax", "A warp per row.")
