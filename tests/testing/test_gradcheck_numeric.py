"""The numeric side: directions, upstream gradients, slopes and their error estimates."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import minires as mr
from minires.testing import gradcheck
from minires.testing import strategies as drawn
from minires.testing.diagnosis import halve
from minires.testing.elementwise import places
from minires.testing.numeric import (
    Differences,
    Slope,
    Variable,
    draw_array,
    draw_direction,
    draw_upstream,
    inner,
)


class Plain:
    """A problem made of a function of arrays."""

    def __init__(self, fn: Any, *values: Any) -> None:
        self.fn = fn
        names = "abc"
        self.variables = [Variable(n, np.asarray(v)) for n, v in zip(names, values, strict=False)]

    def evaluate(self, values: Sequence[Any]) -> list[Any]:
        return [np.asarray(self.fn(*values))]

    def gradients(self, values: Sequence[Any], upstream: Sequence[Any]) -> list[Any]:
        raise AssertionError("finite differences ask for no gradient")


@given(drawn.shapes(max_side=6), drawn.seeds())
def test_no_component_of_a_direction_is_negligible(shape: tuple[int, ...], seed: int) -> None:
    d = draw_array(shape, np.random.default_rng(seed))
    assert d.shape == shape
    assert np.abs(d).min() >= 0.0999 / np.sqrt(d.size)
    assert 0.99 < np.linalg.norm(d) < 1.1


def test_every_tensor_has_an_equal_share_of_a_direction(rng: np.random.Generator) -> None:
    variables = [Variable("a", np.zeros(3)), Variable("b", np.zeros((50, 60)))]
    a, b = draw_direction(variables, rng)
    assert a is not None
    assert b is not None
    assert np.linalg.norm(a) == pytest.approx(np.sqrt(0.5), rel=0.1)
    assert np.linalg.norm(b) == pytest.approx(np.sqrt(0.5), rel=0.1)
    none, alone = draw_direction(variables, rng, only=1)
    assert none is None
    assert alone is not None
    assert np.linalg.norm(alone) == pytest.approx(1.0, rel=0.1)


def test_upstream_gradients_are_random_and_never_small(rng: np.random.Generator) -> None:
    u, scalar = draw_upstream([np.zeros((40, 50)), np.zeros(())], rng)
    assert isinstance(scalar, np.ndarray)
    assert ((np.abs(u) >= 0.5) & (np.abs(u) < 1.5)).all()
    assert 0.4 < (u > 0).mean() < 0.6
    assert len(np.unique(u)) == u.size


def test_slopes_are_right_to_ten_digits_and_know_their_error(rng: np.random.Generator) -> None:
    x, d = rng.standard_normal(5), rng.standard_normal(5)
    u = rng.standard_normal(5)
    slope = Differences(Plain(np.exp, x), [u], 1e-3).slope([d])
    exact = float(np.sum(u * np.exp(x) * d))
    assert slope is not None
    assert slope.value == pytest.approx(exact, rel=1e-10)
    assert abs(slope.value - exact) < slope.error < 1e-4
    assert slope.eps == 1e-3


def test_a_step_too_large_for_the_curvature_is_reduced() -> None:
    differences = Differences(Plain(lambda x: np.sin(300 * x), np.array([0.1])), [np.ones(1)], 1e-2)
    slope = differences.slope([np.ones(1)])
    assert slope is not None
    assert slope.eps < 1e-2
    assert slope.value == pytest.approx(300 * np.cos(30.0), rel=1e-6)


def test_a_shrunk_step_is_allowed_its_rounding_errors() -> None:
    differences = Differences(Plain(np.exp, np.zeros(1)), [np.ones(1)], 1e-4)
    assert differences.allowed(Slope(1.0, 0.0, 1e-4), 3.0, 1e-7, 1e-9) == pytest.approx(3.01e-7)
    assert differences.allowed(Slope(1.0, 0.0, 1e-6), 3.0, 1e-7, 1e-9) == pytest.approx(3.0001e-5)


def test_a_step_out_of_the_domain_is_reduced_without_a_warning() -> None:
    slope = Differences(Plain(np.log, np.array([5e-5])), [np.ones(1)], 1e-4).slope([np.ones(1)])
    assert slope is not None
    assert slope.value == pytest.approx(2e4, rel=1e-4)
    report = gradcheck(np.sqrt, np.array([1e-9]), grad=lambda x, u: u / (2 * np.sqrt(x)),
                       raise_exception=False)  # fmt: skip
    assert report.kinds == {"nonfinite"}
    assert "inside its domain" in str(report)


def test_one_sided_slopes() -> None:
    def kinked(x: Any) -> Any:
        return np.where(x > 0, np.sin(3 * x), np.exp(x) - 1)

    sides = Differences(Plain(kinked, np.zeros(1)), [np.ones(1)], 1e-4).one_sided([np.ones(1)])
    assert sides == pytest.approx((1.0, 3.0), rel=1e-6)


@pytest.mark.parametrize("size", [1e-3, 1.0, 1e3, 1e6])
def test_large_and_small_inputs(size: float, rng: np.random.Generator) -> None:
    x = mr.Tensor(size * rng.uniform(0.5, 1.5, (3, 4)), requires_grad=True)
    assert gradcheck(lambda x: x * x + x.log(), x).worst_error < 1e-8
    report = gradcheck(
        lambda a: a * a, x.data, grad=lambda a, u: a * u, raise_exception=False
    )
    assert report.kinds == {"half"}
    assert report.elements[0].numeric == pytest.approx(2 * report.elements[0].analytic, rel=1e-5)


def test_inner_products_skip_what_is_missing() -> None:
    a, b = np.array([1.0, 2.0]), np.array([3.0, 4.0])
    assert inner([a, None, b], [b, a, None]) == 11.0


@given(st.integers(1, 3000), st.data())
def test_halving_finds_the_one(count: int, data: st.DataObject) -> None:
    wanted = data.draw(st.integers(0, count - 1))
    asked = []

    def error_of(part: Any) -> float:
        asked.append(len(part))
        return float(wanted in part)

    assert halve(count, error_of) == wanted
    assert len(asked) <= 2 * (int(np.ceil(np.log2(count))) + 1)


def test_places_are_all_elements_or_a_random_choice(rng: np.random.Generator) -> None:
    shapes = [(2, 3), (), (4,)]
    assert len(set(places(shapes, 11, rng))) == 11
    chosen = places(shapes, 5, rng)
    assert len(set(chosen)) == 5
    for i, index in places(shapes, 11, rng) + chosen:
        assert len(index) == len(shapes[i])
        assert all(0 <= k < n for k, n in zip(index, shapes[i], strict=True))
