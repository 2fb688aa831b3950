"""Calling a kernel with NumPy arrays, wherever it runs: CPU, GPU, or CUDA sources on the CPU."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np

from minires.kernels import Kernel
from minires.kernels.threads import available_cores, num_threads, set_num_threads


@dataclass(frozen=True)
class Runner:
    """How a kernel is called.

    call: the kernel's arguments as NumPy arrays -> what it returns, as NumPy arrays.
    where: in words.
    largest: multiply-adds (or elements) of the largest case that makes sense there.
    guarded: whether arrays can stand between our own guard zones.
    """

    call: Callable[..., Any]
    where: str
    largest: float = float("inf")
    guarded: bool = True


def runner(kernel: Kernel) -> Runner:
    """How a kernel is called here. Raises RuntimeError if nothing here can run its backend."""
    if kernel.backend == "cpu":
        return Runner(kernel.function, "CPU")
    device = _cupy()
    if device is not None:
        return Runner(lambda *args: _on_device(device, kernel.function, args), "GPU", guarded=False)
    try:
        from minires.kernels.cuda import emulate

        with emulate.device():
            pass
    except (ImportError, RuntimeError) as error:
        raise RuntimeError(
            f"{kernel.operation}/{kernel.name} is a CUDA kernel; there is no GPU here, and nothing "
            f"that runs its source on the CPU ({error})"
        ) from error

    def call(*args: Any) -> Any:
        with emulate.device():
            return kernel.function(*args)

    # The emulator has guard zones of its own.
    return Runner(call, "CPU, emulating CUDA", largest=50_000, guarded=False)


def _cupy() -> Any:
    """CuPy if it is installed and finds a GPU."""
    try:
        import cupy

        return cupy if cupy.cuda.runtime.getDeviceCount() else None
    except Exception:  # CuPy's own errors for a missing driver cannot be named without it
        return None


def _on_device(cupy: Any, function: Callable[..., Any], args: tuple[Any, ...]) -> Any:
    """Call on the GPU; the arrays keep their strides' order."""
    given = [cupy.asarray(a, order="K") if isinstance(a, np.ndarray) else a for a in args]
    results = function(*given)
    for before, after in zip(args, given, strict=True):
        if isinstance(before, np.ndarray):
            np.copyto(before, cupy.asnumpy(after))  # so that a change in place is seen
    if isinstance(results, tuple):
        return tuple(map(cupy.asnumpy, results))
    return cupy.asnumpy(results)


def thread_counts(kernel: Kernel) -> list[int]:
    """The numbers of threads that a kernel is tried with: one, and all there are."""
    return sorted({1, available_cores()}) if kernel.backend == "cpu" else []


@contextmanager
def threads(count: int) -> Iterator[None]:
    """Compute with this many threads inside the block."""
    before = num_threads()
    set_num_threads(count)
    try:
        yield
    finally:
        set_num_threads(before)
