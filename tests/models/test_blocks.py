"""Residual blocks: pathways, joins, shortcut options, and what is exact about them."""

import numpy as np
import pytest

import minires as mr
from minires import functional as F
from minires import nn
from minires.models import BasicBlock, Bottleneck, PadShortcut, ResidualBlock
from minires.models.blocks import make_shortcut
from minires.testing.compare import assert_close

BLOCKS = [BasicBlock, Bottleneck]


def images(rng, *shape):
    return mr.Tensor(rng.standard_normal(shape).astype(np.float32), requires_grad=True)


def upstream(rng, y):
    return rng.standard_normal(y.shape).astype(np.float32)


@pytest.fixture
def rng():
    return np.random.default_rng(1)


@pytest.mark.parametrize("make", BLOCKS)
@pytest.mark.parametrize("shortcut", ["A", "B", "C"])
@pytest.mark.parametrize(("stride", "size", "out"), [(1, 6, 6), (2, 6, 3), (2, 7, 4), (2, 1, 1)])
def test_forward_is_the_join_of_branch_and_shortcut(make, shortcut, stride, size, out, rng):
    block = make(8, 12, stride, shortcut=shortcut)
    x = images(rng, 3, 8, size, size)
    y = block(x)
    expansion = 4 if make is Bottleneck else 1
    assert y.shape == (3, 12 * expansion, out, out)
    assert block.out_channels == 12 * expansion
    branch, passed = block.branch(x), block.shortcut(x)
    assert branch.shape == passed.shape == y.shape
    assert_close(y, np.maximum(branch.numpy() + passed.numpy(), 0))
    assert (y.numpy() == 0).any()


@pytest.mark.parametrize("make", BLOCKS)
def test_identity_shortcut_is_the_input_itself(make, rng):
    channels = 5 if make is BasicBlock else 20
    for option in ("A", "B"):
        block = make(channels, 5, shortcut=option)
        x = images(rng, 2, channels, 4, 4)
        assert block.downsample is None
        assert block.shortcut(x) is x


@pytest.mark.parametrize(
    ("option", "in_channels", "out_channels", "stride", "kind"),
    [
        ("A", 8, 8, 1, type(None)),
        ("A", 8, 16, 1, PadShortcut),
        ("A", 8, 8, 2, PadShortcut),
        ("B", 8, 8, 1, type(None)),
        ("B", 8, 16, 1, nn.Sequential),
        ("B", 8, 8, 2, nn.Sequential),
        ("C", 8, 8, 1, nn.Sequential),
        ("C", 8, 16, 2, nn.Sequential),
        ("none", 8, 16, 2, type(None)),
    ],
)
def test_shortcut_options(option, in_channels, out_channels, stride, kind):
    made = make_shortcut(option, in_channels, out_channels, stride)
    assert type(made) is kind
    if kind is nn.Sequential:
        names = {name: p.shape for name, p in made.named_parameters()}
        assert names == {
            "0.weight": (out_channels, in_channels, 1, 1),
            "1.weight": (out_channels,),
            "1.bias": (out_channels,),
        }
        assert made[0].stride == (stride, stride)


def test_unknown_shortcut_option_names_the_nearest():
    with pytest.raises(ValueError, match=r"unknown shortcut option 'a'. Did you mean 'A'\?"):
        BasicBlock(8, 8, shortcut="a")
    with pytest.raises(ValueError, match="cannot drop any: 16 in, 8 out"):
        BasicBlock(16, 8, shortcut="A")


@pytest.mark.parametrize("size", [(6, 6), (7, 5), (1, 1)])
def test_option_a_forward_and_gradient_by_hand(size, rng):
    H, W = size
    x = images(rng, 2, 3, H, W)
    y = PadShortcut(3, 5, 2)(x)
    OH, OW = (H + 1) // 2, (W + 1) // 2
    expected = np.zeros((2, 5, OH, OW), np.float32)
    gx = np.zeros((2, 3, H, W), np.float32)
    gy = upstream(rng, expected)
    for i in range(OH):
        for j in range(OW):
            expected[:, :3, i, j] = x.numpy()[:, :, 2 * i, 2 * j]
            gx[:, :, 2 * i, 2 * j] = gy[:, :3, i, j]
    y.backward(gy)
    assert np.array_equal(y.numpy(), expected)
    assert np.array_equal(x.grad.numpy(), gx)
    assert list(PadShortcut(3, 5, 2).parameters()) == []


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("make", BLOCKS)
@pytest.mark.parametrize(
    ("in_channels", "stride", "shortcut"),
    [(None, 1, "A"), (None, 1, "B"), (6, 2, "A"), (6, 2, "B"), (None, 1, "C")],
)
def test_zero_gamma_makes_the_block_its_shortcut_bit_for_bit(
    make, in_channels, stride, shortcut, training, rng
):
    expansion = 4 if make is Bottleneck else 1
    channels = in_channels or 6 * expansion
    block = make(channels, 6, stride, shortcut=shortcut, zero_gamma=True).train(training)
    x = images(rng, 4, channels, 6, 6)
    y = block(x)
    gy = upstream(rng, y)
    y.backward(gy)

    alone = mr.Tensor(x.numpy().copy(), requires_grad=True)
    passed = block.shortcut(alone)
    assert np.array_equal(y.numpy(), np.maximum(passed.numpy(), 0))
    masked = gy * (y.numpy() > 0)
    assert 0 < np.count_nonzero(masked) < masked.size
    if passed is alone:
        assert np.array_equal(x.grad.numpy(), masked)
    else:
        passed.backward(masked)
        assert np.array_equal(x.grad.numpy(), alone.grad.numpy())
        if shortcut == "A":
            by_hand = np.zeros_like(x.numpy())
            by_hand[:, :, ::stride, ::stride] = masked[:, :channels]
            assert np.array_equal(x.grad.numpy(), by_hand)

    for name, parameter in block.named_parameters():
        if name.startswith("conv"):
            assert not parameter.grad.numpy().any(), name
    assert block.last_norm.weight.grad.numpy().any()  # this is what wakes the branch
    assert block.last_norm.bias.grad.numpy().any()


@pytest.mark.parametrize("make", BLOCKS)
def test_without_zero_gamma_every_gamma_is_one_and_every_beta_zero(make):
    block = make(6, 6, 2, shortcut="B")
    norms = [m for m in block.modules() if isinstance(m, nn.BatchNorm2d)]
    assert len(norms) == (4 if make is Bottleneck else 3)
    for norm in norms:
        assert (norm.weight.numpy() == 1).all()
        assert (norm.bias.numpy() == 0).all()
    silent = make(6, 6, 2, shortcut="B", zero_gamma=True)
    weights = {n: p.numpy() for n, p in silent.named_parameters() if n.endswith("weight")}
    zeros = [name for name, weight in weights.items() if not weight.any()]
    assert zeros == ["bn3.weight" if make is Bottleneck else "bn2.weight"]


@pytest.mark.parametrize("make", BLOCKS)
def test_plain_block_has_no_shortcut(make, rng):
    channels = 6 if make is BasicBlock else 24
    block, residual = make(channels, 6, shortcut="none"), make(channels, 6, shortcut="A")
    residual.load_state_dict(block.state_dict())
    x = images(rng, 2, channels, 5, 5)
    assert block.plain
    assert block.shortcut(x) is None
    assert np.array_equal(block(x).numpy(), np.maximum(block.branch(x).numpy(), 0))
    assert not np.allclose(block(x).numpy(), residual(x).numpy())
    with pytest.raises(ValueError, match="zero_gamma silences the branch"):
        make(channels, 6, shortcut="none", zero_gamma=True)


def test_gradients_of_the_two_pathways_add_up(rng):
    """The gradient reaching x is the branch's share plus the shortcut's."""
    block = BasicBlock(4, 8, 2, shortcut="B").double()
    x = mr.Tensor(rng.standard_normal((3, 4, 6, 6)), requires_grad=True)
    gy = rng.standard_normal((3, 8, 3, 3))
    block(x).backward(gy)
    two = mr.Tensor(x.numpy(), requires_grad=True), mr.Tensor(x.numpy(), requires_grad=True)
    block.join(block.branch(two[0]), block.shortcut(two[1])).backward(gy)
    assert two[0].grad.numpy().any()
    assert two[1].grad.numpy().any()
    assert_close(x.grad, two[0].grad.numpy() + two[1].grad.numpy())


@pytest.mark.parametrize(("stride_on", "first"), [("1x1", (2, 1)), ("3x3", (1, 2))])
def test_bottleneck_strides_on_the_named_convolution(stride_on, first, rng):
    block = Bottleneck(8, 4, 2, stride_on=stride_on)
    assert (block.conv1.stride[0], block.conv2.stride[0]) == first
    assert block.conv3.stride == (1, 1)
    assert block(images(rng, 1, 8, 7, 7)).shape == (1, 16, 4, 4)
    with pytest.raises(ValueError, match="stride_on is '1x1' or '3x3', got '5x5'"):
        Bottleneck(8, 4, 2, stride_on="5x5")


def test_a_block_of_ones_own(rng):
    """The join can be replaced: here a pre-activated sum without the last ReLU."""

    class Halved(ResidualBlock):
        def __init__(self, channels):
            super().__init__(channels, channels, 1)
            self.conv = nn.Conv2d(channels, channels, 3, padding=1)
            self.finish("B", zero_gamma=False)

        def branch(self, x):
            return self.conv(F.relu(x))

        def join(self, branch, shortcut):
            return shortcut + 0.5 * branch

    block = Halved(3)
    x = images(rng, 2, 3, 4, 4)
    expected = x.numpy() + 0.5 * block.conv(F.relu(x)).numpy()
    assert_close(block(x), expected)
    with pytest.raises(TypeError, match="Halved names no last_norm"):
        block.last_norm  # noqa: B018


def test_a_block_without_a_branch_says_so(rng):
    block = ResidualBlock(3, 3, 1)
    block.finish("B", zero_gamma=False)
    with pytest.raises(TypeError, match="ResidualBlock defines no branch"):
        block(images(rng, 1, 3, 2, 2))
