"""ResNets and plain nets: the architectures of the paper, with torchvision's names."""

import numpy as np
import pytest

import minires as mr
from minires import models, nn
from minires.models import BasicBlock, Bottleneck, ResNet

IMAGENET = ["resnet18", "resnet34", "resnet50", "resnet101", "resnet152", "plain18", "plain34"]
STAGES = {
    18: (2, 2, 2, 2),
    34: (3, 4, 6, 3),
    50: (3, 4, 6, 3),
    101: (3, 4, 23, 3),
    152: (3, 8, 36, 3),
}
STATISTICS = ("running_mean", "running_var", "num_batches_tracked")


def expected_keys(depth, projections=True):
    """The keys of torchvision's ImageNet ResNets, in order, by rule."""

    def norm(name):
        return [f"{name}.{k}" for k in ("weight", "bias", *STATISTICS)]

    convolutions = 3 if depth >= 50 else 2
    keys = ["conv1.weight", *norm("bn1")]
    for stage, count in enumerate(STAGES[depth], 1):
        for block in range(count):
            prefix = f"layer{stage}.{block}"
            for i in range(1, convolutions + 1):
                keys += [f"{prefix}.conv{i}.weight", *norm(f"{prefix}.bn{i}")]
            changes = block == 0 and (stage > 1 or depth >= 50)
            if projections and changes:
                keys += [f"{prefix}.downsample.0.weight", *norm(f"{prefix}.downsample.1")]
    return [*keys, "fc.weight", "fc.bias"]


@pytest.fixture
def build():
    """Models that are only looked at: no random numbers drawn."""
    with nn.init.skip_init():
        yield models.create


@pytest.mark.parametrize("depth", [18, 34, 50, 101, 152])
def test_state_dict_keys_are_torchvisions_in_torchvisions_order(depth, build):
    model = build(f"resnet{depth}")
    assert list(model.state_dict()) == expected_keys(depth)
    shapes = {name: p.shape for name, p in model.named_parameters()}
    widest = 2048 if depth >= 50 else 512
    assert shapes["conv1.weight"] == (64, 3, 7, 7)
    assert shapes["fc.weight"] == (1000, widest)
    assert shapes["fc.bias"] == (1000,)
    if depth >= 50:
        assert shapes["layer1.0.downsample.0.weight"] == (256, 64, 1, 1)
        assert shapes["layer4.0.conv2.weight"] == (512, 512, 3, 3)
        assert shapes["layer4.0.conv3.weight"] == (2048, 512, 1, 1)
    else:
        assert "layer1.0.downsample.0.weight" not in shapes
        assert shapes["layer2.0.downsample.0.weight"] == (128, 64, 1, 1)
        assert shapes["layer4.0.conv1.weight"] == (512, 256, 3, 3)


@pytest.mark.parametrize("depth", [18, 34])
def test_plain_nets_and_option_a_have_no_projections(depth, build):
    assert list(build(f"plain{depth}").state_dict()) == expected_keys(depth, projections=False)
    padded = build(f"resnet{depth}", shortcut="A")
    assert list(padded.state_dict()) == expected_keys(depth, projections=False)


@pytest.mark.parametrize("depth", [20, 56, 110])
def test_cifar_keys_follow_the_same_scheme(depth, build):
    n = (depth - 2) // 6
    keys = list(build(f"resnet{depth}").state_dict())
    assert keys == list(build(f"plain{depth}").state_dict())
    norm = ("weight", "bias", *STATISTICS)
    expected = ["conv1.weight", *(f"bn1.{k}" for k in norm)]
    for stage in (1, 2, 3):
        for block in range(n):
            for i in (1, 2):
                expected.append(f"layer{stage}.{block}.conv{i}.weight")
                expected += [f"layer{stage}.{block}.bn{i}.{k}" for k in norm]
    assert keys == [*expected, "fc.weight", "fc.bias"]


@pytest.mark.parametrize("name", IMAGENET)
def test_convolutions_have_no_bias_and_strides_are_in_place(name, build):
    model = build(name)
    convolutions = [m for m in model.modules() if isinstance(m, nn.Conv2d)]
    assert all(c.bias is None for c in convolutions)
    for i, (stage_name, stage) in enumerate(model.stages()):
        assert stage_name == f"layer{i + 1}"
        assert [block.stride for block in stage] == [1 if i == 0 else 2] + [1] * (len(stage) - 1)
        deep = name in ("resnet50", "resnet101", "resnet152")
        assert all(type(block) is (Bottleneck if deep else BasicBlock) for block in stage)


@pytest.mark.parametrize("stride_on", ["1x1", "3x3"])
def test_stride_on_reaches_every_bottleneck(stride_on, build):
    model = build("resnet50", stride_on=stride_on)
    first = [stage[0] for _, stage in model.stages()][1:]
    strided = "conv1" if stride_on == "1x1" else "conv2"
    for block in first:
        strides = {name: getattr(block, name).stride for name in ("conv1", "conv2", "conv3")}
        assert strides == {"conv1": (1, 1), "conv2": (1, 1), "conv3": (1, 1)} | {strided: (2, 2)}
    assert build("resnet50").layer2[0].conv2.stride == (2, 2)  # torchvision's is the default
    with pytest.raises(ValueError, match="stride_on is for bottlenecks; depth 34"):
        models.imagenet_resnet(34, stride_on="3x3")


@pytest.mark.parametrize("name", IMAGENET)
def test_imagenet_nets_run_on_small_images(name, build):
    model = build(name, num_classes=7).eval()
    with mr.no_grad():
        assert model(mr.Tensor(np.zeros((2, 3, 33, 40), np.float32))).shape == (2, 7)


@pytest.mark.parametrize("name", ["resnet20", "plain20", "resnet32"])
@pytest.mark.parametrize("shape", [(3, 32, 32), (1, 8, 8), (2, 5, 7), (1, 1, 1)])
def test_cifar_nets_run_on_any_size(name, shape):
    model = models.create(name, num_classes=4, in_channels=shape[0])
    x = mr.Tensor(np.random.default_rng(0).standard_normal((3, *shape)).astype(np.float32))
    logits = model(x)
    assert logits.shape == (3, 4)
    assert np.isfinite(logits.numpy()).all()
    logits.backward(np.ones((3, 4), np.float32))
    assert all(p.grad is not None for p in model.parameters())


def test_feature_maps_have_the_papers_sizes(build):
    sizes = {}
    for name, shape in (("resnet18", (0, 3, 224, 224)), ("resnet20", (0, 3, 32, 32))):
        model = build(name).eval()
        x = model.stem(mr.Tensor(np.zeros(shape, np.float32)))
        seen = [x.shape[1:]]
        for _, stage in model.stages():
            x = stage(x)
            seen.append(x.shape[1:])
        sizes[name] = seen
    assert sizes["resnet18"] == [
        (64, 56, 56), (64, 56, 56), (128, 28, 28), (256, 14, 14), (512, 7, 7),
    ]  # fmt: skip
    assert sizes["resnet20"] == [(16, 32, 32), (16, 32, 32), (32, 16, 16), (64, 8, 8)]


def test_forward_is_stem_blocks_head():
    mr.manual_seed(2)
    model = models.resnet20(num_classes=5).eval()
    images = mr.Tensor(np.random.default_rng(0).standard_normal((2, 3, 8, 8)).astype(np.float32))
    x = model.stem(images)
    for block in model.blocks():
        x = block(x)
    assert np.array_equal(model.head(x).numpy(), model(images).numpy())
    names = [name for name, _ in model.named_blocks()]
    assert names == [f"layer{i}.{j}" for i in (1, 2, 3) for j in range(3)]
    for name, block in model.named_blocks():
        assert model.get_submodule(name) is block
    assert list(model.blocks()) == [block for _, block in model.named_blocks()]


def test_stages_are_called_as_modules():
    """Hooks on a stage or a block see the forward pass."""
    model = models.resnet20().eval()
    seen = []
    for name in ("layer2", "layer2.1"):
        model.get_submodule(name).register_forward_hook(lambda m, a, y, n=name: seen.append(n))
    model(mr.Tensor(np.zeros((1, 3, 8, 8), np.float32)))
    assert seen == ["layer2.1", "layer2"]


def test_plain_twin_is_the_same_net_with_the_shortcuts_cut():
    mr.manual_seed(3)
    residual = models.resnet20(num_classes=5).eval()
    plain = models.plain20(num_classes=5).eval()
    plain.load_state_dict(residual.state_dict())
    assert all(block.plain for block in plain.blocks())
    assert not any(block.plain for block in residual.blocks())
    images = mr.Tensor(np.random.default_rng(0).standard_normal((2, 3, 8, 8)).astype(np.float32))
    x = residual.stem(images)
    for block in residual.blocks():
        x = mr.functional.relu(block.branch(x))
    assert np.array_equal(residual.head(x).numpy(), plain(images).numpy())
    assert not np.allclose(residual(images).numpy(), plain(images).numpy())


def test_zero_gamma_silences_every_block():
    mr.manual_seed(4)
    model = models.resnet20(zero_gamma=True)
    assert all(not block.last_norm.weight.numpy().any() for block in model.blocks())
    x = model.stem(mr.Tensor(np.random.default_rng(0).random((2, 3, 8, 8), np.float32)))
    for block in model.blocks():
        passed = block.shortcut(x)  # x is not negative, so the last ReLU changes nothing
        x = block(x)
        assert np.array_equal(x.numpy(), passed.numpy())


def test_initialisation_is_he():
    """Variance 2 / (KH * KW * out channels) for convolutions: He et al. (2015), equation 14."""
    mr.manual_seed(0)
    model = models.resnet18(num_classes=10)
    for name, parameter in model.named_parameters():
        w = parameter.numpy()
        if w.ndim == 4:
            std = np.sqrt(2.0 / (w.shape[0] * w.shape[2] * w.shape[3]))
            spread = std / np.sqrt(w.size)  # of the mean; over sqrt 2 for the deviation
            assert abs(w.mean()) < 5 * spread, name
            assert abs(w.std() - std) < 5 * spread, name
        elif "bn" in name or "downsample.1" in name:
            assert (w == (1 if name.endswith("weight") else 0)).all(), name
    assert np.abs(model.fc.weight.numpy()).max() <= 1 / np.sqrt(512)


def test_same_seed_same_bits():
    nets = []
    for seed in (5, 5, 6):
        mr.manual_seed(seed)
        nets.append(models.resnet20().state_dict())
    same = [np.array_equal(nets[0][k].numpy(), nets[1][k].numpy()) for k in nets[0]]
    assert all(same)
    assert not np.array_equal(nets[0]["conv1.weight"].numpy(), nets[2]["conv1.weight"].numpy())


@pytest.mark.parametrize(
    ("depth", "advice"),
    [(21, "20 or 26"), (25, "20 or 26"), (27, "26 or 32"), (3, "8"), (2, "8"), (0, "8"), (-4, "8")],
)
def test_cifar_depth_must_be_6n_plus_2(depth, advice):
    with pytest.raises(ValueError, match=rf"depth must be 6n \+ 2 .* got {depth}; try {advice}$"):
        models.cifar_resnet(depth)


def test_any_depth_of_the_right_form_will_do(build):
    assert len(list(models.cifar_resnet(8).blocks())) == 3
    assert len(list(models.cifar_resnet(26).blocks())) == 12


def test_imagenet_depths_are_those_of_the_table():
    with pytest.raises(ValueError, match="depth is one of 18, 34, 50, 101, 152, got 51"):
        models.imagenet_resnet(51)


def test_width_scales_every_stage(build):
    model = build("resnet20", width=4)
    assert [stage[0].out_channels for _, stage in model.stages()] == [4, 8, 16]
    assert model.conv1.weight.shape == (4, 3, 3, 3)
    assert build("resnet50", width=8).fc.weight.shape == (1000, 8 * 8 * 4)


def test_bad_settings():
    with pytest.raises(ValueError, match="stem is 'imagenet' or 'cifar'"):
        ResNet(BasicBlock, [1], stem="mnist")
    for stages in ([], [2, 0]):
        with pytest.raises(ValueError, match="every stage needs at least one block"):
            ResNet(BasicBlock, stages)
    for option in ("num_classes", "in_channels", "width"):
        with pytest.raises(ValueError, match=f"{option} must be at least 1, got 0"):
            models.resnet20(**{option: 0})
        with pytest.raises(TypeError, match=f"{option} takes an integer, got 1.5"):
            models.resnet20(**{option: 1.5})


def test_wrong_number_of_channels_is_explained():
    model = models.resnet20(in_channels=1).eval()
    with pytest.raises(ValueError, match="weight expects 1 input channels, x has 3"):
        model(mr.Tensor(np.zeros((1, 3, 8, 8), np.float32)))
