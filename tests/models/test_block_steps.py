"""What a block's branch computes, step by step, and what a listener at its batch norms hears."""

from __future__ import annotations

import numpy as np
import pytest

import minires as mr
from minires import functional as F
from minires.testing import assert_close


def made(build: type[mr.nn.Module]) -> mr.nn.Module:
    """A block in float64, its batch norms away from their initial values."""
    block = build(4, 3).double()
    rng = np.random.default_rng(0)
    for parameter in block.parameters():
        parameter.data = parameter.data + 0.3 * rng.standard_normal(parameter.shape)
    return block


@pytest.fixture
def x(rng: np.random.Generator) -> mr.Tensor:
    return mr.Tensor(rng.standard_normal((2, 4, 5, 6)))


def test_a_basic_branch_is_conv_norm_relu_conv_norm(x: mr.Tensor) -> None:
    block = made(mr.models.BasicBlock)
    first = np.maximum(block.bn1(block.conv1(x)).numpy(), 0.0)
    assert (first == 0.0).mean() > 0.2
    assert_close(block.branch(x), block.bn2(block.conv2(mr.Tensor(first))))
    assert (block.branch(x).numpy() < 0.0).any()  # no ReLU before the join


def test_a_bottleneck_branch_has_two_relus(x: mr.Tensor) -> None:
    block = made(mr.models.Bottleneck)
    first = np.maximum(block.bn1(block.conv1(x)).numpy(), 0.0)
    second = np.maximum(block.bn2(block.conv2(mr.Tensor(first))).numpy(), 0.0)
    assert_close(block.branch(x), block.bn3(block.conv3(mr.Tensor(second))))


@pytest.mark.parametrize("training", [True, False])
def test_a_listener_at_a_batch_norm_hears_it_before_the_relu(
    training: bool, x: mr.Tensor
) -> None:
    """One pass computes norm and ReLU together, unless somebody wants to see what lies between."""
    block = made(mr.models.BasicBlock).train(training)
    expected = block.branch(x)
    heard: list[np.ndarray] = []
    before: list[np.ndarray] = []
    remove = block.bn1.register_forward_hook(lambda module, args, y: heard.append(y.numpy()))
    assert_close(block.branch(x), expected)
    remove.remove()
    assert len(heard) == 1
    assert (heard[0] < 0.0).any()
    removed = block.bn1.register_forward_pre_hook(lambda module, args: before.append(args[0]))
    assert_close(F.relu(mr.Tensor(heard[0])), block.bn1.relu(block.conv1(x)))
    removed.remove()
    assert len(before) == 1
