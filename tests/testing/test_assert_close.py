"""The one comparison: what it lets through, what it does not, and what it says."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import minires as mr
from minires.testing import assert_close

NAN, INF = np.nan, np.inf


def test_equal_arrays_tensors_numbers_and_lists() -> None:
    x = np.arange(6.0).reshape(2, 3)
    assert_close(x, x.copy())
    assert_close(mr.Tensor(x), x)
    assert_close(x, mr.Tensor(x), 0, 0)
    assert_close(np.float32(1.5), 1.5)
    assert_close(np.float32([1.5, 2.5]), [1.5, 2.5])
    assert_close(np.zeros((0, 3)), np.zeros((0, 3)))
    assert_close(np.array([True, False]), [True, False])


@pytest.mark.parametrize(
    ("actual", "expected"),
    [
        ([NAN, 1.0], [0.0, 1.0]),
        ([0.0, 1.0], [NAN, 1.0]),
        ([NAN, 1.0], [NAN, 1.0]),
        ([INF, 1.0], [-INF, 1.0]),
        ([1e300, 1.0], [INF, 1.0]),
        ([INF, 1.0], [1e300, 1.0]),
    ],
)
def test_what_is_not_finite_never_passes_by_accident(actual: list, expected: list) -> None:
    with pytest.raises(AssertionError, match=r"1 of 2 elements differ"):
        assert_close(np.array(actual), np.array(expected), rtol=1e9, atol=1e9)


def test_nan_equals_nan_only_if_asked_and_infinities_equal_themselves() -> None:
    x = np.array([NAN, INF, -INF, 1.0])
    assert_close(x, x, equal_nan=True)
    with pytest.raises(AssertionError):
        assert_close(x, np.array([0.0, INF, -INF, 1.0]), equal_nan=True)


def test_the_message_names_the_worst_element() -> None:
    expected = np.ones((2, 3))
    actual = expected.copy()
    actual[1, 2], actual[0, 1] = 1.5, 1.25
    with pytest.raises(AssertionError) as caught:
        assert_close(actual, expected, rtol=0.1, atol=0.0, name="conv2d")
    text = str(caught.value)
    assert text.startswith("conv2d: 2 of 6 elements differ (2x3 float64, rtol 0.1, atol 0)")
    assert "worst at [1,2]: actual 1.5, expected 1.0, error 0.5, allowed 0.1" in text


def test_a_nan_is_worse_than_any_number() -> None:
    with pytest.raises(AssertionError, match=r"worst at \[1\]: actual nan"):
        assert_close(np.array([1e30, NAN]), np.zeros(2))


def test_shapes_and_dtypes() -> None:
    with pytest.raises(AssertionError, match="expected shape 3, got 1x3"):
        assert_close(np.ones((1, 3)), np.ones(3))
    with pytest.raises(AssertionError, match="expected dtype float64, got float32"):
        assert_close(np.ones(3, np.float32), np.ones(3))
    assert_close(np.ones(3, np.float32), np.ones(3), check_dtype=False)


def test_integers_are_exact() -> None:
    assert_close(np.array([2**60 + 1]), np.array([2**60 + 1]))
    with pytest.raises(AssertionError):
        assert_close(np.array([2**60 + 1]), np.array([2**60]))
    with pytest.raises(AssertionError):
        assert_close(np.array([1], np.uint8), np.array([2], np.uint8))
    assert_close(np.array([10]), np.array([11]), atol=1)


def test_negative_tolerances_are_refused() -> None:
    with pytest.raises(ValueError, match="must not be negative"):
        assert_close(1.0, 1.0, rtol=-1.0)
    with pytest.raises(ValueError, match="must not be negative"):
        assert_close(1.0, 1.0, atol=NAN)


@given(
    st.sampled_from([np.float16, np.float32, np.float64]),
    st.floats(1.0, 100.0),
    st.floats(0.0, 3.0),
)
def test_the_boundary_is_atol_plus_rtol_times_expected(
    dtype: type, size: float, share: float
) -> None:
    expected = np.array([size], dtype)
    rtol, atol = 0.01, 0.05
    actual = (expected + share * (atol + rtol * np.abs(expected))).astype(dtype)
    error = abs(float(actual[0]) - float(expected[0]))
    if error <= atol + rtol * float(expected[0]):
        assert_close(actual, expected, rtol, atol)
    else:
        with pytest.raises(AssertionError):
            assert_close(actual, expected, rtol, atol)


def test_default_tolerances_follow_the_least_precise_dtype() -> None:
    one = np.ones(3)
    assert_close((one + 5e-6).astype(np.float32), one.astype(np.float32))
    with pytest.raises(AssertionError):
        assert_close(one + 5e-6, one)
    assert_close((one + 5e-6).astype(np.float32), one, check_dtype=False)
