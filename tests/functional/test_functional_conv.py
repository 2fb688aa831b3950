"""conv2d with its gradients, its options and its complaints."""

from __future__ import annotations

from typing import Any

import numpy as np
import oracles
import pytest
from drawn import ConvCase, conv_cases, layouts, normal, seeds
from hypothesis import given
from oracles import laid_out

import minires as mr
from minires import functional as F
from minires.testing.compare import assert_close


@given(case=conv_cases(), layout=layouts, bias=..., seed=seeds)
def test_value_and_gradients(case: ConvCase, layout: str, bias: bool, seed: int) -> None:
    x, weight, gy = (
        laid_out(normal(seed + k, shape), layout)
        for k, shape in enumerate((case.x_shape, case.weight_shape, case.y_shape))
    )
    b = normal(seed + 3, case.y_shape[1:2])
    tensors = [mr.Tensor(a, requires_grad=True) for a in ((x, weight, b) if bias else (x, weight))]
    y = F.conv2d(*tensors[:2], tensors[2] if bias else None, *case.settings)
    expected = oracles.conv2d(x, weight, *case.settings)
    if bias:
        expected += b[None, :, None, None]
    assert_close(y, expected, name="y")
    y.backward(gy)
    wanted = [
        oracles.conv2d_grad_input(gy, weight, case.x_shape, *case.settings),
        oracles.conv2d_grad_weight(x, gy, case.weight_shape, *case.settings),
        gy.sum((0, 2, 3)),
    ]
    for tensor, expected, name in zip(tensors, wanted, ("x", "weight", "bias"), strict=False):
        assert_close(tensor.grad, expected, rtol=1e-9, atol=1e-10, name=f"gradient of {name}")


@pytest.mark.parametrize("groups", [1, 2])
def test_gradients_of_gradients(groups: int, rng: np.random.Generator) -> None:
    """All nine: each pass is differentiated with respect to each of its inputs, by a difference of
    the first gradients along a random direction."""
    x, w = rng.standard_normal((2, 4, 4, 3)), rng.standard_normal((2, 4 // groups, 2, 2))
    settings = ((2, 1), (1, 0), (1, 1), groups)
    gy = rng.standard_normal(oracles.conv2d(x, w, *settings).shape)
    vx, vw = rng.standard_normal(x.shape), rng.standard_normal(w.shape)
    tensors = [mr.Tensor(a, requires_grad=True) for a in (x, w, gy)]
    gx, gw = mr.grad(
        F.conv2d(*tensors[:2], None, *settings), tensors[:2], tensors[2], create_graph=True
    )
    found = mr.grad((gx * vx).sum() + (gw * vw).sum(), tensors, create_graph=True)

    def paired(x: np.ndarray, w: np.ndarray, gy: np.ndarray) -> np.ndarray:
        gx = oracles.conv2d_grad_input(gy, w, x.shape, *settings)
        gw = oracles.conv2d_grad_weight(x, gy, w.shape, *settings)
        return (gx * vx).sum() + (gw * vw).sum()

    expected = oracles.complex_step_gradients(paired, (x, w, gy), np.array(1.0))
    for actual, wanted, name in zip(found, expected, ("x", "w", "gy"), strict=True):
        assert_close(actual, wanted, rtol=1e-10, atol=1e-10, name=name)

    u = [rng.standard_normal(a.shape) for a in (x, w, gy)]
    third = mr.grad(sum((f * v).sum() for f, v in zip(found, u, strict=True)), tensors)
    step = 1e-4

    def second(arrays: Any) -> list[np.ndarray]:
        return oracles.complex_step_gradients(paired, arrays, np.array(1.0))

    ends = [
        second([a + s * step * v for a, v in zip((x, w, gy), u, strict=True)]) for s in (1, -1)
    ]
    for actual, high, low in zip(third, *ends, strict=True):
        assert_close(actual, (high - low) / (2 * step), rtol=1e-7, atol=1e-7)


@pytest.mark.parametrize("kernel", [(1, 1), (3, 3), (2, 2), (4, 1), (2, 5)])
@pytest.mark.parametrize("dilation", [1, (2, 1)])
def test_same_padding(kernel: Any, dilation: Any, rng: np.random.Generator) -> None:
    x, w = rng.standard_normal((2, 3, 6, 5)), rng.standard_normal((4, 3, *kernel))
    tensor = mr.Tensor(x, requires_grad=True)
    y = F.conv2d(tensor, w, padding="same", dilation=dilation)
    assert y.shape == (2, 4, 6, 5)
    pair = (dilation, dilation) if isinstance(dilation, int) else dilation
    total = [d * (k - 1) for d, k in zip(pair, kernel, strict=True)]
    widths = [(0, 0), (0, 0), *((t // 2, t - t // 2) for t in total)]
    expected = oracles.conv2d(np.pad(x, widths), w, (1, 1), (0, 0), pair, 1)
    assert_close(y, expected)
    gy = rng.standard_normal(y.shape)
    y.backward(gy)
    assert_close((tensor.grad.numpy() * x).sum(), (gy * y.numpy()).sum(), rtol=1e-10)


def test_valid_padding_and_numpy_settings(rng: np.random.Generator) -> None:
    x, w = rng.standard_normal((1, 2, 5, 5)), rng.standard_normal((2, 1, 3, 3))
    expected = F.conv2d(x, w, None, 2, 0, 1, 2)
    assert_close(F.conv2d(x, w, padding="valid", stride=2, groups=2), expected)
    assert_close(F.conv2d(x, w, None, [2, 2], (0,), np.int64(1), np.int64(2)), expected)


@pytest.mark.parametrize("create_graph", [False, True])
def test_the_weight_alone_may_require_gradients(
    create_graph: bool, rng: np.random.Generator
) -> None:
    x = mr.Tensor(rng.standard_normal((1, 1, 3, 3)))
    w = mr.Tensor(rng.standard_normal((1, 1, 3, 3)), requires_grad=True)
    F.conv2d(x, w).sum().backward(create_graph=create_graph)
    assert_close(w.grad, x)
    assert x.grad is None


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"x": np.ones((1, 2, 4, 4), np.int64)}, TypeError,
         r"conv2d: x must be floating point, got int64; convert it with x.float\(\)"),
        ({"weight": np.ones((2, 2, 1, 1), np.float32)}, TypeError,
         "conv2d: x is float64 and weight is float32; convert one of them"),
        ({"bias": np.ones(2, np.float32)}, TypeError, "x is float64 and bias is float32"),
        ({"bias": np.ones(3)}, ValueError, r"conv2d: bias must have shape \(2,\), got \(3,\)"),
        ({"bias": np.ones((2, 1))}, ValueError, r"bias must have shape \(2,\), got \(2, 1\)"),
        ({"x": np.ones((2, 4, 4))}, ValueError, r"expected x of shape \(N, C, H, W\)"),
        ({"x": np.ones((2, 4, 4)), "padding": "same"}, ValueError, r"expected x of shape"),
        ({"weight": np.ones((2, 2)), "padding": "same"}, ValueError, r"expected x of shape"),
        ({"x": np.ones((1, 3, 4, 4))}, ValueError, "weight expects 2 input channels, x has 3"),
        ({"padding": "full"}, ValueError, "conv2d: padding is an integer, two, 'same' or 'valid'"),
        ({"padding": "same", "stride": 2}, ValueError, "padding='same' needs stride 1, got 2"),
        ({"padding": 0.5}, TypeError, r"conv2d: padding takes integers, got 0\.5"),
        ({"stride": 0}, ValueError, "stride must be at least 1"),
        ({"groups": 3}, ValueError, "groups=3 must divide"),
        ({"x": "image"}, TypeError, "expected a Tensor, an array or a number, got str"),
    ],
)  # fmt: skip
def test_refusals(arguments: dict[str, Any], error: Any, message: str) -> None:
    defaults = {"x": np.ones((1, 2, 4, 4)), "weight": np.ones((2, 2, 1, 1))}
    with pytest.raises(error, match=message):
        F.conv2d(**(defaults | arguments))
