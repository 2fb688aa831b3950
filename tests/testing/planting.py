"""Planting bugs: wrong kernels and wrong operations, and the check that must notice them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

import minires as mr
from minires import functional as F
from minires import nn
from minires.testing import GradcheckReport, gradcheck
from minires.testing.faults import FAULTS

Array = np.ndarray


def tensor(rng: np.random.Generator, *shape: int) -> mr.Tensor:
    return mr.Tensor(rng.standard_normal(shape), requires_grad=True)


def failed(fn: Callable[..., Any], *inputs: Any, **options: Any) -> GradcheckReport:
    """The report of a check that must fail, with causes from the table."""
    report = gradcheck(fn, inputs, raise_exception=False, **options)
    assert not report.passed, str(report)
    assert report.causes
    assert report.kinds <= set(FAULTS)
    return report


@contextmanager
def planted(**kernels: Callable[..., Any]) -> Iterator[None]:
    """Compute operations with these kernels inside the block."""
    operations = {name: mr.kernels.operation(name) for name in kernels}
    known = {name: operation.kernels for name, operation in operations.items()}
    for name, function in kernels.items():
        mr.kernels.register(name, name="planted")(function)
    try:
        with mr.kernels.use(**dict.fromkeys(kernels, "planted")):
            yield
    finally:
        for name, operation in operations.items():
            operation.kernels = known[name]
            operation.forget()


class Block(nn.Module):
    """conv-BN-ReLU-conv-BN, a shortcut (projected if the shape changes), and a join to plant."""

    def __init__(self, C: int, O: int, stride: int = 1, join: Any = F.add_relu) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(C, O, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(O)
        self.conv2 = nn.Conv2d(O, O, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(O)
        self.downsample = nn.Conv2d(C, O, 1, stride) if C != O or stride > 1 else nn.Identity()
        self.join = join
        for norm in (self.bn1, self.bn2):  # gamma = 1 would hide its absence
            norm.weight.data = np.linspace(0.5, 1.5, O).astype(np.float32)

    def forward(self, x: mr.Tensor) -> mr.Tensor:
        y = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        return self.join(y, self.downsample(x))


class Planted(mr.Function):
    """An operation made of two functions: forward of arrays, backward of (saved inputs, gy)."""

    def __init__(self, compute: Callable[..., Any], derive: Callable[..., Any]) -> None:
        self.compute, self.derive = compute, derive

    def forward(self, *arrays: Array) -> Array:
        self.save(**{f"x{i}": a for i, a in enumerate(arrays)})
        return np.asarray(self.compute(*arrays))

    def backward(self, gy: mr.Tensor) -> Any:
        saved = vars(self.saved)
        return self.derive(gy, *(saved[f"x{i}"] for i in range(len(saved))))
