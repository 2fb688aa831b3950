"""Where kernels are measured: the processor, a CUDA device, or the emulator that stands in for one.

A place has memory of its own and its own clock: calls on a CUDA device return before they are done,
so they are timed with events, which the device notes when it comes to them.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, Protocol

import numpy as np

from minires._names import unknown

Call = Callable[[], Any]


class Place(Protocol):
    """backend: of the kernels that compute there. name: as a user calls it."""

    backend: str
    name: str

    def put(self, array: np.ndarray) -> Any:
        """An array of the place with the same values in the same memory order."""
        ...

    def get(self, result: Any) -> np.ndarray:
        """A result as a NumPy array."""
        ...

    def call(self, function: Callable[..., Any], args: tuple[Any, ...]) -> Call:
        """A call of a kernel on arrays of the place."""
        ...

    def reading(self, call: Call, calls: int) -> float:
        """Seconds per call over so many of them."""
        ...


class Processor:
    """Where minires itself runs."""

    backend, name = "cpu", "cpu"

    def put(self, array: np.ndarray) -> Any:
        return array

    def get(self, result: Any) -> np.ndarray:
        return np.asarray(result)

    def call(self, function: Callable[..., Any], args: tuple[Any, ...]) -> Call:
        return lambda: function(*args)

    def reading(self, call: Call, calls: int) -> float:
        start = time.perf_counter()
        for _ in range(calls):
            call()
        return (time.perf_counter() - start) / calls


class Emulator(Processor):
    """The CUDA kernels' own sources on the processor: for rehearsals and tests, not for timing."""

    backend, name = "cuda", "emulator"

    def call(self, function: Callable[..., Any], args: tuple[Any, ...]) -> Call:
        from minires.kernels.cuda import emulate

        def call() -> Any:
            with emulate.device():
                return function(*args)

        return call


class Gpu:
    """The current CUDA device, through CuPy.

    Raises ImportError if CuPy is not installed, RuntimeError if there is no device.
    """

    backend, name = "cuda", "cuda"

    def __init__(self) -> None:
        from minires.kernels.cuda.launch import import_cupy

        self.cupy = import_cupy()
        try:
            self.cupy.cuda.runtime.getDeviceCount()
        except self.cupy.cuda.runtime.CUDARuntimeError as error:
            raise RuntimeError(f"no CUDA device can be used: {error}") from None

    def put(self, array: np.ndarray) -> Any:
        return self.cupy.asarray(array, order="K")

    def get(self, result: Any) -> np.ndarray:
        if type(result).__module__ == "torch":
            return from_torch(result)
        return np.asarray(self.cupy.asnumpy(result))

    def call(self, function: Callable[..., Any], args: tuple[Any, ...]) -> Call:
        return lambda: function(*args)

    def reading(self, call: Call, calls: int) -> float:
        start, end = self.cupy.cuda.Event(), self.cupy.cuda.Event()
        start.record()
        for _ in range(calls):
            call()
        end.record()
        end.synchronize()
        return float(self.cupy.cuda.get_elapsed_time(start, end)) * 1e-3 / calls


PROCESSOR = Processor()


def place_of(device: str | Place) -> Place:
    """The place of a name, "cpu" or "cuda". Raises ValueError for another, and as `Gpu`."""
    if not isinstance(device, str):
        return device
    if device == "cpu":
        return PROCESSOR
    if device == "cuda":
        return Gpu()
    raise ValueError(unknown("device", device, ("cpu", "cuda")))


def dtype_of(name: str) -> np.dtype[Any]:
    """A dtype by name. Raises ImportError for "bfloat16" where ml_dtypes is not installed."""
    if name == "bfloat16":
        try:
            import ml_dtypes  # gives NumPy the type
        except ImportError as error:
            raise ImportError("bfloat16 needs ml_dtypes: pip install ml-dtypes") from error
        return np.dtype(ml_dtypes.bfloat16)
    return np.dtype(name)


def from_torch(tensor: Any) -> np.ndarray:
    """A PyTorch tensor on any device as a NumPy array; bfloat16 stays bfloat16."""
    tensor = tensor.detach()
    if str(tensor.dtype) != "torch.bfloat16":
        return np.asarray(tensor.cpu().numpy())
    return np.asarray(_halves(tensor, "int16").cpu().numpy()).view(dtype_of("bfloat16"))


def to_torch(torch: Any, array: np.ndarray) -> Any:
    """A contiguous copy of a NumPy array as a PyTorch tensor of the same dtype."""
    dense = np.ascontiguousarray(array)
    if dense.dtype.name != "bfloat16":
        return torch.tensor(dense)
    return _halves(torch.tensor(dense.view(np.int16)), "bfloat16")


def _halves(tensor: Any, dtype: str) -> Any:
    """The same 16 bits under another type."""
    import importlib

    return tensor.view(getattr(importlib.import_module("torch"), dtype))
