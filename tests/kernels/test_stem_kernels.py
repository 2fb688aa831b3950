"""The first layer's kernel: every edge against the oracle, the stated errors, the points."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import oracles
import pytest
from drawn import layouts, normal, seeds
from hypothesis import given
from hypothesis import strategies as st
from oracles import laid_out

pytest.importorskip("numba")
import minires as mr
from minires.kernels import ConvGeometry, conv_geometry, operation, threads
from minires.kernels.cpu import norm, stem, stem_tiles
from minires.kernels.fusing import AFTER, BEFORE, MOMENTS, After, Before
from minires.kernels.registry import use
from minires.kernels.threads import use_own_threads

PASSES = ("conv2d", "conv2d_grad_weight")
OUTPUTS = (32, 64, 96, 160)
BOUND = 5e-6  # two images, largest error over largest value; a gradient of 16x3x224x224 has 1e-5


@pytest.fixture(scope="module", autouse=True)
def own_threads() -> None:
    use_own_threads()


def close(found: np.ndarray, expected: np.ndarray) -> None:
    bound = 1e-12 * max(1.0, float(np.abs(expected).max(initial=0)))
    np.testing.assert_allclose(found, expected, rtol=0, atol=bound)


Case = tuple[ConvGeometry, Any, Any, Any, int, int]


@st.composite
def cases(draw: Any, fewest: int = 0) -> Case:
    """Geometry, x, weight, gy, how many workers, and tiles in a run: images smaller than a tile,
    fewer runs than workers, several in a row."""
    pairs = st.tuples(st.integers(5, 8), st.integers(0, 8), st.integers(1, 24))
    (KH, ph, H), (KW, pw, W) = draw(pairs), draw(pairs)
    N, C, O = draw(st.integers(fewest, 3)), draw(st.integers(1, 4)), draw(st.sampled_from(OUTPUTS))
    H, W = max(H, KH - 2 * ph), max(W, KW - 2 * pw)  # as large as the kernel, with its padding
    g = conv_geometry((N, C, H, W), (O, C, KH, KW), 2, (ph, pw))
    layout, seed = draw(layouts), draw(seeds)
    shapes = g.x_shape, g.weight_shape, g.y_shape
    x, weight, gy = (laid_out(normal(seed + k, s), layout) for k, s in enumerate(shapes))
    return g, x, weight, gy, draw(st.sampled_from([1, 2, 3, 64])), draw(st.sampled_from([1, 2, 30]))


@contextmanager
def divided(workers: int, run: int) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(threads, "_count", workers)
        patch.setattr(stem, "RUN", run)
        yield


@given(case=cases())
def test_both_passes(case: Case) -> None:
    g, x, weight, gy, *division = case
    with divided(*division):
        found, back = stem.conv2d(x, weight, g), stem.conv2d_grad_weight(x, gy, g)
    settings = (2, 2), g.padding, (1, 1), 1
    close(found, oracles.conv2d(x, weight, *settings))
    close(back, oracles.conv2d_grad_weight(x, gy, g.weight_shape, *settings))


@given(case=cases(), rectify=st.booleans(), joined=st.booleans())
def test_finished_before_it_is_stored(case: Case, rectify: bool, joined: bool) -> None:
    g, x, weight, gy, *division = case
    after = After(normal(0, (g.O,)), gy if joined else None, rectify)
    with divided(*division):
        found = stem.conv2d_fused(x, weight, g, None, after, False)
    np.testing.assert_array_equal(
        found, norm.normalise(stem.conv2d(x, weight, g), None, None, *after)
    )


@given(case=cases(fewest=1))
def test_moments(case: Case) -> None:
    g, x, weight, _, *division = case
    with divided(*division):
        y, mean, var = stem.conv2d_fused(x, weight, g, None, None, True)
    np.testing.assert_array_equal(y, stem.conv2d(x, weight, g))
    close(mean, y.mean(axis=(0, 2, 3)))
    close(var, y.var(axis=(0, 2, 3)))


def test_what_cannot_be_fused() -> None:
    x, weight = normal(0, (1, 3, 9, 9)), normal(1, (32, 3, 7, 7))
    g = conv_geometry(x.shape, weight.shape, 2, 3)
    before, after = (normal(2, (3,)),) * 3, After(normal(3, (32,)), None, True)
    with pytest.raises(ValueError, match="normalise x in a pass of its own"):
        stem.conv2d_fused(x, weight, g, Before(*before), None, False)
    with pytest.raises(ValueError, match="not both"):
        stem.conv2d_fused(x, weight, g, None, after, True)
    empty = conv_geometry((0, 3, 9, 9), weight.shape, 2, 3)
    with pytest.raises(ValueError, match="no pixels"):
        stem.conv2d_fused(x[:0], weight, empty, None, None, True)


@pytest.fixture(scope="module")
def layer() -> tuple[Any, ...]:
    """Digits as ImageNet's images come, 3x112x112 in [-2.5, 2.5], and a first layer's weight."""
    rng = np.random.default_rng(0)
    digits = mr.data.digits("train").images[:2].astype(np.float64)
    images = digits.repeat(14, axis=2).repeat(14, axis=3) / digits.max() * 5 - 2.5
    x = np.clip(
        images * [[[1.0]], [[0.8]], [[0.6]]] + 0.1 * rng.standard_normal((112, 112)), -2.5, 2.5
    )
    weight = rng.standard_normal((64, 3, 7, 7)) * np.sqrt(2 / (64 * 49))
    g = conv_geometry(x.shape, weight.shape, 2, 3)
    gy = rng.standard_normal(g.y_shape) * (rng.random(g.y_shape) < 0.25)  # through a pool's maxima
    return *(a.astype(np.float32) for a in (x, weight, gy)), g


@pytest.mark.parametrize("name", PASSES)
def test_the_stated_bound(name: str, layer: tuple[Any, ...]) -> None:
    x, weight, gy, g = layer
    arrays = (x, weight if name == "conv2d" else gy)
    found = getattr(stem, name)(*arrays, g)
    exact = operation(name).kernels[0].function(*(a.astype(np.float64) for a in arrays), g)
    error = np.abs(found - exact).max() / np.abs(exact).max()
    assert found.dtype == np.float32
    assert 1e-9 < error < BOUND


@pytest.mark.parametrize("name", PASSES)
def test_nothing_is_left_over_from_the_call_before(name: str, layer: tuple[Any, ...]) -> None:
    """The same call again, with the memory in between full of something else."""
    x, weight, gy, g = layer
    arguments = (x, weight if name == "conv2d" else gy, g)
    before = getattr(stem, name)(*arguments).tobytes()
    for _ in range(2):
        junk = [stem.memory.empty(n, np.float32) for n in (1 << 16, 1 << 18, 1 << 20)]
        for array in junk:
            array[:] = np.nan
        del junk, array
        assert getattr(stem, name)(*arguments).tobytes() == before


def test_products_are_left_out_where_they_are_zero() -> None:
    """169 of 4 * 49 per input channel for a kernel of 7, all of them for one of 8."""
    for kernel, expected in ((7, 7), 169), ((8, 7), 7 * 13 * 2), ((8, 8), 196):
        g = conv_geometry((1, 3, 20, 20), (32, 3, *kernel), 2)
        assert stem._depths(g).sum() == 3 * expected


def test_the_constants_are_exact_in_float32() -> None:
    a, b, c = stem_tiles.AA, stem_tiles.BB, stem_tiles.CC
    numbers = [a, b, c, a + b, a + c, b + c, a * b, a * c, b * c, a + b + c, a * b * c]
    numbers += [a * b + a * c + b * c, stem_tiles.POINT_A * a, stem_tiles.POINT_C * c]
    for number in numbers:
        assert float(np.float32(number)) == number


@pytest.mark.parametrize("name", PASSES)
def test_it_is_chosen_for_the_first_layers_it_supports(name: str) -> None:
    g = conv_geometry((16, 3, 224, 224), (64, 3, 7, 7), 2, 3)
    assert operation(name).select("cpu", g).name == "winograd-stem"
    if name == "conv2d":
        kernel = operation(name).select("cpu", g)
        assert [kernel.can_fuse(part, g) for part in (BEFORE, AFTER, MOMENTS)] == [0, 1, 1]
    with use(algorithm="exact"):
        assert operation(name).select("cpu", g).name == "direct"
    for other in (
        conv_geometry((16, 3, 224, 224), (64, 3, 7, 7), 1, 3),
        conv_geometry((16, 3, 224, 224), (64, 3, 3, 3), 2, 1),
        conv_geometry((16, 16, 112, 112), (64, 16, 7, 7), 2, 3),
        conv_geometry((16, 3, 224, 224), (48, 3, 7, 7), 2, 3),
        conv_geometry((16, 3, 224, 224), (64, 3, 7, 7), 2, 3, 2),
    ):
        assert operation(name).select("cpu", other).name != "winograd-stem"
