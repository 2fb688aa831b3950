"""Operations that are bound by memory, as shares of the measured copy bandwidth.

What counts are the bytes that have to move: every array that is given read once, every array that
is returned written once. An operation is held to the reference on a small shape before it is timed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from minires.bench.gate import ROUNDOFF
from minires.bench.places import dtype_of
from minires.bench.timing import interleave
from minires.kernels import operation, pool_geometry
from minires.testing.kernels import reference_kernel
from versus.gpu.machine import Machine

LARGE = {"map": (128, 256, 56, 56), "stem": (128, 64, 112, 112)}
"""Of a ResNet-50 at batch 128: the largest maps with 256 channels, and what the pooling reads."""
SMALL = {"map": (3, 16, 5, 7), "stem": (2, 16, 9, 8)}
EPS = 1e-5
DRAWN = 4_000_037

Arguments = tuple[Any, ...]


def arguments(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Callable[[], Arguments]]:
    """What each operation takes, as makers: one set of large arrays at a time."""
    rng = np.random.default_rng(0)
    N, C, H, W = shapes["map"]

    def images(n: int, c: int, h: int, w: int) -> np.ndarray:
        """Channels last; beyond a few million the numbers come again."""
        drawn = rng.standard_normal(min(n * c * h * w, DRAWN), np.float32)
        return np.resize(drawn, (n, h, w, c)).transpose(0, 3, 1, 2)

    def maps(count: int) -> list[np.ndarray]:
        return [images(N, C, H, W) for _ in range(count)]

    def channels(count: int) -> list[np.ndarray]:
        return [(rng.random(C) + 0.5).astype(np.float32) for _ in range(count)]

    def pooled() -> tuple[np.ndarray, Any]:
        x = images(*shapes["stem"])
        return x, pool_geometry("max_pool2d", x.shape, 3, 2, 1)

    def pooled_gradient() -> Arguments:
        x, g = pooled()
        y, indices = reference_kernel("max_pool2d").function(x, g)
        return y, indices.astype(np.uint8), g  # as our own forward pass keeps them

    def after_relu() -> np.ndarray:
        return np.maximum(maps(1)[0], 0)

    return {
        "relu": lambda: (*maps(1),),
        "relu_grad": lambda: (*maps(1), after_relu()),
        "add": lambda: (*maps(2),),
        "add_relu": lambda: (*maps(2),),
        "normalise": lambda: (*maps(1), *channels(3), None, True),
        "batch_norm_train": lambda: (*maps(1), *channels(2), EPS),
        "batch_norm_relu_train": lambda: (*maps(1), *channels(2), EPS),
        "batch_norm_add_relu_train": lambda: (*maps(2), *channels(2), EPS),
        "batch_norm_grad": lambda: (*maps(2), *channels(3)),
        "batch_norm_relu_grad": lambda: (*maps(2), *channels(4)),
        "batch_norm_add_relu_grad": lambda: (*maps(2), after_relu(), *channels(3)),
        "max_pool2d": pooled,
        "max_pool2d_grad": pooled_gradient,
        "adaptive_avg_pool2d": lambda: (*maps(1), (1, 1)),
        "adaptive_avg_pool2d_grad": lambda: (rng.standard_normal((N, C, 1, 1), np.float32), (H, W)),
    }


def memory_bound(
    found: Machine, precisions: tuple[str, ...], rounds: int, save: Callable[[str, Any], None]
) -> None:
    """Every operation in the dtype of each precision; saved as "operation dtype"."""
    shapes = SMALL if found.rehearsal else LARGE
    for dtype in dict.fromkeys("bfloat16" if p == "bf16" else "float32" for p in precisions):
        for name, make in arguments(shapes).items():
            try:
                save(f"{name} {dtype}", _measured(found, name, make, dtype, rounds))
            except Exception as error:
                save(f"{name} {dtype}", {"failed": f"{type(error).__name__}: {error}"})
            found.release()


def _measured(
    found: Machine, name: str, make: Callable[[], Arguments], dtype: str, rounds: int
) -> dict[str, Any]:
    wrong = check(found, name, dtype)
    if wrong:
        return {"failed": wrong}
    given = typed(make(), dtype)
    args = tuple(found.place.put(a) if isinstance(a, np.ndarray) else a for a in given)
    call = found.place.call(_kernel(name, given, dtype), args)
    arrays = [a for a in (*args, *_tuple(call())) if hasattr(a, "nbytes")]
    moved = sum(int(a.nbytes) for a in arrays)
    times = interleave({name: call}, rounds, reading=found.place.reading)[name]
    gbs = moved / times.median / 1e9
    return {
        "bytes": moved, "gbs": gbs, "share": gbs / found.limits.copy_gbs,
        "times": times.record(), "shape": list(given[0].shape),
    }  # fmt: skip


def _kernel(name: str, given: Arguments, dtype: str) -> Callable[..., Any]:
    last = given[-1]
    geometry = last if hasattr(last, "x_shape") else given[0].shape
    return operation(name).select("cuda", geometry, dtype).function


def typed(given: Arguments, dtype: str) -> Arguments:
    """Images in a dtype; what belongs to a channel stays float32, as in training."""
    return tuple(
        a.astype(dtype_of(dtype), order="K")
        if isinstance(a, np.ndarray) and a.ndim == 4 and a.dtype == np.float32
        else a
        for a in given
    )


def check(found: Machine, name: str, dtype: str) -> str:
    """Why the operation is wrong on a small shape; empty if it is right."""
    given = typed(arguments(SMALL)[name](), dtype)
    args = tuple(found.place.put(a) if isinstance(a, np.ndarray) else a for a in given)
    results = found.place.call(_kernel(name, given, dtype), args)()
    exact = [
        a.astype(np.float64) if isinstance(a, np.ndarray) and a.dtype.kind not in "iu" else a
        for a in given
    ]
    expected = reference_kernel(name).function(*exact)
    pairs = zip(_tuple(results), _tuple(expected), strict=True)
    for i, (result, right) in enumerate(pairs):
        got = found.place.get(result).astype(np.float64)
        if got.shape != right.shape:
            return f"result {i} has shape {got.shape}, expected {right.shape}"
        allowed = 400 * ROUNDOFF["float32"] if dtype == "float32" else 16 * ROUNDOFF[dtype]
        allowed *= max(1.0, float(np.max(np.abs(right), initial=0.0)))
        error = float(np.max(np.abs(got - right), initial=0.0))
        if not error <= allowed:
            return f"result {i} is wrong by {error:.2g}, {allowed:.2g} is allowed"
    return ""


def _tuple(results: Any) -> tuple[Any, ...]:
    return results if isinstance(results, tuple) else (results,)
