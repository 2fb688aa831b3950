"""Gradients in float32 and float16 against float64: what passes, and what does not."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from planting import Block, Planted, planted, tensor

import minires as mr
from minires import functional as F
from minires import nn
from minires.kernels.reference import conv as reference_conv
from minires.testing import assert_gradients, gradcheck
from minires.testing import strategies as st

DTYPES = ("float32", "float16")


def normalise(x: mr.Tensor, gamma: mr.Tensor, beta: mr.Tensor) -> mr.Tensor:
    return F.batch_norm(x, None, None, gamma, beta, training=True)


RIGHT: dict[str, tuple[Callable[..., Any], tuple[tuple[int, ...], ...]]] = {
    "conv2d": (lambda x, w: F.conv2d(x, w, padding=1), ((2, 16, 6, 5), (8, 16, 3, 3))),
    "linear, 512 terms": (F.linear, ((8, 512), (10, 512))),
    "batch_norm": (normalise, ((4, 3, 5, 5), (3,), (3,))),
    "large mean": (lambda x, g, b: normalise(x + 50.0, g, b), ((4, 3, 5, 5), (3,), (3,))),
    "log_softmax": (F.log_softmax, ((5, 7),)),
    "max_pool2d": (lambda x: F.max_pool2d(x, 3, 2, 1), ((2, 3, 7, 8),)),
    "tanh of a sum": (lambda x: (x.sum(axis=1) * 0.1).tanh(), ((6, 50),)),
}  # fmt: skip


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", RIGHT)
def test_right_gradients_stay_far_below_the_bound(
    name: str, dtype: str, rng: np.random.Generator
) -> None:
    fn, shapes = RIGHT[name]
    report = gradcheck(fn, tuple(tensor(rng, *s) for s in shapes), dtype=dtype)
    unit = np.finfo(dtype).eps / 2
    assert len(report.precision) == len(shapes)
    for result in report.precision:
        assert result.dtype == dtype
        assert result.passed
        assert 0 < result.error < 0.5 * result.allowed
        # Not absurdly far, either: the bound means something.
        assert result.allowed < 2e4 * unit * result.size
    assert f"in {dtype}: off by" in str(report)


@settings(max_examples=10)
@given(st.small_nets(max_parts=3))
def test_whole_nets_in_float32(net: st.DrawnNet) -> None:
    before = [t.numpy().tobytes() for t in net.model.state_dict().values()]
    report = gradcheck(net.model, net.x, dtype=np.float32, eps=1e-5, rtol=1e-6, directions=1)
    assert report.precision or report.notes
    assert all(result.passed for result in report.precision)
    assert [t.numpy().tobytes() for t in net.model.state_dict().values()] == before


def test_a_kernel_that_is_wrong_in_float32_alone(rng: np.random.Generator) -> None:
    def grad_weight(x: Any, gy: Any, g: Any) -> Any:
        gw = reference_conv.conv2d_grad_weight(x, gy, g)
        if gw.dtype == np.float32:
            gw[0, 1, 2, 0] *= 1.001  # a tail that some other code computed
        return gw

    inputs = tensor(rng, 2, 3, 6, 5), tensor(rng, 2, 3, 3, 3)
    with planted(conv2d_grad_weight=grad_weight):
        assert gradcheck(F.conv2d, inputs)
        report = gradcheck(F.conv2d, inputs, dtype="float32", raise_exception=False)
    assert not report
    assert report.kinds == {"precision"}
    x, weight = report.precision
    assert x.passed
    assert not weight.passed
    assert weight.index == (0, 1, 2, 0)
    assert "weight[0,1,2,0] in float32: off by" in str(report)


def test_an_operation_that_loses_digits_inside(rng: np.random.Generator) -> None:
    """The derivative of sqrt(1 + x^2) - 1 by a formula that cancels for small x."""

    def bad(gy: mr.Tensor, x: mr.Tensor) -> mr.Tensor:
        root = (1.0 + x * x).sqrt()
        return gy * Planted(lambda r: (r * r - 1.0) / r, lambda g, r: g)(root) / x

    x = mr.Tensor(rng.uniform(0.01, 0.02, 8), requires_grad=True)
    compute = lambda x: np.sqrt(1 + x * x)  # noqa: E731
    good = Planted(compute, lambda gy, x: gy * x / (1.0 + x * x).sqrt())
    assert gradcheck(lambda x: Planted(compute, good.derive)(x), x, dtype="float32")
    report = gradcheck(
        lambda x: Planted(compute, bad)(x), x, dtype="float32", rtol=1e-5, raise_exception=False
    )
    assert report.notes or report.kinds == {"precision"}
    assert "digits" in str(report)


def test_a_formula_that_loses_digits_gets_a_note(rng: np.random.Generator) -> None:
    def bad(x: mr.Tensor) -> mr.Tensor:
        return (x * x).mean(axis=0) - x.mean(axis=0) ** 2

    def good(x: mr.Tensor) -> mr.Tensor:
        centred = x - x.mean(axis=0, keepdims=True)
        return (centred * centred).mean(axis=0)

    x = mr.Tensor(rng.standard_normal((50, 3)) + 300.0, requires_grad=True)
    noted = gradcheck(lambda x: bad(x).sqrt(), x, dtype="float32", rtol=1e-4).notes
    assert len(noted) == 1
    assert "a formula that loses digits" in noted[0]
    assert not gradcheck(lambda x: good(x).sqrt(), x, dtype="float32", rtol=1e-4).notes


def test_overflow_in_float16(rng: np.random.Generator) -> None:
    x = mr.Tensor(rng.uniform(0.5, 1.0, (3, 4)), requires_grad=True)
    report = gradcheck(lambda x: (x * 300.0) ** 3, x, dtype="float16", raise_exception=False)
    assert report.kinds == {"nonfinite"}
    assert "larger than 65504" in str(report)
    assert gradcheck(lambda x: (x * 300.0) ** 3, x, dtype="float32")


def test_numpy_functions_too(rng: np.random.Generator) -> None:
    a, b = rng.standard_normal((4, 5)), rng.standard_normal((5, 3))

    def right(a: Any, b: Any, u: Any) -> Any:
        return u @ b.T, a.T @ u

    def coarse(a: Any, b: Any, u: Any) -> Any:
        half = u.astype(np.float16).astype(u.dtype) if u.dtype == np.float32 else u
        return half @ b.T, a.T @ u

    assert gradcheck(np.matmul, (a, b), grad=right, dtype="float32")
    assert_gradients(np.matmul, (a, b), grad=right, dtype="float16")
    report = gradcheck(np.matmul, (a, b), grad=coarse, dtype="float32", raise_exception=False)
    assert [p.passed for p in report.precision] == [False, True]


def test_the_point_is_exact_in_both_dtypes(rng: np.random.Generator) -> None:
    """x = 0.1 is another number in float32; it is that number that both see."""
    seen: dict[str, set[float]] = {"float64": set(), "float32": set()}

    def fn(x: mr.Tensor) -> mr.Tensor:
        seen[str(x.dtype)].add(float(x.numpy()[0]))
        return x * x

    gradcheck(fn, mr.Tensor(np.array([0.1]), requires_grad=True), dtype="float32", directions=1)
    assert seen["float32"] == {float(np.float32(0.1))}
    assert float(np.float32(0.1)) in seen["float64"]
    assert 0.1 not in seen["float64"]


def test_modules_compute_in_the_dtype_and_come_back(rng: np.random.Generator) -> None:
    dtypes = set()

    class Watched(nn.Linear):
        def forward(self, x: mr.Tensor) -> mr.Tensor:
            dtypes.add((str(x.dtype), str(self.weight.dtype)))
            return super().forward(x)

    module = Watched(3, 2)
    array = module.weight._data
    assert gradcheck(module, tensor(rng, 4, 3), dtype="float16")
    assert dtypes == {("float64", "float64"), ("float16", "float16")}
    assert module.weight._data is array
    assert module.weight.dtype == np.float32


def test_results_in_a_wider_dtype_are_remarked_on(rng: np.random.Generator) -> None:
    x, factor = tensor(rng, 3), np.array([1.5, 2.5, 3.5])
    report = gradcheck(lambda x: x * factor, x, dtype="float32")
    assert any("returns float64" in note for note in report.notes)


def test_a_point_beside_a_kink_is_moved(rng: np.random.Generator) -> None:
    """In float16 the sum is on another side of the kink than in float64; nearby it is not."""
    values = rng.uniform(0.5, 1.0, 6).astype(np.float16).astype(np.float64)
    exact = float(values.sum())
    rounded = float(values.astype(np.float16).sum())
    middle = (exact + rounded) / 2
    x = mr.Tensor(values, requires_grad=True)
    report = gradcheck(lambda x: F.relu(x.sum() - middle), x, dtype="float16")
    assert all(result.passed for result in report.precision)


def test_a_block_with_all_its_parameters(rng: np.random.Generator) -> None:
    report = gradcheck(Block(2, 4, 2), tensor(rng, 3, 2, 6, 5), dtype="float32")
    assert len(report.precision) == len(report.tensors)


def test_float64_is_the_plain_check_and_others_are_refused(rng: np.random.Generator) -> None:
    assert not gradcheck(lambda x: x * x, tensor(rng, 3), dtype="float64").precision
    for dtype in ("int32", "complex64", bool):
        with pytest.raises(ValueError, match="dtype is float64, float32, float16"):
            gradcheck(lambda x: x * x, tensor(rng, 3), dtype=dtype)
