"""Costs against counts made here: loops for the products, arrays for the bytes."""

import math

import numpy as np
import pytest
from drawn import conv_cases, pool_cases
from hypothesis import given
from oracles import window_starts

import minires as mr
from minires.bench import Cost, Limits, bound, cost, cost_of
from minires.bench.costs import counted_operations
from minires.kernels import conv_geometry, pool_geometry
from minires.testing.kernel_inputs import arguments
from minires.testing.kernels import reference_kernel

OPERATIONS = sorted({kernel.operation for kernel in mr.kernels.available()})
PASSES = ("conv2d", "conv2d_grad_input", "conv2d_grad_weight")


@pytest.mark.parametrize("operation", OPERATIONS)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_bytes_are_those_of_inputs_and_outputs(operation, dtype):
    """Of every operation there is: one without a cost fails here."""
    for case in list(arguments(operation, np.random.default_rng(0)))[:12]:
        values = [np.asarray(v) if isinstance(v, np.generic) else v for v in case.values]
        args = tuple(
            v.astype(dtype) if isinstance(v, np.ndarray) and v.dtype.kind == "f" else v
            for v in values
        )
        results = reference_kernel(operation).function(*args)
        results = results if isinstance(results, tuple) else (results,)
        arrays = [*results, *(v for v in args if isinstance(v, np.ndarray))]
        assert cost(operation, args).bytes == sum(a.nbytes for a in arrays), case.text


def conv_arguments(operation, case, dtype=np.float32):
    g = conv_geometry(case.x_shape, case.weight_shape, *case.settings)
    x, w, y = (np.empty(s, dtype) for s in (g.x_shape, g.weight_shape, g.y_shape))
    return {"conv2d": (x, w, g), "conv2d_grad_input": (y, w, g)}.get(operation, (x, y, g))


@given(case=conv_cases())
def test_convolutions_count_every_weight_of_every_window(case):
    N, _, H, W = case.x_shape
    O, C_group, KH, KW = case.weight_shape
    geometry = zip((H, W), (KH, KW), case.stride, case.padding, case.dilation, strict=True)
    high, wide = (len(window_starts(*axis)) for axis in geometry)
    multiply_adds = sum(
        KH * KW * C_group for _ in range(N) for _ in range(O) for _ in range(high * wide)
    )
    for operation in PASSES:
        assert cost(operation, conv_arguments(operation, case)).flops == 2 * multiply_adds


@pytest.mark.parametrize("bias", [True, False])
def test_linear_is_a_product_and_its_bias(bias):
    x, weight = np.empty((5, 7), np.float32), np.empty((3, 7), np.float32)
    found = cost("linear", (x, weight, np.empty(3, np.float32) if bias else None))
    assert found.flops == sum(2 * 7 + bias for _ in range(5 * 3))
    assert found.bytes == 4 * (35 + 21 + 3 * bias + 15)


@given(case=pool_cases())
def test_pooling_counts_windows(case):
    N, C, H, W = case.x_shape
    g = pool_geometry("pool", case.x_shape, case.kernel, case.stride, case.padding)
    windows = N * C * math.prod(
        len(window_starts(*axis))
        for axis in zip((H, W), case.kernel, case.stride, case.padding, (1, 1), strict=True)
    )
    area = math.prod(case.kernel)
    x, y = np.empty(g.x_shape), np.empty(g.y_shape)
    places = np.empty(g.y_shape, np.int32)
    assert cost("max_pool2d", (x, g)).flops == windows * (area - 1)
    assert cost("max_pool2d_grad", (y, places, g)).flops == windows
    assert cost("max_pool2d_take", (x, places, g)).flops == 0
    assert cost("avg_pool2d", (x, g)).flops == windows * (area - 1 + 1)
    assert cost("avg_pool2d_grad", (y, g)).flops == windows * (1 + area)


def test_adaptive_pooling_counts_windows_that_overlap():
    # 5 to 3: windows 0-2, 1-4, 3-5, of 2, 3 and 2 positions; 4 to 2: twice 2.
    x, gy = np.empty((2, 3, 5, 4)), np.empty((2, 3, 3, 2))
    areas = 2 * 3 * (2 + 3 + 2) * (2 + 2)
    assert cost("adaptive_avg_pool2d", (x, (3, 2))).flops == areas
    assert cost("adaptive_avg_pool2d_grad", (gy, (5, 4))).flops == areas + gy.size


def test_element_by_element():
    x, row = np.empty((4, 6, 5, 5)), np.empty(6)
    n = 4 * 6 * 5 * 5
    for operation, args, flops in (
        ("relu", (x,), n),
        ("relu_grad", (x, x), n),
        ("add", (x, x), n),
        ("add_relu", (x, x), 2 * n),
        ("batch_norm_train", (x, row, row, 1e-5), 6 * n),
        ("batch_norm_relu_train", (x, row, row, 1e-5), 7 * n),
        ("batch_norm_eval", (x, row, row, row, row, 1e-5), 2 * n),
        ("normalise", (x, None, None, row, x, True), 3 * n),
        ("batch_norm_grad", (x, x, row, row, row), 9 * n),
        ("batch_norm_add_relu_train", (x, x, row, row, 1e-5), 8 * n),
        ("batch_norm_relu_grad", (x, x, row, row, row, row), 10 * n),
        ("batch_norm_add_relu_grad", (x, x, x, row, row, row), 10 * n),
        ("log_softmax", (x, 1), 5 * n + n // 6),
        ("log_softmax_grad", (x, x, 1), 4 * n),
    ):
        assert cost(operation, args).flops == flops, operation


def test_layout_makes_no_difference():
    x = np.empty((2, 6, 5, 4), np.float32)
    for view in (x[:, ::2], np.empty((2, 5, 4, 3), np.float32).transpose(0, 3, 1, 2)):
        assert cost("relu", (view,)) == cost("relu", (np.empty(view.shape, np.float32),))


def test_an_unknown_operation_is_named_with_the_nearest():
    with pytest.raises(ValueError, match=r"'conv2b'.*'conv2d'.*cost_of"):
        cost("conv2b", ())


def test_operations_of_ones_own(monkeypatch):
    monkeypatch.setattr("minires.bench.costs._counts", {})

    @cost_of("double", "triple")
    def count(x):
        return Cost(x.size, 2 * x.nbytes)

    assert counted_operations() == ["double", "triple"]
    assert cost("triple", (np.empty(3),)) == Cost(3, 48)


def test_costs_add_up_and_have_an_intensity():
    total = Cost(10, 4) + Cost(2, 8)
    assert total == Cost(12, 12)
    assert total.intensity == 1.0
    assert Cost(0, 0).intensity == 0.0
    assert Cost(1, 0).intensity == math.inf


MACHINE = Limits(
    gflops={"float32": 200.0, "float64": 100.0}, copy_gbs=20.0, threads=2, machine="made up"
)


def test_the_bound_is_the_larger_of_the_two_limits():
    assert bound(Cost(400_000_000_000, 1), MACHINE, np.float32) == pytest.approx(2.0)
    assert bound(Cost(400_000_000_000, 1), MACHINE, "float64") == pytest.approx(4.0)
    assert bound(Cost(1, 60_000_000_000), MACHINE, np.float32) == pytest.approx(3.0)
    at_the_ridge = Cost(10_000, 1_000)
    assert at_the_ridge.intensity == MACHINE.ridge(np.float32) == 10.0
    assert bound(at_the_ridge, MACHINE, np.float32) == pytest.approx(5e-8)


def test_a_dtype_that_was_not_measured_is_refused():
    with pytest.raises(ValueError, match=r"float32, float64, not in float16"):
        bound(Cost(1, 1), MACHINE, np.float16)
