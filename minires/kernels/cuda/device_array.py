"""Arrays of an emulated device: NumPy's arithmetic behind CuPy's manners.

Code that runs on these arrays runs on CuPy's, as far as types go: they mix with each other and
with numbers, never with NumPy arrays; NumPy cannot read them unasked; every result is an array, a
reduction's of shape (); and `xp`, the module that stands for cupy, has no function that CuPy has
not. What is used of CuPy and missing here is to be added here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import numpy as np

from minires.kernels.arrays import register_type
from minires.kernels.cuda import emulate_cuda
from minires.kernels.cuda.emulate_cuda import changed, computed, waits

DEVICES = 2
"""Emulated devices: two, so that arrays of different ones can be told apart."""

_SCALARS = (bool, int, float, np.generic)


class Card:
    """What `array.device` is: the number of an emulated device, and what launches kernels there.

    As a context manager, like cupy.cuda.Device, it is the device on which new arrays are made.
    """

    current = 0

    def __init__(self, number: int | None = None) -> None:
        self.id = Card.current if number is None else number
        self.previous: list[int] = []

    @property
    def launcher(self) -> Any:
        from minires.kernels.cuda import emulate

        return emulate.launcher()

    def __enter__(self) -> Card:
        self.previous.append(Card.current)
        Card.current = self.id
        return self

    def __exit__(self, *exc: object) -> None:
        Card.current = self.previous.pop()

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Card) and other.id == self.id

    def __hash__(self) -> int:
        return hash(self.id)

    def __repr__(self) -> str:
        return f"<emulated device {self.id}>"


class DeviceArray(np.lib.mixins.NDArrayOperatorsMixin):
    """An array on an emulated device; `host` is the memory that stands for the device's."""

    __slots__ = ("__weakref__", "base", "device", "host", "taken")
    __array_priority__ = 100
    __hash__ = None  # type: ignore[assignment]

    def __init__(self, host: np.ndarray, number: int, base: DeviceArray | None = None) -> None:
        self.host, self.device, self.base = host, Card(number), base
        self.taken = emulate_cuda.memory(number).take(host.nbytes) if base is None else 0

    def __del__(self) -> None:
        if getattr(self, "taken", 0):  # nothing was, if there was no room
            emulate_cuda.memory(self.device.id).give_back(self.taken)

    # -- what it is --------------------------------------------------------------------------

    shape = property(lambda self: self.host.shape)
    dtype = property(lambda self: self.host.dtype)
    ndim = property(lambda self: self.host.ndim)
    size = property(lambda self: self.host.size)
    strides = property(lambda self: self.host.strides)
    itemsize = property(lambda self: self.host.itemsize)
    nbytes = property(lambda self: self.host.nbytes)
    T = property(lambda self: self.transpose())

    @property
    def flags(self) -> Any:
        flags = self.host.flags
        return SimpleNamespace(
            c_contiguous=flags.c_contiguous,
            f_contiguous=flags.f_contiguous,
            owndata=self.base is None,
        )

    @property
    def data(self) -> Any:
        """Where its memory begins: `array.data.ptr`."""
        return SimpleNamespace(ptr=self.host.ctypes.data, device_id=self.device.id)

    # -- to the host -------------------------------------------------------------------------

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> Any:
        raise TypeError(
            "Implicit conversion to a NumPy array is not allowed. Please use `.get()` to "
            "construct a NumPy array explicitly."
        )

    def get(self, out: Any = None) -> np.ndarray:
        """A copy on the host, in C order."""
        waits()
        if out is None:
            return np.array(self.host, order="C")
        if out.dtype != self.dtype or out.shape != self.shape:
            raise ValueError(f"get: {self.dtype} {self.shape} into {out.dtype} {out.shape}")
        out[...] = self.host
        return np.asarray(out)

    def set(self, host: np.ndarray, stream: Any = None) -> None:
        """Overwrite with an array of the host, of the same shape and dtype; later, on a stream."""
        if not isinstance(host, np.ndarray) or (host.dtype, host.shape) != (self.dtype, self.shape):
            raise TypeError(f"set: needs a NumPy array, {self.dtype} {self.shape}")
        if not (self.host.flags.c_contiguous or self.host.flags.f_contiguous):
            raise RuntimeError("Cannot set to non-contiguous array")
        if stream is None:
            waits()
            self.host[...] = host
        else:
            stream.add(lambda: np.copyto(self.host, host))

    def item(self) -> Any:
        return self.get().item()

    def tolist(self) -> Any:
        return self.get().tolist()

    def __bool__(self) -> bool:
        return bool(self.get())

    def __float__(self) -> float:
        return float(self.get())

    def __int__(self) -> int:
        return int(self.get())

    def __repr__(self) -> str:
        return repr(self.host)

    def __reduce__(self) -> tuple[Any, ...]:
        return xp.array, (self.get(),)

    def __deepcopy__(self, memo: Any = None) -> DeviceArray:
        return self._result(self.host.copy())

    __copy__ = __deepcopy__

    # -- sharing memory ----------------------------------------------------------------------

    @property
    def __cuda_array_interface__(self) -> dict[str, Any]:
        return {
            "shape": self.shape,
            "typestr": self.dtype.str,
            "descr": self.dtype.descr,
            "strides": None if self.host.flags.c_contiguous else self.strides,
            "data": (self.host.ctypes.data, False),
            "stream": 1,
            "version": 3,
        }

    def __dlpack__(
        self, stream: Any = None, *, max_version: Any = None, dl_device: Any = None,
        copy: bool | None = None,
    ) -> Any:  # fmt: skip
        return self.host.__dlpack__(max_version=max_version, copy=copy)

    def __dlpack_device__(self) -> tuple[int, int]:
        return 2, self.device.id

    # -- elements ----------------------------------------------------------------------------

    def __len__(self) -> int:
        return len(self.host)

    def __iter__(self) -> Iterator[DeviceArray]:
        if self.ndim == 0:
            raise TypeError("iteration over a 0-d array")
        return (self[i] for i in range(len(self.host)))

    def __getitem__(self, index: Any) -> DeviceArray:
        place = _plain(index, self.device.id)
        return self._result(computed(lambda: self.host[place], self.host))

    def __setitem__(self, index: Any, value: Any) -> None:
        place, given = _plain(index, self.device.id), _plain(value, self.device.id)

        def assign() -> None:
            self.host[place] = given

        changed(assign)

    def _result(self, host: Any) -> DeviceArray:
        """A result that may share this array's memory."""
        array = np.asarray(host)
        shared = array.base is not None and np.may_share_memory(array, self.host)
        base = (self if self.base is None else self.base) if shared else None
        return DeviceArray(array, self.device.id, base)

    # -- arithmetic --------------------------------------------------------------------------

    def __array_ufunc__(self, ufunc: Any, method: str, *inputs: Any, **kwargs: Any) -> Any:
        if method != "__call__" or getattr(xp, ufunc.__name__, None) is None:
            return NotImplemented
        return getattr(xp, ufunc.__name__)(*inputs, **kwargs)

    def __array_function__(self, function: Any, types: Any, args: Any, kwargs: Any) -> Any:
        found = getattr(xp, function.__name__, None)
        return NotImplemented if found is None else found(*args, **kwargs)


def _method(name: str) -> Callable[..., Any]:
    def method(self: DeviceArray, *args: Any, **kwargs: Any) -> Any:
        given = [_plain(a, self.device.id) for a in args]
        return self._result(computed(lambda: getattr(self.host, name)(*given, **kwargs), self.host))

    method.__name__ = name
    return method


for _name in (
    "all", "any", "argmax", "argmin", "argsort", "astype", "copy", "cumsum", "max", "mean", "min",
    "ravel", "reshape", "squeeze", "sum", "take", "transpose", "view",
):  # fmt: skip
    setattr(DeviceArray, _name, _method(_name))


def _fill(self: DeviceArray, value: Any) -> None:
    given = _plain(value, self.device.id)
    changed(lambda: self.host.fill(given))


DeviceArray.fill = _fill  # type: ignore[attr-defined]


def _plain(value: Any, number: int) -> Any:
    """A device array's memory; numbers, slices and the like as they are; tuples part by part.

    Raises TypeError for an array of the host, ValueError for one of another device.
    """
    if isinstance(value, DeviceArray):
        if value.device.id != number:
            raise ValueError(
                f"The device where the array resides ({value.device.id}) is different from the "
                f"current device ({number})."
            )
        return value.host
    if isinstance(value, np.ndarray):
        raise TypeError(f"Unsupported type {type(value)}")
    if isinstance(value, tuple | list):
        return type(value)(_plain(v, number) for v in value)
    if hasattr(value, "_data"):
        raise TypeError(f"Unsupported type {type(value)}")
    return value


class _Cuda:
    """`xp.cuda`."""

    Device = Card
    Stream, Event, MemoryPool = emulate_cuda.Stream, emulate_cuda.Event, emulate_cuda.MemoryPool
    MemoryHook = emulate_cuda.MemoryHook
    using_allocator = staticmethod(emulate_cuda.using_allocator)
    alloc_pinned_memory = staticmethod(emulate_cuda.alloc_pinned_memory)
    set_pinned_memory_allocator = staticmethod(emulate_cuda.set_pinned_memory_allocator)

    class runtime:  # noqa: N801 - CuPy's name
        @staticmethod
        def getDeviceCount() -> int:  # CuPy's name
            return DEVICES

        @staticmethod
        def deviceSynchronize() -> None:
            waits()

        @staticmethod
        def memGetInfo() -> tuple[int, int]:
            there = emulate_cuda.memory(Card.current)
            total = emulate_cuda.TOTAL if there.limit is None else there.limit
            return total - there.in_use, total

    @staticmethod
    def get_device_id() -> int:
        return Card.current


class ArrayModule:
    """`xp`: the part of cupy that minires uses, on emulated devices."""

    cuda = _Cuda
    ndarray = DeviceArray
    bool_, int64, float32, float64 = np.bool_, np.int64, np.float32, np.float64
    newaxis, inf, nan = None, np.inf, np.nan

    def array(
        self, source: Any, dtype: Any = None, copy: bool = True, order: str = "K"
    ) -> DeviceArray:
        """A copy on the current device; a host's array comes in C or Fortran order, as CuPy's."""
        if isinstance(source, DeviceArray):
            given = source.host
            copied = computed(lambda: np.array(given, dtype, order=order))  # type: ignore[call-overload]
            return DeviceArray(copied, Card.current)
        host = np.asarray(source, dtype)
        if host.ndim:  # a number is an argument of a launch
            emulate_cuda.alloc_pinned_memory(host.nbytes)
        fortran = host.flags.f_contiguous and not host.flags.c_contiguous
        return DeviceArray(np.array(host, order="F" if fortran else "C"), Card.current)

    def asarray(self, source: Any, dtype: Any = None, order: str | None = None) -> DeviceArray:
        """The array itself; one that shares the memory of `__cuda_array_interface__`; or a copy."""
        if isinstance(source, DeviceArray):
            return source if dtype in (None, source.dtype) else source.astype(dtype)  # type: ignore[attr-defined]
        if hasattr(source, "__cuda_array_interface__"):
            shared = SimpleNamespace(__array_interface__=source.__cuda_array_interface__)
            return DeviceArray(np.asarray(shared), Card.current)
        return self.array(source, dtype, order=order or "K")

    def from_dlpack(self, source: Any) -> DeviceArray:
        kind, number = source.__dlpack_device__()
        if kind != 2:
            raise TypeError(f"from_dlpack: not on a CUDA device but on {kind}")
        shared = SimpleNamespace(
            __dlpack__=lambda **_: source.__dlpack__(max_version=(1, 0)),
            __dlpack_device__=lambda: (1, 0),
        )
        return DeviceArray(np.from_dlpack(shared), number)

    def asnumpy(self, array: DeviceArray) -> np.ndarray:
        return array.get()

    def may_share_memory(self, a: DeviceArray, b: DeviceArray) -> bool:
        return np.may_share_memory(a.host, b.host)

    def copyto(self, target: DeviceArray, source: Any) -> None:
        given = _plain(source, target.device.id)
        changed(lambda: np.copyto(target.host, given))

    def empty(self, shape: Any, dtype: Any = float, order: str = "C") -> DeviceArray:
        made = np.empty(shape, dtype, order=order)  # type: ignore[call-overload]
        return DeviceArray(made, Card.current)

    def get_default_memory_pool(self) -> Any:
        return emulate_cuda.default_pool

    def get_default_pinned_memory_pool(self) -> Any:
        return emulate_cuda.pinned_pool


xp = ArrayModule()


def _creation(name: str) -> Callable[..., DeviceArray]:
    def create(*args: Any, **kwargs: Any) -> DeviceArray:
        given = [_plain(a, Card.current) for a in args]
        if name.startswith("empty"):
            return DeviceArray(getattr(np, name)(*given, **kwargs), Card.current)
        return DeviceArray(computed(lambda: getattr(np, name)(*given, **kwargs)), Card.current)

    return create


def _function(name: str) -> Callable[..., Any]:
    """A function of NumPy on device arrays and numbers."""

    def call(*args: Any, out: Any = None, **kwargs: Any) -> Any:
        first = next(_arrays((args, out)), None)
        number = Card.current if first is None else first.device.id
        given = _plain(args, number)
        if out is not None:
            out = out[0] if isinstance(out, tuple) else out
            kwargs["out"] = _plain(out, number)
        if out is not None:
            changed(lambda: getattr(np, name)(*given, **kwargs))
            return out
        memory = [array.host for array in _arrays(args)]
        result = computed(lambda: getattr(np, name)(*given, **kwargs), *memory)
        return DeviceArray(result, number) if first is None else first._result(result)

    return call


def _arrays(values: Any) -> Iterator[DeviceArray]:
    """The device arrays among arguments."""
    for value in values:
        if isinstance(value, DeviceArray):
            yield value
        elif isinstance(value, tuple | list):
            yield from _arrays(value)


for _name in (
    "arange", "empty_like", "eye", "full", "full_like", "ones", "ones_like", "zeros",
    "zeros_like",
):  # fmt: skip
    setattr(ArrayModule, _name, staticmethod(_creation(_name)))
for _name in (
    "abs", "absolute", "add", "all", "any", "argmax", "argmin", "argsort", "ascontiguousarray",
    "bitwise_and", "bitwise_or", "broadcast_to", "clip", "concatenate", "cos", "divide", "equal",
    "exp", "expand_dims", "floor_divide", "greater", "greater_equal", "invert", "isfinite", "isnan",
    "less", "less_equal", "log", "logical_and", "logical_not", "logical_or", "matmul", "max",
    "maximum", "min", "minimum", "moveaxis", "multiply", "negative", "not_equal", "power",
    "reshape", "sign", "sin", "sqrt", "square", "squeeze", "stack", "subtract", "sum", "tanh",
    "transpose", "true_divide", "where",
):  # fmt: skip
    setattr(ArrayModule, _name, staticmethod(_function(_name)))

register_type(DeviceArray, xp)
