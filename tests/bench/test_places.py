"""Places: where kernels are measured, the emulator in place of a GPU, and CuPy's events faked."""

import sys

import numpy as np
import pytest

from minires.bench.conv import bench_conv
from minires.bench.device_limits import COLUMNS, rate_source
from minires.bench.gate import Problem, precision_of
from minires.bench.layers import shape_layer
from minires.bench.limits import Limits, limits, measure_device
from minires.bench.places import Emulator, Gpu, dtype_of, from_torch, place_of, to_torch
from minires.kernels import available
from minires.kernels.cuda import emulate, resources
from minires.kernels.cuda.resources import Variant

DTYPES = ("float32", "tf32", "bfloat16", "float16", "float64")
MADE_UP = Limits(dict.fromkeys(DTYPES, 100.0), 10.0, 1, "made up", device="cuda")
SMALL = shape_layer((2, 8, 6, 5), (16, 8, 3, 3), padding=1)

needs_emulator = pytest.mark.skipif(
    not sys.platform.startswith("linux") or emulate.compiler() is None,
    reason="the emulator needs Linux and a C++ compiler",
)


@pytest.fixture
def no_pauses(monkeypatch):
    monkeypatch.setattr("minires.bench.timing.time.sleep", lambda seconds: None)


# -- the emulator ----------------------------------------------------------------------------------


@needs_emulator
@pytest.mark.parametrize("dtype", DTYPES)
def test_cuda_kernels_are_checked_and_timed_on_the_emulator(dtype, no_pauses):
    if dtype == "bfloat16":
        pytest.importorskip("ml_dtypes")
    report = bench_conv([SMALL], ["default", "implicit"], device=Emulator(), dtype=dtype, rounds=1,
                        limit=MADE_UP)  # fmt: skip
    assert not report.refused
    assert {row.operation for row in report.rows} == {
        "conv2d", "conv2d_grad_input", "conv2d_grad_weight",
    }  # fmt: skip
    assert all(row.dtype == dtype and row.times is not None for row in report.rows)
    chosen = {row.kernel for row in report.rows if row.chosen}
    assert all("tf32" in name for name in chosen) == (dtype == "tf32")


@needs_emulator
def test_a_kernel_that_rounds_too_much_is_refused_at_the_precision_it_claims(no_pauses):
    """The tf32 kernel passes as such; its result called float32 does not."""
    problem = Problem("conv2d", SMALL.geometry, place=Emulator())
    (tf32,) = [k for k in available("conv2d") if (k.backend, k.name) == ("cuda", "tf32")]
    call = problem.place.call(tf32.function, problem.args)
    assert problem.check(call, precision_of(tf32, "float32"))
    assert not problem.check(call)


@needs_emulator
def test_the_limits_of_a_device_are_measured():
    pytest.importorskip("ml_dtypes")
    found = measure_device(Emulator(), repeats=1, size=8, megabytes=1, tries=1)
    assert set(found.gflops) == {"float32", "float64", "float16", "bfloat16", "tf32"}
    assert all(rate > 0 for rate in found.gflops.values())
    assert found.rate("tf32") == found.tile["tf32"]
    assert found.rate("float32") == max(found.tile["float32"], found.blas["float32"])
    assert found.copy_gbs > 0
    assert found.name == "emulator"


@pytest.mark.skipif(
    resources.compiler() is None, reason="needs nvcc, or pip install minires[cuda-check]"
)
@pytest.mark.parametrize("element", ["float", "double", "f16", "bf16", "matrix float"])
def test_the_loops_of_the_limits_compile_and_stay_in_registers(element):
    kernel = "multiply_adds" if element in ("float", "double") else "matrix_products"
    variant = Variant(rate_source(kernel), (("ELEMENT", element.split()[-1]),))
    for architecture in resources.ARCHITECTURES:
        found = resources.measure(variant, architecture)[kernel]
        assert found.spilled == found.stack == 0
        assert 24 <= found.registers <= 128  # fewer, and the loop is not what it seems
    assert set(COLUMNS) == {"float16", "bfloat16", "tf32"}


# -- a GPU, with a CuPy of the test's own ----------------------------------------------------------


class Event:
    """Notes the device's time: so many milliseconds after what was recorded before."""

    clock = 0.0

    def record(self):
        self.at = Event.clock

    def synchronize(self):
        Event.waited = True


class FakeCupy:
    class cuda:  # noqa: N801
        Event = Event

        @staticmethod
        def get_elapsed_time(start, end):
            return end.at - start.at

        class runtime:  # noqa: N801
            CUDARuntimeError = RuntimeError
            devices = 1

            @classmethod
            def getDeviceCount(cls):
                if not cls.devices:
                    raise RuntimeError("no CUDA-capable device is detected")
                return cls.devices

    @staticmethod
    def asarray(array, order):
        assert order == "K"
        return ("on the device", array)

    @staticmethod
    def asnumpy(result):
        return result[1]


@pytest.fixture
def gpu(monkeypatch):
    monkeypatch.setitem(sys.modules, "cupy", FakeCupy)
    monkeypatch.setattr(Event, "clock", 0.0)
    return Gpu()


def test_a_device_is_timed_by_its_own_clock(gpu):
    def call():
        Event.clock += 3.0

    assert gpu.reading(call, 4) == pytest.approx(3e-3)
    assert Event.waited


def test_arrays_go_to_the_device_and_back(gpu):
    x = np.arange(3.0)
    assert gpu.put(x) == ("on the device", x)
    assert gpu.get(gpu.put(x)) is x
    assert place_of("cuda").backend == "cuda"


def test_without_a_device_the_error_says_so(gpu, monkeypatch):
    monkeypatch.setattr(FakeCupy.cuda.runtime, "devices", 0)
    with pytest.raises(RuntimeError, match="no CUDA device can be used: no CUDA-capable"):
        place_of("cuda")


def test_without_cupy_the_error_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "cupy", None)
    with pytest.raises(ImportError, match=r"minires\[cuda12\]"):
        limits(device="cuda")


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_torch_gets_the_same_numbers(dtype):
    torch = pytest.importorskip("torch")
    if dtype == "bfloat16":
        pytest.importorskip("ml_dtypes")
    x = np.arange(-6, 6).reshape(3, 4).T.astype(dtype_of(dtype)) / dtype_of(dtype).type(7)
    tensor = to_torch(torch, x)
    assert str(tensor.dtype) == f"torch.{dtype}"
    back = from_torch(tensor)
    assert back.dtype == x.dtype
    np.testing.assert_array_equal(back.astype(np.float64), x.astype(np.float64))
