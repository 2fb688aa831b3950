"""CUDA kernels on the CPU: the same sources, compiled by a C++ compiler behind a small header.

    from minires.kernels.cuda import elementwise, emulate

    with emulate.device():
        y = elementwise.relu(x)     # x: a NumPy array
        model.to("cuda")            # tensors on an emulated device hold `DeviceArray`s

Every launch copies its arrays into buffers with guard zones on both sides, filled with bytes 0xff:
NaN as any float, -1 as any integer. What reads out of range reads NaN, and what writes there is an
error that names the argument. Launches run their threads upwards and downwards in turn, so that a
missing barrier shows. It serves for tests and for learning; it is not fast.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from minires.kernels.cuda import source
from minires.kernels.cuda.device_array import DEVICES, DeviceArray, xp
from minires.kernels.cuda.emulate_cuda import changed
from minires.kernels.cuda.launch import (
    HOPPER,
    Device,
    Kernel,
    Module,
    Size,
    check_number,
    definition_texts,
    stand_in,
    standing_in,
)
from minires.kernels.environment import cache_folder

HEADERS = "banks_on_cpu.h", "cuda_on_cpu.h", "hopper_on_cpu.h"
SHIM = [Path(__file__).parent / "shim" / name for name in HEADERS]
GUARD = 4096
"""Bytes before and after each array."""

FLAGS = ("-std=c++17", "-O1", "-fPIC", "-shared", "-w", "-fno-strict-aliasing")
"""-w: nvcc is the compiler whose warnings count, and it is asked separately."""

_CALL = """
extern "C" const char* call_{name}(void** arguments, const int* bytes, int count,
                                   const unsigned* sizes, unsigned shared, int downwards) {{
    return shim::launch_kernel({name}, arguments, bytes, count, sizes, shared, downwards);
}}
"""


def compiler() -> str | None:
    """The C++ compiler: $CXX, or g++, or c++; None if there is none."""
    return next(
        (path for name in (os.environ.get("CXX"), "g++", "c++")
         if name and (path := shutil.which(name))), None,
    )  # fmt: skip


def library(name: str, definitions: tuple[tuple[str, str], ...]) -> Path:
    """The compiled library of a source; built if it is not in the cache.

    Raises RuntimeError if there is no compiler, or with its message if it fails.
    """
    body = source.text(name)
    text = "".join(
        [*(header.read_text() for header in SHIM),
         *(f"#define {key} {value}\n" for key, value in definitions),
         f'#line 1 "{name}"\n', body,
         *(_CALL.format(name=kernel) for kernel in source.kernels(body))]
    )  # fmt: skip
    found = compiler()
    if found is None:
        raise RuntimeError("emulating CUDA kernels needs a C++ compiler; install g++ or set CXX")
    key = hashlib.sha256("\0".join([text, found, *FLAGS]).encode()).hexdigest()[:24]
    target = cache_folder() / "emulated" / f"{Path(name).stem}-{key}.so"
    if target.exists():
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent) as folder:
        written, built = Path(folder) / "kernel.cpp", Path(folder) / "kernel.so"
        written.write_text(text)
        done = subprocess.run(
            [found, *FLAGS, "-o", str(built), str(written)], capture_output=True, text=True
        )
        if done.returncode:
            raise RuntimeError(f"{found} cannot compile {name}:\n{done.stderr}")
        os.replace(built, target)
    return target


class Guarded:
    """A copy of an array's memory between two guard zones, placed with the same alignment."""

    def __init__(self, array: np.ndarray) -> None:
        self.array, self.bytes = array, array.nbytes
        self.store = np.full(2 * GUARD + self.bytes + 64, 0xFF, np.uint8)
        offset = (array.ctypes.data - self.store.ctypes.data - GUARD) % 64
        self.start = GUARD + offset
        self.address = self.store.ctypes.data + self.start
        self.inside = self.store[self.start : self.start + self.bytes]
        self.inside[:] = flat_bytes(array)

    def intact(self) -> bool:
        """Whether both guard zones are as they were."""
        end = self.start + self.bytes
        return bool((self.store[: self.start] == 0xFF).all() and (self.store[end:] == 0xFF).all())

    def copy_back(self) -> None:
        if self.array.flags.writeable:
            flat_bytes(self.array)[:] = self.inside


def flat_bytes(array: np.ndarray) -> Any:
    """The memory of a dense array, in whatever order of axes, as bytes: a view."""
    order = sorted(range(array.ndim), key=lambda axis: -array.strides[axis])
    dense = array.transpose(order)
    if array.flags.c_contiguous:
        dense = array
    elif not dense.flags.c_contiguous:
        raise ValueError("kernels take arrays without gaps in memory; the host code copies others")
    return dense.reshape(-1).view(np.uint8)


class PointerTable:
    """Arrays whose addresses a kernel reads from memory."""

    def __init__(self, arrays: Sequence[Any]) -> None:
        self.arrays = list(arrays)


class EmulatedKernel:
    def __init__(self, name: str, library: ctypes.CDLL, device: EmulatedDevice) -> None:
        self.name, self.library, self.device = name, library, device
        self.call = getattr(library, f"call_{name}")
        self.call.restype = ctypes.c_char_p

    def __call__(self, grid: Size, block: Size, args: Sequence[Any], shared: int = 0) -> None:
        """Run every block, or note that it shall be run, while a graph is captured."""
        changed(lambda: self.run(grid, block, args, shared))

    def run(self, grid: Size, block: Size, args: Sequence[Any], shared: int) -> None:
        """Raises RuntimeError for a guard zone written to, or a deadlock."""
        buffers: dict[tuple[int, int], tuple[str, Guarded]] = {}

        def guarded(array: np.ndarray, label: str) -> int:
            key = (array.ctypes.data, array.nbytes)
            if key not in buffers:
                buffers[key] = (label, Guarded(array))
            return buffers[key][1].address

        values: list[Any] = []
        for i, arg in enumerate(args):
            if isinstance(arg, PointerTable):
                tensors = map(memory, arg.arrays)
                addresses = [guarded(a, f"{i}, entry {k}") for k, a in enumerate(tensors)]
                values.append(guarded(np.array(addresses, np.uint64), str(i)))
            elif isinstance(arg, np.ndarray | DeviceArray):
                values.append(guarded(memory(arg), str(i)))
            else:
                values.append(scalar(arg))
        stored = [np.asarray(v, np.uint64 if isinstance(v, int) else None) for v in values]
        count = len(stored)
        pointers = (ctypes.c_void_p * count)(*(s.ctypes.data for s in stored))
        sizes = (ctypes.c_int * count)(*(s.nbytes for s in stored))
        shape = (ctypes.c_uint * 6)(*(*grid, 1, 1)[:3], *(*block, 1, 1)[:3])
        self.device.launches += 1
        downwards = self.device.launches % 2
        error = self.call(pointers, sizes, count, shape, shared, downwards)
        if error:
            raise RuntimeError(f"{self.name}: {error.decode()}")
        for turns, counted in self.device.shared_turns.items():
            counted[self.name] += ctypes.c_ulonglong.in_dll(self.library, f"turns_{turns}").value
        for label, buffer in buffers.values():
            if not buffer.intact():
                raise RuntimeError(f"{self.name}: wrote outside of argument {label}")
            buffer.copy_back()


def memory(array: Any) -> np.ndarray:
    """The memory that a kernel sees."""
    return array.host if isinstance(array, DeviceArray) else array


def scalar(value: Any) -> Any:
    """A launch argument that is no array, as the NumPy scalar of the parameter's type."""
    if value is None:
        return np.uint64(0)
    if type(value) is int:
        return np.int64(value)
    if isinstance(value, np.generic):
        return value
    raise TypeError(f"kernel arguments are arrays, NumPy scalars or integers, got {value!r}")


class EmulatedModule:
    def __init__(self, path: Path, device: EmulatedDevice) -> None:
        self.loaded, self.device = ctypes.CDLL(str(path)), device

    def kernel(self, name: str) -> Kernel:
        return EmulatedKernel(name, self.loaded, self.device)


class EmulatedDevice:
    """A device that runs on the CPU, with few processors, so that little work is spread wide.

    xp: the module of its arrays: numpy, for NumPy arrays inside a `with` block; or the stand-in
        for cupy, for `DeviceArray`s, which stay on their device wherever they are used.
    shared_turns: by kernel, the turns of 128 bytes that shared memory "needed" for asynchronous
        copies and matrix loads, and those "taken"; more where rows lie in the same banks.
    """

    multiprocessors = 4

    def __init__(self, capability: tuple[int, int] = HOPPER, xp: Any = np) -> None:
        self.capability, self.xp = capability, xp
        self.launches = 0
        self.shared_turns: dict[str, Counter[str]] = {"needed": Counter(), "taken": Counter()}
        self._load = cache(self._compile)

    def module(self, name: str, **definitions: Any) -> Module:
        return self._load(name, definition_texts(definitions))

    def _compile(self, name: str, definitions: tuple[tuple[str, str], ...]) -> Module:
        return EmulatedModule(library(name, definitions), self)

    def address(self, array: Any) -> int:
        return memory(array).ctypes.data

    def pointers(self, arrays: Sequence[Any]) -> PointerTable:
        return PointerTable(arrays)

    def numbered(self, number: int) -> Device:
        """Raises ValueError for more than there are."""
        check_number(number, DEVICES)
        return _launcher(self.capability)


@cache
def _device(capability: tuple[int, int]) -> EmulatedDevice:
    return EmulatedDevice(capability)


@cache
def _launcher(capability: tuple[int, int]) -> EmulatedDevice:
    return EmulatedDevice(capability, xp)


def launcher() -> EmulatedDevice:
    """What runs kernels on `DeviceArray`s: of the capability of the block around the call."""
    found = stand_in()
    return _launcher(HOPPER if found is None else found.capability)


@contextmanager
def device(capability: tuple[int, int] = HOPPER) -> Iterator[EmulatedDevice]:
    """Inside the block, CUDA kernels take NumPy arrays and run on the CPU, and "cuda" names an
    emulated device.

    capability: the compute capability that the device says it has; kernels are chosen by it.

    Raises RuntimeError on a system other than Linux.
    """
    if not sys.platform.startswith("linux"):
        raise RuntimeError("the emulator runs on Linux")
    with standing_in(_device(capability)) as emulated:
        yield emulated
