import numpy as np
import pytest

from minires.training.finiteness import all_finite


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_one_bad_value_is_seen(bad):
    good, spoilt = np.ones((3, 4), np.float32), np.ones((3, 4), np.float32)
    spoilt[2, 1] = bad
    assert all_finite([good, good])
    with np.errstate(invalid="ignore"):
        assert not all_finite([good, spoilt])


def test_infinities_that_cancel_are_seen():
    with np.errstate(invalid="ignore"):
        assert not all_finite([np.array([np.inf, -np.inf])])


def test_a_sum_that_overflows_is_no_infinity():
    with np.errstate(over="ignore"):
        assert all_finite([np.full(8, 3e38, np.float32)])


def test_nothing_is_finite():
    assert all_finite([])
    assert all_finite([np.zeros((0, 3))])
