"""Which kernels are chosen unasked: compiled ones where they pay, and only there."""

from __future__ import annotations

import pytest

from minires.bench.layers import conv_layers
from minires.data import digits
from minires.kernels import operation
from minires.training import recipes
from minires.training.evaluate import BATCH

PASSES = ("conv2d", "conv2d_grad_input", "conv2d_grad_weight")


@pytest.mark.parametrize("batch", [recipes.choose(digits("test")).batch_size, BATCH])
@pytest.mark.parametrize("name", PASSES)
def test_reading_digits_compiles_nothing(name: str, batch: int) -> None:
    """The first command that people run should not wait for a compiler, in evaluation neither."""
    for layer in conv_layers("resnet20", batch=batch, size=8, in_channels=1):
        assert operation(name).select("cpu", layer.geometry).name == "im2col"
    assert operation("normalise").select("cpu", (batch, 16, 8, 8)).name == "numpy"


@pytest.mark.parametrize("name", ["batch_norm_relu_train", "batch_norm_add_relu_grad", "add"])
def test_nor_does_what_is_between_the_convolutions(name: str) -> None:
    assert operation(name).select("cpu", (64, 16, 8, 8)).name == "numpy"
    assert operation(name).select("cpu", (128, 64, 8, 8)).name == "simd"


@pytest.mark.parametrize(("model", "batch"), [("resnet20", 128), ("resnet18", 16), ("resnet50", 8)])
@pytest.mark.parametrize("name", PASSES)
def test_the_papers_nets_run_on_compiled_kernels(model: str, batch: int, name: str) -> None:
    for layer in conv_layers(model, batch):
        if layer.needs_grad_input or name != "conv2d_grad_input":
            chosen = operation(name).select("cpu", layer.geometry).name
            assert chosen.startswith("winograd") or chosen in ("columns", "outer", "direct")
