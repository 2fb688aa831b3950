"""The gate lets right kernels through and stops wrong ones, whatever is wrong with them."""

import numpy as np
import oracles
import pytest

from minires.bench.gate import PASSES, Problem, ragged
from minires.kernels import Kernel, available, conv_geometry

G = conv_geometry((2, 16, 7, 6), (32, 16, 3, 3), 1, 1)
STRIDED = conv_geometry((2, 4, 9, 8), (6, 2, 3, 3), (2, 1), (1, 0), (1, 2), 2)


def right(problem):
    """The loops of the tests' own oracle."""
    g = problem.geometry
    a, b = problem.arrays
    settings = g.stride, g.padding, g.dilation, g.groups
    if problem.operation == "conv2d":
        return oracles.conv2d(a, b, *settings).astype(problem.dtype)
    raise AssertionError(f"this oracle answers for conv2d alone, asked for {problem.operation}")


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("g", [G, STRIDED], ids=str)
@pytest.mark.parametrize("operation", PASSES.values())
def test_registered_kernels_pass(operation, g, dtype):
    problem = Problem(operation, g, dtype)
    checked = 0
    for kernel in available(operation):
        if kernel.backend == "cpu" and kernel.supports(g, dtype) and kernel.name == "im2col":
            verdict = problem.check(lambda k=kernel: k.function(*problem.args))
            assert verdict, verdict.wrong
            assert verdict.error < {"float32": 1e-5, "float64": 1e-13}[dtype]
            checked += 1
    assert checked == 1


def test_the_expected_answer_is_that_of_plain_loops():
    problem = Problem("conv2d", STRIDED)
    np.testing.assert_allclose(problem.expected, right(problem), rtol=1e-4, atol=1e-5)
    assert problem.check(lambda: right(problem))


PLANTED = {
    "one wrong element": lambda y: with_element(y, y.flat[5] + 0.01),
    "not a number": lambda y: with_element(y, np.nan),
    "infinity": lambda y: with_element(y, np.inf),
    "a row too many": lambda y: np.concatenate([y, y[:, :, :1]], axis=2),
    "the other precision": lambda y: y.astype(np.float64),
    "nothing": lambda y: None,
    "rows in reverse": lambda y: y[:, :, ::-1],
}


def with_element(y, value):
    y = y.copy()
    y.flat[5] = value
    return y


@pytest.mark.parametrize("name", PLANTED)
def test_wrong_results_are_stopped(name):
    problem = Problem("conv2d", G)
    verdict = problem.check(lambda: PLANTED[name](right(problem)))
    assert not verdict
    assert verdict.wrong


def test_the_worst_element_is_shown():
    problem = Problem("conv2d", G)
    verdict = problem.check(lambda: with_element(right(problem), 100.0))
    assert "1 of 2688 elements wrong, worst at [0,0,0,5]: 100, expected" in verdict.wrong


def test_a_kernel_that_fails_is_told_apart_by_its_error():
    def call():
        raise ZeroDivisionError("by zero")

    verdict = Problem("conv2d", G).check(call)
    assert verdict.wrong == "raised ZeroDivisionError: by zero"


def test_a_kernel_that_changes_its_input_is_stopped():
    problem = Problem("conv2d", G)
    result = right(problem)

    def call():
        problem.arrays[0][0, 0, 0, 0] += 1
        return result

    assert problem.check(call).wrong == "an input was changed in place"


def test_what_rounding_may_do_is_allowed_and_little_more():
    """Errors of the size that a sum of K products in any order can have, and 200 times that."""
    problem = Problem("conv2d", G)
    K, u = 9 * 16, np.finfo(np.float32).eps / 2
    magnitude = oracles.conv2d(
        *map(np.abs, problem.arrays), G.stride, G.padding, G.dilation, G.groups
    )
    exact = problem.expected
    rounding = np.sqrt(K) * u * magnitude
    assert problem.check(lambda: (exact + rounding).astype(np.float32))
    assert not problem.check(lambda: (exact + 200 * rounding).astype(np.float32))


def kernel(only=None, dtypes=()):
    return Kernel("conv2d", "cpu", "mine", lambda *a: None, only, None, dtypes)


def test_the_ragged_shape_has_odd_sizes_and_odd_channels():
    g = ragged(kernel(), G, "float32")
    assert (g.C, g.O, g.H % 2, g.W % 2) == (5, 7, 1, 1)
    assert (g.kernel, g.stride, g.padding) == (G.kernel, G.stride, G.padding)


def test_the_ragged_shape_keeps_the_channels_that_a_kernel_needs():
    g = ragged(kernel(lambda g: g.C % 16 == g.O % 16 == 0), G, "float32")
    assert (g.C, g.O, g.H % 2, g.W % 2) == (16, 32, 1, 1)


def test_groups_stay_groups():
    g = ragged(kernel(), STRIDED, "float32")
    assert (g.groups, g.C % 2, g.O % 2) == (2, 0, 0)
    assert (g.stride, g.dilation) == (STRIDED.stride, STRIDED.dilation)


def test_large_kernels_fit():
    big = conv_geometry((1, 2, 64, 64), (2, 2, 31, 5), 1, 0, (2, 1))
    assert ragged(kernel(), big, "float32").out >= (1, 1)


def test_a_kernel_of_one_shape_has_no_ragged_one():
    assert ragged(kernel(lambda g: g == G), G, "float32") is None
    assert ragged(kernel(dtypes=("float64",)), G, "float32") is None


def test_an_operation_that_is_no_convolution_is_refused():
    with pytest.raises(ValueError, match="'relu'"):
        Problem("relu", G)


@pytest.fixture
def in_parts(monkeypatch):
    """Problems so large that only a part is compared."""
    monkeypatch.setattr("minires.bench.gate.WHOLE", 0)


PARTED = conv_geometry((7, 8, 6, 5), (9, 8, 3, 3), (2, 1), 1)


@pytest.mark.parametrize("operation", PASSES.values())
def test_of_a_large_problem_three_parts_are_compared(in_parts, operation):
    problem = Problem(operation, PARTED)
    (kernel,) = [k for k in available(operation) if (k.backend, k.name) == ("cpu", "im2col")]
    y = kernel.function(*problem.args)
    assert problem.part == ([0, 4, 8] if operation == "conv2d_grad_weight" else [0, 3, 6])
    np.testing.assert_allclose(problem.expected, y[problem.part], rtol=1e-3, atol=1e-4)
    assert problem.check(lambda: y)
    for place in problem.part:
        wrong = y.copy()
        wrong[place, 1, 0, 0] += 1
        verdict = problem.check(lambda wrong=wrong: wrong)
        assert f"worst at [{place},1,0,0]" in verdict.wrong
    elsewhere = y.copy()
    elsewhere[1, 0, 0, 0] = np.inf
    assert problem.check(lambda: elsewhere).wrong == "some elements are not finite"


def test_small_problems_are_compared_whole(monkeypatch):
    assert Problem("conv2d", PARTED).part == slice(None)
    monkeypatch.setattr("minires.bench.gate.WHOLE", 0)
    assert Problem("conv2d", conv_geometry((3, 2, 4, 4), (2, 2, 3, 3))).part == slice(None)
    assert Problem("conv2d_grad_weight", STRIDED).part == slice(None)


def test_coarser_factors_are_allowed_their_rounding_and_no_more():
    problem = Problem("conv2d", G)
    exact = problem.expected
    off = 2.0**-12 * problem.magnitude
    assert not problem.check(lambda: (exact + off).astype(np.float32))
    assert problem.check(lambda: (exact + off).astype(np.float32), "tf32")
    assert not problem.check(lambda: (exact + 400 * off).astype(np.float32), "tf32")
