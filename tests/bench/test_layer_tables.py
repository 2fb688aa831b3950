"""Layer tables against what the paper says of these nets."""

import pytest

import minires as mr
from minires.bench.layers import conv_layers, shape_layer
from minires.kernels import conv_geometry
from minires.models import weighted_layers


@pytest.mark.parametrize(
    ("model", "convolutions", "different"),
    [
        ("resnet18", 1 + 2 * 8 + 3, 11),  # stem, 8 blocks of two, 3 projections
        ("resnet50", 1 + 3 * 16 + 4, 23),
        ("resnet20", 1 + 2 * 9, 6),  # shortcuts without parameters
        ("resnet110", 1 + 2 * 54, 6),
    ],
)
def test_every_convolution_is_counted_once(model, convolutions, different):
    layers = conv_layers(model)
    assert sum(layer.count for layer in layers) == convolutions
    assert len(layers) == different
    assert len({layer.geometry for layer in layers}) == different
    names = [name for layer in layers for name in layer.names]
    assert len(set(names)) == convolutions


def test_resnet18_in_full():
    """Table 1 of the paper, 224x224, batch 16."""
    layers = conv_layers("resnet18")
    assert {layer.names[0]: (layer.count, str(layer.geometry)) for layer in layers} == {
        "conv1": (1, "16x3x224x224 * 64x3x7x7 stride 2x2 padding 3x3"),
        "layer1.0.conv1": (4, "16x64x56x56 * 64x64x3x3 padding 1x1"),
        "layer2.0.conv1": (1, "16x64x56x56 * 128x64x3x3 stride 2x2 padding 1x1"),
        "layer2.0.conv2": (3, "16x128x28x28 * 128x128x3x3 padding 1x1"),
        "layer2.0.downsample.0": (1, "16x64x56x56 * 128x64x1x1 stride 2x2"),
        "layer3.0.conv1": (1, "16x128x28x28 * 256x128x3x3 stride 2x2 padding 1x1"),
        "layer3.0.conv2": (3, "16x256x14x14 * 256x256x3x3 padding 1x1"),
        "layer3.0.downsample.0": (1, "16x128x28x28 * 256x128x1x1 stride 2x2"),
        "layer4.0.conv1": (1, "16x256x14x14 * 512x256x3x3 stride 2x2 padding 1x1"),
        "layer4.0.conv2": (3, "16x512x7x7 * 512x512x3x3 padding 1x1"),
        "layer4.0.downsample.0": (1, "16x256x14x14 * 512x256x1x1 stride 2x2"),
    }


@pytest.mark.parametrize("model", ["resnet18", "resnet20", "plain20", "resnet50"])
def test_multiply_adds_are_those_of_the_model(model):
    net, (C, H, W) = mr.models.create(model), mr.models.entry(model).input_shape
    expected = sum(
        layer.multiply_adds for layer in weighted_layers(net, (C, H, W)) if layer.kind == "Conv2d"
    )
    layers = conv_layers(model, batch=3)
    assert sum(layer.count * layer.geometry.multiply_adds for layer in layers) == 3 * expected


def test_batch_and_size():
    defaults = {model: conv_layers(model)[0].geometry for model in ("resnet20", "resnet18")}
    assert [(g.N, g.H) for g in defaults.values()] == [(128, 32), (16, 224)]
    (stem, *_) = conv_layers("resnet18", batch=2, size=64)
    assert stem.geometry.x_shape == (2, 3, 64, 64)


def test_only_the_first_layer_needs_no_input_gradient():
    assert [layer.needs_grad_input for layer in conv_layers("resnet20")] == [False, *5 * [True]]


def test_options_of_the_model():
    names = [name for layer in conv_layers("resnet20", shortcut="B") for name in layer.names]
    assert "layer2.0.downsample.0" in names
    assert conv_layers("resnet20", in_channels=1)[0].geometry.C == 1


def test_labels_say_how_many():
    assert [layer.label for layer in conv_layers("resnet20")[:2]] == [
        "conv1", "layer1.0.conv1 (x6)",
    ]  # fmt: skip


def test_a_single_shape():
    layer = shape_layer((2, 4, 9, 8), (6, 2, 3, 3), stride=2, padding=1, groups=2)
    assert layer.geometry == conv_geometry((2, 4, 9, 8), (6, 2, 3, 3), 2, 1, 1, 2)
    assert layer.label == str(layer.geometry)
    assert layer.needs_grad_input


@pytest.mark.parametrize("wrong", [{"batch": 0}, {"size": -1}])
def test_sizes_must_be_positive(wrong):
    with pytest.raises(ValueError, match="at least 1"):
        conv_layers("resnet20", **wrong)


def test_an_unknown_model_is_named():
    with pytest.raises(ValueError, match="resnet21"):
        conv_layers("resnet21")
