"""Every registered kernel against the reference, on the shapes that break kernels."""

import pytest

import minires as mr
from minires.testing import check_kernel

KERNELS = [pytest.param(k.operation, k.name, id=f"{k.operation}-{k.name}")
           for k in mr.kernels.available() if k.backend == "cpu"]  # fmt: skip


@pytest.mark.parametrize(("operation", "name"), KERNELS)
def test_kernel_conforms(operation, name):
    report = check_kernel(operation, name)
    assert report.calls > 0


def test_the_fast_kernels_are_among_them():
    names = {(k.operation, k.name) for k in mr.kernels.available()}
    assert {("conv2d", "winograd"), ("conv2d", "columns"), ("conv2d", "direct")} <= names
    assert {("conv2d_grad_weight", "winograd"), ("batch_norm_relu_grad", "simd")} <= names
