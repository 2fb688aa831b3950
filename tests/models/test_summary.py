"""Costs: parameters as in the paper, multiply-adds by hand and by published figures."""

import numpy as np
import pytest

import minires as mr
from minires import models, nn

PARAMETERS = {
    "resnet18": 11_689_512,
    "resnet34": 21_797_672,
    "resnet50": 25_557_032,
    "resnet101": 44_549_160,
    "resnet152": 60_192_808,
    "resnet20": 269_722,
    "resnet32": 464_154,
    "resnet44": 658_586,
    "resnet56": 853_018,
    "resnet110": 1_727_962,
    "resnet1202": 19_421_274,
}


@pytest.mark.parametrize(("name", "count"), PARAMETERS.items())
def test_parameter_counts_are_the_papers(name, count):
    with nn.init.skip_init():
        assert models.count_parameters(models.create(name)) == count


@pytest.mark.parametrize("depth", [20, 32, 44, 56, 110])
def test_plain_cifar_nets_have_as_many_parameters_as_their_twins(depth):
    assert models.describe(f"plain{depth}").parameters == PARAMETERS[f"resnet{depth}"]


def projection(in_channels, out_channels):
    return in_channels * out_channels + 2 * out_channels


WIDENING = projection(64, 128) + projection(128, 256) + projection(256, 512)


@pytest.mark.parametrize(("depth", "blocks"), [(18, (2, 2, 2, 2)), (34, (3, 4, 6, 3))])
def test_shortcut_options_differ_by_their_projections(depth, blocks):
    name = f"resnet{depth}"
    a, b, c = (models.describe(name, shortcut=option).parameters for option in "ABC")
    assert b - a == WIDENING
    inside = [blocks[0], *(n - 1 for n in blocks[1:])]
    widths = (64, 128, 256, 512)
    assert c - b == sum(n * projection(w, w) for n, w in zip(inside, widths, strict=True))
    assert models.describe(f"plain{depth}").parameters == a


def test_option_a_of_a_bottleneck_net_has_no_projections_either():
    a, b = (models.describe("resnet50", shortcut=option).parameters for option in "AB")
    shapes = [(64, 256), (256, 512), (512, 1024), (1024, 2048)]
    assert b - a == sum(projection(*shape) for shape in shapes)


def test_cifar_options():
    a, b = (models.describe("resnet56", shortcut=option).parameters for option in "AB")
    assert b - a == projection(16, 32) + projection(32, 64)


@pytest.mark.parametrize(
    ("name", "published"),
    [("resnet18", 1.814), ("resnet34", 3.664), ("resnet50", 4.089), ("resnet101", 7.801),
     ("resnet152", 11.514)],
)  # fmt: skip
def test_multiply_adds_are_those_torchvision_publishes(name, published):
    assert round(models.describe(name).multiply_adds / 1e9, 3) == published


@pytest.mark.parametrize(
    ("name", "options", "paper"),
    [
        ("resnet18", {}, 1.8),
        ("plain18", {}, 1.8),
        ("resnet34", {}, 3.6),
        ("plain34", {}, 3.6),
        ("resnet50", {"stride_on": "1x1"}, 3.8),
        ("resnet101", {"stride_on": "1x1"}, 7.6),
        ("resnet152", {"stride_on": "1x1"}, 11.3),
    ],
)
def test_multiply_adds_are_the_papers_up_to_its_rounding(name, options, paper):
    """One digit, in the paper at times rounded (7.57 -> 7.6), at times cut (3.86 -> 3.8)."""
    tenths = models.describe(name, **options).multiply_adds / 1e8
    assert round(10 * paper) in (int(tenths), round(tenths))


def test_multiply_adds_of_resnet20_by_hand():
    stage1 = 6 * (16 * 16 * 9 * 32 * 32)
    stage2 = (16 * 32 + 5 * 32 * 32) * 9 * 16 * 16
    stage3 = (32 * 64 + 5 * 64 * 64) * 9 * 8 * 8
    by_hand = 3 * 16 * 9 * 32 * 32 + stage1 + stage2 + stage3 + 64 * 10
    model = models.resnet20()
    assert models.multiply_adds(model, (3, 32, 32)) == by_hand
    assert models.describe("resnet20").multiply_adds == by_hand
    projections = 16 * 32 * 16 * 16 + 32 * 64 * 8 * 8
    assert models.describe("resnet20", shortcut="B").multiply_adds == by_hand + projections


@pytest.mark.parametrize("name", [*PARAMETERS, *(f"plain{d}" for d in (18, 34, 20, 56, 110))])
def test_layers_are_what_the_name_says(name):
    depth = int(name.removeprefix("resnet").removeprefix("plain"))
    assert models.describe(name).layers == depth
    if name.startswith("resnet"):
        assert models.describe(name, shortcut="C").layers == depth


def test_weighted_layers_of_a_small_net():
    model = nn.Sequential(
        nn.Conv2d(4, 6, (3, 5), stride=2, padding=1, groups=2),
        nn.ReLU(),
        nn.Conv2d(6, 3, 3, dilation=2, bias=False),
        nn.Flatten(),
        nn.Linear(12, 5),
    )
    first, second, third = models.weighted_layers(model, (4, 11, 14))
    assert (first.name, first.kind, first.shortcut) == ("0", "Conv2d", False)
    assert first.output_shape == (6, 6, 6)
    assert first.parameters == 6 * 2 * 3 * 5 + 6
    assert first.multiply_adds == 6 * 6 * 6 * (2 * 3 * 5)
    assert second.output_shape == (3, 2, 2)
    assert (second.parameters, second.multiply_adds) == (3 * 6 * 9, 3 * 2 * 2 * 6 * 9)
    assert (third.name, third.kind, third.output_shape) == ("4", "Linear", (5,))
    assert (third.parameters, third.multiply_adds) == (12 * 5 + 5, 12 * 5)
    with pytest.raises(ValueError, match="linear: expected x"):
        models.weighted_layers(model, (4, 21, 14))


def test_projections_are_marked():
    layers = models.weighted_layers(models.resnet20(shortcut="B"), (3, 32, 32))
    marked = [layer.name for layer in layers if layer.shortcut]
    assert marked == ["layer2.0.downsample.0", "layer3.0.downsample.0"]
    assert len(layers) == 20 + 2


def test_counting_changes_nothing():
    model = models.resnet20()
    model.layer2.eval()
    before = {name: t.numpy().copy() for name, t in model.state_dict().items()}
    modes = [m.training for m in model.modules()]
    hooks = [len(m._forward_hooks) for m in model.modules()]
    models.multiply_adds(model, (3, 16, 16))
    with pytest.raises(ValueError, match="weight expects 3 input channels, x has 1"):
        models.multiply_adds(model, (1, 16, 16))
    assert [m.training for m in model.modules()] == modes
    assert [len(m._forward_hooks) for m in model.modules()] == hooks
    assert mr.is_grad_enabled()
    assert all(np.array_equal(before[n], t.numpy()) for n, t in model.state_dict().items())


def test_double_precision_models_are_counted_too():
    model = models.resnet20().double()
    assert models.multiply_adds(model, (3, 32, 32)) == models.describe("resnet20").multiply_adds


def test_describe():
    info = models.describe("resnet18", num_classes=10, in_channels=1)
    assert (info.name, info.input_shape) == ("resnet18", (1, 224, 224))
    assert info.parameters == 11_689_512 - 990 * 513 - 2 * 64 * 49
    assert info.options == models.entry("resnet18").options
    with pytest.raises(ValueError, match=r"expected \(C, H, W\), got \(1, 3, 8, 8\)"):
        models.multiply_adds(models.resnet20(), (1, 3, 8, 8))
    with pytest.raises(TypeError, match="takes no option 'depth'"):
        models.describe("resnet18", depth=3)
