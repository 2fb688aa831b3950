"""How a CUDA kernel's result is held against the reference's, computed in float64."""

from __future__ import annotations

from typing import Any

import numpy as np

from minires.kernels import Kernel
from minires.testing.kernel_inputs import Arguments

# The roundoff of the type that products are made of; sums are float32 or float64.
ROUNDOFF = {"float16": 2.0**-11, "bfloat16": 2.0**-8, "float32": 2.0**-24, "float64": 2.0**-53}


def cast(value: Any, dtype: Any) -> Any:
    """A floating-point array in a dtype, anything else as it is."""
    floats = isinstance(value, np.ndarray) and value.dtype.kind == "f"
    return value.astype(dtype) if floats else value


def widened(value: Any) -> Any:
    """A floating-point array, of a 16-bit type too, in float64."""
    if isinstance(value, np.ndarray) and value.dtype.kind not in "iub":
        return value.astype(np.float64)
    return value


def tuple_of(result: Any) -> tuple[Any, ...]:
    return result if isinstance(result, tuple) else (result,)


def assert_conforms(
    device: Any, kernel: Kernel, reference: Kernel, case: Arguments, dtype: str, slack: float = 1.0
) -> None:
    """The kernel's result equals the reference's within rounding, and its inputs are untouched.

    Linear operations: |error| <= 16 u (the result for absolute values) for 16-bit types and
    128 u for others, whose sums round too; a tenth of the largest value counts at least. Other
    operations: |error| <= 400 u * max(1, largest value).
    """
    given = [cast(v, np.dtype(dtype)) for v in case.values]
    before = [v.copy() if isinstance(v, np.ndarray) else v for v in given]
    results = tuple_of(device(kernel.function, *given))
    for array, copy in zip(given, before, strict=True):
        if isinstance(array, np.ndarray):
            np.testing.assert_array_equal(array, copy, err_msg="an input was changed")
    exact = [widened(v) for v in given]
    expected = tuple_of(reference.function(*exact))
    magnitudes = expected
    if case.linear:
        absolute = [np.abs(v) if isinstance(v, np.ndarray) else v for v in exact]
        magnitudes = tuple_of(reference.function(*absolute))
    assert len(results) == len(expected)
    u = ROUNDOFF[dtype] * slack
    for i, (result, right, size) in enumerate(zip(results, expected, magnitudes, strict=True)):
        where = f"{kernel.name}, {case.text}, {dtype}, result {i}"
        assert result.shape == right.shape, where
        if right.dtype.kind != "f":
            np.testing.assert_array_equal(result, right, err_msg=where)
            continue
        largest = float(np.max(np.abs(size), initial=0.0))
        if case.linear:
            allowed = (16 if result.itemsize == 2 else 128) * u * np.maximum(size, largest / 10)
        else:
            allowed = np.full(right.shape, (16 if u > 1e-5 else 400) * u * max(1.0, largest))
        error = np.abs(widened(result) - right)
        wrong = ~(error <= allowed + 1e-300)
        if wrong.any():
            at = tuple(np.argwhere(wrong)[0])
            raise AssertionError(
                f"{where}: {int(wrong.sum())} of {wrong.size} wrong, the first at {at}: "
                f"{result[at]}, expected {right[at]}, allowed error {allowed[at]:.2g}"
            )
