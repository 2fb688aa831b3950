"""Convolutions of few channels: every tile, several windows, what no window covers."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from cuda_compare import assert_conforms
from hypothesis import given
from hypothesis import strategies as st

from minires.kernels import ConvGeometry, available, conv_geometry
from minires.kernels.cuda import record, window
from minires.kernels.cuda.tiles import Tile
from minires.kernels.registry import operation
from minires.testing.kernel_inputs import convolution, draw_convolution
from minires.testing.kernels import reference_kernel

KERNELS = {k.operation: k for k in available() if k.backend == "cuda" and k.name == "window"}
LAYERS = {
    "stem": conv_geometry((1, 3, 20, 131), (37, 3, 7, 7), 2, 3),
    "CIFAR's stem": conv_geometry((2, 3, 19, 32), (16, 3, 3, 3), 1, 1),
    "16 channels": conv_geometry((2, 16, 18, 32), (16, 16, 3, 3), 1, 1),
    "32 channels, dilated": conv_geometry((1, 32, 16, 16), (36, 32, 3, 3), 1, 2, 2),
    "16 to 32, stride 2": conv_geometry((2, 16, 15, 17), (32, 16, 3, 3), 2, 1),
}


@pytest.mark.parametrize("tile", window.TILES, ids=str)
@pytest.mark.parametrize("text", LAYERS)
@pytest.mark.parametrize("name", ["conv2d", "conv2d_grad_input"])
def test_every_tile(
    device: Any, monkeypatch: pytest.MonkeyPatch, name: str, text: str, tile: Tile
) -> None:
    g = LAYERS[text]
    monkeypatch.setattr(window, "TILES", (tile,))
    if not KERNELS[name].supports(g, "float32"):
        pytest.skip("not taken")
    assert_conforms(device, KERNELS[name], reference_kernel(name), convolution(name, g), "float32")


@pytest.mark.parametrize("dtype", ["float32", "float64", "float16"])
@pytest.mark.parametrize("text", LAYERS)
def test_weight_gradients(device: Any, text: str, dtype: str) -> None:
    name = "conv2d_grad_weight"
    given = convolution(name, LAYERS[text])
    assert_conforms(device, KERNELS[name], reference_kernel(name), given, dtype)


@pytest.mark.parametrize("name", KERNELS)
@given(seed=st.integers(0, 2**32 - 1), scale=st.integers(1, 3))
def test_drawn_geometries(emulator: Any, name: str, seed: int, scale: int) -> None:
    g = draw_convolution(np.random.default_rng(seed))
    g = replace(g, C=4 * scale if g.groups > 1 else g.C, groups=1, N=g.N + scale)
    if KERNELS[name].supports(g, "float32"):
        given = convolution(name, g)
        assert_conforms(emulator, KERNELS[name], reference_kernel(name), given, "float32")


def test_what_no_window_covers_is_not_used(emulator: Any, rng: Any) -> None:
    """Stride 2 and 10 rows: the last one and its corner take no part, whatever stands there."""
    g = conv_geometry((3, 4, 10, 10), (8, 4, 3, 3), 2)
    x, gy, w = (rng.standard_normal(s) for s in (g.x_shape, g.y_shape, g.weight_shape))
    x[:, :, 9], x[:, :, :, 9] = np.nan, np.inf
    for name, args in (("conv2d", (x, w)), ("conv2d_grad_weight", (x, gy))):
        result = emulator(KERNELS[name].function, *args, g)
        right = reference_kernel(name).function(*args, g)
        assert np.isfinite(result).all()
        np.testing.assert_allclose(result, right, atol=1e-12)


def test_windows_cover_every_output_once() -> None:
    for g in [*LAYERS.values(), conv_geometry((1, 3, 224, 224), (64, 3, 7, 7), 2, 3)]:
        for tile in window.TILES:
            rows, columns = window.forward(g).window(tile.BM)
            assert rows * columns <= tile.BM
            assert window.forward(g).windows(tile.BM) == (
                g.N * -(-g.out[0] // rows) * -(-g.out[1] // columns)
            )
    stem = window.forward(conv_geometry((128, 3, 224, 224), (64, 3, 7, 7), 2, 3))
    assert window.tile_of(stem, 4, 132).BM == 112  # a row of outputs, none of it empty


@pytest.mark.parametrize("name", KERNELS)
def test_cifar_layers_fill_the_device(name: str) -> None:
    """Every multiprocessor has a block, and its shared memory is enough for what it holds."""
    for C, size in ((16, 32), (32, 16)):
        g = conv_geometry((128, C, size, size), (C, C, 3, 3), 1, 1)
        images = [np.zeros((128, size, size, C), np.float32).transpose(0, 3, 1, 2)] * 2
        if name != "conv2d_grad_weight":
            images[1] = np.zeros(g.weight_shape, np.float32)
        with record.device() as recorder:
            KERNELS[name].function(*images, g)
        first = recorder.launches[0]
        assert first.grid[0] * first.grid[1] >= 132
        assert first.shared * (first.grid[0] * first.grid[1] // 132) <= window.HELD


def test_where_it_is_chosen() -> None:
    def chosen(name: str, g: ConvGeometry, dtype: str = "float32") -> str:
        return operation(name).select("cuda", g, dtype).name

    stem = conv_geometry((128, 3, 224, 224), (64, 3, 7, 7), 2, 3)
    narrow = conv_geometry((128, 16, 32, 32), (16, 16, 3, 3), 1, 1)
    shortcut = conv_geometry((128, 16, 32, 32), (32, 16, 1, 1), 2)
    assert chosen("conv2d", stem) == chosen("conv2d_grad_weight", stem, "bfloat16") == "window"
    assert chosen("conv2d_grad_input", stem) == "implicit"  # stride 2
    assert all(chosen(name, narrow) == "window" for name in KERNELS)
    assert chosen("conv2d", narrow, "bfloat16") == "tensor"
    assert chosen("conv2d", shortcut) == "implicit"  # windows do not overlap
