"""Kernels that add their result to a gradient that is there already, at a residual join."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import minires as mr
import minires.functional as F
from minires import nn
from minires.functional.conv import Conv2d
from minires.kernels import conv_geometry, operations, registry, use
from minires.kernels.cpu import columns, winograd

CASES = (
    # N, C, H, W, O, padding
    (1, 16, 1, 1, 16, 1),
    (2, 16, 4, 8, 32, 1),
    (3, 32, 5, 7, 16, 1),
    (2, 16, 9, 6, 48, 0),
    (1, 16, 3, 10, 16, 2),
    (1, 256, 5, 6, 256, 1),
)


def images(rng: np.random.Generator, shape: tuple[int, ...], dtype: Any = np.float32) -> Any:
    N, C, H, W = shape
    return rng.standard_normal((N, H, W, C)).astype(dtype).transpose(0, 3, 1, 2)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("case", CASES, ids=str)
def test_the_sum_has_the_bits_of_two_passes(case: Any, dtype: Any, rng: Any) -> None:
    N, C, H, W, O, padding = case
    g = conv_geometry((N, C, H, W), (O, C, 3, 3), 1, padding)
    gy, weight = images(rng, g.y_shape, dtype), rng.standard_normal((O, C, 3, 3)).astype(dtype)
    total = images(rng, g.x_shape, dtype)
    expected = total + winograd.conv2d_grad_input(gy, weight, g)
    result = winograd.add_conv2d_grad_input(total, gy, weight, g)
    np.testing.assert_array_equal(result, expected)
    assert np.shares_memory(result, total)


COLUMN_CASES = (
    # N, C, H, W, O, kernel, stride, padding
    (1, 16, 1, 1, 16, 1, 1, 0),
    (2, 48, 5, 7, 32, 1, 1, 0),
    (3, 32, 9, 11, 80, 1, 1, 0),
    (2, 64, 7, 6, 16, 1, 2, 0),
    (2, 16, 6, 5, 32, 3, 2, 1),
    (2, 176, 5, 6, 176, 3, 2, 1),  # too large for phases: columns are added up
)


@pytest.mark.parametrize("threads", [1, 2, 64])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("case", COLUMN_CASES, ids=str)
def test_columns_add_the_bits_of_two_passes(
    case: Any, dtype: Any, threads: int, rng: Any, monkeypatch: Any
) -> None:
    monkeypatch.setattr("minires.kernels.threads._count", threads)
    N, C, H, W, O, kernel, stride, padding = case
    g = conv_geometry((N, C, H, W), (O, C, kernel, kernel), stride, padding)
    gy, weight = images(rng, g.y_shape, dtype), rng.standard_normal(g.weight_shape).astype(dtype)
    total = images(rng, g.x_shape, dtype)
    expected = total + columns.conv2d_grad_input(gy, weight, g)
    result = columns.add_conv2d_grad_input(total, gy, weight, g)
    np.testing.assert_array_equal(result, expected)
    if C < 176:
        assert np.shares_memory(result, total)


def test_a_total_in_other_memory(rng: np.random.Generator) -> None:
    g = conv_geometry((2, 16, 6, 6), (16, 16, 3, 3), 1, 1)
    gy, weight = images(rng, g.y_shape), rng.standard_normal((16, 16, 3, 3)).astype(np.float32)
    total = rng.standard_normal(g.x_shape).astype(np.float32)
    expected = total + winograd.conv2d_grad_input(gy, weight, g)
    result = winograd.add_conv2d_grad_input(total, gy, weight, g)
    np.testing.assert_array_equal(result, expected)


def test_only_a_kernel_that_can_is_asked(rng: np.random.Generator) -> None:
    g = conv_geometry((1, 16, 8, 8), (16, 16, 3, 3), 1, 1)
    gy, weight = images(rng, g.y_shape), rng.standard_normal((16, 16, 3, 3)).astype(np.float32)
    total = images(rng, g.x_shape)
    before = total.copy()
    with use(conv2d_grad_input="im2col"):
        assert operations.conv2d_grad_input.add_into(total, gy, weight, g) is None
    np.testing.assert_array_equal(total, before)
    with use(conv2d_grad_input="winograd"):
        result = operations.conv2d_grad_input.add_into(total, gy, weight, g)
        expected = before + operations.conv2d_grad_input(gy, weight, g)
    np.testing.assert_array_equal(result, expected)


def test_an_observer_sees_the_pass(rng: np.random.Generator, monkeypatch: Any) -> None:
    seen = []

    def watch(operation: Any, kernel: Any, args: Any) -> Any:
        seen.append((operation.name, kernel.name, len(args)))
        return kernel.function(*args)

    g = conv_geometry((1, 16, 8, 8), (16, 16, 3, 3), 1, 1)
    gy, weight = images(rng, g.y_shape), rng.standard_normal((16, 16, 3, 3)).astype(np.float32)
    total = images(rng, g.x_shape)
    expected = total + winograd.conv2d_grad_input(gy, weight, g)
    monkeypatch.setattr(registry, "observer", watch)
    with use(conv2d_grad_input="winograd"):
        result = operations.conv2d_grad_input.add_into(total, gy, weight, g)
    np.testing.assert_array_equal(result, expected)
    assert seen == [("conv2d_grad_input", "winograd", 3)]


# -- in a backward pass ---------------------------------------------------------------------------


class Join(nn.Module):
    """relu(norm(conv(relu(norm(conv(x))))) + x) on what an operation made, so that x is no leaf."""

    def __init__(self) -> None:
        super().__init__()
        self.block = mr.models.BasicBlock(16, 16, 1, "A")

    def forward(self, x: mr.Tensor) -> mr.Tensor:
        return self.block(self.block(x * 2.0))


def gradients(net: nn.Module, x: Any, upstream: Any, **options: Any) -> list[np.ndarray]:
    net.zero_grad()
    leaf = mr.Tensor(x, requires_grad=True)
    net(leaf).backward(upstream, **options)
    return [t.grad.numpy().copy() for t in (leaf, *net.parameters())]


@pytest.fixture
def joined(rng: np.random.Generator) -> Any:
    mr.manual_seed(1)
    return Join(), images(rng, (8, 16, 32, 32)), images(rng, (8, 16, 32, 32))


def test_gradients_at_a_join_are_the_same_bits(joined: Any, monkeypatch: Any) -> None:
    calls = []
    original = registry.Chosen.add_into

    def counted(self: Any, *args: Any) -> Any:
        result = original(self, *args)
        calls.append(result is not None)
        return result

    monkeypatch.setattr(registry.Chosen, "add_into", counted)
    monkeypatch.setattr(registry.Kernel, "can_fuse", lambda *_: False)  # sums, on the way
    with use(conv2d_grad_input="winograd"):
        together = gradients(*joined)
        assert calls == [True, True]
        monkeypatch.setattr(Conv2d, "adds", False)
        apart = gradients(*joined)
    assert len(calls) == 2
    for a, b in zip(together, apart, strict=True):
        np.testing.assert_array_equal(a, b)


def test_a_gradient_that_both_sides_share_is_not_added_to(joined: Any, monkeypatch: Any) -> None:
    """add_relu hands one array to branch and shortcut: the convolution still reads it."""
    net, x, upstream = joined

    def run() -> Any:
        leaf = mr.Tensor(x, requires_grad=True)
        middle = leaf * 2.0
        F.add_relu(net.block.conv1(middle), middle).backward(upstream)
        return leaf.grad.numpy()

    with use(conv2d_grad_input="winograd"):
        found = run()
        monkeypatch.setattr(Conv2d, "adds", False)
        np.testing.assert_array_equal(found, run())


def test_a_gradient_that_a_hook_keeps_is_not_added_to(joined: Any) -> None:
    net, x, upstream = joined
    held: list[Any] = []
    with use(conv2d_grad_input="winograd"):
        leaf = mr.Tensor(x, requires_grad=True)
        middle = leaf * 2.0
        shortcut = middle.reshape(middle.shape)  # its gradient is middle's, in the same memory
        shortcut.register_hook(lambda g: held.append((g, g.numpy().copy())))
        (net.block.conv1(middle) * 1.0 + shortcut * 1.0).backward(upstream)
    for gradient, copy in held:
        np.testing.assert_array_equal(gradient.numpy(), copy)
    assert held


def test_the_upstream_gradient_is_not_added_to(joined: Any) -> None:
    net, x, upstream = joined
    before = upstream.copy()
    with use(conv2d_grad_input="winograd"):
        leaf = mr.Tensor(x, requires_grad=True)
        (net.block.conv1(leaf * 2.0) + leaf * 2.0).backward(upstream)
    np.testing.assert_array_equal(upstream, before)


def test_what_an_interrupted_backward_left_is_not_added_to(joined: Any, monkeypatch: Any) -> None:
    net, x, upstream = joined
    leaf = mr.Tensor(x, requires_grad=True)
    middle = leaf * 2.0
    y = net.block.conv1(middle)

    def interrupted(*args: Any) -> Any:
        raise KeyboardInterrupt

    with use(conv2d_grad_input="winograd"), monkeypatch.context() as patch:
        patch.setattr(registry.Chosen, "add_into", interrupted)
        with pytest.raises(KeyboardInterrupt):  # at a join
            (y + middle * 1.0).backward(upstream, retain_graph=True)
    with use(conv2d_grad_input="winograd"):
        y.backward(upstream)
        found = leaf.grad.numpy().copy()
        leaf.zero_grad()
        net.block.conv1(leaf * 2.0).backward(upstream)
    np.testing.assert_array_equal(found, leaf.grad.numpy())


def test_twice_through_one_graph(joined: Any) -> None:
    with use(conv2d_grad_input="winograd"):
        net, x, upstream = joined
        net.zero_grad()
        leaf = mr.Tensor(x, requires_grad=True)
        y = net(leaf)
        y.backward(upstream, retain_graph=True)
        once = leaf.grad.numpy().copy()
        y.backward(upstream)
    np.testing.assert_array_equal(leaf.grad.numpy(), 2 * once)
