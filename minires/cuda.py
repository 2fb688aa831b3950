"""CUDA devices: whether there are any, how much memory is in use. Names and meanings are PyTorch's.

    import minires as mr
    device = "cuda" if mr.cuda.is_available() else "cpu"

Devices are given as "cuda", "cuda:1", a number, or None for the current one. All functions but
`is_available` and `device_count` raise ImportError without CuPy and RuntimeError without a GPU.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from minires.kernels.arrays import parse_device

if TYPE_CHECKING:
    from minires.kernels.cuda.graph import Workplace
    from minires.training.graphs import GraphedStep
    from minires.training.out_of_memory import OutOfMemoryError

__all__ = [
    "GraphedStep",
    "OutOfMemoryError",
    "Workplace",
    "current_device",
    "device_count",
    "empty_cache",
    "is_available",
    "max_memory_allocated",
    "memory_allocated",
    "reset_peak_memory_stats",
    "synchronize",
]

Device = str | int | None
_LATE = {
    "GraphedStep": "minires.training.graphs",
    "OutOfMemoryError": "minires.training.out_of_memory",
    "Workplace": "minires.kernels.cuda.graph",
}


def __getattr__(name: str) -> Any:
    if name in _LATE:
        return getattr(importlib.import_module(_LATE[name]), name)
    raise AttributeError(f"module 'minires.cuda' has no attribute {name!r}")


def is_available() -> bool:
    """Whether `"cuda"` can be used: CuPy is installed and finds a GPU."""
    return device_count() > 0


def device_count() -> int:
    """How many devices there are; 0 without CuPy."""
    try:
        return int(_module(0).cuda.runtime.getDeviceCount())
    except (ImportError, RuntimeError, ValueError):
        return 0


def current_device() -> int:
    """The number of the device that "cuda" means where no number is given."""
    return int(_module(0).cuda.get_device_id())


def synchronize(device: Device = None) -> None:
    """Wait until the device has done all that was launched."""
    xp, number = _chosen(device)
    with xp.cuda.Device(number):
        xp.cuda.runtime.deviceSynchronize()


def memory_allocated(device: Device = None) -> int:
    """Bytes in arrays now, as they were made on this thread since minires first used the device."""
    from minires.kernels.cuda import memory

    return memory.use(*_chosen(device)).in_use


def max_memory_allocated(device: Device = None) -> int:
    """The most bytes in arrays since then, or since `reset_peak_memory_stats`."""
    from minires.kernels.cuda import memory

    return memory.use(*_chosen(device)).peak


def reset_peak_memory_stats(device: Device = None) -> None:
    """Count the most bytes from here on."""
    from minires.kernels.cuda import memory

    memory.reset_peak(*_chosen(device))


def empty_cache() -> None:
    """Give memory that no array uses back to the device, for other programs."""
    from minires.kernels.cuda import memory

    memory.empty_cache(_module(0))


def _module(number: int) -> Any:
    """The module of the devices' arrays: cupy."""
    from minires.kernels.cuda.launch import numbered

    return numbered(number).xp


def _chosen(device: Device) -> tuple[Any, int]:
    """The module of its arrays and the number of a device."""
    if device is None:
        number = current_device()
    elif isinstance(device, int):
        number = device
    else:
        kind, number = parse_device(device)
        if kind != "cuda":
            raise ValueError(f"expected a CUDA device, got {device!r}")
    return _module(number), number
