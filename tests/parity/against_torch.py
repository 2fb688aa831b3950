"""The same computation here and in PyTorch: values and gradients, compared."""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pytest

import minires as mr
from minires.testing.compare import assert_close

torch = pytest.importorskip("torch", reason="parity tests compare with PyTorch: pip install torch")
torch.set_num_threads(1)

TOLERANCE = {np.dtype(np.float64): 1e-12, np.dtype(np.float32): 1e-5}
"""The largest error allowed, as a share of the largest element of the tensor compared.

Both sides sum a few hundred products in their own order, which costs some tens of units in the
last place: 2e-16 in float64, 1e-7 in float32. Fast convolution algorithms lose another digit.
"""


def to_torch(array: Any) -> Any:
    """A torch tensor with a copy of the values, in contiguous memory; None stays None."""
    return None if array is None else torch.tensor(np.array(array, order="C"))


def close(actual: Any, expected: Any, name: str, tolerance: float | None = None) -> None:
    """Compare one of our tensors with one of theirs; `tolerance` is a share of the largest."""
    expected = expected.detach().numpy()
    if tolerance is None:
        tolerance = TOLERANCE.get(expected.dtype, 0.0)
    finite = expected[np.isfinite(expected)]
    scale = float(np.abs(finite).max()) if finite.size else 0.0
    assert_close(actual, expected, 0.0, tolerance * scale, name, equal_nan=True)


def random_upstream(y: Any) -> np.ndarray:
    """A gradient for y."""
    return np.asarray(np.random.default_rng(20160627).standard_normal(y.shape)).astype(y.dtype)


def compare(
    ours: Callable[..., Any],
    theirs: Callable[..., Any],
    inputs: Mapping[str, Any],
    *,
    tolerance: float | None = None,
) -> None:
    """Compare ours(*inputs) with theirs(*inputs), and the gradients of all floating inputs.

    inputs: arrays (or None) by name. The gradient reaching the output is random, and from another
        seed than any test's: batch norm has no gradient for one that looks like its input.
    """
    a = {k: None if v is None else mr.Tensor(v) for k, v in inputs.items()}
    b = {k: to_torch(v) for k, v in inputs.items()}
    wanted = [k for k, v in inputs.items() if v is not None and np.asarray(v).dtype.kind == "f"]
    for name in wanted:
        a[name].requires_grad_()
        b[name].requires_grad_()
    y, z = ours(*a.values()), theirs(*b.values())
    close(y, z, "output", tolerance)
    upstream = random_upstream(y)
    y.backward(upstream)
    z.backward(to_torch(upstream))
    for name in wanted:
        close(a[name].grad, b[name].grad, f"gradient of {name}", tolerance)


def channels_last(x: np.ndarray) -> np.ndarray:
    """The same (N, C, H, W) values in channels-last memory."""
    return x.transpose(0, 2, 3, 1).copy().transpose(0, 3, 1, 2)
