"""Every CUDA kernel against the reference: small ragged shapes, all dtypes, odd memory layouts.

Emulated, every launch also has guard zones around its arrays, and runs its threads in changing
order; see test_emulator.py for what that catches.
"""

from __future__ import annotations

import zlib
from typing import Any

import numpy as np
import pytest
from cuda_compare import assert_conforms, tuple_of

from minires.kernels import Kernel, available, conv_geometry
from minires.kernels.cuda import FLOATS
from minires.testing.kernel_inputs import Arguments, arguments
from minires.testing.kernels import laid_out, reference_kernel

PASSES = ("conv2d", "conv2d_grad_input", "conv2d_grad_weight")
KERNELS = [k for k in available() if k.backend == "cuda"]
LAYOUTS = ("contiguous", "channels last", "sliced", "reversed")

SLACK = {"tf32": 2.0**7, "tf32_mma": 2.0**7}
"""What multiplies the allowed error, for algorithms that trade digits for speed. tf32 rounds both
factors to 11 bits: two roundings of 2^-11, where 128 of 2^-24 are allowed otherwise. Winograd's
F(4x4) adds up numbers multiplied by 5 and 8, whose sums cancel."""


def cases(kernel: Kernel, stride: int = 1) -> list[Arguments]:
    """What the kernel supports of its operation's cases, every `stride`-th of them."""
    rng = np.random.default_rng(zlib.crc32(kernel.operation.encode()))
    found = list(arguments(kernel.operation, rng))
    return [c for c in found if kernel.only is None or kernel.only(c.geometry)][::stride]


def laid(case: Arguments, layout: str) -> Arguments:
    values = (laid_out(v, layout) if isinstance(v, np.ndarray) else v for v in case.values)
    return Arguments(f"{case.text}, {layout}", tuple(values), case.linear)


@pytest.mark.parametrize("kernel", KERNELS, ids=lambda k: f"{k.operation}-{k.name}")
def test_equals_the_reference(device: Any, kernel: Kernel) -> None:
    reference = reference_kernel(kernel.operation)
    kinds = [d for d in ("float32", "float64") if d in kernel.dtypes] or ["float16"]
    found = cases(kernel)
    assert found
    for i, case in enumerate(found):
        dtype = kinds[i % 4 == 3] if len(kinds) == 2 else kinds[0]
        assert_conforms(device, kernel, reference, laid(case, LAYOUTS[i % 4]), dtype,
                        SLACK.get(kernel.name, 1.0))  # fmt: skip


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("kernel", KERNELS, ids=lambda k: f"{k.operation}-{k.name}")
def test_sixteen_bits(device: Any, kernel: Kernel, dtype: str) -> None:
    if dtype == "bfloat16":
        pytest.importorskip("ml_dtypes", reason="NumPy has no bfloat16: install ml_dtypes")
    if dtype not in kernel.dtypes:
        pytest.skip(f"{kernel.name} takes no {dtype}")
    reference = reference_kernel(kernel.operation)
    for case in cases(kernel, 12 if kernel.operation in PASSES else 2):
        if "large" not in case.text and "deviations" not in case.text:
            assert_conforms(device, kernel, reference, case, dtype)


LARGER = {
    "several pieces each way": conv_geometry((3, 20, 17, 13), (70, 20, 3, 3), 1, 1),
    "several pieces, stride 2": conv_geometry((3, 16, 19, 14), (132, 16, 3, 3), 2, 1),
    "many inputs": conv_geometry((2, 72, 9, 9), (24, 72, 1, 1)),
    "residues without taps": conv_geometry((2, 8, 11, 12), (16, 8, 1, 1), 3),
    "groups of 8": conv_geometry((2, 24, 8, 9), (48, 8, 3, 3), 1, 1, 1, 3),
    "wide": conv_geometry((1, 3, 40, 34), (64, 3, 7, 7), 2, 3),
}


@pytest.mark.parametrize("text", LARGER)
@pytest.mark.parametrize(
    "kernel", [k for k in KERNELS if k.operation in PASSES],
    ids=lambda k: f"{k.operation}-{k.name}",
)  # fmt: skip
def test_larger_convolutions(device: Any, kernel: Kernel, text: str, rng: Any) -> None:
    g = LARGER[text]
    if kernel.only is not None and not kernel.only(g):
        pytest.skip(f"{kernel.name} does not take {g}")
    shapes = {"conv2d": (g.x_shape, g.weight_shape),
              "conv2d_grad_input": (g.y_shape, g.weight_shape),
              "conv2d_grad_weight": (g.x_shape, g.y_shape)}[kernel.operation]  # fmt: skip
    case = Arguments(text, (*map(rng.standard_normal, shapes), g), linear=True)
    dtype = "float32" if "float32" in kernel.dtypes else "float16"
    assert_conforms(device, kernel, reference_kernel(kernel.operation), laid(case, "channels last"),
                    dtype, SLACK.get(kernel.name, 1.0))  # fmt: skip


@pytest.mark.parametrize("kernel", KERNELS, ids=lambda k: f"{k.operation}-{k.name}")
def test_nan_is_not_lost_and_bits_repeat(device: Any, kernel: Kernel) -> None:
    reference = reference_kernel(kernel.operation)
    case = cases(kernel)[0]
    dtype = "float32" if "float32" in kernel.dtypes else "float16"
    given = [v.astype(dtype) if isinstance(v, np.ndarray) and v.dtype.kind == "f" else v
             for v in case.values]  # fmt: skip
    first, again = (tuple_of(device(kernel.function, *given)) for _ in range(2))
    for a, b in zip(first, again, strict=True):
        np.testing.assert_array_equal(a, b)
    given[0].reshape(-1)[given[0].size // 2] = np.nan
    with np.errstate(invalid="ignore"):
        expected = tuple_of(reference.function(*given))
    for result, right in zip(tuple_of(device(kernel.function, *given)), expected, strict=True):
        if right.dtype.kind == "f":
            assert np.isnan(result[np.isnan(right)]).all()


def test_every_operation_has_a_kernel_for_every_dtype() -> None:
    for name in {k.operation for k in available()}:
        found = [k for k in KERNELS if k.operation == name and k.only is None]
        assert any(set(FLOATS) <= set(k.dtypes) for k in found), name
