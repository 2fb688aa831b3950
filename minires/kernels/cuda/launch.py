"""Where CUDA kernels run: an array module and a way to compile and launch, behind one interface.

    device = device_of(x)
    relu = device.module("elementwise.cu", ELEMENT=x.dtype).kernel("relu")
    relu((blocks,), (256,), (x, y, size))

CuPy arrays belong to the CuPy device of their number, and the emulator's arrays to the emulator.
NumPy arrays belong to a stand-in, inside a `with` block of `emulate.device()`, which runs the same
sources on the CPU, or of `record.device()`, which only notes what would be launched.

Arguments are arrays, NumPy scalars of the parameter's exact type, Python integers for `long long`,
and None for a null pointer.
"""

from __future__ import annotations

import hashlib
import os
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from minires.kernels.cuda import source
from minires.kernels.environment import cache_folder

Size = tuple[int, ...]

DEFAULT_SHARED = 48 << 10
"""Bytes of shared memory that a block may have without asking."""

HOPPER = (9, 0)
"""The compute capability whose own instructions (wgmma and others) some kernels need."""


class Kernel(Protocol):
    """A compiled kernel: grid and block sizes, arguments, bytes of dynamic shared memory."""

    def __call__(self, grid: Size, block: Size, args: Sequence[Any], shared: int = 0) -> None: ...


class Module(Protocol):
    """A compiled source."""

    def kernel(self, name: str) -> Kernel: ...


class Device(Protocol):
    """What the host code of a kernel needs: arrays, compiled sources, the number of processors."""

    @property
    def xp(self) -> Any: ...

    @property
    def multiprocessors(self) -> int: ...

    @property
    def capability(self) -> tuple[int, int]:
        """The compute capability, such as (9, 0)."""
        ...

    def module(self, name: str, **definitions: Any) -> Module: ...

    def address(self, array: Any) -> int: ...

    def pointers(self, arrays: Sequence[Any]) -> Any:
        """A device array of the arrays' addresses, for kernels that take a table of them."""
        ...


class StandIn(Device, Protocol):
    """A device that NumPy arrays may belong to for the length of a block."""

    def numbered(self, number: int) -> Device | None:
        """The device `cuda:number` that it stands for; None if it stands for none."""
        ...


def definition_texts(definitions: dict[str, Any]) -> tuple[tuple[str, str], ...]:
    """Definitions as text: dtypes by their C++ names, anything else as it prints."""
    return tuple(
        (name, source.type_name(value) if isinstance(value, np.dtype) else str(value))
        for name, value in definitions.items()
    )


class CupyKernel:
    """A kernel of a CuPy RawModule, which CuPy compiles per device and keeps on disk."""

    def __init__(self, function: Any) -> None:
        self.function = function
        self.allowed = DEFAULT_SHARED

    def __call__(self, grid: Size, block: Size, args: Sequence[Any], shared: int = 0) -> None:
        if shared > self.allowed:
            self.function.max_dynamic_shared_size_bytes = self.allowed = shared
        given = tuple(np.uint64(0) if a is None else a for a in args)
        self.function(grid, block, given, shared_mem=shared)


class CupyModule:
    """A source compiled by CuPy."""

    def __init__(self, module: Any) -> None:
        self.module = module
        self.kernel: Callable[[str], Kernel] = cache(self._kernel)

    def _kernel(self, name: str) -> Kernel:
        return CupyKernel(self.module.get_function(name))


class CupyDevice:
    """The CUDA device of a number, through CuPy."""

    def __init__(self, number: int) -> None:
        self.xp = import_cupy()
        properties = self.xp.cuda.runtime.getDeviceProperties(number)
        self.multiprocessors = int(properties["multiProcessorCount"])
        self.capability = int(properties["major"]), int(properties["minor"])
        self.number = number
        self._load = cache(self._compile)

    def module(self, name: str, **definitions: Any) -> Module:
        return self._load(name, definition_texts(definitions))

    def _compile(self, name: str, definitions: tuple[tuple[str, str], ...]) -> Module:
        options = ("-std=c++17", *(f"-D{key}={value}" for key, value in definitions))
        with self.xp.cuda.Device(self.number):
            if self.capability == HOPPER:
                path = cubin(self.xp.cuda.nvrtc, name, (*options, "-arch=sm_90a"))
                return CupyModule(self.xp.RawModule(path=str(path)))
            return CupyModule(self.xp.RawModule(code=source.text(name), options=options))

    def address(self, array: Any) -> int:
        return int(array.data.ptr)

    def pointers(self, arrays: Sequence[Any]) -> Any:
        from minires.kernels.cuda import graph

        table = np.array([self.address(a) for a in arrays], np.uint64)
        capture = graph.active()
        return self.xp.asarray(table) if capture is None else capture.constant(table)


def cubin(nvrtc: Any, name: str, options: tuple[str, ...]) -> Path:
    """The machine code of a source, compiled by CuPy's NVRTC if it is not in the cache.

    CuPy itself compiles for sm_90, where sm_90a's instructions are not known. Raises RuntimeError
    with the compiler's message.
    """
    text, version = source.text(name), ".".join(map(str, nvrtc.getVersion()))
    key = hashlib.sha256("\0".join([text, version, *options]).encode()).hexdigest()[:24]
    target = cache_folder() / "cubins" / f"{Path(name).stem}-{key}.cubin"
    if target.exists():
        return target
    program = nvrtc.createProgram(text, name, (), ())
    try:
        nvrtc.compileProgram(program, options)
        code = nvrtc.getCUBIN(program)
    except nvrtc.NVRTCError as error:
        log = nvrtc.getProgramLog(program)
        raise RuntimeError(f"NVRTC {version} cannot compile {name}:\n{log}") from error
    finally:
        nvrtc.destroyProgram(program)
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(dir=target.parent, delete=False) as written:
        # CuPy takes the last byte for the end of a text; a file without it is no whole ELF.
        written.write(code + b"\0")
    os.replace(written.name, target)
    return target


def import_cupy() -> Any:
    """The module cupy. Raises ImportError that says what to install."""
    try:
        import cupy
    except ImportError as error:
        raise ImportError(
            "CUDA needs CuPy: install minires[cuda12] (cupy-cuda12x) for a CUDA 12 driver, or "
            f"minires[cuda13] (cupy-cuda13x) for CUDA 13 ({error})"
        ) from error
    return cupy


@cache
def cupy_device(number: int) -> Device:
    """The device of CuPy's arrays; one object per number, so that sources compile once.

    Raises RuntimeError without a GPU or its driver, ValueError for a number too large.
    """
    cupy = import_cupy()
    try:
        count = cupy.cuda.runtime.getDeviceCount()
    except cupy.cuda.runtime.CUDARuntimeError as error:
        raise RuntimeError(
            f"cuda:{number}: CuPy finds no GPU ({error}); `nvidia-smi` tells whether there is one "
            "and which CUDA its driver supports. Without one, use device='cpu'"
        ) from error
    check_number(number, count)
    return CupyDevice(number)


def check_number(number: int, count: int) -> None:
    """Raise ValueError unless there is a device of this number."""
    if number >= count:
        raise ValueError(
            f"cuda:{number}: this machine has {count} CUDA device{'s' if count != 1 else ''}, "
            f"{'cuda:0' if count == 1 else f'cuda:0 to cuda:{count - 1}'}"
        )


def numbered(number: int) -> Device:
    """The device `cuda:number`: an emulated one inside an emulator's block, else CuPy's."""
    for device in reversed(_stand_in):
        found = device.numbered(number)
        if found is not None:
            return found
    return cupy_device(number)


def cupy_in_use() -> Any:
    """The module cupy, if somebody has imported it and it finds a GPU; else None."""
    cupy = sys.modules.get("cupy")
    if cupy is None:
        return None
    try:
        return cupy if cupy.cuda.runtime.getDeviceCount() else None
    except cupy.cuda.runtime.CUDARuntimeError:  # no GPU, or no driver that fits
        return None


_stand_in: list[StandIn] = []


@contextmanager
def standing_in(device: StandIn) -> Iterator[Any]:
    """NumPy arrays belong to this device inside the block."""
    _stand_in.append(device)
    try:
        yield device
    finally:
        _stand_in.pop()


def stand_in() -> StandIn | None:
    """Whose block the call is in."""
    return _stand_in[-1] if _stand_in else None


def device_of(array: Any) -> Device:
    """The device of an array. Raises TypeError for a NumPy array outside of a stand-in's block."""
    if not isinstance(array, np.ndarray | np.generic):
        launcher: Device | None = getattr(array.device, "launcher", None)  # the emulator's own
        return cupy_device(int(array.device.id)) if launcher is None else launcher
    if not _stand_in:
        raise TypeError(
            "CUDA kernels take CuPy arrays, got a NumPy array; inside `with "
            "minires.kernels.cuda.emulate.device():` they run on the CPU"
        )
    return _stand_in[-1]
