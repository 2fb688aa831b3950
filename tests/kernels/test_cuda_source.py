"""Kernels of the user's in CUDA C: registered without a GPU, run by the emulator."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from lab import restored_kernels

import minires as mr
from minires.kernels.cuda import emulate
from minires.testing import check_kernel, kernel_case

SOURCE = r"""
extern "C" __global__ void conv2d_mine(
    const T* x, const T* weight, T* y, long long size, int C, int H, int W, int O, int KH, int KW,
    int OH, int OW, int stride, int padding) {
    long long k = blockIdx.x * (long long)blockDim.x + threadIdx.x;
    if (k >= size) return;
    int j = k % OW, i = k / OW % OH, o = k / OW / OH % O, n = k / OW / OH / O;
    T total = 0;
    for (int c = 0; c < C; c++)
        for (int u = 0; u < KH; u++)
            for (int v = 0; v < KW; v++) {
                int h = i * stride + u - padding, w = j * stride + v - padding;
                if (h >= 0 && h < H && w >= 0 && w < W)
                    total += x[((n * C + c) * H + h) * W + w] *
                             weight[((o * C + c) * KH + u) * KW + v];
            }
    y[k] = total;
}
"""

FILE = '''
import numpy as np
import minires as mr

def plain(g):
    """One group, no dilation, the same stride and padding both ways."""
    return (g.groups == 1 and g.dilation == (1, 1) and g.stride[0] == g.stride[1]
            and g.padding[0] == g.padding[1])

@mr.kernels.register("conv2d", backend="cuda", name="mine", only=plain)
@mr.kernels.cuda_source("mine.cu")
def conv2d(cuda, x, weight, g):
    """One thread per output."""
    x, weight = cuda.dense(x), cuda.dense(weight)
    y = cuda.empty(g.y_shape, x.dtype)
    sizes = map(np.int32, (g.C, g.H, g.W, g.O, *g.kernel, *g.out, g.stride[0], g.padding[0]))
    run = cuda.kernel("conv2d_mine", T=x.dtype)
    run((-(-y.size // 64),), (64,), (x, weight, y, y.size, *sizes))
    return y
'''

needs_compiler = pytest.mark.skipif(emulate.compiler() is None, reason="needs a C++ compiler")


@pytest.fixture(autouse=True, scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Compiled sources go to a folder of the tests' own."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MINIRES_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(autouse=True)
def restored() -> Iterator[None]:
    with restored_kernels():
        yield


def written(folder: Path, source: str = SOURCE) -> Path:
    (folder / "mine.cu").write_text(source)
    (folder / "mine.py").write_text(FILE)
    return folder / "mine.py"


def test_registering_needs_no_gpu(tmp_path: Path) -> None:
    (kernel,) = mr.kernels.load(written(tmp_path))
    assert (kernel.backend, kernel.name) == ("cuda", "mine")
    assert kernel.summary == "One thread per output."
    x = np.zeros((1, 1, 2, 2), np.float32)
    g = mr.kernels.conv_geometry(x.shape, x.shape)
    with pytest.raises(TypeError, match="CUDA kernels take CuPy arrays, got a NumPy array"):
        kernel.function(x, x, g)
    assert mr.kernels.operation("conv2d").select("cpu", g).name != "mine"


@needs_compiler
def test_a_right_source_conforms(tmp_path: Path) -> None:
    mr.kernels.load(written(tmp_path))
    report = check_kernel("conv2d", "mine", backend="cuda")
    assert report.calls > 50
    assert any("emulation" in note for note in report.notes)


@needs_compiler
@pytest.mark.parametrize(
    ("right", "wrong", "cause"),
    [
        ("if (k >= size) return;", "", "writes out of bounds"),
        ("* KH + u) * KW + v]", "* KH + KH - 1 - u) * KW + KW - 1 - v]", "kernel is flipped"),
        ("* stride + u - padding", "* stride + u", "padding"),
    ],
)
def test_a_wrong_source_is_explained(tmp_path: Path, right: str, wrong: str, cause: str) -> None:
    assert right in SOURCE
    mr.kernels.load(written(tmp_path, SOURCE.replace(right, wrong)))
    report = check_kernel("conv2d", "mine", backend="cuda", raise_exception=False)
    assert not report
    assert cause in report.causes[0]
    assert "backend='cuda'" in report.line


@needs_compiler
def test_a_source_that_does_not_compile(tmp_path: Path) -> None:
    mr.kernels.load(written(tmp_path, SOURCE.replace("T total = 0;", "")))
    g = mr.kernels.conv_geometry((1, 1, 2, 2), (1, 1, 1, 1))
    case = kernel_case("conv2d", "mine", g, backend="cuda")
    assert "total" in case.findings[0].text
    assert case.findings[0].kind == "raised"


@needs_compiler
def test_a_text_with_its_launch() -> None:
    head = 'extern "C" __global__ void twice(const T* x, T* y) '
    text = head + "{ y[threadIdx.x] = 2 * x[threadIdx.x]; }"

    def launch(cuda: Any, x: Any) -> Any:
        """Doubles."""
        y = cuda.zeros(x.shape, x.dtype)
        assert cuda.multiprocessors > 0
        cuda.kernel("twice", T=x.dtype)((1,), (x.size,), (x, y))
        return y

    kernel = mr.kernels.cuda_source(text, launch=launch)
    assert kernel.__doc__ == "Doubles."
    with emulate.device():
        np.testing.assert_array_equal(kernel(np.arange(3.0)), [0, 2, 4])


def test_wrong_sources_are_refused(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"cuda_source: no file .*none\.cu"):
        mr.kernels.cuda_source("none.cu")
    with pytest.raises(ValueError, match="no kernel in the text"):
        mr.kernels.cuda_source("int x;\nint y;\n")
    (tmp_path / "empty.cu").write_text("int x;")
    with pytest.raises(ValueError, match=r"no kernel in .*empty\.cu"):
        mr.kernels.cuda_source(tmp_path / "empty.cu")


def test_without_anything_to_run_it_the_check_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(emulate.sys, "platform", "darwin")
    mr.kernels.load(written(tmp_path))
    with pytest.raises(RuntimeError, match="conv2d/mine is a CUDA kernel; there is no GPU here"):
        check_kernel("conv2d", "mine", backend="cuda")
