"""Reading other people's pickles without running them.

A pickle is a program: it may name any Python function and call it. The reader here resolves no
name at all. Each permitted name (`numpy.dtype`, `torch._utils._rebuild_tensor_v2`, ...) stands for
a small function of ours that checks its arguments and builds an array or a plain container, and
every other name is an error. NumPy's own `__setstate__` is not used either: a crafted dtype state
can make NumPy take file bytes for object pointers.
"""

from __future__ import annotations

import io
import os
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]

# PyTorch's storage classes. bfloat16 has no NumPy dtype and is widened to float32 when read.
STORAGES: dict[str, np.dtype[Any]] = {
    "DoubleStorage": np.dtype("<f8"),
    "FloatStorage": np.dtype("<f4"),
    "HalfStorage": np.dtype("<f2"),
    "BFloat16Storage": np.dtype("<u2"),
    "LongStorage": np.dtype("<i8"),
    "IntStorage": np.dtype("<i4"),
    "ShortStorage": np.dtype("<i2"),
    "CharStorage": np.dtype("i1"),
    "ByteStorage": np.dtype("u1"),
    "BoolStorage": np.dtype("?"),
    "ComplexFloatStorage": np.dtype("<c8"),
    "ComplexDoubleStorage": np.dtype("<c16"),
}
LEGACY_MAGIC = 0x1950A86A20F9469CFC6C  # first pickle of PyTorch's format before version 1.6
LEGACY_PROTOCOL = 1001


class _RefusedError(ValueError):
    """The pickle asks for something that is not allowed; the message is final."""


class _Global:
    """A permitted name: the pickle can call it and do nothing else with it."""

    __slots__ = ("_build",)

    def __init__(self, build: Callable[..., object]) -> None:
        self._build = build

    def __call__(self, *args: object) -> object:
        return self._build(*args)

    def __setstate__(self, state: object) -> None:
        raise _RefusedError("the pickle tries to change a function")


class _Dtype:
    """Stands for a dtype while the pickle is read. Only plain numbers and strings are allowed."""

    __slots__ = ("dtype",)

    def __init__(self, code: str | bytes, align: object = False, copy: object = False) -> None:
        text = code.decode("ascii") if isinstance(code, bytes) else str(code)
        self.dtype = np.dtype(text)
        if self.dtype.kind not in "biufcSU" or self.dtype.fields or self.dtype.subdtype:
            raise _RefusedError(
                f"the pickle holds an array of dtype {text!r}; only numbers are read"
            )

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        order: Any = state[1].decode("ascii") if isinstance(state[1], bytes) else state[1]
        self.dtype = self.dtype.newbyteorder(order)


class _Array:
    """Stands for an array that is built in two steps: `_reconstruct(...)`, then its state."""

    __slots__ = ("array",)

    def __init__(self, *args: object) -> None:
        self.array: Array = np.empty(0, np.int8)

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        _, shape, dtype, fortran, data = state
        self.array = _array_of(data, dtype, shape, "F" if fortran else "C")


def _array_of(data: Any, dtype: _Dtype, shape: tuple[int, ...], order: Any = "C") -> Array:
    raw = data.encode("latin1") if isinstance(data, str) else data
    if not isinstance(raw, bytes | bytearray):
        raise _RefusedError(f"an array's data is of type {type(raw).__name__}, expected bytes")
    return np.frombuffer(raw, dtype.dtype).copy().reshape(shape, order=order)


def _numpy_buffer(data: Any, dtype: _Dtype, shape: tuple[int, ...], order: str) -> Array:
    return _array_of(data, dtype, shape, order)


def _numpy_scalar(dtype: _Dtype, data: Any) -> object:
    return _array_of(data, dtype, ())[()]


def _encode(text: str, encoding: str) -> bytes:
    """`_codecs.encode`, by which protocol 2 writes bytes, always as latin1."""
    if encoding != "latin1":
        raise _RefusedError(f"the pickle asks for the text encoding {encoding!r}")
    return text.encode("latin1")


def _no_bytes() -> bytes:
    return b""  # protocol 2 writes empty bytes as a call without arguments


class _Mapping(dict[Any, Any]):
    """Stands for OrderedDict. PyTorch hangs `_metadata` on it, which is of no use here."""

    def __setstate__(self, state: object) -> None:
        pass


_PLAIN: dict[str, object] = {
    "collections.OrderedDict": _Global(_Mapping),
    "_codecs.encode": _Global(_encode),
    "numpy.dtype": _Global(_Dtype),
    "numpy.ndarray": "numpy.ndarray",  # only ever passed to _reconstruct, which ignores it
}
for _module in ("builtins", "__builtin__"):
    _PLAIN[f"{_module}.set"] = _Global(set)
    _PLAIN[f"{_module}.frozenset"] = _Global(frozenset)
    _PLAIN[f"{_module}.complex"] = _Global(complex)
    _PLAIN[f"{_module}.bytes"] = _Global(_no_bytes)
for _module in ("numpy.core", "numpy._core"):
    _PLAIN[f"{_module}.multiarray._reconstruct"] = _Global(_Array)
    _PLAIN[f"{_module}.multiarray.scalar"] = _Global(_numpy_scalar)
    _PLAIN[f"{_module}.numeric._frombuffer"] = _Global(_numpy_buffer)


def _rebuild_tensor(
    storage: Array, offset: int, size: tuple[int, ...], stride: tuple[int, ...], *rest: object
) -> Array:
    """View of a flat storage, as `torch._utils._rebuild_tensor[_v2]`; strides count elements."""
    if storage.ndim != 1 or not storage.flags.c_contiguous:
        raise _RefusedError("a tensor is built on something other than a storage")
    if len(size) != len(stride) or min((offset, *size, *stride)) < 0:
        raise _RefusedError(f"a tensor has size {size}, stride {stride} and offset {offset}")
    last = offset + sum((n - 1) * step for n, step in zip(size, stride, strict=True))
    if 0 not in size and last >= storage.size:
        raise _RefusedError(
            f"a tensor of size {size}, stride {stride} and offset {offset} reaches past its "
            f"storage of {storage.size} elements"
        )
    if 0 in size:
        return np.empty(size, storage.dtype)
    steps = tuple(step * storage.itemsize for step in stride)
    return np.lib.stride_tricks.as_strided(storage[offset:], size, steps)


def _rebuild_parameter(data: Array, *rest: object) -> Array:
    return data


_TORCH: dict[str, object] = {
    "torch._utils._rebuild_tensor": _Global(_rebuild_tensor),
    "torch._utils._rebuild_tensor_v2": _Global(_rebuild_tensor),
    "torch._utils._rebuild_parameter": _Global(_rebuild_parameter),
    "torch.Size": _Global(tuple),
    # Plain strings: nothing can be done with one but look it up in STORAGES.
    **{f"torch.{name}": name for name in STORAGES},
}


class _Unpickler(pickle.Unpickler):
    """Builds what `names` allows. `storage(type name, key, elements)` supplies tensor memory."""

    def __init__(
        self,
        file: BinaryIO,
        names: dict[str, object],
        encoding: str = "latin1",
        storage: Callable[[str, str, int], Array] | None = None,
    ) -> None:
        super().__init__(file, encoding=encoding)
        self._names = names
        self._storage = storage

    def find_class(self, module: str, name: str) -> Any:
        try:
            return self._names[f"{module}.{name}"]
        except KeyError:
            raise _RefusedError(
                f"the pickle asks for {module}.{name}, which is not allowed. Only arrays and plain "
                "containers are read, because a pickle can run any program. If you trust the file, "
                "open it where it was made and save only its arrays"
            ) from None

    def persistent_load(self, pid: Any) -> Array:
        if self._storage is None or not isinstance(pid, tuple) or pid[0] != "storage":
            raise _RefusedError(f"the pickle refers to an object outside itself: {str(pid)[:80]}")
        _, kind, key, _, elements, *view = pid
        if kind not in STORAGES:
            raise _RefusedError(f"tensors of storage type {kind!r} are not read")
        if view and view[0] is not None:
            raise _RefusedError("a tensor's storage is a view of another one: save it again")
        return self._storage(kind, str(key), int(elements))


def _unpickle(unpickler: _Unpickler, name: str) -> Any:
    """`unpickler.load()`, every failure told as a ValueError that names the file."""
    try:
        return _plain(unpickler.load(), {})
    except _RefusedError as error:
        raise ValueError(f"{name}: {error}") from None
    except (MemoryError, KeyboardInterrupt):
        raise
    except Exception as error:  # a damaged pickle can fail in any way at all
        raise ValueError(
            f"{name}: not a pickle, or a damaged one ({type(error).__name__}: {error}). "
            "Fetch or write the file again"
        ) from error


def _plain(item: Any, done: dict[int, tuple[Any, Any]]) -> Any:
    """`item` with stand-ins replaced. `done` maps id -> (the item, its result): what the pickle
    shares is visited once, and holding the item keeps its id from being used again."""
    if isinstance(item, _Array):
        return item.array
    if isinstance(item, _Dtype):
        return item.dtype
    if isinstance(item, _Global):
        raise _RefusedError("the pickle holds a function, not data")
    if isinstance(item, set | frozenset):
        return type(item)(_plain(part, done) for part in item)
    if not isinstance(item, dict | list | tuple):
        return item
    if id(item) in done:
        return done[id(item)][1]
    if isinstance(item, tuple):
        parts = tuple(_plain(part, done) for part in item)
        done[id(item)] = (item, parts)
        return parts
    result: Any = {} if isinstance(item, dict) else []
    done[id(item)] = (item, result)
    if isinstance(item, dict):
        for key, value in item.items():
            result[_plain(key, done)] = _plain(value, done)
    else:
        result.extend(_plain(part, done) for part in item)
    return result


def load_pickle_restricted(
    file: str | os.PathLike[str] | BinaryIO, encoding: str = "latin1"
) -> Any:
    """The object in a pickle, if it consists of arrays, numbers, text and plain containers.

    file: a path, or a binary file open for reading (left open).
    encoding: how Python 2's `str` is read, as in `pickle.load`: "latin1" gives str, "bytes" bytes.

    dict, list, tuple, set and OrderedDict (as dict) are containers; NumPy arrays, scalars and
    dtypes are built for numbers and fixed-length text only.

    Raises ValueError if the pickle asks for anything else (the message names it, and nothing of it
    is run) or is damaged, FileNotFoundError if there is no such file.
    """
    if not isinstance(file, str | os.PathLike):
        name = str(getattr(file, "name", "pickle"))
        return _unpickle(_Unpickler(file, _PLAIN, encoding), name)
    with open(file, "rb") as opened:
        return _unpickle(_Unpickler(opened, _PLAIN, encoding), str(file))


def is_torch_file(path: Path) -> bool:
    """Does the file begin as a PyTorch file (a zip archive, or the older run of pickles)?"""
    with open(path, "rb") as file:
        start = file.read(14)
    magic = LEGACY_MAGIC.to_bytes(10, "little")
    return start[:4] == b"PK\x03\x04" or start == b"\x80\x02\x8a\x0a" + magic


def load_torch(path: Path) -> Any:
    """What `torch.save` wrote, with arrays for tensors and dicts for OrderedDicts.

    Reads both formats: the zip archive of PyTorch 1.6 and later, and the run of pickles before it.
    bfloat16 becomes float32. Raises ValueError for a damaged file or anything but arrays and plain
    containers in it.
    """
    with open(path, "rb") as file:
        if file.read(4) != b"PK\x03\x04":
            file.seek(0)
            return _load_torch_legacy(path, file)
    try:
        return _load_torch_zip(path)
    except zipfile.BadZipFile as error:
        raise ValueError(
            f"{path}: a truncated or damaged PyTorch file ({error}). Fetch or write it again"
        ) from None


def _load_torch_zip(path: Path) -> Any:
    """One folder in a zip archive: data.pkl, and data/<key> with the bytes of each storage."""
    with zipfile.ZipFile(path) as archive:
        names = set(archive.namelist())
        pickles = [name for name in names if name.split("/")[1:] == ["data.pkl"]]
        if len(pickles) != 1:
            raise ValueError(f"{path}: a zip archive, but not PyTorch's: it holds no data.pkl")
        root = pickles[0].split("/")[0]
        if f"{root}/byteorder" in names and archive.read(f"{root}/byteorder") != b"little":
            raise ValueError(f"{path}: written on a big-endian machine; only little-endian is read")
        storages: dict[str, Array] = {}

        def storage(kind: str, key: str, elements: int) -> Array:
            if key not in storages:
                size = elements * STORAGES[kind].itemsize
                info = archive.getinfo(f"{root}/data/{key}")
                if info.file_size != size:
                    raise _RefusedError(
                        f"storage {key} has {info.file_size} bytes, expected {size}"
                    )
                storages[key] = _widen(kind, archive.read(info))
            return storages[key]

        pickled = io.BytesIO(archive.read(pickles[0]))
        return _unpickle(_Unpickler(pickled, _PLAIN | _TORCH, "utf-8", storage), str(path))


def _load_torch_legacy(path: Path, file: BinaryIO) -> Any:
    """Pickles of a magic number, a protocol number, the machine, the object and the list of storage
    keys; then, for each key, the number of elements (int64) and their bytes."""
    name, size = str(path), path.stat().st_size
    if _unpickle(_Unpickler(file, _PLAIN), name) != LEGACY_MAGIC:
        raise ValueError(f"{path}: not a PyTorch file")
    if _unpickle(_Unpickler(file, _PLAIN), name) != LEGACY_PROTOCOL:
        raise ValueError(f"{path}: a PyTorch file of an unknown protocol")
    if not _unpickle(_Unpickler(file, _PLAIN), name)["little_endian"]:
        raise ValueError(f"{path}: written on a big-endian machine; only little-endian is read")
    kinds: dict[str, str] = {}
    storages: dict[str, Array] = {}

    def storage(kind: str, key: str, elements: int) -> Array:
        # The bytes come later in the file: tensors are views of this memory, filled below.
        if key not in storages:
            if not 0 <= elements * STORAGES[kind].itemsize <= size:
                raise _RefusedError(
                    f"storage {key} has {elements} elements in a file of {size} bytes"
                )
            kinds[key] = kind
            storages[key] = np.zeros(elements, _widen(kind, b"").dtype)
        return storages[key]

    result = _unpickle(_Unpickler(file, _PLAIN | _TORCH, "utf-8", storage), name)
    for key in _unpickle(_Unpickler(file, _PLAIN), name):
        if str(key) not in storages:
            raise ValueError(f"{path}: damaged: storage {key} belongs to no tensor")
        target = storages[str(key)]
        elements = int.from_bytes(file.read(8), "little")
        raw = file.read(target.size * STORAGES[kinds[str(key)]].itemsize)
        values = _widen(kinds[str(key)], raw) if elements == target.size else None
        if values is None or values.size != target.size:
            raise ValueError(f"{path}: truncated or damaged at storage {key}. Fetch it again")
        target[:] = values
    return result


def _widen(kind: str, raw: bytes) -> Array:
    """The elements of a storage. A bfloat16 is the upper half of a float32."""
    if len(raw) % STORAGES[kind].itemsize:
        return np.empty(0, STORAGES[kind])  # cut inside an element: told by the count
    values = np.frombuffer(raw, STORAGES[kind])
    if kind == "BFloat16Storage":
        return (values.astype(np.uint32) << 16).view(np.float32)
    return values
