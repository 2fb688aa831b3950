"""Many tensors in another dtype at once: a network's weights, before a step in fewer bits."""

from __future__ import annotations

from typing import Any

import numpy as np

from minires.autograd import Function, Tensor
from minires.kernels.arrays import xp_of


class CastAll(Function):
    """Every input in another dtype, in one launch; and their gradients back, in one."""

    def __init__(self, dtype: Any) -> None:
        self.dtype = dtype

    def forward(self, *arrays: Any) -> Any:
        self.given = arrays[0].dtype
        return tuple(_cast(arrays, self.dtype))

    def backward(self, *gradients: Tensor) -> tuple[Tensor, ...]:
        return CastAll(self.given)(*gradients)


def _cast(arrays: tuple[Any, ...], dtype: Any) -> list[Any]:
    if xp_of(arrays[0]) is np:
        return [a.astype(dtype) for a in arrays]
    from minires.kernels.cuda.chunks import cast_many

    return cast_many(arrays, dtype)
