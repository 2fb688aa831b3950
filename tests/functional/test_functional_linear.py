"""The fully connected layer, padding, and the generator behind the random operations."""

from __future__ import annotations

from typing import Any

import numpy as np
import oracles
import pytest

import minires as mr
from minires import functional as F
from minires.functional import random
from minires.testing.compare import assert_close


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(3,), (2, 3), (0, 3), (2, 4, 3), (2, 1, 2, 3)])
def test_linear(shape: Any, bias: bool, rng: np.random.Generator) -> None:
    def definition(x: Any, weight: Any, b: Any = 0) -> Any:
        y = np.zeros((*x.shape[:-1], 5), np.result_type(x, weight, b))
        for index in np.ndindex(*x.shape[:-1]):
            for o in range(5):
                y[(*index, o)] = sum(x[index][i] * weight[o, i] for i in range(3))
        return y + b

    arrays = [rng.standard_normal(s) for s in (shape, (5, 3), (5,))][: 3 if bias else 2]
    tensors = [mr.Tensor(a, requires_grad=True) for a in arrays]
    y = F.linear(*tensors)
    assert_close(y, definition(*arrays))
    u = rng.standard_normal(y.shape)
    expected = oracles.complex_step_gradients(definition, arrays, u)
    for actual, wanted in zip(mr.grad(y, tensors, u), expected, strict=True):
        assert_close(actual, wanted)


def test_linear_to_third_order(rng: np.random.Generator) -> None:
    """Bilinear in x and weight: the mixed derivative is the upstream, and the third is none."""
    x, weight, u = (
        mr.Tensor(rng.standard_normal(s), requires_grad=True) for s in ((4, 3), (5, 3), (4, 5))
    )
    gx, gw = mr.grad(F.linear(x, weight), [x, weight], u, create_graph=True)
    v = rng.standard_normal((4, 3))
    f = (gx * v).sum()  # <u @ weight, v>
    second_weight, second_u = mr.grad(f, [weight, u], create_graph=True)
    assert_close(second_weight, u.numpy().T @ v)
    assert_close(second_u, v @ weight.numpy().T)
    (third,) = mr.grad((second_weight * gw.detach()).sum(), [u])
    assert_close(third, v @ gw.numpy().T)


@pytest.mark.parametrize(
    ("x", "weight", "bias", "error", "message"),
    [
        (np.ones((2, 3)), np.ones((5, 4)), None, ValueError,
         r"linear: expected x \(..., in\) and weight \(out, in\), got x 2x3 and weight 5x4"),
        (np.ones((2, 3)), np.ones(3), None, ValueError, "got x 2x3 and weight 3"),
        (np.float64(1), np.ones((1, 1)), None, ValueError, "got x scalar and weight 1x1"),
        (np.ones((2, 3)), np.ones((5, 3)), np.ones(4), ValueError,
         r"linear: bias must have shape \(5,\), got \(4,\)"),
        (np.ones((2, 3), int), np.ones((5, 3)), None, TypeError, "linear: x must be floating"),
        (np.ones((2, 3)), np.ones((5, 3), np.float32), None, TypeError, "weight is float32"),
        (np.ones((2, 3)), np.ones((5, 3)), np.ones(5, np.float32), TypeError, "bias is float32"),
    ],
)  # fmt: skip
def test_linear_refusals(x: Any, weight: Any, bias: Any, error: Any, message: str) -> None:
    with pytest.raises(error, match=message):
        F.linear(x, weight, bias)


def test_pad_counts_axes_from_the_last(rng: np.random.Generator) -> None:
    a = rng.standard_normal((2, 3, 4))
    for widths, pairs in (
        ((1, 2), [(0, 0), (0, 0), (1, 2)]),
        ((1, 2, 3, 0), [(0, 0), (3, 0), (1, 2)]),
        ((0, 0, 0, 0, 5, 1), [(5, 1), (0, 0), (0, 0)]),
        ((), [(0, 0)] * 3),
    ):
        x = mr.Tensor(a, requires_grad=True)
        y = F.pad(x, widths, "constant", 2.5)
        assert_close(y, np.pad(a, pairs, constant_values=2.5))
        u = rng.standard_normal(y.shape)
        inside = tuple(slice(b, b + n) for (b, _), n in zip(pairs, a.shape, strict=True))
        assert_close(mr.grad(y, [x], u)[0], u[inside])
    assert_close(F.pad(a, [1, 1]), np.pad(a, [(0, 0), (0, 0), (1, 1)]))


def test_pad_refusals() -> None:
    x = np.ones((2, 3))
    for widths in ((1,), (1, 1, 1), (0,) * 6):
        with pytest.raises(ValueError, match="pad: expected pairs of widths for at most 2 axes"):
            F.pad(x, widths)
    with pytest.raises(ValueError, match=r"pad: widths must not be negative.*slice to crop"):
        F.pad(x, (-1, 0))
    with pytest.raises(ValueError, match="pad: mode is 'constant', got 'reflect'"):
        F.pad(x, (1, 1), "reflect")


# -- the generator --------------------------------------------------------------------------------


def test_a_seed_starts_afresh() -> None:
    mr.manual_seed(5)
    first = random.generator().random(3)
    mr.manual_seed(np.int64(5))
    np.testing.assert_array_equal(random.generator().random(3), first)
    mr.manual_seed(6)
    assert not np.array_equal(random.generator().random(3), first)


def test_the_state_can_be_put_back() -> None:
    mr.manual_seed(5)
    random.generator().random(7)
    state = random.get_rng_state()
    first = random.generator().random(3)
    random.set_rng_state(state)
    np.testing.assert_array_equal(random.generator().random(3), first)
    random.set_rng_state(state)  # reading and using it did not change it
    np.testing.assert_array_equal(random.generator().random(3), first)


@pytest.mark.parametrize("seed", [1.5, "1", None, True])
def test_seeds_are_integers(seed: Any) -> None:
    with pytest.raises(TypeError, match="manual_seed: needs an integer, got"):
        mr.manual_seed(seed)


def test_seeds_are_not_negative() -> None:
    with pytest.raises(ValueError, match="manual_seed: needs a non-negative integer, got -1"):
        mr.manual_seed(-1)
