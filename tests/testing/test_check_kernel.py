"""check_kernel: the reference kernels conform, and every way of being wrong is noticed."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

import minires as mr
from minires.kernels.reference import activation, conv, norm, pool
from minires.testing import check_kernel
from minires.testing.kernel_inputs import arguments, draw_convolution, known_operations
from minires.testing.kernels import LAYOUTS, laid_out, reference_kernel

OPERATIONS = sorted({kernel.operation for kernel in mr.kernels.available()})


def test_every_operation_has_inputs() -> None:
    """A new operation fails here until minires/testing/kernel_inputs.py knows what to feed it."""
    assert known_operations() == OPERATIONS


@pytest.mark.parametrize("operation", OPERATIONS)
def test_the_reference_conforms_to_itself_in_float32(operation: str) -> None:
    report = check_kernel(operation, reference_kernel(operation).name)
    assert report.passed
    assert report.calls >= 20
    assert report.worst < 0.5
    assert "conforms" in str(report)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("shape", [(2, 3, 4, 5), (4, 3), (5,), (), (1, 1, 1, 1)])
def test_layouts_hold_the_same_values(layout: str, shape: tuple[int, ...]) -> None:
    x = np.arange(float(np.prod(shape))).reshape(shape)
    y = laid_out(x, layout)
    np.testing.assert_array_equal(x, y)
    assert y.shape == x.shape
    if layout != "contiguous" and x.ndim == 4 and x.size > 1:
        assert not y.flags.c_contiguous


def test_drawn_geometries_are_of_every_kind() -> None:
    drawn = [draw_convolution(np.random.default_rng(s)) for s in range(300)]
    assert any(g.kernel[0] > g.H for g in drawn)
    assert any(g.stride[0] > g.kernel[0] for g in drawn)
    assert any(g.groups > 1 for g in drawn)
    assert any(g.dilation[0] > 1 for g in drawn)
    assert any((g.H, g.W) == (1, 1) for g in drawn)


@pytest.fixture
def plant() -> Iterator[Callable[..., Any]]:
    """plant(operation, function) registers it as kernel "planted", until the test is over."""
    changed = {}

    def add(operation_name: str, function: Callable[..., Any], **options: Any) -> None:
        operation = mr.kernels.operation(operation_name)
        changed.setdefault(operation, operation.kernels)
        mr.kernels.register(operation_name, name="planted", **options)(function)

    yield add
    for operation, kernels in changed.items():
        operation.kernels = kernels
        operation.forget()


def in_place(x: Any) -> Any:
    return np.maximum(x, 0, out=x)


def aliasing(x: Any) -> Any:
    return x if (x > 0).all() else np.maximum(x, 0)


def always_float64(x: Any) -> Any:
    return np.maximum(x.astype(np.float64), 0)


def loses_nan(x: Any) -> Any:
    return np.where(x > 0, x, x.dtype.type(0))


def raises_on_scalars(x: Any) -> Any:
    return np.maximum(x, 0)[...] if x.ndim else x[0]


class Wanders:
    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, x: Any) -> Any:
        self.calls += 1
        return np.maximum(x, 0) * x.dtype.type(1 + 1e-7 * self.calls)


def assumes_contiguous(a: Any, b: Any) -> Any:
    """Reads the memory as it lies, like a kernel that takes a bare pointer."""
    return np.maximum(a.ravel(order="K").reshape(a.shape) + b, 0)


def returns_rubbish(a: Any, b: Any) -> Any:
    """Numbers so large that measuring the error overflows."""
    return np.full_like(a, np.finfo(a.dtype).max)


def adds_halves(x: Any, gy: Any, g: Any) -> Any:
    """Accumulates in float16."""
    return conv.conv2d_grad_weight(x.astype("f2"), gy.astype("f2"), g).astype(x.dtype)


def stride_above_kernel_wrong(x: Any, weight: Any, g: Any) -> Any:
    y = conv.conv2d(x, weight, g)
    return y * 0 if g.stride[0] > g.kernel[0] else y


def forgets_padding(x: Any, g: Any) -> Any:
    y, indices = pool.max_pool2d(np.maximum(x, -0.3), g)
    return y, indices


def last_on_ties(x: Any, g: Any) -> Any:
    y, indices = pool.max_pool2d(x[:, :, ::-1, ::-1], g)
    return y[:, :, ::-1, ::-1].copy(), g.kernel[0] * g.kernel[1] - 1 - indices[:, :, ::-1, ::-1]


def naive_variance(x: Any, gamma: Any, beta: Any, eps: float) -> Any:
    """E[x^2] - E[x]^2: cancels where the mean is large."""
    axes = (0, *range(2, x.ndim))
    columns = (1, -1) + (1,) * (x.ndim - 2)
    mean = x.mean(axes, dtype=x.dtype)
    var = (x * x).mean(axes, dtype=x.dtype) - mean * mean
    inv_std = (1 / np.sqrt(var + x.dtype.type(eps))).astype(x.dtype)
    y = (x - mean.reshape(columns)) * inv_std.reshape(columns)
    if gamma is not None:
        y = y * gamma.reshape(columns) + beta.reshape(columns)
    return y, mean, var, inv_std


def two_results(x: Any) -> Any:
    return np.maximum(x, 0), x.copy()


def shares_results(gy: Any, x: Any, gamma: Any, mean: Any, inv_std: Any) -> Any:
    gx, ggamma, gbeta = norm.batch_norm_grad(gy, x, gamma, mean, inv_std)
    both = np.concatenate([ggamma, gbeta])
    return gx, both, both[len(ggamma) :]


@pytest.mark.parametrize(
    ("operation", "kernel", "complaint"),
    [
        ("relu", in_place, "an input was changed in place"),
        ("relu", aliasing, "shares memory"),
        ("relu", always_float64, "dtype float64, expected float32"),
        ("relu", loses_nan, "NaN was lost"),
        ("relu", raises_on_scalars, "raised IndexError"),
        ("relu", Wanders(), "different bits"),
        ("relu", two_results, "2 results, expected 1"),
        ("add_relu", assumes_contiguous, "wrong, worst at"),
        ("add_relu", returns_rubbish, "wrong, worst at"),
        ("conv2d_grad_weight", adds_halves, "wrong, worst at"),
        ("conv2d", stride_above_kernel_wrong, "stride larger than the kernel"),
        ("max_pool2d", forgets_padding, "wrong, worst at"),
        ("max_pool2d", last_on_ties, "with ties"),
        ("batch_norm_train", naive_variance, "mean 64 deviations"),
        ("batch_norm_grad", shares_results, "shares memory"),
    ],
)
def test_a_kernel_that_does_not_conform(
    operation: str, kernel: Any, complaint: str, plant: Callable[..., Any]
) -> None:
    plant(operation, kernel)
    report = check_kernel(operation, "planted", raise_exception=False)
    assert not report
    assert any(complaint in failure for failure in report.failures), str(report)
    with pytest.raises(AssertionError, match=f"{operation}/planted: .* failures"):
        check_kernel(operation, "planted")


def test_what_a_kernel_does_not_claim_is_skipped(plant: Callable[..., Any]) -> None:
    def pointwise_only(x: Any, weight: Any, g: Any) -> Any:
        if g.kernel != (1, 1):
            raise RuntimeError("called for what it does not support")
        return conv.conv2d(x, weight, g)

    plant("conv2d", pointwise_only, only=lambda g: g.kernel == (1, 1), dtypes=("float32",))
    report = check_kernel("conv2d", "planted")
    assert report.passed
    assert report.skipped > report.calls > 5
    assert "not supported" in str(report)
    plant("conv2d", pointwise_only, only=lambda g: g.kernel == (11, 11))
    with pytest.raises(ValueError, match="supports none of the geometries"):
        check_kernel("conv2d", "planted")


def test_more_room_for_kernels_that_trade_accuracy(plant: Callable[..., Any]) -> None:
    def coarse(x: Any, weight: Any, g: Any) -> Any:
        y = conv.conv2d(x, weight, g)
        return y + y * (300 * np.finfo(y.dtype).eps)

    plant("conv2d", coarse)
    assert not check_kernel("conv2d", "planted", raise_exception=False)
    assert check_kernel("conv2d", "planted", slack=10.0)


def test_unknown_names_are_refused_with_a_suggestion() -> None:
    with pytest.raises(ValueError, match="Did you mean 'conv2d'"):
        check_kernel("conv2", "im2col")
    with pytest.raises(ValueError, match="Did you mean 'im2col'"):
        check_kernel("conv2d", "im2coll")
    with pytest.raises(ValueError, match="no inputs are known"):
        next(arguments("fft", np.random.default_rng(0)))


def test_the_reference_is_found() -> None:
    assert reference_kernel("relu").function is activation.relu
