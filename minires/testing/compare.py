"""The one comparison of arrays that every test uses; NaN never passes by accident."""

from __future__ import annotations

from typing import Any

import numpy as np

from minires.autograd import Tensor
from minires.kernels.geometry import shape_text

TOLERANCES: dict[str, tuple[float, float]] = {
    "float16": (2e-3, 1e-3),
    "float32": (1e-5, 1e-6),
    "float64": (1e-10, 1e-12),
}
"""(rtol, atol) for two computations of the same values in different order, by dtype."""


def as_array(value: Any, like: Any = None) -> np.ndarray:
    """A Tensor's array, or anything NumPy makes an array of; plain numbers take `like`'s dtype."""
    if isinstance(value, Tensor):
        return np.asarray(value._data)
    if isinstance(value, np.ndarray | np.generic) or like is None:
        return np.asarray(value)
    return np.asarray(value, dtype=like.dtype)


def default_tolerances(*dtypes: Any) -> tuple[float, float]:
    """(rtol, atol) of the least precise of some dtypes; exact for integers and booleans."""
    known = [TOLERANCES[str(np.dtype(d))] for d in dtypes if str(np.dtype(d)) in TOLERANCES]
    return max(known, default=(0.0, 0.0))


def element(name: str, index: tuple[int, ...]) -> str:
    """`weight[2,0,1,1]`: one element of a tensor as it reads in a message."""
    return f"{name}[{','.join(map(str, index))}]" if index else name


def assert_close(
    actual: Any,
    expected: Any,
    rtol: float | None = None,
    atol: float | None = None,
    name: str = "",
    *,
    equal_nan: bool = False,
    check_dtype: bool = True,
) -> None:
    """Raise AssertionError unless |actual - expected| <= atol + rtol * |expected| everywhere.

    actual, expected: Tensors, arrays or plain numbers and lists (which take the other's dtype).
        Shapes must be equal, and dtypes too unless `check_dtype` is off; nothing is broadcast.
    rtol, atol: default to `TOLERANCES` of the less precise dtype, and to 0 for integers.
    name: what is compared, for the message.
    equal_nan: let NaN equal NaN; otherwise a NaN on either side fails. Equal infinities are equal.

    The message names the worst element, both values, the error and what was allowed.
    """
    a = as_array(actual, as_array(expected))
    b = as_array(expected, a)
    label = f"{name}: " if name else ""
    if a.shape != b.shape:
        raise AssertionError(
            f"{label}expected shape {shape_text(b.shape)}, got {shape_text(a.shape)}"
        )
    if check_dtype and a.dtype != b.dtype:
        raise AssertionError(
            f"{label}expected dtype {b.dtype}, got {a.dtype} (check_dtype=False compares values)"
        )
    defaults = default_tolerances(a.dtype, b.dtype)
    rtol = defaults[0] if rtol is None else rtol
    atol = defaults[1] if atol is None else atol
    if not (rtol >= 0 and atol >= 0):
        raise ValueError(f"assert_close: tolerances must not be negative, got {rtol} and {atol}")

    same = a == b
    if equal_nan:
        same = same | ((a != a) & (b != b))
    # Integers are compared exactly by `same`; beyond 2**53 only the printed error is rounded.
    with np.errstate(invalid="ignore", over="ignore"):
        error = np.abs(a.astype(np.float64) - b.astype(np.float64))
        allowed = atol + rtol * np.abs(b.astype(np.float64))
        # An infinite tolerance would allow anything; infinities must be the same one.
        wrong = ~same & ~((error <= allowed) & np.isfinite(error))
        if a.dtype.kind in "iub" and b.dtype.kind in "iub" and rtol == 0 and atol == 0:
            wrong = ~same
        if not wrong.any():
            return
        excess = np.where(wrong, np.nan_to_num(error - allowed, nan=np.inf), -np.inf)
    worst = tuple(int(i) for i in np.unravel_index(int(np.argmax(excess)), a.shape))
    raise AssertionError(
        f"{label}{int(wrong.sum())} of {a.size} elements differ "
        f"({shape_text(a.shape)} {a.dtype}, rtol {rtol:g}, atol {atol:g})\n"
        f"  worst at {element('', worst) or 'the only element'}: actual {a[worst]!s}, "
        f"expected {b[worst]!s}, error {error[worst]:.3g}, allowed {allowed[worst]:.3g}"
    )
