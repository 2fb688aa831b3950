"""The stated bound: on a network's own activations, Winograd errs by less than 1e-5 of the largest
value, in every pass; `algorithm="exact"` never uses it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import minires as mr
import minires.functional as F
from minires.kernels import conv_geometry, operation
from minires.kernels.registry import use

BOUND = 1e-5


@pytest.fixture(scope="module")
def layers() -> list[tuple[Any, Any, Any]]:
    """(x, weight, gy) of each 3x3 convolution of stride 1 in a ResNet-20 that has learned a bit,
    on digits shown at 24x24."""
    mr.manual_seed(0)
    digits = mr.data.digits("train")
    net = mr.models.create("resnet20", in_channels=1)
    optimiser = mr.optim.SGD(net.parameters(), lr=0.05, momentum=0.9)
    seen: dict[Any, list[Any]] = {}

    def remember(module: Any, args: Any, output: Any) -> None:
        output.retain_grad()
        seen[module] = [args[0], module.weight, output]

    for module in net.modules():
        if isinstance(module, mr.nn.Conv2d) and module.stride == (1, 1) and module.in_channels > 1:
            module.register_forward_hook(remember)
    for step in range(4):
        images = digits.images[16 * step : 16 * step + 16].repeat(3, axis=2).repeat(3, axis=3)
        x = mr.Tensor(images.astype(np.float32) / images.max())
        net.zero_grad()
        F.cross_entropy(net(x), digits.labels[16 * step : 16 * step + 16]).backward()
        optimiser.step()
    return [(x.numpy(), w.numpy(), y.grad.numpy()) for x, w, y in seen.values()]


@pytest.mark.parametrize("name", ["conv2d", "conv2d_grad_input", "conv2d_grad_weight"])
def test_on_a_networks_own_activations(name: str, layers: list[tuple[Any, Any, Any]]) -> None:
    found = {k.name: k for k in operation(name).kernels if k.backend == "cpu"}
    worst = 0.0
    for x, weight, gy in layers:
        g = conv_geometry(x.shape, weight.shape, 1, 1)
        arrays = {"conv2d": (x, weight), "conv2d_grad_input": (gy, weight)}.get(name, (x, gy))
        assert found["winograd"].supports(g, "float32")
        actual = found["winograd"].function(*arrays, g)
        exact = operation(name).kernels[0].function(*(a.astype(np.float64) for a in arrays), g)
        worst = max(worst, float(np.abs(actual - exact).max() / np.abs(exact).max()))
    assert len(layers) == 16
    assert 1e-9 < worst < BOUND


def test_exact_rules_it_out() -> None:
    g = conv_geometry((128, 16, 32, 32), (16, 16, 3, 3), 1, 1)
    for name in ("conv2d", "conv2d_grad_input", "conv2d_grad_weight"):
        assert operation(name).select("cpu", g).name == "winograd"
        with use(algorithm="exact"):
            assert operation(name).select("cpu", g).name != "winograd"
