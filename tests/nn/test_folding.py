"""Batch norm folded into convolutions: the same function, and only where it is the same."""

from __future__ import annotations

import numpy as np
import pytest
from drawn import conv_cases
from hypothesis import given
from hypothesis import strategies as st

import minires as mr
from minires import functional as F
from minires import nn
from minires.models import BasicBlock, Bottleneck
from minires.testing.compare import assert_close


def lived(model, rng):
    """The model with statistics, gammas and biases that are nothing special, in evaluation mode."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            C = module.num_features
            if module.running_mean is not None:
                module.running_mean.copy_(rng.normal(0, 0.5, C))
                module.running_var.copy_(rng.uniform(0.3, 2, C))
            if module.weight is not None:
                module.weight.data = rng.normal(0.7, 0.5, C).astype(module.weight.dtype)
                module.bias.data = rng.normal(0, 0.5, C).astype(module.weight.dtype)
    return model.eval()


def run(model, x):
    with mr.no_grad():
        return model(mr.Tensor(x))


@given(conv_cases(empty=False), st.booleans(), st.booleans(), st.integers(0, 2**32 - 1))
def test_a_pair_is_one_convolution(case, bias, affine, seed):
    rng = np.random.default_rng(seed)
    O, C = case.weight_shape[0], case.x_shape[1]
    stride, padding, dilation, groups = case.settings
    conv = nn.Conv2d(C, O, case.weight_shape[2:], stride, padding, dilation, groups, bias).double()
    if bias:
        conv.bias.data = rng.standard_normal(O)
    bn = lived(nn.BatchNorm2d(O, eps=0.1, affine=affine).double(), rng)
    x = rng.standard_normal(case.x_shape)
    folded = nn.fold_batch_norm(conv, bn)
    assert folded.weight.dtype == np.float64
    assert_close(run(folded, x), run(bn, run(conv, x)))


def test_named_padding_is_kept(rng):
    conv, bn = nn.Conv2d(2, 3, 3, padding="same").double(), nn.BatchNorm2d(3).double()
    x = rng.standard_normal((2, 2, 5, 4))
    folded = nn.fold_batch_norm(conv, lived(bn, rng))
    assert_close(run(folded, x), run(bn, run(conv, x)))


def test_a_pair_that_is_none_is_refused():
    with pytest.raises(TypeError, match="got Conv2d and ReLU"):
        nn.fold_batch_norm(nn.Conv2d(1, 2, 1), nn.ReLU())
    with pytest.raises(ValueError, match="gives 2 channels, the batch norm takes 3"):
        nn.fold_batch_norm(nn.Conv2d(1, 2, 1), nn.BatchNorm2d(3))
    with pytest.raises(ValueError, match="keeps no running statistics"):
        nn.fold_batch_norm(nn.Conv2d(1, 2, 1), nn.BatchNorm2d(2, track_running_stats=False))


NETS = [
    *(("resnet20", {"shortcut": option, "width": 4}, 9) for option in "ABC"),
    ("plain20", {"width": 4}, 8),
    ("resnet18", {"width": 4}, 33),
    ("resnet50", {"width": 2}, 32),
    ("resnet50", {"width": 2, "stride_on": "1x1", "shortcut": "C"}, 32),
]


@pytest.mark.parametrize(("name", "options", "size"), NETS)
@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_a_network_without_batch_norm_gives_the_same_logits(name, options, size, dtype, rng):
    model = lived(mr.models.create(name, num_classes=5, **options).to(dtype), rng)
    before = {key: t.numpy().copy() for key, t in model.state_dict().items()}
    x = rng.standard_normal((3, 3, size, size)).astype(dtype)
    folded = nn.fold_batch_norms(model)

    assert not any(isinstance(m, nn.BatchNorm2d) for m in folded.modules())
    assert not any(m.training for m in folded.modules())
    expected, rtol = run(model, x), 1e-10 if dtype == np.float64 else 1e-4
    assert_close(run(folded, x), expected, rtol=rtol, atol=rtol * np.abs(expected.numpy()).max())
    for key, t in model.state_dict().items():
        assert_close(t, before[key], rtol=0, atol=0, name=key)
    norms = sum(isinstance(m, nn.BatchNorm2d) for m in model.modules())
    assert set(folded.state_dict()) == {
        key for name, m in model.named_modules() if isinstance(m, nn.Conv2d | nn.Linear)
        for key in (f"{name}.weight", f"{name}.bias")
    }  # fmt: skip
    assert len(folded.state_dict()) == 2 * (norms + 1)


def test_the_state_goes_into_another_copy(rng):
    first, second = (
        nn.fold_batch_norms(lived(mr.models.resnet20(width=4), rng)) for _ in range(2)
    )
    x = rng.standard_normal((2, 3, 8, 8)).astype(np.float32)
    assert not np.array_equal(run(first, x).numpy(), run(second, x).numpy())
    second.load_state_dict(first.state_dict())
    assert_close(run(second, x), run(first, x), rtol=0, atol=0)


class PreActivation(nn.Module):
    """Batch norm and ReLU in front of each convolution: only the second norm can be folded."""

    def __init__(self):
        super().__init__()
        # Registered in another order than they are used in.
        self.conv2, self.bn1 = nn.Conv2d(3, 3, 3, padding=1), nn.BatchNorm2d(3)
        self.conv1, self.bn2 = nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)

    def forward(self, x):
        return x + self.conv2(self.bn2.relu(self.conv1(self.bn1.relu(x))))


def test_pairs_are_found_by_use_not_by_place(rng):
    model = lived(PreActivation(), rng)
    folded = nn.fold_batch_norms(model)
    assert isinstance(folded.bn1, nn.BatchNorm2d)
    assert isinstance(folded.bn2, nn.FoldedNorm)
    x = rng.standard_normal((2, 3, 5, 5)).astype(np.float32)
    assert_close(run(folded, x), run(model, x))


class Seen(nn.Module):
    """A convolution whose output somebody else uses too, or that is used twice."""

    def __init__(self, how):
        super().__init__()
        self.how = how
        self.conv, self.bn = nn.Conv2d(2, 2, 1, bias=False), nn.BatchNorm2d(2)
        self.other, self.norm = nn.Conv2d(2, 2, 1, bias=False), nn.BatchNorm2d(2)

    def forward(self, x):
        x = self.norm(self.other(x))
        y = self.conv(x)
        if self.how == "output":
            return self.bn(y) + y
        if self.how == "relu":
            return self.bn(F.relu(y))
        return self.bn(y) + (self.conv(2 * x) if self.how == "conv" else self.bn(2 * x))


@pytest.mark.parametrize("how", ["output", "relu", "conv", "norm"])
def test_a_convolution_with_another_use_is_left_alone(how, rng):
    model = lived(Seen(how), rng)
    folded = nn.fold_batch_norms(model, (2, 4, 4))
    assert isinstance(folded.bn, nn.BatchNorm2d)
    assert isinstance(folded.norm, nn.FoldedNorm)
    x = rng.standard_normal((2, 2, 4, 4)).astype(np.float32)
    assert_close(run(folded, x), run(model, x))


def test_what_cannot_be_folded_says_so(rng):
    with pytest.raises(ValueError, match=r"call model\.eval\(\) first"):
        nn.fold_batch_norms(mr.models.resnet20(width=4))
    half = mr.models.resnet20(width=4).eval()
    half.bn1.train()
    with pytest.raises(ValueError, match="training mode"):
        nn.fold_batch_norms(half)
    with pytest.raises(ValueError, match="Sequential has no convolution whose output"):
        nn.fold_batch_norms(nn.Sequential(nn.Conv2d(3, 2, 1), nn.ReLU(), nn.Flatten()).eval())
    fixed = nn.Sequential(nn.Conv2d(1, 2, 1), nn.BatchNorm2d(2), nn.Flatten(), nn.Linear(32, 2))
    with pytest.raises(ValueError, match=r"1x224x224 or 1x32x32.*input_shape=\(C, H, W\)"):
        nn.fold_batch_norms(fixed.eval())
    assert isinstance(nn.fold_batch_norms(fixed, (1, 4, 4))[1], nn.FoldedNorm)


class Joined(nn.Module):
    """Every way in which a batch norm is called."""

    def __init__(self):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(2, 2, 1), nn.BatchNorm2d(2)
        self.conv2, self.bn2 = nn.Conv2d(2, 2, 1), nn.BatchNorm2d(2)
        self.conv3, self.bn3 = nn.Conv2d(2, 2, 1), nn.BatchNorm2d(2)

    def forward(self, x):
        return self.bn3.add_relu(self.conv3(self.bn2.relu(self.conv2(x))), self.bn1(self.conv1(x)))


def test_norms_fold_however_they_are_called(rng):
    model = lived(Joined(), rng)
    folded = nn.fold_batch_norms(model, (2, 4, 4))
    assert not any(isinstance(m, nn.BatchNorm2d) for m in folded.modules())
    x = rng.standard_normal((2, 2, 4, 4)).astype(np.float32)
    assert_close(run(folded, x), run(model, x), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("block", [BasicBlock, Bottleneck])
def test_single_blocks_fold_too(block, rng):
    model = lived(block(8, 8, 2), rng)
    folded = nn.fold_batch_norms(model, (8, 6, 6))
    x = rng.standard_normal((2, 8, 6, 6)).astype(np.float32)
    assert_close(run(folded, x), run(model, x), rtol=1e-5, atol=1e-5)
