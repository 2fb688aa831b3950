"""The checks are checked: the usual mistakes in a gradient, each recognised for what it is."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from planting import Array, Planted, failed, tensor

import minires as mr
from minires import functional as F
from minires import nn
from minires.testing import gradcheck
from minires.testing.faults import FAULTS

# -- one operation, or a gradient of arrays ------------------------------------------------------


SIMPLE: dict[str, tuple[str, Callable[..., Any], Callable[..., Any], tuple[Any, ...]]] = {
    "sign": ("sign", lambda a, b: a - b, lambda gy, a, b: (gy, gy), ((3, 4), (3, 4))),
    "half": ("half", lambda x: x * x, lambda gy, x: gy * x, ((3, 4),)),
    "twice": ("twice", lambda x: x.copy(), lambda gy, x: gy + gy, ((3, 4),)),
    "scale": ("constant factor", lambda x: 0.3 * x, lambda gy, x: gy * 1.0, ((3, 4),)),
    "mean for sum": (
        "count", lambda x: x.sum(), lambda gy, x: gy.expand(3, 4) / 12, ((3, 4),)),
    "sum for mean": (
        "count", lambda x: x.mean(0), lambda gy, x: gy.expand(3, 4), ((3, 4),)),
    "chain rule forgotten": (
        "missing factor", np.exp, lambda gy, x: gy, ((3, 4),)),
    "factor forgotten": (
        "missing factor", lambda a, b: a * b, lambda gy, a, b: (gy, gy * a), ((3, 4), (3, 4))),
    "factor too many": (
        "extra factor", lambda x: 1.5 * x, lambda gy, x: 1.5 * gy * x, ((3, 4),)),
    "missing": ("missing", lambda a, b: a + b, lambda gy, a, b: (gy, None), ((3, 4), (3, 4))),
    "swapped results": (
        "swapped inputs", lambda a, b: a * a * b, lambda gy, a, b: (gy * a * a, gy * 2 * a * b),
        ((3, 4), (3, 4))),
    "transposed product": (
        "transposed", lambda a, b: a @ b, lambda gy, a, b: (gy @ b, a.T @ gy), ((3, 3), (3, 3))),
    "transposed result": (
        "transposed", lambda a: a**3, lambda gy, a: (gy * 3 * a * a).T, ((3, 3),)),
    "wrong mask": (
        "partly missing", lambda x: 2.0 * x, lambda gy, x: gy * 2.0 * (x.data > 0), ((5, 4),)),
    "sum over broadcasting forgotten": (
        "broadcast", lambda x, b: x + b, lambda gy, x, b: (gy, gy), ((4, 3), (3,))),
    "wrong shape": ("shape", lambda x: x.sum(0), lambda gy, x: gy, ((4, 3),)),
    "raises": ("error", lambda x: x * 1, lambda gy, x: gy @ gy, ((4, 3),)),
}  # fmt: skip


@pytest.mark.parametrize("case", SIMPLE)
@pytest.mark.parametrize("wrapped", [False, True], ids=["alone", "in a function"])
def test_simple_faults(case: str, wrapped: bool, rng: np.random.Generator) -> None:
    kind, compute, derive, shapes = SIMPLE[case]

    def alone(*ts: mr.Tensor) -> mr.Tensor:
        return Planted(compute, derive)(*ts)

    def within(*ts: mr.Tensor) -> mr.Tensor:
        return (alone(*(t.tanh() for t in ts)) * 3.0).sigmoid()

    report = failed(within if wrapped else alone, *(tensor(rng, *s) for s in shapes))
    assert kind in report.kinds, str(report)
    assert all("Planted" in c.where or c.kind == "error" for c in report.causes)


@pytest.mark.parametrize(
    ("fn", "grad", "kind"),
    [
        (lambda a, b: a * b, lambda a, b, u: (u * b, u * a), "broadcast"),
        (lambda a, b: a * b, lambda a, b, u: ((u * b).sum(0), -u * a), "sign"),
        (lambda a, b: a + b, lambda a, b, u: (u.sum(0), None), "missing"),
        (lambda a, b: a + b, lambda a, b, u: (u[0].copy(), u), "unknown"),
        (lambda a, b: a * b, lambda a, b, u: ((u * b).sum(0), (u * a).astype("f4")), "float32"),
        (lambda a, b: b * a, lambda a, b, u: u, "error"),
        (lambda a, b: b * a, lambda a, b, u: (u * b, u.sum(0), u), "error"),
    ],
)
def test_faults_of_numpy_gradients(
    fn: Any, grad: Any, kind: str, rng: np.random.Generator
) -> None:
    a, b = rng.standard_normal(3), rng.standard_normal((4, 3))
    assert kind in failed(fn, a, b, grad=grad).kinds


def test_gradients_that_share_memory(rng: np.random.Generator) -> None:
    a, b = rng.standard_normal((4, 3)), rng.standard_normal((4, 3))
    assert gradcheck(lambda a, b: a + b, (a, b), grad=lambda a, b, u: (u.copy(), u.copy()))
    report = failed(lambda a, b: a + b, a, b, grad=lambda a, b, u: (u, u))
    assert report.kinds == {"shared memory"}


# -- not a number ------------------------------------------------------------------------------


def test_nan_in_one_element_of_the_gradient(rng: np.random.Generator) -> None:
    x = rng.standard_normal((3, 4))
    x[1, 2] = 0.0

    def derive(gy: mr.Tensor, x: mr.Tensor) -> mr.Tensor:
        with np.errstate(invalid="ignore"):
            return gy * 2.0 * (x * x / x)

    tensors = (mr.Tensor(x, requires_grad=True),)
    report = failed(lambda x: Planted(lambda a: a * a, derive)(x) + 1.0, *tensors)
    assert report.kinds == {"nonfinite"}
    assert report.causes[0].where == "Planted.backward"
    assert "1 of 12 elements" in report.causes[0].text
    assert "x[1,2]: analytic nan, numeric" in str(report)


def test_infinity_in_the_forward_pass_names_its_operation() -> None:
    x = mr.Tensor(np.array([1.0, 0.0]), requires_grad=True)
    with np.errstate(divide="ignore"):
        report = failed(lambda x: (x * 2).log().tanh() + x.log(), x)
    assert report.kinds == {"nonfinite"}
    assert report.causes[0].where.startswith("Log(2), call 2")


# -- precision, in-place changes, randomness -----------------------------------------------------


def single(t: mr.Tensor) -> mr.Tensor:
    return t.astype(np.float32).astype(np.float64)


def test_float32_in_the_backward_pass_is_seen_though_the_numbers_almost_agree(
    rng: np.random.Generator,
) -> None:
    def derive(gy: mr.Tensor, x: mr.Tensor) -> mr.Tensor:
        return single(gy * (1.0 - x.tanh() ** 2))

    report = failed(lambda x: (Planted(np.tanh, derive)(x * 3.0) + 1).exp(), tensor(rng, 4, 3))
    assert report.kinds == {"float32"}
    assert report.causes[0].where == "Planted.backward"


def test_float32_in_the_forward_pass(rng: np.random.Generator) -> None:
    report = failed(lambda x: single(x * 1.1).exp() * x, tensor(rng, 4, 3))
    assert report.kinds == {"float32"}
    assert report.causes[0].where.startswith("Cast(4x3)")


def test_float32_shows_in_the_seventh_digit(rng: np.random.Generator) -> None:
    """With tolerances tight enough the numbers tell, where the digits do not."""
    x = rng.standard_normal(50)
    third = np.float32(1) / np.float32(3)
    report = failed(lambda a: a / 3.0, x, grad=lambda a, u: u * third, rtol=1e-9)
    assert report.kinds == {"float32"}
    assert gradcheck(lambda a: a / 3.0, x, grad=lambda a, u: u / 3.0, rtol=1e-9)


def test_an_input_changed_in_place_by_the_function(rng: np.random.Generator) -> None:
    def forward(x: mr.Tensor, y: mr.Tensor) -> mr.Tensor:
        y.data[...] *= 2.0
        return x * y

    x, y = tensor(rng, 3), tensor(rng, 3)
    before = y.data.copy()
    report = failed(forward, x, y)
    assert report.kinds == {"mutated"}
    assert "the forward pass changes y in place" in report.causes[0].text
    np.testing.assert_array_equal(y.data, before)
    array = rng.standard_normal(3)
    before = array.copy()

    def shifting(x: mr.Tensor, c: Array) -> mr.Tensor:
        c += 1.0
        return x * c

    assert "changes c in place" in failed(shifting, x, array).causes[0].text
    np.testing.assert_array_equal(array, before)


def test_a_parameter_changed_in_place_by_the_function(rng: np.random.Generator) -> None:
    class Normalised(nn.Linear):
        def forward(self, x: mr.Tensor) -> mr.Tensor:
            self.weight.data[...] /= np.linalg.norm(self.weight.data)
            return super().forward(x)

    report = failed(Normalised(3, 2), tensor(rng, 4, 3))
    assert "the forward pass changes weight in place" in str(report)


def test_arrays_changed_in_place_by_the_backward_pass(rng: np.random.Generator) -> None:
    def greedy(gy: mr.Tensor, x: mr.Tensor) -> mr.Tensor:
        gy.data[...] *= 2.0
        return gy

    report = failed(lambda x: Planted(lambda a: 2.0 * a, greedy)(x).exp(), tensor(rng, 4))
    assert report.kinds == {"mutated"}
    assert report.causes[0].where == "Planted.backward"

    def numpy_greedy(a: Array, u: Array) -> Array:
        u *= 2.0
        return u

    assert "mutated" in failed(lambda a: 2 * a, rng.standard_normal(3), grad=numpy_greedy).kinds

    def hungry(a: Array, u: Array) -> Array:
        a *= 2.0
        return u * a

    assert "changes a in place" in str(
        failed(lambda a: a * a, rng.standard_normal(3), grad=hungry)
    )


def test_a_function_that_does_not_repeat_itself(rng: np.random.Generator) -> None:
    report = failed(lambda x: x * np.random.default_rng().random(), tensor(rng, 3))
    assert report.kinds == {"random"}
    # Random numbers of minires itself start afresh each time.
    assert gradcheck(lambda x: F.dropout(x, 0.5), tensor(rng, 3, 4))


def test_a_function_with_steps_nobody_declared(rng: np.random.Generator) -> None:
    report = failed(
        lambda a: np.round(a, 4), rng.standard_normal((4, 4)), grad=lambda a, u: u.copy()
    )
    assert report.kinds == {"noisy"}
    assert "register_kink" in str(report)
    report = failed(np.round, rng.standard_normal((4, 4)), grad=lambda a, u: u.copy())
    assert report.kinds == {"flat"}


# -- needles in haystacks ------------------------------------------------------------------------


@settings(max_examples=8)
@given(st.data(), st.floats(0.2, 10.0), st.sampled_from([-1.0, 1.0]))
def test_one_wrong_element_of_a_large_tensor_is_found_and_named(
    data: st.DataObject, size: float, sign: float
) -> None:
    shape = (31, 17, 13, 3)  # 20,553 elements
    index = tuple(data.draw(st.integers(0, n - 1)) for n in shape)
    x = np.random.default_rng(0).standard_normal(shape)

    def wrong(x: Array, u: Array) -> Array:
        g = u * np.cos(x)
        g[index] += sign * size
        return g

    report = failed(np.sin, x, grad=wrong)
    assert report.elements[0].index == index
    assert report.kinds == {"one element"}
    assert f"[{','.join(map(str, index))}] alone" in report.causes[0].text


def test_every_kind_of_fault_has_an_explanation() -> None:
    assert all(text and not text.endswith(".") for text in FAULTS.values())
