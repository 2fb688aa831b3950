"""The emulator catches what it is there for: each planted bug is an error or a wrong number."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from minires.kernels.cuda import emulate, source

# One kernel per planted bug; the right one is there to show that the others fail for their bug.
PLANTED = """
#include "types.cuh"
#include "ptx.cuh"
extern "C" __global__ void right(const T* x, T* y, int n) {
    __shared__ T shared[64];
    shared[threadIdx.x] = x[threadIdx.x];
    __syncthreads();
    y[threadIdx.x] = shared[n - 1 - threadIdx.x];
}
extern "C" __global__ void no_barrier(const T* x, T* y, int n) {
    __shared__ T shared[64];
    shared[threadIdx.x] = x[threadIdx.x];
    y[threadIdx.x] = shared[n - 1 - threadIdx.x];
}
extern "C" __global__ void reads_outside(const T* x, T* y, int n) {
    y[threadIdx.x] = x[threadIdx.x + 1];
}
extern "C" __global__ void writes_outside(const T* x, T* y, int n) {
    y[threadIdx.x + 1] = x[threadIdx.x];
}
extern "C" __global__ void writes_before(const T* x, T* y, int n) {
    y[int(threadIdx.x) - 1] = x[threadIdx.x];
}
extern "C" __global__ void shared_outside(const T* x, T* y, int n) {
    DYNAMIC_SHARED(T, shared);
    shared[threadIdx.x + 1] = x[threadIdx.x];
    y[threadIdx.x] = x[threadIdx.x];
}
extern "C" __global__ void shared_not_written(const T* x, T* y, int n) {
    __shared__ T shared[64];
    y[threadIdx.x] = shared[threadIdx.x];
}
extern "C" __global__ void divergent(const T* x, T* y, int n) {
    if (threadIdx.x < 40) y[threadIdx.x] = __shfl_sync(0xffffffffu, x[threadIdx.x], 0);
}
extern "C" __global__ void misaligned(const T* x, T* y, int n) {
    if (threadIdx.x == 0) store<4>(y, load<4>(x + 1));
}
extern "C" __global__ void no_wait(const T* x, T* y, int n) {
    __shared__ T shared[64];
    copy_async_16(shared + threadIdx.x / 4 * 4, x + threadIdx.x / 4 * 4, true);
    commit_copies();
    __syncthreads();
    y[threadIdx.x] = shared[threadIdx.x];
    wait_copies<0>();
}
extern "C" __global__ void sums_a_warp(const T* x, T* y, int n) {
    T sum = x[threadIdx.x];
    for (int k = 16; k; k /= 2) sum += __shfl_xor_sync(0xffffffffu, sum, k);
    unsigned above = __ballot_sync(0xffffffffu, x[threadIdx.x] > 0);
    y[threadIdx.x] = threadIdx.x % 2 ? sum : T(above >> (threadIdx.x % 32) & 1);
}
"""

N = 64


@pytest.fixture
def planted(emulator: Any) -> Any:
    """Runs one of the planted kernels on 64 threads and 64 random numbers."""
    file = source.give("planted.cu", PLANTED)
    x = np.random.default_rng(0).standard_normal(N).astype(np.float32)

    def run(name: str) -> Any:
        y = np.full(N, 7.0, np.float32)
        with emulate.device() as device:
            kernel = device.module(file, ELEMENT=x.dtype).kernel(name)
            kernel((1,), (N,), (x, y, np.int32(N)), 4 * N)
        return x, y

    return run


def test_what_is_right_comes_out(planted: Any) -> None:
    for _ in range(2):  # threads upwards and downwards
        x, y = planted("right")
        np.testing.assert_array_equal(y, x[::-1])
    x, y = planted("sums_a_warp")
    sums = np.repeat(x.reshape(2, 32).sum(axis=1), 32)
    np.testing.assert_allclose(y[1::2], sums[1::2], rtol=1e-5)
    np.testing.assert_array_equal(y[::2], (x > 0)[::2])


def test_the_systems_own_way_to_change_stacks(
    planted: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """For processors other than x86-64."""
    monkeypatch.setattr(emulate, "FLAGS", (*emulate.FLAGS, "-DMINIRES_UCONTEXT"))
    other = emulate.EmulatedDevice()
    monkeypatch.setattr(emulate, "_device", lambda capability: other)
    for _ in range(2):
        x, y = planted("right")
        np.testing.assert_array_equal(y, x[::-1])


def test_a_missing_barrier_shows(planted: Any) -> None:
    results = [planted("no_barrier") for _ in range(2)]
    assert not all(np.array_equal(y, x[::-1]) for x, y in results)


def test_reading_out_of_range_gives_nan(planted: Any) -> None:
    _, y = planted("reads_outside")
    assert np.isnan(y[-1])
    assert not np.isnan(y[:-1]).any()


def test_reading_shared_memory_that_nothing_wrote_gives_nan(planted: Any) -> None:
    assert np.isnan(planted("shared_not_written")[1]).all()


def test_a_copy_that_nothing_waited_for_has_not_arrived(planted: Any) -> None:
    assert any(np.isnan(planted("no_wait")[1]).any() for _ in range(2))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("writes_outside", "wrote outside of argument 1"),
        ("writes_before", "wrote outside of argument 1"),
        ("shared_outside", "wrote outside of dynamic shared memory"),
        ("divergent", "deadlock"),
        ("misaligned", "a load is not aligned"),
    ],
)
def test_what_is_wrong_is_an_error(planted: Any, name: str, message: str) -> None:
    with pytest.raises(RuntimeError, match=f"{name}: {message}"):
        planted(name)


def test_arguments_are_held_against_the_kernels_own(emulator: Any) -> None:
    x = np.zeros(4, np.float32)
    with emulate.device() as device:
        relu = device.module("elementwise.cu", ELEMENT=x.dtype).kernel("relu")
        with pytest.raises(RuntimeError, match="relu: takes 4 arguments, got 3"):
            relu((1,), (32,), (x, x, 4))
        with pytest.raises(RuntimeError, match="argument 2 has 8 bytes, got 4"):
            relu((1,), (32,), (x, x, np.int32(4), 0))
        with pytest.raises(TypeError, match="NumPy scalars or integers"):
            relu((1,), (32,), (x, x, 4.0, 0))
        with pytest.raises(ValueError, match="without gaps"):
            relu((1,), (32,), (x[::2], x[::2].copy(), 2, 0))


def test_a_source_that_does_not_compile_says_why(emulator: Any) -> None:
    file = source.give("broken.cu", 'extern "C" __global__ void broken(int n) { m = n; }')
    with (
        emulate.device() as device,
        pytest.raises(RuntimeError, match=r"cannot compile [\s\S]*broken\.cu:1"),
    ):
        device.module(file)


def test_without_a_compiler_the_error_says_what_to_install(
    own_cache: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(emulate, "compiler", lambda: None)
    with pytest.raises(RuntimeError, match=r"install g\+\+ or set CXX"):
        emulate.library("elementwise.cu", (("ELEMENT", "float"),))
