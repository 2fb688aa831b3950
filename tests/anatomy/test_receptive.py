"""Receptive fields against perturbation of every pixel, and the patches cut out by them."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import minires as mr
from minires import nn
from minires.anatomy import receptive
from minires.testing.compare import assert_close


class Positive(nn.Module):
    """A net as it is, but with weights that cannot cancel: whatever is read, counts."""

    def __init__(self, net):
        super().__init__()
        self.net = net.double().eval()
        rng = np.random.default_rng(0)
        for name, parameter in self.net.named_parameters():
            low = 0.5 if name.endswith("weight") else 10.0
            parameter.data[...] = rng.uniform(low, low + 0.5, parameter.shape)
            if parameter.ndim == 4:
                parameter.data[...] /= parameter.size / len(parameter)

    def forward(self, x):
        return self.net(x)


def moved(net, layer, shape, unit):
    """(H, W): whether the unit's value changes when a pixel does, pixel after pixel."""
    maps = []
    handle = net.get_submodule(layer).register_forward_hook(lambda m, a, y: maps.append(y.numpy()))
    H, W = shape[1:]
    x = np.ones((H * W + 1, *shape))
    for k, (i, j) in enumerate(np.ndindex(H, W)):
        x[k + 1, :, i, j] += 1000.0  # far enough to become the maximum of any window
    with mr.no_grad():
        net(mr.Tensor(x))
    handle.remove()
    values = maps[0][:, :, unit[0], unit[1]]
    return (np.abs(values[1:] - values[0]) > 1e-9).any(axis=1).reshape(H, W)


def check(net, layer, shape, unit):
    """The rows and columns that have influence are exactly those that are said to have it."""
    found = receptive.receptive_field(net, layer, shape, unit)
    influence = moved(net, layer, shape, unit)
    assert found.rows.inside == tuple(np.flatnonzero(influence.any(axis=1)))
    assert found.columns.inside == tuple(np.flatnonzero(influence.any(axis=0)))
    if not influence.any():
        return
    rows, columns = found.window
    assert rows.start <= found.rows.inside[0]
    assert found.rows.inside[-1] < rows.stop
    assert columns.start <= found.columns.inside[0]
    assert found.columns.inside[-1] < columns.stop


LAYERS = ["net.conv1", "net.layer1.0", "net.layer2.0.conv1", "net.layer2.0", "net.layer3.0"]


@pytest.mark.parametrize("shortcut", ["A", "B", "none"])
@pytest.mark.parametrize("layer", LAYERS)
@pytest.mark.parametrize("unit", [(0, 0), (1, 2)])
def test_residual_nets_by_perturbation(shortcut, layer, unit):
    net = Positive(mr.models.cifar_resnet(8, width=2, in_channels=1, shortcut=shortcut))
    check(net, layer, (1, 11, 12), unit)


def test_the_stem_of_imagenet_by_perturbation():
    net = Positive(mr.models.ResNet(mr.models.BasicBlock, [1, 1], width=2, num_classes=2))
    check(net, "net.maxpool", (3, 21, 19), (2, 1))
    check(net, "net.layer2.0", (3, 21, 19), (1, 2))


@given(
    st.lists(
        st.tuples(st.integers(1, 3), st.integers(1, 3), st.integers(0, 1), st.integers(1, 2)),
        min_size=1,
        max_size=3,
    ),
    st.integers(0, 10**6),
)
def test_convolutions_with_gaps_by_perturbation(layers, place):
    """Kernel, stride, padding, dilation, drawn: fields with holes, and cut by the border."""
    convolutions = [
        nn.Conv2d(1, 1, k, s, min(p, k // 2), d, bias=False) for k, s, p, d in layers
    ]
    net = Positive(nn.Sequential(*convolutions, nn.Identity()))
    shape = (1, 15, 13)
    size = net(mr.Tensor(np.ones((1, *shape)))).shape[2:] if fits(layers) else (0, 0)
    if min(size) > 0:
        unit = place % size[0], place // size[0] % size[1]
        check(net, "net", shape, unit)


def fits(layers):
    h = 13
    for k, s, p, d in layers:
        h = (h + 2 * min(p, k // 2) - d * (k - 1) - 1) // s + 1
        if h < 1:
            return False
    return True


class Slices(nn.Module):
    """What else a field can pass through: slices, padding, pooling, concatenation, a gate."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(1, 2, 3, padding=1, bias=True)
        self.pool = nn.AvgPool2d(2, 2)
        self.cut, self.shift, self.both = nn.Identity(), nn.Identity(), nn.Identity()
        self.cells, self.gated = nn.AdaptiveAvgPool2d((4, 3)), nn.Identity()

    def forward(self, x):
        y = self.conv(x)
        cut = self.cut(y[:, :, 1:, 2::2])
        shifted = self.shift(mr.functional.pad(y, (2, 0, 1, 0))[:, :, : y.shape[2], : y.shape[3]])
        both = self.both(mr.concatenate([y, shifted], axis=1))
        gate = mr.functional.adaptive_avg_pool2d(both, 1).sigmoid()
        return self.gated(both * gate), self.cells(both), self.pool(y), cut


@pytest.mark.parametrize("layer", ["cut", "shift", "both", "pool", "cells", "gated"])
def test_other_ways_by_perturbation(layer):
    check(Positive(Slices()), f"net.{layer}", (1, 9, 10), (1, 1))


def test_an_image_that_is_read_in_two_ways():
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(1, 1, 1, bias=False)
            self.wide = nn.Conv2d(1, 1, 3, padding=2, dilation=2, bias=False)
            self.end = nn.Identity()

        def forward(self, x):
            return self.end(self.wide(x) + self.conv(x))

    check(Positive(Two()), "net.end", (1, 9, 10), (3, 4))


def test_sizes_known_from_the_literature():
    """VGG-like stacks: 3x3 sees 3, two of them 5; a stride doubles what later layers add."""

    def size(*layers):
        net = nn.Sequential(*layers, nn.Identity())
        return receptive.receptive_field(net, str(len(layers)), (1, 64, 64)).size

    def conv(k, s=1):
        return nn.Conv2d(1, 1, k, s, padding=k // 2)

    assert size(conv(3)) == (3, 3)
    assert size(conv(3), conv(3)) == (5, 5)
    assert size(conv(3), conv(3), conv(3)) == (7, 7)
    assert size(conv(7, 2), nn.MaxPool2d(3, 2, 1)) == (11, 11)
    assert receptive.receptive_field(mr.models.resnet18(), "layer4.1", (3, 32, 32)).size == (
        435, 435)  # fmt: skip


def test_the_field_of_the_image_itself():
    net = nn.Sequential(nn.Identity(), nn.Conv2d(1, 1, 3))
    field = receptive.receptive_field(net, "0", (1, 5, 5), (2, 3))
    assert field.size == (1, 1)
    assert field.window == (slice(2, 3), slice(3, 4))


def test_what_has_no_field():
    class Turned(nn.Module):
        def __init__(self):
            super().__init__()
            self.end = nn.Identity()

        def forward(self, x):
            return self.end(x.transpose(0, 1, 3, 2))

    with pytest.raises(TypeError, match="Permute"):
        receptive.receptive_field(Turned(), "end", (1, 4, 4))
    net = mr.models.resnet20()
    with pytest.raises(ValueError, match="no unit"):
        receptive.receptive_field(net, "layer3.0", (3, 8, 8), (2, 0))
    with pytest.raises(ValueError, match="not maps"):
        receptive.receptive_field(net, "fc", (3, 8, 8))
    with pytest.raises(ValueError, match="image_shape"):
        receptive.receptive_field(net, "conv1", (8, 8))


# -- top patches ----------------------------------------------------------------------------------


def test_the_patches_that_excite_most(rng):
    mr.manual_seed(3)
    net = nn.Sequential(nn.Conv2d(2, 5, 3, 2, padding=1), nn.ReLU(), nn.Conv2d(5, 4, 3, padding=1))
    x = rng.normal(size=(7, 2, 8, 9)).astype(np.float32)
    found = receptive.top_patches(net, "2", x, channels=[3, 0], k=4, batch_size=3)
    maps = net(mr.Tensor(x)).numpy()
    for row, channel in enumerate((3, 0)):
        strongest = sorted((maps[n, channel].max() for n in range(7)), reverse=True)[:4]
        assert_close(found.values[row], np.array(strongest))
        assert len(set(found.where[row, :, 0])) == 4  # from different images
        for (n, i, j), value in zip(found.where[row], found.values[row], strict=True):
            assert maps[n, channel, i, j] == pytest.approx(value)
    # A field of 7x7, 2 pixels apart, its first pixel 3 before twice the unit's place.
    assert found.patches.shape == (2, 4, 2, 7, 7)
    padded = np.pad(x, ((0, 0), (0, 0), (3, 7), (3, 7)))
    for (n, i, j), patch in zip(found.where[0], found.patches[0], strict=True):
        np.testing.assert_array_equal(
            patch, padded[n, :, 2 * i : 2 * i + 7, 2 * j : 2 * j + 7]
        )


def test_patches_of_what_is_not_there(rng):
    net, x = mr.models.resnet20(in_channels=1), rng.normal(size=(3, 1, 8, 8)).astype(np.float32)
    with pytest.raises(ValueError, match="channels 0 to 15"):
        receptive.top_patches(net, "layer1.0", x, channels=[16])
    with pytest.raises(ValueError, match="k is 1 to 3"):
        receptive.top_patches(net, "layer1.0", x, k=4)
    found = receptive.top_patches(net, "layer1.0", x, k=2)
    assert found.channels == tuple(range(8))
    figure = found.plot()
    assert len(figure.axes) == 16
