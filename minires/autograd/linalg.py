"""Matrix products."""

from __future__ import annotations

from typing import Any

import numpy as np

from minires.autograd.elementwise import as_tensor, sum_to
from minires.autograd.tape import Function
from minires.autograd.tensor import Tensor


class MatMul(Function):
    """a @ b for matrices and stacks of matrices, as NumPy's matmul."""

    def forward(self, a: Any, b: Any) -> Any:
        if a.shape[-1] != b.shape[-2]:
            raise ValueError(
                f"matmul: {a.shape} @ {b.shape}: the last axis of the first ({a.shape[-1]}) must "
                f"equal the second-to-last of the second ({b.shape[-2]})"
            )
        self.save(a=a, b=b)
        return np.matmul(a, b)

    def backward(self, gy: Tensor) -> tuple[Tensor | None, ...]:
        a, b = self.saved.a, self.saved.b
        ga = sum_to(gy @ b.transpose(-1, -2), a.shape) if self.needs[0] else None
        gb = sum_to(a.transpose(-1, -2) @ gy, b.shape) if self.needs[1] else None
        return ga, gb


def matmul(a: Any, b: Any) -> Tensor:
    """The matrix product, with NumPy's rules for vectors and stacks of matrices.

    Raises ValueError for scalars and for inner sizes that differ.
    """
    a, b = as_tensor(a), as_tensor(b)
    if a.ndim == 0 or b.ndim == 0:
        raise ValueError("matmul: a scalar has no matrix product; use *")
    row, column = a.ndim == 1, b.ndim == 1
    y = MatMul()(a.unsqueeze(0) if row else a, b.unsqueeze(1) if column else b)
    if row:
        y = y.squeeze(-1 if column else -2)
    return y.squeeze(-1) if column else y
