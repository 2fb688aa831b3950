"""The package from outside: what importing it brings along, and the names it offers."""

from __future__ import annotations

import importlib
import subprocess
import sys

import numpy as np
import pytest

import minires as mr

HEAVY = (
    "matplotlib", "typer", "rich", "click", "numba", "llvmlite", "pooch", "PIL", "torch", "jax",
    "hypothesis", "pytest", "cupy", "safetensors", "requests", "scipy",
)  # fmt: skip


def in_a_fresh_interpreter(code: str) -> str:
    result = subprocess.run(
        [sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr
    return result.stdout.strip()


def test_import_brings_nothing_heavy_along() -> None:
    """Counted in modules, which does not depend on how busy the machine is."""
    code = (
        "import sys, numpy; before = set(sys.modules)\n"
        "import minires; new = set(sys.modules) - before\n"
        "print(len(new), *sorted({m.partition('.')[0] for m in new}))"
    )
    count, *names = in_a_fresh_interpreter(code).split()
    assert not set(names) & set(HEAVY)
    assert "minires" in names
    assert int(count) < 120


def test_a_first_step_brings_nothing_heavy_along_either() -> None:
    code = (
        "import sys, numpy as np, minires as mr\n"
        "net = mr.nn.Sequential(mr.nn.Conv2d(1, 2, 3), mr.nn.BatchNorm2d(2), mr.nn.Flatten(),\n"
        "                       mr.nn.Linear(8, 3))\n"
        "x = mr.Tensor(np.ones((2, 1, 4, 4), np.float32))\n"
        "mr.functional.cross_entropy(net(x), [0, 1]).backward()\n"
        f"print(*[m for m in {HEAVY!r} if m in sys.modules])"
    )
    assert in_a_fresh_interpreter(code) == ""


PUBLIC = {
    "minires": "Tensor tensor no_grad enable_grad set_grad_enabled is_grad_enabled grad "
    "manual_seed Function functional nn models optim data kernels anatomy bench "
    "experiments profile gradcheck gradgradcheck "
    "save_file load_file __version__",
    "minires.functional": "conv2d batch_norm batch_norm_relu batch_norm_add_relu relu add_relu "
    "bias_relu linear max_pool2d avg_pool2d "
    "adaptive_avg_pool2d pad cross_entropy nll_loss mse_loss softmax log_softmax dropout one_hot "
    "exp log sqrt tanh sigmoid clip where maximum minimum matmul concatenate stack flatten",
    "minires.nn": "Module Parameter Conv2d BatchNorm2d ReLU Linear MaxPool2d AvgPool2d "
    "AdaptiveAvgPool2d Flatten Identity Dropout Sequential ModuleList CrossEntropyLoss init",
    "minires.models": "create list_models resnet18 resnet34 resnet50 resnet101 resnet152 resnet20 "
    "resnet32 resnet44 resnet56 resnet110 resnet1202 plain20",
    "minires.optim": "SGD",
    "minires.data": "digits cifar10 image_folder transforms Loader",
    "minires.kernels": "register use available operations ConvGeometry conv_geometry",
}


@pytest.mark.parametrize("module", PUBLIC)
def test_public_names(module: str) -> None:
    found = importlib.import_module(module)
    missing = [name for name in PUBLIC[module].split() if not hasattr(found, name)]
    assert not missing


def test_tensor_has_what_it_promises() -> None:
    x = mr.Tensor(np.ones(1), requires_grad=True)
    names = (
        "data grad shape dtype device numpy item to detach backward requires_grad clone float "
        "double register_hook retain_grad zero_grad sum mean var max min reshape transpose"
    )
    assert not [name for name in names.split() if not hasattr(x, name)]


def test_unknown_names() -> None:
    with pytest.raises(AttributeError, match="module 'minires' has no attribute 'tensors'"):
        _ = mr.tensors
    assert {"data", "gradcheck", "Tensor", "save_file"} <= set(dir(mr))


def test_version_is_that_of_the_distribution() -> None:
    metadata = importlib.import_module("importlib.metadata")
    try:
        installed = metadata.version("minires")
    except metadata.PackageNotFoundError:
        pytest.skip("minires is not installed, only on the path")
    assert mr.__version__ == installed
