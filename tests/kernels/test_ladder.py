"""The ladder of teaching convolutions; that each conforms is in test_conformance.py."""

from __future__ import annotations

import importlib
import subprocess
import sys
import tracemalloc

import numpy as np
import pytest

import minires as mr
from minires.kernels import conv_geometry, ladder
from minires.kernels.ladder import fft, winograd
from minires.kernels.reference import conv
from minires.testing.kernel_passes import check_passes

PASSES = ("conv2d", "conv2d_grad_input", "conv2d_grad_weight")
LAYER = conv_geometry((4, 16, 24, 24), (32, 16, 3, 3), 1, 1)


def rungs(operation: str) -> dict[str, mr.kernels.Kernel]:
    return {k.name: k for k in mr.kernels.available(operation)
            if k.function.__module__.startswith("minires.kernels.ladder")}  # fmt: skip


def test_every_rung_is_registered_from_the_bottom_up() -> None:
    names = list(rungs("conv2d"))
    assert [name for name in names if name != "naive-python"] == list(ladder.RUNGS)
    for operation in PASSES:
        for name in ("naive", "im2col-whole", "implicit", "winograd-2x2", "winograd-4x4", "fft"):
            assert name in rungs(operation)


@pytest.mark.parametrize("operation", PASSES)
def test_none_is_chosen_unasked_and_each_when_named(operation: str) -> None:
    for name, kernel in rungs(operation).items():
        g = conv_geometry((1, 2, 8, 8), (4, 2, 3, 3), 1, 1)
        assert mr.kernels.operation(operation).select("cpu", g).name == "im2col"
        with mr.kernels.use(**{operation: name}):
            assert mr.kernels.operation(operation).select("cpu", g) is kernel


def test_what_is_not_a_plain_sum_of_products_says_so() -> None:
    for name, kernel in rungs("conv2d").items():
        assert kernel.exact == (name != "fft" and not name.startswith("winograd"))


def test_importing_minires_leaves_the_ladder_alone() -> None:
    program = (
        "import sys, minires as mr\n"
        "assert not {m for m in sys.modules if 'ladder' in m or m == 'numba'}\n"
        "with mr.kernels.use(conv2d='fft'): assert 'minires.kernels.ladder.fft' in sys.modules\n"
        "assert any(k.name == 'naive' for k in mr.kernels.available('conv2d'))\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    "module", sorted({k.function.__module__ for k in rungs("conv2d").values()})
)
def test_every_file_opens_with_what_changed(module: str) -> None:
    text = importlib.import_module(module).__doc__ or ""
    assert "Rung" in text
    if not module.endswith("naive"):
        assert "What changed:" in text
        assert "What it bought:" in text


@pytest.mark.parametrize(
    "name", ["im2col-whole", "implicit", "winograd-2x2", "winograd-4x4", "fft"]
)
def test_the_passes_of_a_rung_belong_together(name: str) -> None:
    results = check_passes([rungs(operation)[name] for operation in PASSES])
    assert [r.text for r in results if not r.passed] == []
    assert len(results) == 2


@pytest.mark.parametrize(
    "name", ["reordered", "im2col-whole", "im2col-blocked", "implicit", "winograd-4x4", "fft"]
)
def test_the_workspace_is_what_a_call_takes(name: str) -> None:
    """Measured by the allocator, which also sees copies of arguments and results."""
    kernel = rungs("conv2d")[name]
    rng = np.random.default_rng(0)
    x, weight = (rng.standard_normal(s).astype("f4") for s in (LAYER.x_shape, LAYER.weight_shape))
    x = np.ascontiguousarray(x.transpose(0, 2, 3, 1)).transpose(0, 3, 1, 2)
    kernel.function(x, weight, LAYER)
    tracemalloc.start()
    y = kernel.function(x, weight, LAYER)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    said = kernel.workspace_bytes(LAYER, "float32")
    assert said is not None
    measured = peak - y.nbytes
    assert 0.5 * said - 2 * weight.nbytes <= measured <= 2.5 * said + 4 * (x.nbytes + y.nbytes)


@pytest.mark.parametrize("m", [2, 4])
def test_winograd_transforms_multiply_polynomials(m: int) -> None:
    """One dimension, in float64, against the definition."""
    AT, G, BT = winograd.transforms(winograd.POINTS[m])
    rng = np.random.default_rng(m)
    d, g = rng.standard_normal(m + 2), rng.standard_normal(3)
    y = AT @ ((G @ g) * (BT @ d))
    np.testing.assert_allclose(y, [d[i : i + 3] @ g for i in range(m)], rtol=1e-12, atol=1e-12)


def test_winograd_errors_are_as_the_file_says() -> None:
    two = winograd.error(winograd.POINTS[2])
    textbook = winograd.error((0.0, 1.0, -1.0, 2.0, -2.0))
    four = winograd.error(winograd.POINTS[4])
    assert 1e-7 < two < four < textbook < 1e-5
    assert textbook > 2 * four
    assert winograd.error(winograd.POINTS[4], dtype=np.float64) < 1e-14


@pytest.mark.parametrize(("size", "fast"), [(1, 1), (7, 8), (11, 12), (13, 15), (17, 18), (31, 32)])
def test_fast_sizes(size: int, fast: int) -> None:
    assert fft.fast_size(size) == fast


def test_the_fft_takes_any_kernel_size() -> None:
    g = conv_geometry((2, 3, 40, 33), (4, 3, 15, 11), 2, 6)
    rng = np.random.default_rng(0)
    x, weight = rng.standard_normal(g.x_shape), rng.standard_normal(g.weight_shape)
    y = fft.conv2d(x, weight, g)
    np.testing.assert_allclose(y, conv.conv2d(x, weight, g), rtol=0, atol=1e-11)
