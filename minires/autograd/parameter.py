"""The tensors that are trained."""

from __future__ import annotations

from typing import Any

from minires.autograd.convert import as_array
from minires.autograd.tensor import Tensor


class Parameter(Tensor):
    """A tensor that a Module owns and an optimiser changes: holds a copy of `data`."""

    __slots__ = ()

    def __init__(self, data: Any, requires_grad: bool = True) -> None:
        super().__init__(as_array(data).copy(order="K"), requires_grad=requires_grad)
        self._buffer.exposed = False  # the copy is ours: nobody holds it until `.data` is read

    def __repr__(self) -> str:
        return f"Parameter containing:\n{super().__repr__()}"
