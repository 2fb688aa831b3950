"""Where a tensor's numbers lie and in which dtype: moving, converting, and sharing them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

import numpy as np

from minires import autograd  # for what builds on Tensor, which builds on this
from minires.autograd.tape import is_grad_enabled
from minires.kernels.arrays import (
    as_dtype,
    device_of,
    is_floating,
    names_device,
    parse_device,
    to_device,
)

if TYPE_CHECKING:
    from minires.autograd.buffer import Buffer
    from minires.autograd.tensor import Tensor


class Placed:
    """The part of a Tensor that knows about dtypes, devices and other libraries' arrays."""

    __slots__ = ()

    _data: Any
    _buffer: Buffer
    requires_grad: bool

    @property
    def device(self) -> str:
        """Where the array lives: "cpu", "cuda:0", "cuda:1", ..."""
        return device_of(self._data)

    # -- moving and converting ------------------------------------------------------------------

    def to(self, *targets: Any) -> Tensor:
        """On a device ("cpu", "cuda", "cuda:1") or in a dtype, or both; self if nothing changes.

        Differentiable: the gradient goes back to where the tensor was.

        Raises ValueError for an unknown device, ImportError without CuPy, and RuntimeError
        without a GPU; each says what to do.
        """
        tensor = cast("Tensor", self)
        for target in targets:
            tensor = tensor._on(target) if names_device(target) else tensor.astype(target)
        return tensor

    def _on(self, device: str) -> Tensor:
        """On a device, differentiable."""
        kind, number = parse_device(device)
        home = kind if kind == "cpu" else f"cuda:{number}"
        this = cast("Tensor", self)
        if home == self.device:
            return this
        if self.requires_grad and is_grad_enabled():
            moved: Tensor = autograd.shaping.Transfer(home)(this)
            return moved
        return autograd.Tensor._wrap(to_device(self._data, home))

    def astype(self, dtype: Any) -> Tensor:
        """In another dtype, differentiable between floating-point dtypes."""
        dtype, this = as_dtype(dtype), cast("Tensor", self)
        if dtype == self._data.dtype:
            return this
        if not is_floating(dtype):
            return autograd.Tensor._wrap(self._data.astype(dtype))
        converted: Tensor = autograd.shaping.Cast(dtype)(this)
        return converted

    def float(self) -> Tensor:
        return self.astype(np.float32)

    def double(self) -> Tensor:
        return self.astype(np.float64)

    def cpu(self) -> Tensor:
        """On the host, differentiable; self if it is there."""
        return self._on("cpu")

    def cuda(self, number: int = 0) -> Tensor:
        """On the CUDA device of this number, differentiable; self if it is there."""
        return self._on(f"cuda:{number}")

    # -- sharing memory -------------------------------------------------------------------------

    def numpy(self) -> np.ndarray:
        """The values as a NumPy array, sharing memory with this tensor.

        Raises TypeError for a tensor on a device, which NumPy cannot look at.
        """
        if type(self._data) is not np.ndarray and device_of(self._data) != "cpu":
            raise TypeError(
                f"numpy(): this tensor lives on {self.device}, where NumPy cannot see it; copy it "
                "to the host first, with .cpu()"
            )
        return np.asarray(self._handed_out())

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return np.array(self.numpy(), dtype=dtype, copy=copy)

    @property
    def __cuda_array_interface__(self) -> dict[str, Any]:
        """The memory of a tensor on a device, for CuPy, PyTorch, Numba: shared, not copied.

        Raises AttributeError for a tensor on the host, RuntimeError for one with gradients.
        """
        if self.device == "cpu":
            raise AttributeError("__cuda_array_interface__: this tensor lives on the host")
        self._refuse_export("__cuda_array_interface__")
        interface: dict[str, Any] = self._handed_out().__cuda_array_interface__
        return interface

    def __dlpack__(self, **options: Any) -> Any:
        """The memory as a DLPack capsule, shared; `np.from_dlpack(tensor)` and others call it.

        Raises RuntimeError for a tensor that requires gradients: nothing would record a change.
        """
        self._refuse_export("__dlpack__")
        return self._handed_out().__dlpack__(**options)

    def __dlpack_device__(self) -> tuple[int, int]:
        kind, number = self._data.__dlpack_device__()
        return int(kind), int(number)

    def _handed_out(self) -> Any:
        """The array, for somebody who may change it behind our back."""
        array = self._data
        self._buffer.expose()
        return array

    def _refuse_export(self, what: str) -> None:
        if self.requires_grad:
            raise RuntimeError(
                f"{what}: this tensor requires gradients, which the other side would not see; "
                "pass tensor.detach()"
            )
