"""Winograd of the phases: every edge and both paths against the oracle, the stated errors."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import oracles
import pytest
from drawn import layouts, normal
from hypothesis import given
from hypothesis import strategies as st
from oracles import laid_out

pytest.importorskip("numba")
from minires.kernels import ConvGeometry, conv_geometry, operation, threads
from minires.kernels.cpu import norm, strided, strided_gradient
from minires.kernels.cpu.tilings import Tiling
from minires.kernels.fusing import AFTER, BEFORE, MOMENTS, SUMS, After, Before
from minires.kernels.registry import use
from minires.kernels.threads import use_own_threads
from minires.testing.guards import NAN_BYTE, ZERO_BYTE, Guards

PASSES = ("conv2d", "conv2d_grad_input", "conv2d_grad_weight")
BOUND = 1e-5  # largest error over largest value, as for stride 1


@pytest.fixture(scope="module", autouse=True)
def own_threads() -> None:
    use_own_threads()


@dataclass(frozen=True)
class Case:
    """A geometry, the path that is to take it, a number of workers, a layout and a seed."""

    geometry: ConvGeometry
    blocked: bool
    workers: int
    layout: str
    seed: int

    @contextmanager
    def on_its_path(self) -> Iterator[None]:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(threads, "_count", self.workers)
            for module in (strided, strided_gradient):
                patch.setattr(module, "LARGE", 0 if self.blocked else 1 << 30)
                patch.setattr(module, "BLOCK", 32)
            yield

    def arrays(self, dtype: Any = np.float64) -> tuple[Any, Any, Any]:
        g = self.geometry
        shapes = g.x_shape, g.weight_shape, g.y_shape
        return tuple(
            laid_out(normal(self.seed + k, shape, dtype), self.layout)
            for k, shape in enumerate(shapes)
        )  # type: ignore[return-value]


@st.composite
def cases(draw: Any, fewest: int = 0) -> Case:
    """From one pixel to a few tiles of 4 and of 3 each way, whole ones and such that stick out;
    fewer tiles than workers, and several batches."""
    padding = draw(st.tuples(st.integers(0, 4), st.integers(0, 4)))
    H, W = (draw(st.integers(max(1, 3 - 2 * p), 24)) for p in padding)
    C, O = draw(st.sampled_from([16, 32, 48])), draw(st.sampled_from([16, 32, 48, 64]))
    g = conv_geometry((draw(st.integers(fewest, 3)), C, H, W), (O, C, 3, 3), 2, padding)
    return Case(
        g, draw(st.booleans()), draw(st.sampled_from([1, 2, 3, 64])), draw(layouts),
        draw(st.integers(0, 999)),
    )  # fmt: skip


def close(found: np.ndarray, expected: np.ndarray) -> None:
    bound = 1e-12 * max(1.0, float(np.abs(expected).max(initial=0)))
    np.testing.assert_allclose(found, expected, rtol=0, atol=bound)


@given(case=cases())
def test_all_passes(case: Case) -> None:
    g, (x, weight, gy) = case.geometry, case.arrays()
    with case.on_its_path():
        y, gx = strided.conv2d(x, weight, g), strided.conv2d_grad_input(gy, weight, g)
        dw = strided_gradient.conv2d_grad_weight(x, gy, g)
    settings = (2, 2), g.padding, (1, 1), 1
    close(y, oracles.conv2d(x, weight, *settings))
    close(gx, oracles.conv2d_grad_input(gy, weight, x.shape, *settings))
    close(dw, oracles.conv2d_grad_weight(x, gy, weight.shape, *settings))


@given(case=cases())
def test_the_passes_are_adjoint_to_each_other(case: Case) -> None:
    """<gy, conv(x, w)> = <gx, x> = <dw, w>."""
    g, (x, weight, gy) = case.geometry, case.arrays()
    with case.on_its_path():
        forward = (strided.conv2d(x, weight, g) * gy).sum()
        back = (strided.conv2d_grad_input(gy, weight, g) * x).sum()
        across = (strided_gradient.conv2d_grad_weight(x, gy, g) * weight).sum()
    scale = np.sqrt(float(gy.size)) * g.C * 9 + 1
    assert abs(forward - back) < 1e-12 * scale
    assert abs(forward - across) < 1e-12 * scale


@given(case=cases(), dtype=st.sampled_from([np.float32, np.float64]))
def test_what_is_loaded_is_normalised_and_rectified(case: Case, dtype: Any) -> None:
    g, (x, weight, gy) = case.geometry, case.arrays(dtype)
    before = Before(*np.random.default_rng(case.seed).standard_normal((3, g.C)).astype(dtype))
    with case.on_its_path():
        activated = norm.normalise(x, *before, None, True)
        np.testing.assert_array_equal(
            strided.conv2d_fused(x, weight, g, before, None, False),
            strided.conv2d(activated, weight, g),
        )
        np.testing.assert_array_equal(
            strided_gradient.conv2d_grad_weight_fused(x, gy, g, before),
            strided_gradient.conv2d_grad_weight(activated, gy, g),
        )


@given(case=cases(), rectify=st.booleans(), joined=st.booleans())
def test_what_is_stored_is_shifted_added_to_and_rectified(
    case: Case, rectify: bool, joined: bool
) -> None:
    g, (x, weight, gy) = case.geometry, case.arrays(np.float32)
    after = After(normal(0, (g.O,), np.float32), gy if joined else None, rectify)
    with case.on_its_path():
        expected = norm.normalise(strided.conv2d(x, weight, g), None, None, *after)
        found = strided.conv2d_fused(x, weight, g, None, after, False)
    np.testing.assert_array_equal(found, expected)


@given(case=cases(fewest=1))
def test_moments(case: Case) -> None:
    g, (x, weight, _) = case.geometry, case.arrays()
    with case.on_its_path():
        y, mean, var = strided.conv2d_fused(x, weight, g, None, None, True)
        np.testing.assert_array_equal(y, strided.conv2d(x, weight, g))
    close(mean, y.mean(axis=(0, 2, 3)))
    close(var, y.var(axis=(0, 2, 3)))


@given(case=cases())
def test_the_sum_has_the_bits_of_two_passes(case: Case) -> None:
    g, (x, weight, gy) = case.geometry, case.arrays(np.float32)
    total = np.ascontiguousarray(x.transpose(0, 2, 3, 1)).transpose(0, 3, 1, 2)
    with case.on_its_path():
        expected = total + strided.conv2d_grad_input(gy, weight, g)
        found = strided.add_conv2d_grad_input(total, gy, weight, g)
    np.testing.assert_array_equal(found, expected)
    assert np.shares_memory(found, total) or not total.size


PATHS = [
    Case(conv_geometry((2, 48, 15, 12), (64, 48, 3, 3), 2, 1), blocked, 2, "channels_last", 0)
    for blocked in (False, True)
]
both_paths = pytest.mark.parametrize("case", PATHS, ids=["batched", "blocked"])


@both_paths
@pytest.mark.parametrize("zone", [NAN_BYTE, ZERO_BYTE])
def test_nothing_outside_is_read_or_written(case: Case, zone: int) -> None:
    g, guards = case.geometry, Guards(zone)
    x, weight, gy = case.arrays(np.float32)
    before = Before(*np.random.default_rng(1).standard_normal((3, g.C)).astype(np.float32))
    after = After(normal(3, (g.O,), np.float32), gy, True)
    placed = [guards.place(a, k) for a, k in ((x, "x"), (weight, "weight"), (gy, "gy"))]

    def run(x: Any, weight: Any, gy: Any) -> tuple[Any, ...]:
        return (
            strided.conv2d_fused(x, weight, g, before, None, False),
            strided.conv2d_fused(x, weight, g, None, after, False),
            *strided.conv2d_fused(x, weight, g, None, None, True),
            strided.conv2d_grad_input(gy, weight, g),
            strided_gradient.conv2d_grad_weight(x, gy, g),
        )

    with case.on_its_path():
        expected = run(x, weight, gy)
        with guards.allocations():
            found = run(*placed)
    assert guards.broken() == []
    for f, e in zip(found, expected, strict=True):
        np.testing.assert_array_equal(f, e)


@both_paths
def test_what_cannot_be_fused(case: Case) -> None:
    x, weight, _ = case.arrays()
    after = After(normal(3, (case.geometry.O,)), None, True)
    with case.on_its_path():
        with pytest.raises(ValueError, match="not both"):
            strided.conv2d_fused(x, weight, case.geometry, None, after, True)
        empty = conv_geometry((0, *x.shape[1:]), weight.shape, 2, 1)
        with pytest.raises(ValueError, match="no pixels"):
            strided.conv2d_fused(x[:0], weight, empty, None, None, True)


def test_tiles_of_three_take_what_fours_would_leave_empty() -> None:
    found = {n: Tiling.of(1, n, 4) for n in (1, 4, 5, 6, 7, 14, 28, 30)}
    rows = {n: (tiling.tall, tiling.short) for n, tiling in found.items()}
    assert rows == {
        1: (0, 1), 4: (1, 0), 5: (0, 2), 6: (0, 2), 7: (1, 1), 14: (2, 2), 28: (7, 0), 30: (6, 2),
    }  # fmt: skip
    assert Tiling.of(3, 7, 14).tiles == 3 * 2 * 4


@pytest.mark.parametrize("name", PASSES)
@pytest.mark.parametrize("size", [14, 28])
@pytest.mark.parametrize("blocked", [False, True])
def test_the_stated_bound(name: str, size: int, blocked: bool) -> None:
    """Rectified activations, He's weights and gradients, in float32."""
    rng = np.random.default_rng(0)
    g = conv_geometry((4, 64, size, size), (128, 64, 3, 3), 2, 1)
    x = np.maximum(rng.standard_normal(g.x_shape), 0).astype(np.float32)
    weight = (rng.standard_normal(g.weight_shape) * np.sqrt(2 / (9 * g.O))).astype(np.float32)
    gy = rng.standard_normal(g.y_shape).astype(np.float32)
    arrays = {"conv2d": (x, weight), "conv2d_grad_input": (gy, weight)}.get(name, (x, gy))
    module = strided_gradient if name == "conv2d_grad_weight" else strided
    with Case(g, blocked, 2, "channels_last", 0).on_its_path():
        found = getattr(module, name)(*arrays, g)
    exact = operation(name).kernels[0].function(*(a.astype(np.float64) for a in arrays), g)
    error = np.abs(found - exact).max() / np.abs(exact).max()
    assert found.dtype == np.float32
    assert 1e-8 < error < BOUND


@both_paths
def test_nothing_is_left_over_from_the_call_before(case: Case) -> None:
    """The same bits again, with the memory in between full of something else."""
    g, (x, weight, gy) = case.geometry, case.arrays(np.float32)

    def run() -> list[bytes]:
        moments = strided.conv2d_fused(x, weight, g, None, None, True)
        back = strided.conv2d_grad_input(gy, weight, g)
        return [
            a.tobytes() for a in (*moments, back, strided_gradient.conv2d_grad_weight(x, gy, g))
        ]

    with case.on_its_path():
        before = run()
        for _ in range(2):
            junk = [strided.memory.empty(n, np.float32) for n in (1 << 16, 1 << 18, 1 << 20)]
            for array in junk:
                array[:] = np.nan
            del junk, array
            assert run() == before


@pytest.mark.parametrize("name", PASSES)
def test_it_is_chosen_for_the_strided_layers_it_supports(name: str) -> None:
    small = conv_geometry((128, 16, 32, 32), (32, 16, 3, 3), 2, 1)
    assert operation(name).select("cpu", small).name == "winograd-strided"
    g = conv_geometry((16, 64, 56, 56), (128, 64, 3, 3), 2, 1)
    kernel = operation(name).select("cpu", g)
    assert kernel.name == "winograd-strided"
    fused = [kernel.can_fuse(part, g) for part in (BEFORE, AFTER, MOMENTS, SUMS)]
    expected = {"conv2d": [1, 1, 1, 0], "conv2d_grad_weight": [1, 0, 0, 0]}
    assert fused == expected.get(name, [0, 0, 0, 1])
    with use(algorithm="exact"):
        assert operation(name).select("cpu", g).name in ("columns", "outer")
    for other in (
        conv_geometry((16, 32, 16, 16), (64, 32, 3, 3), 2, 1),
        conv_geometry((16, 64, 56, 56), (128, 64, 5, 5), 2, 1),
        conv_geometry((16, 64, 56, 56), (128, 64, 3, 3), (2, 1), 1),
        conv_geometry((16, 64, 56, 56), (128, 64, 3, 3), 2, 1, 2),
        conv_geometry((16, 64, 56, 56), (128, 32, 3, 3), 2, 1, 1, 2),
        conv_geometry((16, 72, 56, 56), (128, 72, 3, 3), 2, 1),
    ):
        assert operation(name).select("cpu", other).name != "winograd-strided"
