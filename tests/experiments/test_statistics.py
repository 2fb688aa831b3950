"""Mean, deviation and difference of seeds, against NumPy and by hand."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from minires.experiments import Difference, Spread

numbers = st.lists(st.floats(-1e3, 1e3), min_size=2, max_size=6)


@given(numbers)
def test_spread_is_numpy_s_mean_and_sample_deviation(values):
    spread = Spread.of(values)
    np.testing.assert_allclose(spread.mean, np.mean(values), rtol=1e-12, atol=1e-9)
    np.testing.assert_allclose(spread.deviation, np.std(values, ddof=1), rtol=1e-9, atol=1e-9)


def test_one_value_has_no_deviation():
    assert Spread.of([3.25]).deviation is None
    assert Spread.of([3.25]).text(2) == "3.25"
    assert Spread.of([1, 3]).text() == "2.0 ± 1.4"
    with pytest.raises(ValueError, match="at least one"):
        Spread.of([])


@given(numbers, numbers)
def test_difference_has_welch_s_standard_error(a, b):
    found = Difference.between(Spread.of(a), Spread.of(b))
    error = np.sqrt(np.var(a, ddof=1) / len(a) + np.var(b, ddof=1) / len(b))
    np.testing.assert_allclose(found.value, np.mean(a) - np.mean(b), rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(found.error, error, rtol=1e-9, atol=1e-9)


def test_a_difference_is_clear_beyond_two_standard_errors():
    near, far = Spread.of([0, 2]), Spread.of([0.1, 2.1])
    assert not Difference.between(far, near).clear
    assert "may be chance" in Difference.between(far, near).trust
    assert Difference.between(Spread.of([10, 10.1]), near).clear
    assert Difference.between(near, Spread.of([10, 10.1])).clear
    alone = Difference.between(Spread.of([10]), near)
    assert not alone.clear
    assert "one seed" in alone.trust
