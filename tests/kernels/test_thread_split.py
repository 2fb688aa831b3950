"""However many threads share the work, and however little there is, it is all done, once."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from typing import Any

import numpy as np
import pytest

from minires.kernels import Kernel, available, conv_geometry, threads

COUNTS = (1, 2, 3, 64)
OPERATIONS = (
    "relu", "relu_grad", "add_relu", "batch_norm_train", "batch_norm_relu_train",
    "batch_norm_grad", "batch_norm_relu_grad", "batch_norm_add_relu_train",
    "batch_norm_add_relu_grad", "conv2d", "conv2d_grad_input", "conv2d_grad_weight",
)  # fmt: skip


def image(rng: np.random.Generator, *shape: int) -> np.ndarray:
    N, C, H, W = shape
    return rng.standard_normal((N, H, W, C)).astype(np.float32).transpose(0, 3, 1, 2)


def arguments(operation: str) -> tuple[Any, ...]:
    """One image of 16 channels: less than there are threads, of whatever is divided."""
    rng = np.random.default_rng(0)
    x, gy = image(rng, 1, 16, 5, 7), image(rng, 1, 16, 5, 7)
    weight = rng.standard_normal((16, 16, 3, 3)).astype(np.float32)
    one, g = np.ones(16, np.float32), conv_geometry(x.shape, weight.shape, 1, 1)
    return {
        "relu": (x,),
        "relu_grad": (gy, x),
        "add_relu": (x, gy),
        "batch_norm_train": (x, one, one, 1e-5),
        "batch_norm_relu_train": (x, one, one, 1e-5),
        "batch_norm_grad": (gy, x, one, one, one),
        "batch_norm_relu_grad": (gy, x, one, one, one, one),
        "batch_norm_add_relu_train": (x, gy, one, one, 1e-5),
        "batch_norm_add_relu_grad": (gy, x, np.maximum(x, 0), one, one, one),
        "conv2d": (x, weight, g),
        "conv2d_grad_input": (gy, weight, g),
        "conv2d_grad_weight": (x, gy, g),
    }[operation]


def parallel_kernels() -> list[Kernel]:
    found = []
    for operation in OPERATIONS:
        args = arguments(operation)
        place = args[-1] if operation.startswith("conv2d") else args[0].shape
        found += [
            kernel
            for kernel in available(operation)
            if kernel.backend == "cpu"
            and kernel.function.__module__.startswith("minires.kernels.cpu")
            and kernel.supports(place, "float32")
        ]
    return found


def arrays(result: Any) -> tuple[np.ndarray, ...]:
    return result if isinstance(result, tuple) else (result,)


@pytest.mark.parametrize("kernel", parallel_kernels(), ids=lambda k: f"{k.operation}-{k.name}")
def test_any_number_of_threads(kernel: Kernel, monkeypatch: pytest.MonkeyPatch) -> None:
    args = arguments(kernel.operation)
    plain = next(
        k for k in available(kernel.operation)
        if k.function.__module__.startswith("minires.kernels.reference") and k.only is None
    )  # fmt: skip
    expected = arrays(plain.function(*args))
    for count in COUNTS:
        monkeypatch.setattr(threads, "_count", count)
        found, again = arrays(kernel.function(*args)), arrays(kernel.function(*args))
        for e, f, a in zip(expected, found, again, strict=True):
            scale = max(float(np.abs(e).max()), 1.0)
            np.testing.assert_allclose(f, e, rtol=0, atol=2e-4 * scale, err_msg=f"{count} threads")
            assert f.tobytes() == a.tobytes(), f"{count} threads: other bits the second time"


PROGRAM = """
import hashlib, sys
import numpy as np, threadpoolctl
from minires.kernels import operations as ops, use
from minires.kernels.threads import num_threads
def blas():
    return {p["filepath"]: p["num_threads"] for p in threadpoolctl.threadpool_info()
            if p["user_api"] == "blas"}
numpys = blas()  # Numba may load another one, which nothing of ours calls
x = np.random.default_rng(0).standard_normal((3, 5, 7, 16)).astype(np.float32)
x = x.transpose(0, 3, 1, 2)
with use(relu="simd", add_relu="simd"):
    y = ops.add_relu(ops.relu(x), x)
import numba
most = max(blas()[name] for name in numpys)
print(num_threads(), numba.get_num_threads(), most, hashlib.sha256(y.tobytes()).hexdigest())
"""


@pytest.mark.parametrize("count", [1, 2])
def test_one_pool_at_a_time_and_the_bits_do_not_tell_how_many(count: int) -> None:
    if threads.available_cores() < count:
        pytest.skip(f"needs {count} cores")
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=False,
        env={**os.environ, "MINIRES_THREADS": str(count), "OPENBLAS_NUM_THREADS": "2"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    ours, numba, blas, digest = done.stdout.split()
    assert (int(ours), int(numba), int(blas)) == (count, count, 1)
    x = np.random.default_rng(0).standard_normal((3, 5, 7, 16)).astype(np.float32)
    x = x.transpose(0, 3, 1, 2)
    expected = np.maximum(np.maximum(x, 0) + x, 0)
    assert digest == hashlib.sha256(expected.tobytes()).hexdigest()
