"""Winograd convolutions that do on the way what batch norms and ReLUs around them do: the bits of
the passes one by one, and the moments of all pixels."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

pytest.importorskip("numba")
from minires.kernels import ConvGeometry, conv_geometry, threads
from minires.kernels.cpu import norm, winograd, winograd_blocked
from minires.kernels.fusing import After, Before
from minires.testing.guards import NAN_BYTE, ZERO_BYTE, Guards


@dataclass(frozen=True)
class Case:
    """A geometry, the path that is to take it, the dtype, a number of workers and a seed."""

    N: int
    C: int
    H: int
    W: int
    O: int
    padding: tuple[int, int]
    blocked: bool
    dtype: str
    workers: int
    seed: int

    @property
    def geometry(self) -> ConvGeometry:
        shapes = (self.N, self.C, self.H, self.W), (self.O, self.C, 3, 3)
        return conv_geometry(*shapes, 1, self.padding)

    @contextmanager
    def on_its_path(self) -> Iterator[None]:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(threads, "_count", self.workers)
            if self.blocked:
                patch.setattr(winograd, "LARGE", 0)
                patch.setattr(winograd, "LARGE_GRADIENT", 0)
                patch.setattr(winograd_blocked, "BLOCK", 32)
            yield


@st.composite
def cases(draw: Any) -> Case:
    """From one pixel to a few tiles each way, so that most tiles lie at an edge and some do not."""
    padding = draw(st.tuples(st.integers(0, 2), st.integers(0, 2)))
    H, W = (draw(st.integers(max(1, 3 - 2 * p), 11)) for p in padding)
    C, O = draw(st.sampled_from([16, 32, 48])), draw(st.sampled_from([16, 32, 48]))
    return Case(
        draw(st.integers(1, 3)), C, H, W, O, padding, draw(st.booleans()),
        draw(st.sampled_from(["float32", "float64"])), draw(st.sampled_from([1, 2, 3, 64])),
        draw(st.integers(0, 999)),
    )  # fmt: skip


def images(rng: np.random.Generator, shape: tuple[int, ...], dtype: str) -> Any:
    N, C, H, W = shape
    return rng.standard_normal((N, H, W, C)).astype(dtype).transpose(0, 3, 1, 2)


@dataclass
class Arrays:
    """What a case's convolutions are given."""

    x: Any
    weight: Any
    gy: Any
    before: Before
    after: After

    @classmethod
    def of(cls, case: Case) -> Arrays:
        rng, g = np.random.default_rng(case.seed), case.geometry
        weight = rng.standard_normal((case.O, case.C, 3, 3)).astype(case.dtype)
        before = Before(*rng.standard_normal((3, case.C)).astype(case.dtype))
        x, gy = images(rng, g.x_shape, case.dtype), images(rng, g.y_shape, case.dtype)
        shift = rng.standard_normal(case.O).astype(case.dtype)
        shortcut = images(rng, g.y_shape, case.dtype) if case.seed % 2 else None
        return cls(x, weight, gy, before, After(shift, shortcut, case.seed % 4 < 2))

    def activated(self) -> Any:
        return norm.normalise(self.x, *self.before, None, True)


@given(case=cases())
def test_what_is_loaded_is_normalised_and_rectified(case: Case) -> None:
    a, g = Arrays.of(case), case.geometry
    with case.on_its_path():
        activated = a.activated()
        expected = winograd.conv2d(activated, a.weight, g)
        found = winograd.conv2d_fused(a.x, a.weight, g, a.before, None, False)
        np.testing.assert_array_equal(found, expected)
        expected = winograd.conv2d_grad_weight(activated, a.gy, g)
        found = winograd.conv2d_grad_weight_fused(a.x, a.gy, g, a.before)
        np.testing.assert_array_equal(found, expected)


@given(case=cases())
def test_what_is_stored_is_shifted_added_to_and_rectified(case: Case) -> None:
    a, g = Arrays.of(case), case.geometry
    with case.on_its_path():
        y = winograd.conv2d(a.x, a.weight, g)
        expected = norm.normalise(y, None, None, *a.after)
        found = winograd.conv2d_fused(a.x, a.weight, g, None, a.after, False)
    np.testing.assert_array_equal(found, expected)


def check_moments(y: Any, mean: Any, var: Any, sure: float) -> None:
    """Against float64; sure: the rounding error of a sum, relative to what is summed."""
    exact = y.astype(np.float64)
    expected, spread = exact.mean(axis=(0, 2, 3)), exact.var(axis=(0, 2, 3))
    assert mean.dtype == var.dtype == np.float64
    reach = np.abs(exact - expected[:, None, None]).max(axis=(0, 2, 3))
    assert (np.abs(mean - expected) <= sure * reach + 1e-15 * np.abs(expected)).all()
    assert (np.abs(var - spread) <= sure * reach**2).all()


@given(case=cases(), normalised=st.booleans())
def test_moments_are_those_of_all_pixels(case: Case, normalised: bool) -> None:
    a, g = Arrays.of(case), case.geometry
    before = a.before if normalised else None
    with case.on_its_path():
        expected = winograd.conv2d(a.activated() if normalised else a.x, a.weight, g)
        y, mean, var = winograd.conv2d_fused(a.x, a.weight, g, before, None, True)
        again = winograd.conv2d_fused(a.x, a.weight, g, before, None, True)
    np.testing.assert_array_equal(y, expected)
    check_moments(y, mean, var, 3e-6 if case.dtype == "float32" else 1e-14)
    assert (mean.tobytes(), var.tobytes()) == (again[1].tobytes(), again[2].tobytes())


BOTH_PATHS = [Case(2, 32, 9, 6, 48, (1, 1), blocked, "float32", 2, 0) for blocked in (False, True)]
both_paths = pytest.mark.parametrize("case", BOTH_PATHS, ids=["batched", "blocked"])


@both_paths
def test_a_large_mean_does_not_cancel_the_deviation(case: Case) -> None:
    """Taps that only shift x by a channel: y has a mean of 1e4 and a deviation of 1."""
    a, g = Arrays.of(case), replace(case, padding=(0, 0), H=34, W=30).geometry
    x = images(np.random.default_rng(1), g.x_shape, "float32") + np.float32(1e4)
    a.weight[:] = 0
    a.weight[np.arange(case.O), np.arange(case.O) % case.C, 1, 1] = 1
    with case.on_its_path():
        y, mean, var = winograd.conv2d_fused(x, a.weight, g, None, None, True)
    exact = y.astype(np.float64)
    np.testing.assert_allclose(mean, exact.mean(axis=(0, 2, 3)), rtol=1e-7, atol=0)
    np.testing.assert_allclose(var, exact.var(axis=(0, 2, 3)), rtol=1e-5, atol=0)
    assert (var < 3).all()


@both_paths
def test_moments_of_what_is_no_number(case: Case) -> None:
    a, g = Arrays.of(case), case.geometry
    a.x[1, 3, 5, 2] = np.nan
    with case.on_its_path():
        _, mean, var = winograd.conv2d_fused(a.x, a.weight, g, None, None, True)
    assert np.isnan(mean).all()
    assert np.isnan(var).all()


@both_paths
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_what_is_no_number_comes_out_where_it_goes_in(case: Case, value: float) -> None:
    a, g = Arrays.of(case), case.geometry
    a.x[1, 3, 5, 2] = value
    with case.on_its_path(), np.errstate(invalid="ignore"):
        expected = winograd.conv2d(a.activated(), a.weight, g)
        found = winograd.conv2d_fused(a.x, a.weight, g, a.before, None, False)
        np.testing.assert_array_equal(found, expected)
        if np.isnan(value):
            assert np.isnan(found[1, :, 4:7, 1:4]).all()


@both_paths
@pytest.mark.parametrize("scale", [np.inf, np.nan])
def test_the_padding_is_zero_whatever_the_scale(case: Case, scale: float) -> None:
    """0 * infinity must not get into the padding: with x < mean every activation is zero."""
    a, g = Arrays.of(case), case.geometry
    a.before.scale[:] = scale
    a.before.mean[:] = 100.0
    with case.on_its_path(), np.errstate(invalid="ignore"):
        expected = winograd.conv2d(a.activated(), a.weight, g)
        found = winograd.conv2d_fused(a.x, a.weight, g, a.before, None, False)
    np.testing.assert_array_equal(found, expected)
    assert np.isnan(scale) or (found == 0).all()


@both_paths
def test_the_padding_is_zero_whatever_the_mean(case: Case) -> None:
    a, g = Arrays.of(case), case.geometry
    a.before.scale[:] = 1.0
    a.before.mean[:] = np.inf
    with case.on_its_path():
        found = winograd.conv2d_fused(a.x, a.weight, g, a.before, None, False)
    assert (found == 0).all()


@both_paths
@pytest.mark.parametrize("zone", [NAN_BYTE, ZERO_BYTE])
def test_nothing_outside_is_read_or_written(case: Case, zone: int) -> None:
    a, g, guards = Arrays.of(case), case.geometry, Guards(zone)
    x, weight, gy = (guards.place(getattr(a, k), k) for k in ("x", "weight", "gy"))
    before = Before(*(guards.place(v, k) for k, v in a.before._asdict().items()))
    shift, shortcut = guards.place(a.after.shift, "shift"), guards.place(a.gy, "shortcut")
    with case.on_its_path():
        expected = (
            winograd.conv2d(a.activated(), a.weight, g),
            winograd.conv2d_grad_weight(a.activated(), a.gy, g),
            norm.normalise(
                winograd.conv2d(a.x, a.weight, g), None, None, a.after.shift, a.gy, True
            ),
            *winograd.conv2d_fused(a.x, a.weight, g, None, None, True),
        )
        with guards.allocations():
            found = (
                winograd.conv2d_fused(x, weight, g, before, None, False),
                winograd.conv2d_grad_weight_fused(x, gy, g, before),
                winograd.conv2d_fused(x, weight, g, None, After(shift, shortcut, True), False),
                *winograd.conv2d_fused(x, weight, g, None, None, True),
            )
    assert guards.broken() == []
    for f, e in zip(found, expected, strict=True):
        np.testing.assert_array_equal(f, e)
