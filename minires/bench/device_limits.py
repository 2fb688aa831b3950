"""The limits of a CUDA device: arithmetic in registers, cuBLAS, and copying, timed with events.

A rate is the larger of two: our own loops over registers (`rate_fma.cu`, `rate_mma.cu`), and a
large matrix product by cuBLAS through CuPy. On Hopper the matrix instruction of the loops,
mma.sync, does not reach what cuBLAS gets from wgmma. CuPy multiplies no bfloat16; the device does
so at the rate of float16. It rounds to tf32 only where told to, so that rate is of the loops alone.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from minires.bench.places import Place
from minires.kernels.cuda import source
from minires.kernels.cuda.launch import Device, device_of

CHAINS, TILES, THREADS = 16, 8, 256
BLOCKS = 8  # per multiprocessor
COLUMNS = {"float16": 16, "bfloat16": 16, "tf32": 8}
"""Of the factors of one matrix instruction, which has 16 rows and 8 columns of results."""


def device_rates(
    place: Place, *, repeats: int = 4096, size: int = 8192, megabytes: int = 1024, tries: int = 5
) -> tuple[dict[str, float], dict[str, float], float]:
    """(our loops' and cuBLAS's 10^9 operations/s by dtype, 10^9 bytes/s of copying).

    repeats: steps of the loops; size: of the square matrices; megabytes: of the array copied.
    Copying counts reads and writes.
    """
    probe = place.put(np.zeros(1, np.float32))
    ours: dict[str, float] = {}
    for dtype in ("float32", "float64", "float16", "bfloat16", "tf32"):
        ours[dtype] = _loop_rate(place, probe, dtype, repeats, tries)
    blas = {
        dtype: _product_rate(place, dtype, size, tries)
        for dtype in ("float32", "float64", "float16")
    }
    blas["bfloat16"] = blas["float16"]
    return ours, blas, _copy_rate(place, megabytes << 20, tries)


def _loop_rate(place: Place, probe: Any, dtype: str, repeats: int, tries: int) -> float:
    element = "float32" if dtype == "tf32" else dtype
    sums = np.dtype(np.float64 if dtype == "float64" else np.float32)
    constants: tuple[Any, ...]
    kernel, constants = "multiply_adds", (sums.type(0.5), sums.type(1.0))
    per_thread = CHAINS * 2.0
    if dtype in COLUMNS:
        kernel, constants = "matrix_products", (np.int32(0),)
        per_thread = TILES * 2 * 16 * 8 * COLUMNS[dtype] / 32

    def launch(_: Any) -> Any:
        device: Device = device_of(probe)
        blocks = BLOCKS * device.multiprocessors
        y = device.xp.empty(blocks * THREADS, sums)
        module = device.module(rate_source(kernel), ELEMENT=source.type_name(element))
        module.kernel(kernel)((blocks,), (THREADS,), (y, *constants, np.int32(repeats)))
        return y

    call = place.call(launch, (probe,))
    threads = len(place.get(call()))  # compiles
    seconds = min(place.reading(call, 4) for _ in range(tries))
    return threads * per_thread * repeats / seconds / 1e9


def rate_source(kernel: str) -> str:
    """The name of the source of "multiply_adds" or "matrix_products"."""
    name = {"multiply_adds": "rate_fma.cu", "matrix_products": "rate_mma.cu"}[kernel]
    return source.give(name, (Path(__file__).parent / name).read_text())


def _product_rate(place: Place, dtype: str, size: int, tries: int) -> float:
    a = place.put(np.full((size, size), 0.5, dtype))
    multiply = place.call(lambda a: a @ a, (a,))
    multiply()
    return 2 * size**3 / min(place.reading(multiply, 2) for _ in range(tries)) / 1e9


def _copy_rate(place: Place, size: int, tries: int) -> float:
    a = place.put(np.zeros(size // 4, np.float32))
    target = place.put(np.zeros(size // 4, np.float32))

    def copy(a: Any) -> None:
        target[...] = a

    call = place.call(copy, (a,))
    call()
    return 2 * size / min(place.reading(call, 4) for _ in range(tries)) / 1e9
