"""Convolution and the linear layer against PyTorch, over drawn geometries."""

import numpy as np
import pytest
from against_torch import channels_last, close, compare, torch

from minires import functional as F
from minires import nn

T = torch.nn.functional


def draw(seed):
    """A convolution whose kernel fits: sizes 1 to 9, kernels up to 5, strides up to 3."""
    rng = np.random.default_rng(seed)
    while True:
        groups = int(rng.choice([1, 1, 1, 2, 3]))
        N, C, O = rng.integers(1, 4), groups * rng.integers(1, 5), groups * rng.integers(1, 5)
        size, kernel = rng.integers(1, 10, 2), rng.integers(1, 6, 2)
        stride, padding, dilation = rng.integers(1, 4, 2), rng.integers(0, 4, 2), (1, 1)
        if rng.random() < 0.3:
            dilation = rng.integers(1, 4, 2)
        span = np.multiply(dilation, kernel - 1) + 1
        if (size + 2 * padding >= span).all():
            break
    settings = {
        "stride": tuple(map(int, stride)),
        "padding": tuple(map(int, padding)),
        "dilation": tuple(map(int, dilation)),
        "groups": groups,
    }
    x = rng.standard_normal((N, C, *size))
    inputs = {
        "x": channels_last(x) if rng.random() < 0.5 else x,
        "weight": rng.standard_normal((O, C // groups, *kernel)),
        "bias": rng.standard_normal(O) if rng.random() < 0.5 else None,
    }
    return inputs, settings


def cast(inputs, dtype):
    return {k: None if v is None else v.astype(dtype, order="K") for k, v in inputs.items()}


def both(inputs, settings, **options):
    compare(
        lambda x, weight, bias: F.conv2d(x, weight, bias, **settings),
        lambda x, weight, bias: T.conv2d(x, weight, bias, **settings),
        inputs,
        **options,
    )


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
@pytest.mark.parametrize("seed", range(60))
def test_conv2d(seed, dtype):
    inputs, settings = draw(seed)
    both(cast(inputs, dtype), settings)


LAYERS = {
    "7x7/2 stem": ((2, 3, 40, 36), (16, 3, 7, 7), {"stride": 2, "padding": 3}),
    "3x3": ((2, 32, 14, 15), (32, 32, 3, 3), {"padding": 1}),
    "3x3/2": ((2, 24, 15, 16), (40, 24, 3, 3), {"stride": 2, "padding": 1}),
    "1x1": ((3, 40, 9, 8), (24, 40, 1, 1), {}),
    "1x1/2": ((3, 40, 9, 8), (24, 40, 1, 1), {"stride": 2}),
    "depthwise": ((2, 12, 9, 9), (12, 1, 3, 3), {"padding": 1, "groups": 12}),
    "one pixel": ((4, 16, 1, 1), (8, 16, 3, 3), {"padding": 1}),
}


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
@pytest.mark.parametrize("name", LAYERS)
def test_the_layers_of_a_resnet(name, dtype):
    x_shape, weight_shape, settings = LAYERS[name]
    rng = np.random.default_rng(0)
    inputs = {
        "x": rng.standard_normal(x_shape),
        "weight": rng.standard_normal(weight_shape),
        "bias": None,
    }
    both(cast(inputs, dtype), settings)


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths")
@pytest.mark.parametrize("kernel", [(1, 1), (3, 3), (2, 3), (4, 2), (5, 1)])
@pytest.mark.parametrize("dilation", [1, 2])
def test_same_padding(kernel, dilation):
    rng = np.random.default_rng(0)
    inputs = {
        "x": rng.standard_normal((2, 3, 7, 6)),
        "weight": rng.standard_normal((4, 3, *kernel)),
        "bias": rng.standard_normal(4),
    }
    both(inputs, {"padding": "same", "dilation": dilation})
    both(inputs, {"padding": "valid", "stride": 2})


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("padding", [(1, 0), "valid"])
def test_the_layer_takes_what_pytorchs_takes(bias, padding):
    arguments = (4, 6, (3, 2), 2, padding, 1, 2, bias)
    ours, theirs = nn.Conv2d(*arguments).double(), torch.nn.Conv2d(*arguments).double()
    ours.load_state_dict({k: v.numpy() for k, v in theirs.state_dict().items()})
    assert list(ours.state_dict()) == list(theirs.state_dict())
    compare(ours, theirs, {"x": np.random.default_rng(0).standard_normal((2, 4, 5, 6))})
    for name, parameter in ours.named_parameters():
        close(parameter.grad, theirs.get_parameter(name).grad, name)


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(5, 7), (1, 7), (7,), (2, 3, 7), (0, 7)])
def test_linear(shape, bias, dtype):
    rng = np.random.default_rng(0)
    inputs = {
        "x": rng.standard_normal(shape),
        "weight": rng.standard_normal((4, 7)),
        "bias": rng.standard_normal(4) if bias else None,
    }
    compare(F.linear, lambda x, weight, bias: T.linear(x, weight, bias), cast(inputs, dtype))


@pytest.mark.parametrize("widths", [(1, 2), (0, 3, 2, 1), (1, 1, 0, 0, 2, 0), (0, 0)])
def test_pad(widths):
    x = np.random.default_rng(0).standard_normal((2, 3, 4, 5))
    for value in (0.0, -1.5):
        compare(
            lambda x, v=value: F.pad(x, widths, value=v),
            lambda x, v=value: T.pad(x, widths, value=v),
            {"x": x},
        )
