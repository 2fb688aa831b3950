"""Layers: shapes of parameters, settings passed on, defaults, and what they refuse."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

import minires as mr
from minires import functional as F
from minires import nn
from minires.testing.compare import assert_close


@pytest.fixture
def x(rng: np.random.Generator) -> mr.Tensor:
    return mr.Tensor(rng.standard_normal((2, 4, 7, 6)).astype(np.float32))


def test_conv2d_passes_everything_on(x: mr.Tensor) -> None:
    layer = nn.Conv2d(4, 6, (3, 2), (2, 1), (1, 0), (1, 2), groups=2)
    assert layer.weight.shape == (6, 2, 3, 2)
    assert layer.bias.shape == (6,)
    with mr.no_grad():
        layer.bias.copy_(np.arange(6))
    expected = F.conv2d(x, layer.weight, layer.bias, (2, 1), (1, 0), (1, 2), 2)
    assert_close(layer(x), expected, rtol=0, atol=0)


def test_conv2d_without_bias_and_with_named_padding(x: mr.Tensor) -> None:
    layer = nn.Conv2d(4, 2, 3, padding="same", bias=False)
    assert layer.bias is None
    assert [n for n, _ in layer.named_parameters()] == ["weight"]
    assert layer(x).shape == (2, 2, 7, 6)
    assert nn.Conv2d(4, 2, 3, 2, "valid")(x).shape == (2, 2, 3, 2)


def test_conv2d_repr() -> None:
    assert repr(nn.Conv2d(3, 8, 3)) == "Conv2d(3, 8, kernel_size=(3, 3))"
    layer = nn.Conv2d(4, 8, 3, 2, 1, 2, 4, bias=False)
    assert repr(layer) == (
        "Conv2d(4, 8, kernel_size=(3, 3), stride=(2, 2), padding=(1, 1), dilation=(2, 2), "
        "groups=4, bias=False)"
    )


def test_linear(x: mr.Tensor) -> None:
    layer = nn.Linear(6, 5)
    assert (layer.weight.shape, layer.bias.shape) == ((5, 6), (5,))
    assert_close(layer(x), F.linear(x, layer.weight, layer.bias), rtol=0, atol=0)
    assert nn.Linear(6, 5, bias=False).bias is None


def test_batch_norm_trains_and_evaluates(x: mr.Tensor) -> None:
    layer = nn.BatchNorm2d(4, eps=1e-3, momentum=0.5)
    mean, var = mr.Tensor(np.zeros(4, np.float32)), mr.Tensor(np.ones(4, np.float32))
    with mr.no_grad():
        layer.weight.copy_([1, 2, 3, 4])
        layer.bias.copy_([4, 3, 2, 1])
    expected = F.batch_norm(x, mean, var, layer.weight, layer.bias, True, 0.5, 1e-3)
    assert_close(layer(x), expected, rtol=0, atol=0)
    assert_close(layer.running_mean, mean, rtol=0, atol=0)
    assert_close(layer.running_var, var, rtol=0, atol=0)
    assert layer.num_batches_tracked.item() == 1
    layer.eval()
    expected = F.batch_norm(x, mean, var, layer.weight, layer.bias, False, 0.5, 1e-3)
    assert_close(layer(x), expected, rtol=0, atol=0)
    assert layer.num_batches_tracked.item() == 1
    assert_close(layer.running_mean, mean, rtol=0, atol=0)


def test_batch_norm_options(x: mr.Tensor) -> None:
    plain = nn.BatchNorm2d(4, affine=False)
    assert list(plain.parameters()) == []
    assert "running_mean" in plain.state_dict()
    assert_close(plain(x), F.batch_norm(x, None, None), rtol=0, atol=0)
    untracked = nn.BatchNorm2d(4, track_running_stats=False)
    assert list(untracked.state_dict()) == ["weight", "bias"]
    assert_close(untracked.eval()(x), F.batch_norm(x, None, None), rtol=1e-5)
    assert repr(nn.BatchNorm2d(4)) == "BatchNorm2d(4, eps=1e-05, momentum=0.1)"


def test_a_refused_batch_is_not_counted() -> None:
    layer = nn.BatchNorm2d(4)
    for bad in (np.ones((1, 4, 1, 1), np.float32), np.ones((2, 3, 2, 2), np.float32)):
        with pytest.raises(ValueError, match="batch_norm: "):
            layer(mr.Tensor(bad))
    assert layer.num_batches_tracked.item() == 0
    np.testing.assert_array_equal(layer.running_mean.numpy(), np.zeros(4))


@pytest.mark.parametrize(
    ("layer", "function"),
    [
        (nn.ReLU(), F.relu),
        (nn.MaxPool2d(3, 2, 1), lambda x: F.max_pool2d(x, 3, 2, 1)),
        (nn.MaxPool2d((2, 3)), lambda x: F.max_pool2d(x, (2, 3))),
        (nn.MaxPool2d(2, 1, 0, 2), lambda x: F.max_pool2d(x, 2, 1, 0, 2)),
        (nn.AvgPool2d(2), lambda x: F.avg_pool2d(x, 2)),
        (nn.AvgPool2d(3, 1, 1, False), lambda x: F.avg_pool2d(x, 3, 1, 1, False, False)),
        (nn.AdaptiveAvgPool2d((3, 2)), lambda x: F.adaptive_avg_pool2d(x, (3, 2))),
        (nn.Flatten(), lambda x: x.flatten(1)),
        (nn.Flatten(2, 3), lambda x: x.flatten(2, 3)),
        (nn.Identity(), lambda x: x),
        (nn.Dropout(0.0), lambda x: x),
        (nn.Dropout(0.5).eval(), lambda x: x),
    ],
)
def test_layers_without_parameters(layer: Any, function: Any, x: mr.Tensor) -> None:
    assert_close(layer(x), function(x), rtol=0, atol=0)
    assert list(layer.state_dict()) == []


def test_dropout_drops_in_training(x: mr.Tensor) -> None:
    layer = nn.Dropout(0.5)
    mr.manual_seed(4)
    y = layer(x)
    mr.manual_seed(4)
    assert_close(y, F.dropout(x, 0.5), rtol=0, atol=0)
    assert 0.3 < (y == 0).float().mean().item() < 0.7


def test_cross_entropy_loss(rng: np.random.Generator) -> None:
    logits, labels = rng.standard_normal((3, 4)).astype(np.float32), np.array([0, -7, 3])
    weight = np.array([1, 2, 3, 4], np.float32)
    layer = nn.CrossEntropyLoss(weight, -7, "sum", 0.1)
    assert_close(layer(logits, labels), F.cross_entropy(logits, labels, weight, -7, "sum", 0.1))
    assert list(layer.state_dict()) == ["weight"]
    assert list(nn.CrossEntropyLoss().state_dict()) == []
    assert_close(nn.CrossEntropyLoss()(logits, [0, 1, 2]), F.cross_entropy(logits, [0, 1, 2]))


def test_reprs_of_settings() -> None:
    assert repr(nn.MaxPool2d(3, 2, 1)) == "MaxPool2d(kernel_size=3, stride=2, padding=1)"
    assert repr(nn.AvgPool2d(2)) == "AvgPool2d(kernel_size=2, stride=2, padding=0)"
    assert repr(nn.AdaptiveAvgPool2d(1)) == "AdaptiveAvgPool2d(output_size=1)"
    assert repr(nn.Dropout(0.2)) == "Dropout(p=0.2)"
    assert repr(nn.Linear(2, 1, bias=False)) == "Linear(2, 1, bias=False)"


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: nn.Conv2d(0, 1, 1), ValueError, "Conv2d: in_channels must be at least 1, got 0"),
        (lambda: nn.Conv2d(1.0, 1, 1), TypeError, r"Conv2d: in_channels takes an integer, got 1"),
        (lambda: nn.Conv2d(3, 4, 1, groups=2), ValueError,
         "Conv2d: groups=2 must divide in_channels=3 and out_channels=4"),
        (lambda: nn.Conv2d(1, 1, 0), ValueError, "Conv2d: kernel_size must be at least 1"),
        (lambda: nn.Conv2d(1, 1, 1, 0), ValueError, "Conv2d: stride must be at least 1"),
        (lambda: nn.Conv2d(1, 1, 1, padding=-1), ValueError, "Conv2d: padding must be at least 0"),
        (lambda: nn.Conv2d(1, 1, 1, padding="all"), ValueError, "Conv2d: padding is an integer, "),
        (lambda: nn.Conv2d(1, 1, 1, 2, "same"), ValueError, "padding='same' needs stride 1, got 2"),
        (lambda: nn.Linear(2, 0), ValueError, "Linear: out_features must be at least 1, got 0"),
        (lambda: nn.Linear(True, 1), TypeError, "Linear: in_features takes an integer, got True"),
        (lambda: nn.BatchNorm2d(-1), ValueError, "BatchNorm2d: num_features must be at least 1"),
        (lambda: nn.BatchNorm2d(3, eps=0), ValueError, "eps must be greater than 0, got 0"),
        (lambda: nn.BatchNorm2d(3, eps=math.nan), ValueError, "eps must be greater than 0"),
        (lambda: nn.BatchNorm2d(3, eps=None), TypeError, "eps takes a number, got None"),
        (lambda: nn.BatchNorm2d(3, momentum=2), ValueError, "momentum is a share between 0 and 1"),
        (lambda: nn.BatchNorm2d(3, momentum=None), TypeError, "momentum takes a number, got None"),
        (lambda: nn.Dropout(1.5), ValueError, r"Dropout: p is a probability .*, got 1\.5"),
    ],
)  # fmt: skip
def test_refusals(make: Any, error: Any, message: str) -> None:
    with pytest.raises(error, match=message):
        make()


def test_a_layer_says_what_does_not_fit(x: mr.Tensor) -> None:
    with pytest.raises(ValueError, match=r"conv2d: weight expects 3 input channels, x has 4 "):
        nn.Conv2d(3, 2, 1)(x)
    with pytest.raises(TypeError, match="conv2d: x is float64 and weight is float32; convert one"):
        nn.Conv2d(4, 2, 1)(x.double())


# -- initialisation -------------------------------------------------------------------------------


def test_conv_weights_are_he_initialised() -> None:
    weight = nn.Conv2d(64, 128, 3).weight.numpy()
    assert abs(weight.std() / np.sqrt(2 / (128 * 9)) - 1) < 0.02
    assert abs(weight.mean()) < 1e-3
    assert not nn.Conv2d(4, 4, 1).bias.numpy().any()


def test_linear_weights_are_uniform() -> None:
    layer = nn.Linear(100, 200)
    for values in (layer.weight.numpy(), layer.bias.numpy()):
        assert np.abs(values).max() <= 0.1
        assert np.abs(values).max() > 0.09
        assert abs(values.std() / (0.1 / np.sqrt(3)) - 1) < 0.1


@pytest.mark.parametrize(
    ("options", "variance"),
    [
        ({}, 2 / 90),
        ({"mode": "fan_out"}, 2 / 1800),
        ({"mode": "fan_out", "nonlinearity": "relu"}, 2 / 1800),
        ({"a": 1.0}, 1 / 90),
        ({"a": 1.0, "nonlinearity": "relu"}, 2 / 90),
        ({"nonlinearity": "linear"}, 1 / 90),
    ],
)
def test_kaiming_normal(options: dict[str, Any], variance: float) -> None:
    weight = nn.Parameter(np.zeros((200, 10, 3, 3), np.float32))
    assert nn.init.kaiming_normal_(weight, **options) is weight
    assert abs(weight.numpy().var() / variance - 1) < 0.05


def test_init_refusals() -> None:
    weight = nn.Parameter(np.zeros((2, 3), np.float32))
    with pytest.raises(ValueError, match="mode is 'fan_in' or 'fan_out', got 'fan_avg'"):
        nn.init.kaiming_normal_(weight, mode="fan_avg")
    with pytest.raises(ValueError, match="nonlinearity is one of relu, leaky_relu, linear, got 'e"):
        nn.init.kaiming_normal_(weight, nonlinearity="elu")
    with pytest.raises(ValueError, match=r"fan: needs a weight with at least two axes, got shape"):
        nn.init.kaiming_normal_(nn.Parameter([1.0]))


def test_a_seed_fixes_the_weights_whatever_the_dtype() -> None:
    mr.manual_seed(7)
    a = nn.Linear(3, 2).weight.numpy()
    mr.manual_seed(7)
    np.testing.assert_array_equal(nn.Linear(3, 2).weight.numpy(), a)
    assert not np.array_equal(nn.Linear(3, 2).weight.numpy(), a)
    mr.manual_seed(7)
    wide = nn.Parameter(np.zeros((2, 3)))
    nn.init.uniform_(wide, -(3**-0.5), 3**-0.5)
    assert_close(wide.float(), a, rtol=1e-6)


def test_init_is_a_change_in_place() -> None:
    p = nn.Parameter([1.0, 2.0])
    y = (p * p).sum()
    nn.init.constant_(p, 3.0)
    assert p.tolist() == [3, 3]
    with pytest.raises(RuntimeError, match="changed in place"):
        y.backward()


def test_skip_init_draws_nothing() -> None:
    mr.manual_seed(3)
    expected = nn.Linear(2, 2).weight.numpy().copy()
    mr.manual_seed(3)
    with nn.init.skip_init():
        with nn.init.skip_init():
            assert not nn.Linear(2, 2).weight.numpy().any()
        assert not nn.Conv2d(2, 2, 1).weight.numpy().any()
    np.testing.assert_array_equal(nn.Linear(2, 2).weight.numpy(), expected)


def test_reset_parameters_draws_anew() -> None:
    for layer in (nn.Linear(4, 4), nn.Conv2d(4, 4, 1)):
        before = layer.weight.numpy().copy()
        layer.reset_parameters()
        assert not np.array_equal(layer.weight.numpy(), before)
