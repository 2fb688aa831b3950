"""gradcheck's interface: what it accepts, what it reports, how it behaves when all is well."""

from __future__ import annotations

import numpy as np
import pytest

import minires as mr
from minires import functional as F
from minires import nn
from minires.testing import (
    GradcheckError,
    assert_gradients,
    check_all,
    gradcheck,
    gradgradcheck,
    step_curve,
)


def tensor(rng: np.random.Generator, *shape: int, dtype: type = np.float64) -> mr.Tensor:
    return mr.Tensor(rng.standard_normal(shape).astype(dtype), requires_grad=True)


def test_a_right_gradient_passes_and_says_how_well(rng: np.random.Generator) -> None:
    x, w = tensor(rng, 2, 3, 5, 4), tensor(rng, 4, 3, 3, 3)
    report = gradcheck(lambda x, weight: F.conv2d(x, weight, padding=1), (x, w))
    assert report
    assert report.passed
    assert [t.name for t in report.tensors] == ["x", "weight"]
    assert [t.shape for t in report.tensors] == [x.shape, w.shape]
    assert len(report.directions) == 3
    assert 0 < report.worst_error < 1e-8
    assert "gradient right" in str(report)
    assert "worst relative error" in report.summary()


def test_float32_is_lifted_to_float64_copies(rng: np.random.Generator) -> None:
    x = tensor(rng, 3, 4, dtype=np.float32)
    constant = mr.Tensor(rng.standard_normal((3, 4)).astype(np.float32))
    seen = []

    def fn(x: mr.Tensor, c: mr.Tensor, array: np.ndarray, number: int) -> mr.Tensor:
        seen.append((x.dtype, c.dtype, array.dtype, number))
        return (x * c).exp() * number + array.sum()

    array = np.ones(2, np.float32)
    assert gradcheck(fn, (x, constant, array, 3)).worst_error < 1e-8
    assert set(seen) == {(np.dtype("f8"), np.dtype("f8"), np.dtype("f4"), 3)}
    assert x.dtype == constant.dtype == np.float32
    assert x.grad is None


def test_only_what_requires_gradients_is_checked(rng: np.random.Generator) -> None:
    x, y = tensor(rng, 3), mr.Tensor(rng.standard_normal(3))
    report = gradcheck(lambda x, y: x * y.detach(), (x, y))
    assert [t.name for t in report.tensors] == ["x"]


def test_several_outputs_of_any_shape(rng: np.random.Generator) -> None:
    x = tensor(rng, 3, 4)
    assert gradcheck(lambda x: (x.sum(), x.exp(), x[0] * 2), x)
    assert gradgradcheck(lambda x: [x.sum() ** 2, x.exp()], x)


def test_outputs_without_gradient_are_left_out_with_a_note(rng: np.random.Generator) -> None:
    report = gradcheck(lambda x: (x * x, x.detach() * 2), tensor(rng, 3))
    assert report.passed
    assert report.notes == ["1 of the outputs do not require gradients and were not checked"]


def test_parameters_by_module_mapping_and_sequence(rng: np.random.Generator) -> None:
    layer, x = nn.Linear(3, 2), tensor(rng, 4, 3)
    report = gradcheck(lambda x: layer(x).tanh(), x, params=layer)
    assert [t.name for t in report.tensors] == ["x", "weight", "bias"]
    w = tensor(rng, 3, dtype=np.float32)
    report = gradcheck(lambda x: x * w, x, params={"scale": w})
    assert [t.name for t in report.tensors] == ["x", "scale"]
    report = gradcheck(lambda x: x * w, x, params=[w])
    assert [t.name for t in report.tensors] == ["x", "params[0]"]
    assert w.dtype == np.float32


def test_a_module_is_checked_with_its_parameters(rng: np.random.Generator) -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))
    report = gradcheck(model, mr.Tensor(rng.standard_normal((5, 3)).astype(np.float32)))
    names = [t.name for t in report.tensors]
    assert names == ["0.weight", "0.bias", "1.weight", "1.bias"]
    model[0].weight.requires_grad_(False)
    report = gradcheck(model, tensor(rng, 5, 3))
    assert [t.name for t in report.tensors] == ["x", "0.bias", "1.weight", "1.bias"]


def test_numpy_functions_with_a_gradient_of_their_own(rng: np.random.Generator) -> None:
    a, b = rng.standard_normal((3, 4)), rng.standard_normal((4, 2)).astype(np.float32)
    report = gradcheck(lambda a, b: a @ b, (a, b), grad=lambda a, b, u: (u @ b.T, a.T @ u))
    assert [t.name for t in report.tensors] == ["a", "b"]
    # Integers are no variables; a gradient for each input, or for each floating-point one.
    power = 3
    assert gradcheck(lambda a, n: a**n, (a, power), grad=lambda a, n, u: n * a ** (n - 1) * u)
    assert gradcheck(
        lambda a, n: a**n, (a, power), grad=lambda a, n, u: (n * a ** (n - 1) * u, None)
    )
    assert gradcheck(
        lambda a: (a.sum(), a * 2), a, grad=lambda a, u, v: np.full_like(a, u) + 2 * v
    )


def test_several_seeds_give_different_checks_and_one_seed_the_same(
    rng: np.random.Generator,
) -> None:
    x = tensor(rng, 3, 4)
    first, again, other = (gradcheck(lambda x: x.tanh(), x, seed=s) for s in (1, 1, 2))
    assert first.directions == again.directions
    assert first.directions != other.directions


def test_upstream_is_random_so_ones_do_not_hide_anything(rng: np.random.Generator) -> None:
    """sum(softmax) is constant: with an upstream of ones, any gradient proportional to it passes"""
    x = rng.standard_normal((3, 4))

    def softmax(x: np.ndarray) -> np.ndarray:
        e = np.exp(x)
        return e / e.sum(axis=1, keepdims=True)

    def wrong(x: np.ndarray, u: np.ndarray) -> np.ndarray:
        p = softmax(x)
        return 2 * p * (u - (u * p).sum(axis=1, keepdims=True))

    np.testing.assert_allclose(wrong(x, np.ones_like(x)), 0, atol=1e-12)
    assert gradcheck(softmax, x, grad=wrong, raise_exception=False).kinds == {"twice"}


def test_second_order(rng: np.random.Generator) -> None:
    x, w = tensor(rng, 2, 2, 4, 4), tensor(rng, 3, 2, 3, 3)
    report = gradgradcheck(lambda x, w: F.conv2d(x, w).tanh(), (x, w))
    assert [t.name for t in report.tensors] == ["x", "w", "upstream"]
    assert report.worst_error < 1e-8


def test_second_order_catches_a_gradient_that_is_no_function_of_its_input(
    rng: np.random.Generator,
) -> None:
    class Square(mr.Function):
        """Right to first order; the saved x has left the graph, so the second is missing."""

        def forward(self, x: np.ndarray) -> np.ndarray:
            self.save(x=x)
            return x * x

        def backward(self, gy: mr.Tensor) -> mr.Tensor:
            return 2 * gy * self.saved.x.detach()

    x = tensor(rng, 4)
    assert gradcheck(lambda x: Square()(x), x)
    report = gradgradcheck(lambda x: Square()(x), x, raise_exception=False)
    assert not report
    assert report.kinds == {"missing"}
    with pytest.raises(GradcheckError):
        assert_gradients(lambda x: Square()(x), x)
    assert_gradients(lambda x: Square()(x), x, second_order=False)


def test_the_error_is_an_assertion_that_carries_the_report(rng: np.random.Generator) -> None:
    with pytest.raises(GradcheckError) as caught:
        gradcheck(lambda a: a**2, rng.standard_normal(3), grad=lambda a, u: a * u)
    assert isinstance(caught.value, AssertionError)
    assert not caught.value.report
    assert str(caught.value) == caught.value.report.summary()


@pytest.mark.parametrize(
    ("call", "error", "match"),
    [
        (lambda x: gradcheck(lambda x: x, x.detach()), ValueError, "nothing to check"),
        (lambda x: gradcheck(lambda a: a, 3, grad=lambda a, u: u), ValueError, "nothing to check"),
        (lambda x: gradcheck(lambda x: x.numpy(), x), TypeError, "pass grad= for a NumPy"),
        (lambda x: gradcheck(lambda x: x > 0, x), TypeError, "no floating-point Tensor"),
        (lambda x: gradcheck(lambda x: x, x, dtype="int8"), ValueError, "float32, float16"),
        (lambda x: gradcheck(3, x), TypeError, "a function or a Module"),
        (lambda x: gradcheck(lambda x: x, x, params=[3]), TypeError, "must be a Tensor, got int"),
        (lambda x: gradcheck(lambda x: x, x, params={"y": x * 2}), ValueError, "must be leaves"),
        (lambda x: gradcheck(lambda x: x, x, eps=0.0), ValueError, "eps must be positive"),
        (lambda x: gradcheck(lambda x: x, x, rtol=-1.0), ValueError, "must not be negative"),
        (lambda x: gradcheck(lambda x: x, x, directions=0), ValueError, "at least one direction"),
        (
            lambda x: gradcheck(nn.Identity(), x, grad=lambda x, u: u),
            TypeError,
            "functions of arrays",
        ),
    ],
)
def test_misuse_is_explained(call: object, error: type, match: str) -> None:
    with pytest.raises(error, match=match):
        call(mr.Tensor(np.ones(3), requires_grad=True))  # type: ignore[operator]


def test_an_exception_of_the_function_itself_is_not_hidden(rng: np.random.Generator) -> None:
    with pytest.raises(ValueError, match="do not broadcast"):
        gradcheck(lambda x: x + np.ones(7), tensor(rng, 3))


def test_inside_no_grad_all_the_same(rng: np.random.Generator) -> None:
    with mr.no_grad():
        assert gradcheck(lambda x: x.exp(), tensor(rng, 3))
        assert gradgradcheck(lambda x: x.exp(), tensor(rng, 3))
        assert not mr.is_grad_enabled()


def test_memory_layout_is_kept(rng: np.random.Generator) -> None:
    x = mr.Tensor(rng.standard_normal((2, 4, 5, 3)).transpose(0, 3, 1, 2), requires_grad=True)
    layouts = set()

    def fn(x: mr.Tensor) -> mr.Tensor:
        layouts.add(x.data.strides)
        return x * x

    assert gradcheck(fn, x)
    assert layouts == {x.data.strides}


def test_empty_and_scalar_inputs(rng: np.random.Generator) -> None:
    assert gradcheck(lambda x, y: x.sum() * y, (tensor(rng, 0, 3), tensor(rng)))
    assert gradgradcheck(lambda y: y**3, tensor(rng))


# -- the error against the step ----------------------------------------------------------------


def test_halving_the_step_divides_the_truncation_error_by_four(rng: np.random.Generator) -> None:
    curve = step_curve(lambda x: (x.exp() * x).tanh(), tensor(rng, 3, 4))
    assert curve.order == pytest.approx(2.0, abs=0.05)
    step, error = curve.best
    assert 1e-8 < step < 1e-3
    assert error < 1e-8
    # A V: the error rises to both sides of the best step.
    assert curve.errors[0] > 1e3 * error
    assert curve.errors[-1] > 1e3 * error
    assert "halving the step divides the error by 4.0" in str(curve)


def test_a_wrong_gradient_has_no_v(rng: np.random.Generator) -> None:
    report = gradcheck(
        np.tanh, rng.standard_normal(4), grad=lambda x, u: u, curve=True, raise_exception=False
    )
    assert report.curve is not None
    assert report.curve.best[1] > 0.1
    assert "step      relative error" in str(report)


def test_a_quadratic_has_no_truncation_error(rng: np.random.Generator) -> None:
    curve = step_curve(lambda x: x * x, tensor(rng, 5))
    assert curve.order is None
    assert curve.errors[0] < 1e-14


def test_the_table_of_operations_can_be_asked_by_name() -> None:
    seen = []
    (result,) = check_all(["sigmoid"], progress=seen.append)
    assert seen == [result]
    assert result.passed
    assert result.cases >= 2
    assert 0 < result.first_error < 1e-8
    assert 0 < result.second_error < 1e-8
    with pytest.raises(ValueError, match="Did you mean 'conv2d'"):
        check_all(["conv2"])
