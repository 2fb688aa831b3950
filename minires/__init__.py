"""minires: a from-scratch deep-learning engine for residual networks.

    import minires as mr
    x = mr.Tensor(array, requires_grad=True)
    model = mr.models.create("resnet20")
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from minires import functional, kernels, nn
from minires.autograd import (
    Function,
    Parameter,
    Tensor,
    clip,
    concatenate,
    enable_grad,
    exp,
    from_dlpack,
    grad,
    is_grad_enabled,
    log,
    matmul,
    maximum,
    minimum,
    no_grad,
    set_grad_enabled,
    sigmoid,
    sqrt,
    stack,
    tanh,
    tensor,
    where,
)
from minires.functional.random import manual_seed
from minires.kernels.threads import set_num_threads

if TYPE_CHECKING:
    from minires import anatomy, bench, cuda, data, experiments, models, optim, testing, training
    from minires.bench.ahead import compile_kernels
    from minires.bench.profile import profile
    from minires.bench.tune import tune
    from minires.files import load_file, save_file
    from minires.testing.gradcheck import gradcheck, gradgradcheck

__version__ = "0.1.0"

_SUBMODULES = (
    "anatomy",
    "bench",
    "cuda",
    "data",
    "experiments",
    "models",
    "optim",
    "testing",
    "training",
)
_LATE = {
    "compile_kernels": "minires.bench.ahead",
    "gradcheck": "minires.testing",
    "gradgradcheck": "minires.testing",
    "load_file": "minires.files",
    "profile": "minires.bench.profile",
    "save_file": "minires.files",
    "tune": "minires.bench.tune",
}


def __getattr__(name: str) -> Any:
    """Parts that not every program needs are imported when they are first asked for."""
    if name in _SUBMODULES:
        return importlib.import_module(f"minires.{name}")
    if name in _LATE:
        return getattr(importlib.import_module(_LATE[name]), name)
    raise AttributeError(f"module 'minires' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *_SUBMODULES, *_LATE])
