"""Networks that the anatomy is tested on: one line per family, and blocks of other kinds."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np

import minires as mr
from minires import functional as F
from minires import nn
from minires.models import BasicBlock, ResNet

NETS: list[tuple[str, dict[str, Any], int]] = [
    *(("resnet20", {"width": 2, "shortcut": option}, 9) for option in "ABC"),
    ("resnet20", {"width": 3, "zero_gamma": True}, 8),
    ("plain20", {"width": 3}, 8),
    *(("resnet18", {"width": 2, "shortcut": option}, 33) for option in "ABC"),
    ("resnet50", {"width": 2}, 32),
    ("resnet50", {"width": 2, "stride_on": "1x1", "shortcut": "C"}, 32),
    ("plain18", {"width": 2}, 32),
]
"""(name, options, image size)"""


def net_id(case: tuple[str, dict[str, Any], int]) -> str:
    return "-".join([case[0], *(f"{v}" for k, v in case[1].items() if k != "width")])


def made(name: str, options: dict[str, Any], dtype: Any = np.float64) -> ResNet:
    return mr.models.create(name, num_classes=4, **options).to(dtype)


def batch(rng: np.random.Generator, size: int, N: int = 3, dtype: Any = np.float64) -> Any:
    """Images and labels."""
    return rng.standard_normal((N, 3, size, size)).astype(dtype), rng.integers(0, 4, N)


def lived(model: Any, rng: np.random.Generator) -> Any:
    """The model with statistics, gammas and biases that are nothing special."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            C, dtype = module.num_features, module.weight.dtype
            module.running_mean.copy_(rng.normal(0, 0.5, C))
            module.running_var.copy_(rng.uniform(0.5, 2, C))
            module.weight.data = rng.normal(0.8, 0.3, C).astype(dtype)
            module.bias.data = rng.normal(0, 0.3, C).astype(dtype)
    return model


class PreActivation(BasicBlock):
    """Full pre-activation (He et al., 2016b): no ReLU after the addition. Where the shape changes
    the shortcut begins behind the first ReLU, so branch and shortcut share a batch norm."""

    def __init__(self, in_channels, width, stride=1, shortcut="B"):
        super().__init__(in_channels, width, stride, shortcut)
        self.bn1, self.bn2 = nn.BatchNorm2d(in_channels), nn.BatchNorm2d(width)

    def branch(self, x):
        return self.conv2(self.bn2.relu(self.conv1(self.bn1.relu(x))))

    def shortcut(self, x):
        return x if self.downsample is None else self.downsample(self.bn1.relu(x))

    def join(self, branch, shortcut):
        return branch + shortcut


class StochasticDepth(BasicBlock):
    """Huang et al. (2016): in training the branch is dropped at random, else scaled."""

    survival = 0.5

    def branch(self, x):
        if not self.training:
            return super().branch(x)
        keep = F.dropout(mr.Tensor(np.ones(1, np.float32)), 1 - self.survival, True).item() > 0
        return super().branch(x) if keep else None

    def join(self, branch, shortcut):
        if branch is None:
            return F.relu(shortcut)
        return F.add_relu(branch if self.training else branch * self.survival, shortcut)


class Noisy(BasicBlock):
    """Dropout between the convolutions, as in a Wide ResNet."""

    def branch(self, x):
        x = F.dropout(self.bn1.relu(self.conv1(x)), 0.3, self.training)
        return self.bn2(self.conv2(x))


KINDS = [PreActivation, StochasticDepth, Noisy]


def made_of(block: Any, blocks: tuple[int, ...] = (2, 2), **options: Any) -> ResNet:
    return ResNet(partial(block, **options), blocks, width=3, stem="cifar", num_classes=4).double()


def state(model: Any) -> dict[str, Any]:
    """Everything that must not change."""
    found: dict[str, Any] = {k: t.numpy().copy() for k, t in model.state_dict().items()}
    for name, p in model.named_parameters():
        found[f"{name}: gradient"] = None if p.grad is None else p.grad.numpy().copy()
        found[f"{name}: requires"] = p.requires_grad
    for name, module in model.named_modules():
        found[f"{name}: mode"] = module.training
        found[f"{name}: hooks"] = len(module._forward_hooks), len(module._forward_pre_hooks)
        found[f"{name}: kind"] = type(module)
    found["random"] = repr(mr.functional.random.get_rng_state())
    return found


def assert_untouched(model: Any, before: dict[str, Any]) -> None:
    after = state(model)
    assert after.keys() == before.keys()
    for name, value in before.items():
        if isinstance(value, np.ndarray):
            np.testing.assert_array_equal(after[name], value, err_msg=name)
        else:
            assert after[name] == value, name


def backward(model: Any, x: Any, y: Any) -> dict[str, np.ndarray]:
    """Gradients at every block's input by the model's own forward, one tape, and backward().

    With the random numbers and statistics that it finds, which it leaves as they were.
    """
    tensors = {}

    def keeper(name: str) -> Any:
        def hook(module: Any, args: Any) -> None:
            tensors[name] = args[0]

        return hook

    handles = [block.register_forward_pre_hook(keeper(n)) for n, block in model.named_blocks()]
    buffers = {name: t.numpy().copy() for name, t in model.named_buffers()}
    random = mr.functional.random.get_rng_state()
    images = mr.Tensor(x, requires_grad=True)
    loss = F.cross_entropy(model(images), y)
    found = mr.grad(loss, [images, *tensors.values()])
    for name, t in model.named_buffers():
        t.copy_(buffers[name])
    for handle in handles:
        handle.remove()
    mr.functional.random.set_rng_state(random)
    return dict(zip(["image", *tensors], (g.numpy() for g in found), strict=True))
