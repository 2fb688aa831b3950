"""Kinks: steps across one are rejected, points on one are judged by their one-sided slopes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

import minires as mr
from minires import functional as F
from minires.testing import gradcheck, gradgradcheck, record_branches, register_kink
from minires.testing import kinks as kinks_module
from minires.testing.kinks import branches_of


def statistics(mean: float, var: float) -> tuple[mr.Tensor, mr.Tensor]:
    return mr.Tensor(np.array([mean])), mr.Tensor(np.array([var]))


KINKED: dict[str, Callable[[mr.Tensor], mr.Tensor]] = {
    "relu": F.relu,
    "add_relu": lambda x: F.add_relu(x + 1.0, x * 0.0 - 1.0),
    "relu_grad": lambda x: F.activation.ReLUGrad()(x, x),
    "abs": lambda x: x.abs(),
    "clip": lambda x: x.clip(-1e9, 0.0),
    "maximum": lambda x: F.maximum(x, 0.25 * x),
    "minimum": lambda x: F.minimum(2 * x, x),
    "max": lambda x: (x * np.array([1.0, -1.0, 0.5, 2.0, 3.0])).max(),
    "min": lambda x: (x * np.array([1.0, -1.0, 0.5, 2.0, 3.0])).min(),
    "batch_norm_relu": lambda x: F.batch_norm_relu(
        x.reshape(1, 1, 1, 5), *statistics(0.0, 1.0)
    ),
    "batch_norm_relu, training": lambda x: F.batch_norm_relu(
        x.reshape(5, 1), None, None, training=True
    ),
    "batch_norm_add_relu, training": lambda x: F.batch_norm_add_relu(
        x.reshape(5, 1), 0.1 * x.reshape(5, 1), None, None, training=True
    ),
    "max_pool2d": lambda x: F.max_pool2d(x.reshape(1, 1, 1, 5), (1, 5)),
}


def tensor(*values: float) -> mr.Tensor:
    return mr.Tensor(np.array(values), requires_grad=True)


@pytest.mark.parametrize("name", KINKED)
def test_branches_differ_across_a_kink_and_not_elsewhere(name: str) -> None:
    fn = KINKED[name]

    def branches(x: np.ndarray) -> Any:
        with record_branches() as record:
            fn(mr.Tensor(x))
        return record

    d = np.array([0.3, -0.2, 0.9, -1.0, 0.7])
    here, there, further = branches(d), branches(-d), branches(1.001 * d)
    assert here.taken
    assert here.first_difference(there) is not None
    assert here.first_difference(further) is None


@pytest.mark.parametrize("name", KINKED)
def test_a_kink_within_the_step_is_stepped_back_from(name: str) -> None:
    """With eps = 0.3 the first step crosses; a smaller one does not, and the check passes."""
    x = tensor(0.05, -0.03, 0.04, -0.02, 0.03)
    report = gradcheck(KINKED[name], x, eps=0.3)
    assert report.rejected > 0
    assert report.worst_error < 1e-9
    assert all(d.eps < 0.3 for d in report.directions)
    assert "across kinks rejected" in str(report)


@pytest.mark.parametrize("name", KINKED)
def test_on_the_kink_the_value_lies_between_the_slopes(name: str) -> None:
    report = gradcheck(KINKED[name], tensor(0.0, 0.0, 0.0, 0.0, 0.0))
    assert report.on_kinks > 0
    assert not report.directions
    assert "between their one-sided slopes" in report.notes[0]


def test_only_elements_on_the_kink_are_treated_so() -> None:
    report = gradcheck(F.relu, tensor(-1.0, 0.0, 2.0))
    assert (report.looked_at, report.on_kinks) == (3, 1)


class AtZero(mr.Function):
    """ReLU with a derivative of one's choice at zero."""

    def __init__(self, slope: float) -> None:
        self.slope = slope

    def forward(self, x: np.ndarray) -> np.ndarray:
        self.save(share=(x > 0) + self.slope * (x == 0))
        return np.maximum(x, 0)

    def backward(self, gy: mr.Tensor) -> mr.Tensor:
        return gy * self.saved.share


@pytest.fixture
def registered() -> Any:
    register_kink(AtZero, lambda call: np.sign(call.inputs[0]).astype(np.int8))
    yield
    del kinks_module._branches[AtZero]


@pytest.mark.parametrize("slope", [0.0, 0.5, 1.0])
def test_any_value_between_the_slopes_will_do(slope: float, registered: None) -> None:
    assert gradcheck(lambda x: AtZero(slope)(x), tensor(0.0, 1.0, -1.0)).on_kinks == 1


@pytest.mark.parametrize("slope", [-0.01, 1.01, 2.0])
def test_a_value_outside_the_slopes_fails(slope: float, registered: None) -> None:
    report = gradcheck(
        lambda x: AtZero(slope)(x), tensor(3.0, 0.0, -1.0), raise_exception=False
    )
    assert not report
    assert report.kinds == {"kink"}
    (element,) = report.elements
    assert element.index == (1,)
    assert element.slopes is not None
    assert "on a kink, analytic" in str(report)
    assert "lies outside the one-sided slopes" in str(report)


def test_next_to_a_kink_a_wrong_element_is_still_wrong() -> None:
    class Wrong(AtZero):
        def backward(self, gy: mr.Tensor) -> mr.Tensor:
            return super().backward(gy) * 1.5

    register_kink(Wrong, lambda call: np.sign(call.inputs[0]).astype(np.int8))
    x = tensor(3.0, 0.0, -1.0, 2.0)
    report = gradcheck(lambda x: Wrong(0.0)(x), x, raise_exception=False)
    assert [e.index for e in report.elements] == [(0,), (3,)] or [
        e.index for e in report.elements
    ] == [(3,), (0,)]
    assert all(e.error == pytest.approx(1 / 3) for e in report.elements)
    del kinks_module._branches[Wrong]


def test_subclasses_inherit_their_kinks() -> None:
    class Mine(F.activation.ReLU):
        pass

    assert branches_of(Mine) is branches_of(F.activation.ReLU)
    assert branches_of(AtZero) is None


def test_an_undeclared_kink_is_still_found_by_convergence() -> None:
    """Nobody said that AtZero has a kink; 3e-6 away from it, only small steps converge."""
    x = tensor(2e-6, 1.0, -1.0)
    report = gradcheck(lambda x: AtZero(0.0)(x) * 2.0, x)
    assert min(d.eps for d in report.directions) < 1e-5
    assert gradcheck(np.abs, np.array([2e-6, 1.0]), grad=lambda x, u: u * np.sign(x))


def test_a_point_in_a_thicket_of_kinks_is_given_up_with_advice() -> None:
    x = tensor(*np.zeros(40))
    report = gradcheck(lambda x: F.relu(x - 1e-9), x, raise_exception=False)
    assert not report
    assert report.kinds == {"kink"}
    assert report.undecided
    assert "gradient undecided" in str(report)
    assert 20 <= report.rejected < 25
    assert "gave up after" in str(report)
    assert "ReLU[" in str(report)
    assert "smaller eps" in str(report)
    assert gradcheck(lambda x: F.relu(x - 1e-9), x, eps=1e-9).rejected == 0


def test_second_order_leaves_out_what_lies_on_a_kink() -> None:
    def fn(x: mr.Tensor) -> mr.Tensor:
        return F.relu(x) ** 2 + x**3

    report = gradgradcheck(fn, tensor(-1.0, 0.0, 2.0))
    assert report.on_kinks == 0
    assert "1 could not be judged" in report.notes[0]


def test_large_nets_reject_a_few_steps_and_pass(rng: np.random.Generator) -> None:
    x = mr.Tensor(rng.standard_normal((40, 50)), requires_grad=True)
    w = mr.Tensor(rng.standard_normal((60, 50)), requires_grad=True)
    report = gradcheck(lambda x, w: F.relu(F.linear(F.relu(x), w)).sum(), (x, w), eps=1e-2)
    assert report.rejected > 0
    assert report.passed


# -- subgradients: any value between the slopes, and no other ------------------------------------

slopes = st.floats(-3.0, 3.0).filter(lambda s: abs(s) > 0.05)


@given(left=slopes, right=slopes, share=st.floats(-0.5, 1.5), u=st.sampled_from([1, -2]))
def test_a_subgradient_lies_between_the_slopes_of_its_sides(
    left: float, right: float, share: float, u: int
) -> None:
    """Plain NumPy declares no kink: one-sided slopes that stay apart give it away."""
    assume(abs(right - left) > 0.1)
    assume(min(abs(share), abs(share - 1.0)) > 0.01)
    value = left + share * (right - left)

    def bent(x: np.ndarray) -> np.ndarray:
        return u * np.where(x > 0, right * x, left * x)

    def gradient(x: np.ndarray, gy: np.ndarray) -> np.ndarray:
        return gy * u * np.where(x > 0, right, np.where(x < 0, left, value))

    x = np.array([1.0, 0.0, -2.0])
    report = gradcheck(bent, x, grad=gradient, raise_exception=False)
    between = 0.0 < share < 1.0
    assert report.passed == between, str(report)
    if not between:
        (element,) = report.elements
        assert element.index == (1,)
        assert element.slopes is not None
        assert report.kinds == {"kink"}


def test_beside_an_undeclared_kink_wrong_elements_are_still_wrong() -> None:
    x = np.array([1.0, 0.0, -2.0, 3.0])
    report = gradcheck(
        np.abs, x, grad=lambda x, u: u * np.sign(x) * (1 + (x == 3.0)), raise_exception=False
    )
    assert [e.index for e in report.elements] == [(3,)]


def test_a_wrong_gradient_of_a_smooth_function_is_no_kink() -> None:
    """However curved: the slopes of the two sides come together as the step shrinks."""
    x = np.array([0.3, -0.2])
    for curvature in (1.0, 30.0, 1000.0):
        report = gradcheck(
            lambda x, c=curvature: np.sin(x) + c * x * x,
            x,
            grad=lambda x, u, c=curvature: u * (np.cos(x) + 2.02 * c * x),
            raise_exception=False,
        )
        assert not report
        assert not report.notes
        assert all(e.slopes is None for e in report.elements)


@pytest.mark.parametrize("winner", [0.0, 0.25, 1.0])
def test_ties_of_a_maximum_may_be_shared_in_any_way(winner: float) -> None:
    def gradient(x: np.ndarray, u: np.ndarray) -> np.ndarray:
        return u * np.array([0.0, winner, 1.0 - winner])

    assert gradcheck(lambda x: x.max(), np.array([1.0, 3.0, 3.0]), grad=gradient)
    wrong = gradcheck(
        lambda x: x.max(),
        np.array([1.0, 3.0, 3.0]),
        grad=lambda x, u: u * np.array([0.0, winner, 1.5]),
        raise_exception=False,
    )
    assert wrong.kinds == {"kink"}


def test_where_several_kinks_meet_nothing_is_called_wrong(rng: np.random.Generator) -> None:
    """A row of zeros without a bias puts every hidden unit on its kink at once.

    Zero at each of them is a subgradient, but need not lie between the slopes of their sum.
    """
    w = rng.standard_normal((3, 6))
    x = mr.Tensor(np.zeros((1, 3)), requires_grad=True)
    report = gradcheck(lambda x: F.relu(x @ w).sum(axis=1) + x.sum(), x)
    assert not report.elements
    assert "could not be judged" in report.notes[0] or report.on_kinks == 3
