"""Shared memory serves each warp's rows in as few turns as there can be: no bank conflicts.

The emulator counts asynchronous copies and matrix loads (`EmulatedDevice.shared_turns`); operands
of wgmma are swizzled by the hardware, and what goes element by element is not counted.
"""

from __future__ import annotations

from typing import Any

import pytest

from minires.kernels import available, conv_geometry
from minires.kernels.cuda import emulate

KERNELS = [k for k in available()
           if k.backend == "cuda" and k.name in ("tensor", "mma", "tf32", "tf32_mma")]  # fmt: skip

LAYERS = {
    "3x3, 64 channels": conv_geometry((2, 64, 9, 9), (72, 64, 3, 3), 1, 1),
    "stride 2": conv_geometry((2, 64, 9, 9), (64, 64, 3, 3), 2, 1),
    "1x1": conv_geometry((2, 64, 7, 7), (128, 64, 1, 1)),
}


def turns(kernel: Any, g: Any, rng: Any) -> tuple[int, int]:
    """(turns needed, turns taken) of a kernel."""
    shapes = {"conv2d": (g.x_shape, g.weight_shape),
              "conv2d_grad_input": (g.y_shape, g.weight_shape),
              "conv2d_grad_weight": (g.x_shape, g.y_shape)}[kernel.operation]  # fmt: skip
    dtype = "float32" if "float32" in kernel.dtypes else "float16"
    with emulate.device() as device:
        before = [counted.total() for counted in device.shared_turns.values()]
        kernel.function(*(rng.standard_normal(s).astype(dtype) for s in shapes), g)
        after = [counted.total() for counted in device.shared_turns.values()]
    needed, taken = (b - a for a, b in zip(before, after, strict=True))
    return needed, taken


@pytest.mark.parametrize("layer", LAYERS)
@pytest.mark.parametrize("kernel", KERNELS, ids=lambda k: f"{k.operation}-{k.name}")
def test_no_bank_conflicts(emulator: Any, kernel: Any, layer: str, rng: Any) -> None:
    needed, taken = turns(kernel, LAYERS[layer], rng)
    assert needed == taken > 0


@pytest.mark.parametrize(
    ("name", "operation", "bug"),
    [
        ("mma", "conv2d", ("conv_tensor.cu", "(q ^ (row / 2 % 4)) * 16", "q * 16")),
        ("mma", "conv2d_grad_weight", ("conv_tensor_weight.cu", "(q ^ swizzle)", "q")),
        ("tf32", "conv2d", ("conv_wgmma.cu", "(q ^ row % 8) * 16);", "q * 16);")),
    ],
)
def test_a_missing_swizzle_shows(
    emulator: Any, altered: Any, rng: Any, name: str, operation: str, bug: tuple[str, str, str]
) -> None:
    altered(*bug)
    kernel = next(k for k in KERNELS if (k.name, k.operation) == (name, operation))
    needed, taken = turns(kernel, LAYERS["3x3, 64 channels"], rng)
    assert taken > 1.5 * needed
