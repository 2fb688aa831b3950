"""Guard zones: what reaches out of an array is noticed, and nothing else changes."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numba import njit
from numpy.lib.stride_tricks import as_strided

from minires.testing.guards import NAN_BYTE, ZERO_BYTE, ZONE, Guards

Array = np.ndarray
X = np.arange(24.0).reshape(2, 3, 4)
VIEWS = {
    "contiguous": X,
    "reversed": X[::-1],
    "sliced": X[..., ::2],
    "transposed": X.transpose(2, 0, 1),
    "empty": X[:0],
    "scalar": np.array(3.0),
}


@pytest.mark.parametrize("view", VIEWS)
def test_a_placed_array_is_the_same_array(view: str) -> None:
    guards, array = Guards(), VIEWS[view]
    placed = guards.place(array, "x")
    np.testing.assert_array_equal(placed, array)
    assert (placed.strides, placed.dtype, placed.shape) == (
        array.strides, array.dtype, array.shape
    )  # fmt: skip
    assert not np.may_share_memory(placed, array)
    placed[...] = 7
    assert guards.broken() == []


@pytest.mark.parametrize(("at", "where"), [(-1, "before x"), (24, "behind x"), (-2000, "before x")])
def test_writing_outside_is_noticed(at: int, where: str) -> None:
    guards = Guards()
    guards.place(np.ones(3), "other")
    placed = guards.place(X, "x")
    memory, start = guards._kept[-1][1:3]
    assert placed.ctypes.data == memory.ctypes.data + start
    outside = memory[start + 8 * at :][:8].view(float)
    outside[0] = 1.0
    assert guards.broken() == [where]


@pytest.mark.parametrize(("zone", "reads"), [(NAN_BYTE, np.nan), (ZERO_BYTE, 0.0)])
def test_what_is_read_outside(zone: int, reads: float) -> None:
    guards = Guards(zone)
    placed = guards.place(X, "x")
    assert ZONE >= 8
    np.testing.assert_equal(as_strided(placed, (25,), (8,))[24], reads)


@pytest.mark.parametrize(
    "make",
    [
        lambda: np.empty((2, 3), np.float32),
        lambda: np.empty(5, dtype="f8"),
        lambda: np.zeros((2, 3), int),
        lambda: np.zeros(()),
        lambda: np.ones((2, 0, 3))[:, :, :1].sum(axis=2),
        lambda: np.full((2, 2), 3),
        lambda: np.full(3, fill_value=1.5, dtype="f4"),
        lambda: np.zeros((3, 4), order="F"),
        lambda: np.zeros_like(X.transpose(2, 0, 1)),
        lambda: np.ones_like(X, dtype=np.int8),
        lambda: np.full_like(X, 2, shape=(3,)),
        lambda: np.zeros_like(X.transpose(2, 0, 1), order="C"),
        lambda: np.zeros(3, object),
        lambda: np.pad(X, 1),
    ],
)
def test_arrays_made_inside_are_those_made_outside(make: Any) -> None:
    expected, guards = make(), Guards(content=ZERO_BYTE)
    with guards.allocations():
        made = make()
    assert (made.shape, made.dtype, made.strides) == (
        expected.shape, expected.dtype, expected.strides
    )  # fmt: skip
    if made.dtype.kind != "f" or "empty" not in make.__code__.co_names:
        np.testing.assert_array_equal(made, expected)
    assert guards.broken() == []


def test_what_is_empty_is_nan_and_the_functions_come_back() -> None:
    before = np.empty, np.zeros_like
    guards = Guards()
    with guards.allocations():
        assert np.isnan(np.empty(3)).all()
        assert np.isnan(np.empty_like(X)).all()
        assert (np.empty(2, np.int32) == -1).all()
    assert (np.empty, np.zeros_like) == before
    with pytest.raises(KeyError), Guards().allocations():
        raise KeyError
    assert (np.empty, np.zeros_like) == before


def test_an_array_that_is_written_beyond_names_its_line() -> None:
    guards = Guards()
    with guards.allocations():
        y = np.empty(4)
    as_strided(y, (5,), (8,))[4] = 0
    (found,) = guards.broken()
    assert found.startswith("behind the array made at test_guards.py:")


def test_functions_may_be_compiled_inside() -> None:
    """Numba must see NumPy's own functions, or it would refuse the function for good."""

    @njit
    def doubled(x):  # type: ignore[no-untyped-def]
        y = np.empty(x.shape, x.dtype)
        for k in range(len(x)):
            y[k] = 2 * x[k]
        return y

    guards = Guards()
    with guards.allocations():
        np.testing.assert_array_equal(doubled(np.arange(3.0)), [0, 2, 4])
        assert np.isnan(np.empty(1)).all()
    np.testing.assert_array_equal(doubled(np.arange(3)), [0, 2, 4])
