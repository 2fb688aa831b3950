"""Pictures of features: the arrays behind them, by hand or by another way."""

import copy

import numpy as np
import pytest
from PIL import Image

import minires as mr
from minires import nn
from minires.anatomy import features
from minires.testing.compare import assert_close


class TinyNet(nn.Module):
    """Two convolutions, a residual join between them, and a classifier: small enough by hand."""

    def __init__(self):
        super().__init__()
        self.conv1 = nn.Conv2d(1, 2, 3, padding=1, bias=False)
        self.conv2 = nn.Conv2d(2, 2, 3, padding=1, bias=False)
        self.fc = nn.Linear(2, 3)

    def forward(self, x):
        a = mr.functional.relu(self.conv1(x))
        b = mr.functional.add_relu(self.conv2(a), a)
        return self.fc(b.mean(axis=(2, 3)))


def direct(x, w):
    """3x3 convolution with padding 1, tap by tap."""
    N, C, H, W = x.shape
    padded = np.zeros((N, C, H + 2, W + 2))
    padded[:, :, 1:-1, 1:-1] = x
    return sum(
        np.einsum("nchw,oc->nohw", padded[:, :, u : u + H, v : v + W], w[:, :, u, v])
        for u in range(3)
        for v in range(3)
    )


def back(g, w):
    """The gradient of `direct` with respect to x: the same taps the other way round."""
    return direct(g, w[:, :, ::-1, ::-1].transpose(1, 0, 2, 3))


def by_hand(net, x, classes, guided):
    """The score's gradient at the image and at the join, ReLU by ReLU."""
    w1, w2, fc = (p.numpy() for p in (net.conv1.weight, net.conv2.weight, net.fc.weight))
    a = np.maximum(direct(x, w1), 0)
    b = np.maximum(direct(a, w2) + a, 0)
    logits = b.mean(axis=(2, 3)) @ fc.T + net.fc.bias.numpy()

    def relu(g, y):
        return (np.maximum(g, 0) if guided else g) * (y > 0)

    at_b = np.broadcast_to(
        fc[classes][:, :, None, None] / (b.shape[2] * b.shape[3]), b.shape
    )
    both = relu(at_b, b)
    at_a = back(both, w2) + both
    return back(relu(at_a, a), w1), at_b, b, logits


@pytest.fixture
def tiny(rng):
    net = TinyNet().double()
    for parameter in net.parameters():
        parameter.data[...] = rng.normal(size=parameter.shape)
    return net, rng.normal(size=(4, 1, 5, 6))


def residual_net(rng, shortcut="A", **options):
    """A net with weights, statistics and affine parameters that are all different."""
    net = mr.models.cifar_resnet(8, width=4, in_channels=2, shortcut=shortcut, **options)
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            n = module.num_features
            module.weight.data[...] = rng.uniform(0.5, 1.5, n)
            module.bias.data[...] = rng.normal(size=n)
            module.running_mean.data[...] = 0.3 * rng.normal(size=n)
            module.running_var.data[...] = rng.uniform(0.5, 2, n)
    return net.double()


@pytest.mark.parametrize("guided", [False, True])
def test_saliency_and_guided_backprop_by_hand(tiny, guided):
    net, x = tiny
    classes = np.array([0, 2, 1, 2])
    function = features.guided_backprop if guided else features.saliency
    found = function(net, x, classes)
    gradient, _, _, logits = by_hand(net, x, classes, guided)
    assert_close(found.gradient, gradient)
    assert_close(found.logits, logits)
    np.testing.assert_array_equal(found.map, np.abs(found.gradient).max(axis=1))
    plain = by_hand(net, x, classes, not guided)[0]
    assert not np.allclose(found.gradient, plain)  # the two rules do differ here


def test_saliency_is_the_gradient(rng):
    net = residual_net(rng).eval()
    x = rng.normal(size=(3, 2, 8, 8))
    found = features.saliency(net, x)
    step = 1e-6 * rng.normal(size=x.shape)
    np.testing.assert_array_equal(found.classes, net(mr.Tensor(x)).numpy().argmax(axis=1))
    for n in range(3):

        def logit(images, n=n):
            return net(mr.Tensor(images)).numpy()[n, found.classes[n]]

        alone = np.zeros_like(step)
        alone[n] = step[n]
        difference = (logit(x + alone) - logit(x - alone)) / 2
        assert difference == pytest.approx((found.gradient[n] * step[n]).sum(), rel=1e-5)


@pytest.mark.parametrize("layer", ["layer1.0", "layer2.0", "layer3.0.conv1"])
def test_grad_cam_is_its_formula(rng, layer):
    net = residual_net(rng)
    x = rng.normal(size=(2, 2, 9, 7))
    found = features.grad_cam(net, x, classes=[3, 5], layer=layer)
    # The maps and the gradient at them, by hooks and an ordinary backward.
    seen = []
    eager = copy.deepcopy(net).eval()
    eager.get_submodule(layer).register_forward_hook(lambda m, args, y: seen.append(y))
    logits = eager(mr.Tensor(x))
    seen[0].retain_grad()
    (logits[0, 3] + logits[1, 5]).backward()
    A, g = seen[0].numpy(), seen[0].grad.numpy()
    for n in range(2):
        weights = [g[n, k].sum() / g[n, k].size for k in range(A.shape[1])]
        assert_close(found.weights[n], np.array(weights))
        total = sum(w * A[n, k] for k, w in enumerate(weights))
        assert_close(found.map[n], np.maximum(total, 0), atol=1e-12)
    assert found.upsampled().shape == (2, 9, 7)
    assert found.map.any()


def test_grad_cam_by_hand(tiny):
    net, x = tiny

    class Named(TinyNet):
        def __init__(self):
            super().__init__()
            self.join = nn.Identity()

        def forward(self, x):
            a = mr.functional.relu(self.conv1(x))
            b = self.join(mr.functional.add_relu(self.conv2(a), a))
            return self.fc(b.mean(axis=(2, 3)))

    named = Named().double()
    named.load_state_dict(net.state_dict())
    _, at_b, b, _ = by_hand(net, x, np.ones(4, int), guided=False)
    found = features.grad_cam(named, x, 1, "join")
    assert_close(found.weights, at_b.mean(axis=(2, 3)))
    assert_close(found.map, np.maximum((at_b.mean(axis=(2, 3), keepdims=True) * b).sum(1), 0))


def test_the_last_block_is_where_grad_cam_looks(rng):
    net = residual_net(rng)
    x = rng.normal(size=(1, 2, 8, 8))
    assert features.grad_cam(net, x).layer == "layer3.0"
    with pytest.raises(TypeError, match="named_blocks"):
        features.grad_cam(TinyNet(), rng.normal(size=(1, 1, 4, 4)))
    with pytest.raises(ValueError, match="not maps"):
        features.grad_cam(net, x, layer="fc")


def test_upsampling_is_linear_between_centres():
    maps = np.arange(12.0).reshape(1, 3, 4)
    found = features.GradCAM("", np.zeros((1, 1, 9, 12)), None, maps, None, None).upsampled()
    np.testing.assert_allclose(found[0, 1::3, 1::3], maps[0])  # centres of cells of 3x3 pixels
    np.testing.assert_allclose(found[0, 1, 1:5], [0, 1 / 3, 2 / 3, 1])
    np.testing.assert_allclose(found[0, 0], found[0, 1])  # constant beyond the outer centres
    flat = features.GradCAM("", np.zeros((1, 1, 5, 7)), None, np.ones((1, 2, 3)), None, None)
    np.testing.assert_allclose(flat.upsampled(), 1)


@pytest.mark.parametrize("shortcut", ["A", "B", "C", "none"])
def test_refinement_is_what_the_blocks_compute(rng, shortcut):
    net = residual_net(rng, shortcut)
    net.layer2.append(mr.models.BasicBlock(8, 8, shortcut=shortcut).double())
    x = rng.normal(size=(2, 2, 8, 8))
    found = features.refinement(net, x, "layer2", 3)
    outputs, last = [], copy.deepcopy(net).eval()
    for block in last.layer2:
        block.register_forward_hook(lambda m, args, y: outputs.append(y.numpy()[:, 3]))
    last(mr.Tensor(x))
    assert found.blocks == ("layer2.0", "layer2.1")
    assert_close(found.outputs, np.stack(outputs))
    both = found.branches + (0 if shortcut == "none" else found.shortcuts)
    assert_close(found.outputs, np.maximum(both, 0))
    if shortcut == "none":
        assert found.shortcuts is None
        with pytest.raises(ValueError, match="adds to nothing"):
            _ = found.change
    else:
        sizes = [np.linalg.norm(a[k]) for k in (0, 1) for a in (found.branches, found.shortcuts)]
        np.testing.assert_allclose(found.change, [sizes[0] / sizes[1], sizes[2] / sizes[3]])
    right = np.corrcoef(found.outputs[0].ravel(), found.outputs[1].ravel())[0, 1]
    np.testing.assert_allclose(found.likeness, [right])


def test_the_channel_that_varies_most(rng):
    net = residual_net(rng)
    x = rng.normal(size=(2, 2, 8, 8))
    channel = features.refinement(net, x, "layer1").channel
    every = [features.refinement(net, x, "layer1", c).outputs[-1].var() for c in range(4)]
    assert channel == int(np.argmax(every))


def test_first_filters(rng):
    net = mr.models.resnet18(num_classes=3)
    found = features.first_filters(net)
    assert found.layer == "conv1"
    assert found.weight is not net.conv1.weight.numpy()
    np.testing.assert_array_equal(found.weight, net.conv1.weight.numpy())
    shown = found.images()
    assert shown.shape == (64, 7, 7, 3)
    for o in (0, 63):
        largest = np.abs(found.weight[o]).max()
        np.testing.assert_allclose(
            (shown[o] - 0.5) * 2 * largest, found.weight[o].transpose(1, 2, 0), atol=1e-6
        )
    grey = features.Filters("conv", np.array([[[[0.0]]], [[[-2.0]]]], np.float32)).images()
    np.testing.assert_array_equal(grey[:, 0, 0], [0.5, 0])
    with pytest.raises(ValueError, match="no convolution"):
        features.first_filters(nn.Sequential(nn.Linear(2, 2)))


@pytest.mark.parametrize(
    "see",
    [
        features.saliency,
        features.guided_backprop,
        features.grad_cam,
        features.refinement,
        lambda net, x: features.first_filters(net),
    ],
)
def test_the_model_is_left_as_it_was(rng, see):
    net = residual_net(rng).train()
    net.layer2.eval()
    net.fc.weight.grad = mr.Tensor(np.ones(net.fc.weight.shape))
    heard = []
    net.layer1.register_forward_hook(lambda m, args, y: heard.append(1))
    before = {name: t.numpy().copy() for name, t in net.state_dict().items()}
    modes = [m.training for m in net.modules()]
    hooks = [len(m._forward_hooks) for m in net.modules()]
    see(net, rng.normal(size=(2, 2, 8, 8)))
    assert [m.training for m in net.modules()] == modes
    assert [len(m._forward_hooks) for m in net.modules()] == hooks
    for name, tensor in net.state_dict().items():
        np.testing.assert_array_equal(tensor.numpy(), before[name])
    assert all(p.requires_grad for p in net.parameters())
    assert net.conv1.weight.grad is None
    np.testing.assert_array_equal(net.fc.weight.grad.numpy(), 1)


def test_arguments_that_make_no_sense(rng):
    net, x = residual_net(rng), rng.normal(size=(2, 2, 8, 8))
    with pytest.raises(ValueError, match="classes 0 to 9"):
        features.saliency(net, x, 10)
    with pytest.raises(ValueError, match="one each"):
        features.guided_backprop(net, x, [1, 2, 3])
    with pytest.raises(ValueError, match="one each"):
        features.saliency(net, x, 1.5)
    with pytest.raises(TypeError, match="floating-point images"):
        features.saliency(net, np.zeros((1, 2, 8, 8), np.uint8))
    with pytest.raises(AttributeError, match="no sub-module"):
        features.grad_cam(net, x, layer="layer9")
    with pytest.raises(ValueError, match="stages are layer1, layer2, layer3"):
        features.refinement(net, x, "layer4")
    with pytest.raises(ValueError, match="channels 0 to 3"):
        features.refinement(net, x, "layer1", 4)
    net.spare = nn.Identity()
    with pytest.raises(ValueError, match="not called"):
        features.grad_cam(net, x, layer="spare")


def test_pictures(rng, tmp_path):
    net, x = residual_net(rng), rng.normal(size=(3, 2, 8, 8))
    found = (
        features.first_filters(net), features.saliency(net, x), features.grad_cam(net, x),
        features.refinement(net, x), features.refinement(residual_net(rng, "none"), x, "layer2"),
    )  # fmt: skip
    for k, shown in enumerate(found):
        shown.plot(tmp_path / f"{k}.png")
        with Image.open(tmp_path / f"{k}.png") as image:
            pixels = np.asarray(image.convert("RGB"))
        for edge in (pixels[:3], pixels[-3:], pixels[:, :3], pixels[:, -3:]):
            assert (edge == 255).all()
        assert (pixels < 230).any(axis=2).mean() > 0.1  # there is something below the heading
