"""The CUDA kernels: our own sources, launched through CuPy, or emulated where there is no GPU.

They are listed here and imported when one of them is first called: importing minires imports no
CuPy. CuPy arrays come here by themselves (`registry.backend_of`). NumPy arrays may be given to the
functions of `conv`, `norm` and the others inside `with emulate.device():`, which runs the same
sources on the CPU. What the operations do not cover: `sgd.FusedSGD`, `elementwise.cast`.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

from minires.kernels import operations  # what the kernels below are registered for
from minires.kernels.condition import never, when_measured
from minires.kernels.geometry import ConvGeometry
from minires.kernels.registry import Condition, Workspace, register

FLOATS = ("float32", "float64", "float16", "bfloat16")
PASSES = ("conv2d", "conv2d_grad_input", "conv2d_grad_weight")


def _late(module: str, function: str, summary: str) -> Callable[..., Any]:
    """A kernel that imports its module at its first call."""

    def kernel(*args: Any) -> Any:
        loaded = importlib.import_module(f"minires.kernels.cuda.{module}")
        return getattr(loaded, function)(*args)

    kernel.__doc__ = summary
    return kernel


def _late_workspace(module: str, function: str, *first: Any) -> Workspace:
    """A workspace function of (*first, geometry, dtype) whose module is imported when asked."""

    def workspace(g: Any, dtype: str) -> int:
        loaded = importlib.import_module(f"minires.kernels.cuda.{module}")
        return int(getattr(loaded, function)(*first, g, dtype))

    return workspace


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
    exact: bool = True,
    workspace: Workspace | None = None,
) -> None:
    add = register(
        operation, backend="cuda", name=name, only=only, worth=worth, dtypes=dtypes, exact=exact,
        workspace=workspace,
    )  # fmt: skip
    add(_late(module, function or operation, summary))


def _few_groups(g: ConvGeometry) -> bool:
    """Groups of 8 channels and more: a product's pieces are not mostly empty."""
    return g.groups == 1 or min(g.C, g.O) >= 8 * g.groups


def _winograd(g: ConvGeometry) -> bool:
    """3x3, stride 1, no dilation, no groups, padding up to 2, C and O multiples of 4."""
    return (
        g.kernel == (3, 3)
        and g.stride == g.dilation == (1, 1)
        and g.groups == 1
        and max(g.padding) <= 2
        and g.C % 4 == g.O % 4 == 0
    )


def _wide(g: ConvGeometry) -> bool:
    """64 channels and more: the saved products outweigh the transforms."""
    return min(g.C, g.O) >= 64


def _pointwise(g: ConvGeometry) -> bool:
    """1x1, stride 1, no padding, no groups, C and O multiples of 4."""
    return g.pointwise and g.stride == (1, 1) and g.C % 4 == g.O % 4 == 0


def _window(operation: str) -> Condition:
    """No groups, and a filter and a window that shared memory has room for."""

    def only(g: ConvGeometry) -> bool:
        window = importlib.import_module("minires.kernels.cuda.window")
        return bool(window.fits(operation, g))

    stride = ", stride 1" if operation == "conv2d_grad_input" else ""
    only.__doc__ = f"no groups{stride}, filter and window within shared memory"
    return only


def _few(g: ConvGeometry) -> bool:
    """Stems and the narrow layers of CIFAR's nets, whose windows overlap."""
    overlap = g.kernel[0] * g.kernel[1] > g.stride[0] * g.stride[1]
    return overlap and g.C <= 32 and g.O <= 64


def _inputs(chunk: int) -> Condition:
    """Input channels of a group in whole chunks."""

    def only(g: ConvGeometry) -> bool:
        return g.C // g.groups % chunk == 0

    only.__doc__ = f"C / groups a multiple of {chunk}"
    return only


def _outputs(chunk: int) -> Condition:
    """Output channels of a group in whole chunks."""

    def only(g: ConvGeometry) -> bool:
        return g.O // g.groups % chunk == 0

    only.__doc__ = f"O / groups a multiple of {chunk}"
    return only


def _both(chunk: int) -> Condition:
    """Channels of a group in whole chunks, on both sides."""

    def only(g: ConvGeometry) -> bool:
        return _inputs(chunk)(g) and _outputs(chunk)(g)

    only.__doc__ = f"C / groups and O / groups multiples of {chunk}"
    return only


for _pass in PASSES:
    for _name, _worth, _summary in (
        ("im2col", None, "im2col and a tiled product, written out to be read."),
        ("direct", None, "The definition, a thread per result; for grouped convolutions."),
        ("implicit", _few_groups, "A product in registers whose columns are never written."),
    ):
        _stated = (
            _late_workspace("conv", "implicit_workspace", _pass) if _name == "implicit" else None
        )
        _add(
            _pass, _name, "conv", _summary, function=f"{_name}_{_pass}", worth=_worth,
            workspace=_stated,
        )  # fmt: skip
for _pass in PASSES:
    _add(
        _pass, "window", "window", "Few channels: filter and window in shared memory.",
        function=f"window_{_pass}", only=_window(_pass), worth=_few,
        workspace=_late_workspace("window", "workspace", _pass),
    )  # fmt: skip
# A chunk of 16 bytes must not reach over two taps, so what is read has channels in whole chunks.
for _pass, _even in (
    ("conv2d", _inputs), ("conv2d_grad_input", _outputs), ("conv2d_grad_weight", _both),
):  # fmt: skip
    _add(
        _pass, "tensor", "tensor", "Tensor cores: 16-bit factors, float32 sums.",
        function=f"tensor_{_pass}", only=_even(8), worth=_few_groups, dtypes=FLOATS[2:],
    )  # fmt: skip
    _add(
        _pass, "mma", "tensor", "Tensor cores by mma.sync, on a Hopper too.",
        function=f"mma_{_pass}", only=_even(8), worth=when_measured, dtypes=FLOATS[2:],
    )  # fmt: skip
    _add(
        _pass, "tf32", "tensor", "Tensor cores: factors rounded to 10 bits; only when named.",
        function=f"tensor_{_pass}", only=_even(4), worth=never, dtypes=FLOATS[:1], exact=False,
    )  # fmt: skip
    _add(
        _pass, "tf32_mma", "tensor", "tf32 by mma.sync, on a Hopper too; only when named.",
        function=f"mma_{_pass}", only=_even(4), worth=never, dtypes=FLOATS[:1], exact=False,
    )  # fmt: skip
for _pass in PASSES:
    _add(
        _pass, "product", "product", "A plain product of the pixels, copied past registers.",
        function=f"product_{_pass}", only=_pointwise, dtypes=FLOATS[:2],
        workspace=_late_workspace("product", "workspace", _pass),
    )  # fmt: skip
_tiles: tuple[tuple[int, Condition], ...] = ((2, when_measured), (4, _wide))
for _tile, _where in _tiles:
    for _pass in PASSES:
        _add(
            _pass, f"winograd{_tile}", "winograd", f"Winograd F({_tile}x{_tile}, 3x3).",
            function=f"winograd{_tile}_{_pass}", only=_winograd, worth=_where, dtypes=FLOATS[:2],
            exact=False, workspace=_late_workspace("winograd", "workspace", _pass, _tile),
        )  # fmt: skip
_add("linear", "implicit", "conv", "A 1x1 convolution in registers.")
for _name in ("batch_norm", "batch_norm_relu", "batch_norm_add_relu"):
    _add(f"{_name}_train", "fused", "norm", "Statistics in one pass, the rest in another.")
    _add(f"{_name}_grad", "fused", "norm", "Sums in one pass, the gradient in another.")
_add("batch_norm_statistics", "fused", "norm", "One pass.")
_add("batch_norm_eval", "fused", "norm", "One pass.")
_add("normalise", "fused", "norm", "One pass.")
for _name in ("relu", "relu_grad", "add", "add_relu"):
    _add(_name, "packed", "elementwise", "One pass, 16 bytes at a time.")
for _name in ("max_pool2d", "avg_pool2d", "adaptive_avg_pool2d"):
    _add(_name, "packed", "pool", "A thread per output, 16 bytes of channels at a time.")
    _add(f"{_name}_grad", "packed", "pool", "Gathered by each input, in a fixed order.")
_add("max_pool2d_take", "packed", "pool", "A thread per output, 16 bytes of channels at a time.")
for _name in ("log_softmax", "log_softmax_grad", "cross_entropy"):
    _add(_name, "warp", "softmax", "A warp per row.")
