"""Where an array lives, and the module that computes on it.

    xp = xp_of(x)                   # numpy, or the module of a device's arrays
    y = xp.where(x > 0, x, 0)
    device_of(x)                    # "cpu", "cuda:0"
    on_gpu = to_device(x, "cuda")
    back = to_host(on_gpu)

Arrays are NumPy's on the CPU and CuPy's on a CUDA device. CuPy is imported when a device is asked
for or one of its arrays comes in. Inside `with minires.kernels.cuda.emulate.device():` devices are
emulated, and their arrays are `emulate.DeviceArray`.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from functools import lru_cache
from typing import Any

import numpy as np

from minires.kernels import memory

DL_CPU, DL_CUDA, DL_CUDA_HOST, DL_CUDA_MANAGED = 1, 2, 3, 13
"""Kinds of memory in the DLPack standard."""

_modules: dict[type, Any] = {np.ndarray: np}  # of array types met so far


def xp_of(array: Any) -> Any:
    """The module whose functions take this array. Raises TypeError for what is no array."""
    try:
        return _modules[type(array)]
    except KeyError:
        return _found(array)


def _found(array: Any) -> Any:
    """The module of an array type seen for the first time."""
    kind = type(array)
    if isinstance(array, np.ndarray | np.generic):
        module: Any = np
    elif kind.__module__.partition(".")[0] == "cupy":
        from minires.kernels.cuda.launch import import_cupy

        module = import_cupy()
    else:
        raise TypeError(f"expected a NumPy or CuPy array, got {kind.__name__}")
    _modules[kind] = module
    return module


def register_type(kind: type, module: Any) -> None:
    """Let `module` compute on arrays of this type, as CuPy computes on its own."""
    _modules[kind] = module


def is_array(value: Any) -> bool:
    """Whether this is an array of the host or of a device."""
    kind = type(value)
    return (
        kind in _modules
        or isinstance(value, np.ndarray)
        or (kind.__module__.partition(".")[0] == "cupy" and hasattr(value, "__dlpack_device__"))
    )


def on_host(array: Any) -> bool:
    """Whether NumPy computes on this array."""
    return xp_of(array) is np


def is_floating(dtype: Any) -> bool:
    """Whether numbers of this dtype have a gradient: NumPy's floats, and bfloat16."""
    return bool(dtype.kind == "f" or dtype.name == "bfloat16")


def as_dtype(dtype: Any) -> Any:
    """A dtype from whatever names one. Raises ImportError for "bfloat16" without ml_dtypes."""
    if isinstance(dtype, str) and dtype == "bfloat16":
        try:
            import ml_dtypes
        except ImportError as error:
            raise ImportError("bfloat16 needs ml_dtypes: pip install ml_dtypes") from error
        return np.dtype(ml_dtypes.bfloat16)
    return np.dtype(dtype)


def arrayed(result: Any) -> Any:
    """A result that may be a NumPy number, as an array of shape ()."""
    return np.asarray(result) if isinstance(result, np.generic) else result


@lru_cache(maxsize=1024)
def constants(dtype: Any, *values: float) -> tuple[Any, ...]:
    """Numbers as arrays of no axes: NumPy multiplies by them in half the time of a Python number,
    to the same bits. For arrays of the host of this dtype."""
    arrays = tuple(np.asarray(value, dtype) for value in values)
    for array in arrays:
        array.flags.writeable = False
    return arrays


def shared(owner: Any) -> Any:
    """A device array in the memory of an object with `__cuda_array_interface__`: no copy."""
    return numbered(0).xp.asarray(owner)


def numbered(number: int) -> Any:
    """The device `cuda:number`, emulated or CuPy's; see `launch.numbered`."""
    from minires.kernels.cuda import launch

    return launch.numbered(number)


def device_of(array: Any) -> str:
    """Where an array lives: "cpu", "cuda:0", "cuda:1", ..."""
    return "cpu" if xp_of(array) is np else f"cuda:{int(array.device.id)}"


def parse_device(device: str) -> tuple[str, int]:
    """("cpu", 0) or ("cuda", number) from "cpu", "cuda" or "cuda:1".

    Raises ValueError for anything else.
    """
    kind, colon, number = device.partition(":")
    if kind == "cpu" and not colon:
        return "cpu", 0
    if kind == "cuda" and (not colon or (number.isascii() and number.isdigit())):
        return "cuda", int(number or 0)
    raise ValueError(f"unknown device {device!r}; known are 'cpu', 'cuda' and 'cuda:1' and so on")


def names_device(value: Any) -> bool:
    """Whether this is meant to name a device, and not a dtype."""
    return isinstance(value, str) and value.partition(":")[0] in ("cpu", "cuda", "gpu", "mps")


def to_device(array: Any, device: str) -> Any:
    """A copy of an array on a device, in the same memory order; the array itself if it is there.

    Raises ValueError for an unknown device or a number that this machine has no device for,
    ImportError without CuPy, and RuntimeError without a GPU or its driver.
    """
    kind, number = parse_device(device)
    if kind == "cpu":
        return to_host(array)
    if xp_of(array) is not np and int(array.device.id) == number:
        return array
    target = numbered(number)
    order = _memory_order(array)
    with target.xp.cuda.Device(number):
        if array.ndim == 0 and xp_of(array) is np:  # an argument of a launch: no transfer
            return target.xp.full((), array[()], array.dtype)
        # Axes in the order of memory, because CuPy sends other arrays in C order.
        return _turned(target.xp.array(_turned(array, order)), _inverse(order))


def to_host(array: Any) -> np.ndarray:
    """The values as a NumPy array, in the same memory order; the array itself if it is one."""
    if xp_of(array) is np:
        return np.asarray(array)
    order = _memory_order(array)
    host: np.ndarray = _turned(_turned(array, order).get(), _inverse(order))
    return host


def empty_ordered(like: Any, shape: tuple[int, ...]) -> Any:
    """An array with arbitrary contents where `like` lives, of its dtype and order of axes."""
    if xp_of(like) is not np or len(shape) != like.ndim:
        return xp_of(like).empty_like(like, shape=shape)
    order = _memory_order(like)
    array = memory.empty(tuple(shape[axis] for axis in order), like.dtype)
    return array.transpose(_inverse(order))


def active(array: Any) -> AbstractContextManager[Any]:
    """A block in which the array's device is the current one: new arrays and launches go there."""
    xp = xp_of(array)
    if xp is np or int(array.device.id) == xp.cuda.get_device_id():
        return nullcontext()
    device: AbstractContextManager[Any] = xp.cuda.Device(int(array.device.id))
    return device


def _memory_order(array: Any) -> tuple[int, ...]:
    """The axes, from the one with the largest steps in memory to the one with the smallest."""
    return tuple(sorted(range(array.ndim), key=lambda axis: -array.strides[axis]))


def _turned(array: Any, order: tuple[int, ...]) -> Any:
    """A view with the axes in this order; the array itself if they are."""
    return array if order == tuple(range(array.ndim)) else array.transpose(order)


def _inverse(order: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(sorted(range(len(order)), key=order.__getitem__))
