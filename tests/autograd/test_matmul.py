"""Matrix products of all ranks."""

from __future__ import annotations

import numpy as np
import pytest
from checks import check_operation, check_orders

import minires as mr

SHAPES = [
    ((3,), (3,)),
    ((3,), (3, 2)),
    ((2, 3), (3,)),
    ((2, 3), (3, 4)),
    ((5, 2, 3), (3, 4)),
    ((2, 3), (5, 3, 4)),
    ((5, 2, 3), (5, 3, 4)),
    ((5, 1, 2, 3), (6, 3, 4)),
    ((1, 2, 3), (5, 3, 1)),
    ((3,), (5, 3, 4)),
    ((5, 2, 3), (3,)),
    ((0, 3), (3, 2)),
    ((2, 0), (0, 3)),
    ((1,), (1,)),
]


@pytest.mark.parametrize(("a_shape", "b_shape"), SHAPES)
def test_value_and_gradients(
    a_shape: tuple[int, ...], b_shape: tuple[int, ...], rng: np.random.Generator
) -> None:
    a, b = rng.standard_normal(a_shape), rng.standard_normal(b_shape)
    check_operation(lambda a, b: a @ b, lambda a, b: a @ b, (a, b), rng)
    check_operation(mr.matmul, np.matmul, (a, b), rng)
    check_operation(lambda b: a @ b, lambda b: a @ b, [b], rng)
    check_operation(lambda a: a.matmul(b), lambda a: a @ b, [a], rng)


@pytest.mark.parametrize(("a_shape", "b_shape"), [SHAPES[3], SHAPES[4], SHAPES[1]])
def test_third_order(
    a_shape: tuple[int, ...], b_shape: tuple[int, ...], rng: np.random.Generator
) -> None:
    arrays = rng.standard_normal(a_shape), rng.standard_normal(b_shape)
    check_orders(lambda a, b: ((a * a) @ (b * b * b)), arrays, rng)


def test_a_matrix_with_itself(rng: np.random.Generator) -> None:
    x = rng.standard_normal((3, 3))
    check_operation(lambda x: x @ x.T @ x, lambda x: x @ x.T @ x, [x], rng)


@pytest.mark.parametrize(
    ("a_shape", "b_shape", "message"),
    [
        ((2, 3), (4, 2), r"matmul: \(2, 3\) @ \(4, 2\): the last axis of the first \(3\) must"),
        ((3,), (4,), "matmul: "),
        ((), (2, 2), r"matmul: a scalar has no matrix product; use \*"),
        ((2, 2), (), "a scalar"),
    ],
)
def test_shapes_that_do_not_fit(
    a_shape: tuple[int, ...], b_shape: tuple[int, ...], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        mr.Tensor(np.ones(a_shape)) @ mr.Tensor(np.ones(b_shape))


def test_stacks_that_do_not_broadcast() -> None:
    with pytest.raises(ValueError, match="broadcast"):
        mr.Tensor(np.ones((2, 3, 4))) @ mr.Tensor(np.ones((3, 4, 5)))
