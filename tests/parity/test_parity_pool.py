"""Pooling against PyTorch, over drawn geometries, with ties, NaN and infinities."""

import numpy as np
import pytest
from against_torch import channels_last, close, compare, to_torch, torch

import minires as mr
from minires import functional as F

T = torch.nn.functional


def draw(seed, dilated):
    """Sizes 1 to 11, windows up to 5, any stride, padding up to half the window."""
    rng = np.random.default_rng(seed)
    while True:
        N, C = (int(n) for n in rng.integers(1, 4, 2))
        size, kernel = rng.integers(1, 12, 2), rng.integers(1, 6, 2)
        padding = [int(rng.integers(0, k // 2 + 1)) for k in kernel]
        dilation = rng.integers(1, 4, 2) if dilated and rng.random() < 0.4 else np.array([1, 1])
        if (size + 2 * np.array(padding) >= dilation * (kernel - 1) + 1).all():
            break
    settings = {"kernel_size": tuple(map(int, kernel)), "padding": tuple(padding)}
    if rng.random() < 0.8:
        settings["stride"] = tuple(map(int, rng.integers(1, 5, 2)))
    if dilated:
        settings["dilation"] = tuple(map(int, dilation))
    x = rng.standard_normal((N, C, *map(int, size)))
    return channels_last(x) if rng.random() < 0.5 else x, settings, rng


def both(name, x, settings, **options):
    compare(
        lambda x: getattr(F, name)(x, **settings),
        lambda x: getattr(T, name)(x, **settings),
        {"x": x},
        **options,
    )


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
@pytest.mark.parametrize("seed", range(40))
def test_max_pool(seed, dtype):
    x, settings, _ = draw(seed, dilated=True)
    both("max_pool2d", x.astype(dtype), settings)


@pytest.mark.parametrize("seed", range(20))
def test_max_pool_with_ties(seed):
    """Few different values, so that windows tie: the first element gets the whole gradient."""
    x, settings, rng = draw(seed, dilated=True)
    both("max_pool2d", rng.integers(0, 2, x.shape).astype(np.float64), settings)


@pytest.mark.parametrize("seed", range(20))
def test_max_pool_with_infinities(seed):
    """Windows of nothing but -inf still point at a pixel, and not at the padding."""
    x, settings, rng = draw(seed, dilated=True)
    x = np.where(rng.random(x.shape) < 0.7, -np.inf, x)
    x[rng.random(x.shape) < 0.05] = np.inf
    both("max_pool2d", x, settings)


@pytest.mark.parametrize("seed", range(10))
def test_max_pool_with_nan(seed):
    x, settings, rng = draw(seed, dilated=True)
    x[rng.random(x.shape) < 0.2] = np.nan
    y = F.max_pool2d(mr.Tensor(x), **settings)
    close(y, T.max_pool2d(to_torch(x), **settings), "output")
    # One NaN to a plane: with several in one window, the choice is nobody's promise.
    x = np.nan_to_num(x)
    x[:, :, x.shape[2] // 2, x.shape[3] // 2] = np.nan
    both("max_pool2d", x, settings)


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
@pytest.mark.parametrize("count_include_pad", [True, False])
@pytest.mark.parametrize("seed", range(25))
def test_avg_pool(seed, count_include_pad, dtype):
    x, settings, _ = draw(seed, dilated=False)
    both("avg_pool2d", x.astype(dtype), settings | {"count_include_pad": count_include_pad})


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
@pytest.mark.parametrize("size", [(1, 1), (7, 5), (6, 8), (2, 9)])
@pytest.mark.parametrize("out", [1, (1, 1), (3, 2), (7, 5), (4, 1), (9, 11)])
def test_adaptive_avg_pool(size, out, dtype):
    x = np.random.default_rng(0).standard_normal((2, 3, *size)).astype(dtype)
    both("adaptive_avg_pool2d", x, {"output_size": out})
    both("adaptive_avg_pool2d", channels_last(x), {"output_size": out})
