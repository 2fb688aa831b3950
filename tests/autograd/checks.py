"""What every differentiable operation is held to."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from oracles import central_gradients, complex_step_gradients

import minires as mr
from minires.testing.compare import assert_close

Array = np.ndarray


def check_operation(
    operation: Callable[..., mr.Tensor],
    reference: Callable[..., Any],
    arrays: Sequence[Array],
    rng: np.random.Generator,
    analytic: bool = True,
) -> None:
    """Value and gradients of a float64 operation, and that it behaves:

    inputs and upstream gradient stay as they are, the result is no input's memory (unless it is a
    view of it), no two gradients share memory with each other or with anything handed in.
    analytic: the reference takes complex numbers, so that the derivative can be exact.
    """
    arrays = [np.asarray(a, np.float64) for a in arrays]
    tensors = [mr.Tensor(a, requires_grad=True) for a in arrays]
    before = [a.copy() for a in arrays]
    y = operation(*tensors)
    assert_close(y, np.asarray(reference(*arrays)), name="value")
    assert y.requires_grad
    assert type(y._data) is np.ndarray

    upstream = rng.standard_normal(y.shape)
    kept = upstream.copy()
    numeric = complex_step_gradients if analytic else central_gradients
    expected = numeric(reference, before, upstream)
    tolerance = (1e-10, 1e-11) if analytic else (1e-6, 1e-7)
    found = mr.grad(y, tensors, upstream, retain_graph=True, allow_unused=True)
    for k, (actual, wanted) in enumerate(zip(found, expected, strict=True)):
        if actual is None:
            assert not wanted.any(), f"no gradient for input {k}"
            continue
        assert_close(actual, wanted, *tolerance, name=f"gradient of input {k}")
        assert type(actual._data) is np.ndarray
        assert actual._data.flags.writeable or actual.size == 0
        others = [f for f in found if f is not None and f is not actual]
        for other in (upstream, y._data, *arrays, *(f._data for f in others)):
            assert not np.shares_memory(actual._data, other)
    again = mr.grad(y, tensors, upstream, allow_unused=True)
    for first, second in zip(found, again, strict=True):
        assert (first is None) == (second is None)
        assert first is None or np.array_equal(first._data, second._data)
    np.testing.assert_array_equal(upstream, kept)
    for array, copy in zip(arrays, before, strict=True):
        np.testing.assert_array_equal(array, copy)


def check_orders(
    operation: Callable[..., mr.Tensor],
    arrays: Sequence[Array],
    rng: np.random.Generator,
    order: int = 3,
    step: float = 1e-5,
) -> None:
    """Directional derivatives up to `order`, each against differences of the one before.

    f_0 = <u, operation(x)> and f_k = <grad f_(k-1), v_k> for random u and v.
    """
    arrays = [np.asarray(a, np.float64) for a in arrays]
    shape = operation(*map(mr.Tensor, arrays)).shape
    u = mr.Tensor(rng.standard_normal(shape))
    directions = [[rng.standard_normal(a.shape) for a in arrays] for _ in range(order)]

    def derivative(values: Sequence[Array], k: int) -> float:
        tensors = [mr.Tensor(a, requires_grad=True) for a in values]
        f = (operation(*tensors) * u).sum()
        for direction in directions[:k]:
            if not f.requires_grad:  # linear: nothing left to differentiate
                return 0.0
            gradients = mr.grad(f, tensors, create_graph=True, allow_unused=True)
            terms = [
                (g * mr.Tensor(v)).sum()
                for g, v in zip(gradients, direction, strict=True)
                if g is not None
            ]
            if not terms:
                return 0.0
            f = sum(terms[1:], terms[0])
        return f.item()

    for k in range(1, order + 1):
        ends = [
            derivative([a + s * step * v for a, v in zip(arrays, directions[k - 1], strict=True)],
                       k - 1)
            for s in (1, -1)
        ]  # fmt: skip
        assert_close(
            derivative(arrays, k),
            (ends[0] - ends[1]) / (2 * step),
            rtol=1e-5,
            atol=1e-7,
            name=f"derivative of order {k}",
        )
