"""The kernels that a training step calls, found by walking through it without computing.

While `observer` of the registry watches, every kernel that would be compiled answers with zeros of
the right shape, in memory that nobody touches: ResNet-50's step on eight images takes a moment.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from minires.autograd import Tensor, no_grad
from minires.functional import cross_entropy
from minires.kernels import Kernel, Operation, PoolGeometry, registry
from minires.kernels.fusing import MOMENTS
from minires.kernels.layout import to_nchw
from minires.nn import Module
from minires.optim import SGD


@dataclass(frozen=True)
class Call:
    """One call of a kernel."""

    operation: str
    kernel: Kernel
    arguments: tuple[Any, ...]

    def values(self, rng: np.random.Generator | None = None) -> tuple[Any, ...]:
        """Arguments for the kernel: zeros, or normal numbers from `rng`; maxima in mid-window."""
        return tuple(self._array(a, rng) if isinstance(a, _Array) else a for a in self.arguments)

    def _array(self, like: _Array, rng: np.random.Generator | None) -> Any:
        made, g = _zeros(like.shape, like.dtype), self.arguments[-1]
        if made.dtype.kind != "f" and isinstance(g, PoolGeometry):
            # Place 0 may lie in the padding, the middle of a window never does.
            made += made.dtype.type(g.kernel[0] // 2 * g.kernel[1] + g.kernel[1] // 2)
        elif made.dtype.kind == "f" and rng is not None:
            made[...] = rng.standard_normal(made.shape)
        return made


@dataclass(frozen=True)
class _Array:
    """What is remembered of an array."""

    shape: tuple[int, ...]
    dtype: str


def training_calls(model: Module, x_shape: tuple[int, ...], *, every: bool = False) -> list[Call]:
    """The different calls of two training steps and an evaluation, in the order of the first.

    model: a network whose output has a column per class; its parameters are changed.
    x_shape: (N, C, H, W) of a batch. every: also kernels that have nothing to compile.

    Two steps, because an optimiser with momentum starts to use its kernel in the second.
    """
    found: dict[tuple[Any, ...], Call] = {}

    def observe(operation: Operation, kernel: Kernel, args: tuple[Any, ...]) -> Any:
        function = getattr(kernel.function, "func", kernel.function)  # of what is fused, the kernel
        compiled = function.__module__.startswith("minires.kernels.cpu")
        if not (compiled or every):
            return kernel.function(*args)  # nothing to compile, and little to do
        kept = tuple(
            _Array(a.shape, a.dtype.name) if isinstance(a, np.ndarray) else a for a in args
        )
        call = Call(operation.name, kernel, kept)
        found.setdefault((operation.name, kernel.name, kept), call)
        results = RESULTS.get(operation.name) if compiled else None
        made = (results or kernel.function)(*args)
        parts = getattr(kernel.function, "keywords", {}) if results else {}
        if operation.name == "max_pool2d" and parts:
            return made[0], made[1].astype(np.int8)
        if parts.get(MOMENTS):
            return made, *np.zeros((2, made.shape[1]))  # float64, as they are summed
        return (made, np.zeros((2, made.shape[1]))) if "rectified" in parts else made

    x, labels = Tensor(_zeros(x_shape, "float32")), np.zeros(x_shape[0], np.int64)
    optimizer = SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=1e-4)
    before, registry.observer = registry.observer, observe
    try:
        for _ in range(2):
            model.train().zero_grad()
            cross_entropy(model(x), labels).backward()
            optimizer.step()
        with no_grad():
            model.eval()(x)
    finally:
        registry.observer = before
    return list(found.values())


def _zeros(shape: tuple[int, ...], dtype: str) -> Any:
    """Zeros; images (N, C, H, W) in channels-last memory, as kernels return them."""
    if len(shape) != 4:
        return np.zeros(shape, dtype)
    N, C, H, W = shape
    return to_nchw(np.zeros((N, H, W, C), dtype))


def _like(x: Any, *_: Any) -> Any:
    return _zeros(x.shape, x.dtype.name)


def _channels(x: Any, count: int) -> list[Any]:
    return [np.zeros(x.shape[1], x.dtype) for _ in range(count)]


def _train(x: Any, *_: Any) -> Any:
    return _like(x), *_channels(x, 3)


def _grad(gy: Any, *_: Any) -> Any:
    return _like(gy), *_channels(gy, 2)


def _join_grad(gy: Any, *_: Any) -> Any:
    return _like(gy), _like(gy), *_channels(gy, 2)


RESULTS: dict[str, Callable[..., Any]] = {
    "conv2d": lambda x, weight, g: _zeros(g.y_shape, x.dtype.name),
    "conv2d_grad_input": lambda gy, weight, g: _zeros(g.x_shape, gy.dtype.name),
    "conv2d_grad_weight": lambda x, gy, g: np.zeros(g.weight_shape, x.dtype),
    "batch_norm_train": _train,
    "batch_norm_relu_train": _train,
    "batch_norm_add_relu_train": _train,
    "batch_norm_grad": _grad,
    "batch_norm_relu_grad": _grad,
    "batch_norm_add_relu_grad": _join_grad,
    "batch_norm_statistics": lambda x, eps: tuple(_channels(x, 3)),
    "batch_norm_eval": _like,
    "normalise": _like,
    "relu": _like,
    "relu_grad": _like,
    "add": _like,
    "add_relu": _like,
    "max_pool2d": lambda x, g: (
        _zeros((g.N, g.C, *g.out), x.dtype.name), _zeros((g.N, g.C, *g.out), "int32")
    ),
    "max_pool2d_grad": lambda gy, indices, g: _zeros(g.x_shape, gy.dtype.name),
}  # fmt: skip
"""Zeros of the shapes of an operation's results, from its arguments."""
