"""Files: atomic writes, and weights in safetensors.

minires writes safetensors (numbers and names, no code) and reads in addition what `torch.save`
wrote, through a restricted pickle reader. A file is written under a temporary name, synced and
renamed, so that a crash leaves either the old file or the new one.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from minires._pickles import is_torch_file, load_pickle_restricted, load_torch

__all__ = [
    "atomic_write",
    "atomic_write_text",
    "load_file",
    "load_pickle_restricted",
    "read_metadata",
    "save_file",
]

Array = NDArray[Any]
StrPath = str | os.PathLike[str]

# safetensors' dtype names. BF16 is read as float32, its upper half.
_DTYPES = {
    "F64": "<f8", "F32": "<f4", "F16": "<f2", "BF16": "<u2", "C64": "<c8", "BOOL": "?",
    "I64": "<i8", "I32": "<i4", "I16": "<i2", "I8": "i1",
    "U64": "<u8", "U32": "<u4", "U16": "<u2", "U8": "u1",
}  # fmt: skip
_WRITABLE = frozenset(np.dtype(code) for name, code in _DTYPES.items() if name != "BF16")


@runtime_checkable
class HasNumpy(Protocol):
    """Anything with `.numpy()`, such as a Tensor."""

    def numpy(self) -> Array: ...


@contextlib.contextmanager
def atomic_write(path: StrPath) -> Iterator[BinaryIO]:
    """Binary file that takes the name `path` when the block ends without an error.

    Until then it has a temporary name in the same folder. The data and the folder are synced to
    the disk. If the block raises, the temporary file is removed and an old `path` stays as it was.

    Raises FileNotFoundError if the folder does not exist, IsADirectoryError if `path` is a folder.
    """
    path = Path(path)
    if not path.parent.is_dir():
        raise FileNotFoundError(
            f"cannot write {path}: the folder {path.parent} does not exist. Make it first"
        )
    if path.is_dir():
        raise IsADirectoryError(f"cannot write {path}: it is a folder. Give the name of a file")
    temporary = path.with_name(f".{path.name}.{os.getpid()}-{secrets.token_hex(4)}.tmp")
    try:
        with open(temporary, "xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    _sync_folder(path.parent)


def _sync_folder(folder: Path) -> None:
    """Make a rename in `folder` durable. Windows can neither open a folder nor needs to."""
    if os.name == "nt":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def atomic_write_text(path: StrPath, text: str) -> None:
    """Write `text` as UTF-8, line ends unchanged, in the manner of `atomic_write`."""
    data = text.encode()
    with atomic_write(path) as file:
        file.write(data)


def save_file(
    path: StrPath,
    state_dict: Mapping[str, Array | HasNumpy],
    metadata: Mapping[str, str] | None = None,
) -> None:
    """Write arrays by name as safetensors, atomically. Equal contents give equal bytes.

    state_dict: name -> NumPy array of any strides and shape (0-d too), or anything with `.numpy()`,
        such as a Tensor, wherever it lives.
    metadata: text kept beside the arrays; see `read_metadata`.

    Raises TypeError for a name that is not text, a value that is not an array or a dtype that the
    format does not hold, ValueError for a reserved name, FileNotFoundError for a missing folder.
    """
    import safetensors.numpy

    arrays = {name: _writable(name, value) for name, value in state_dict.items()}
    for key, value in (metadata or {}).items():
        if not isinstance(key, str) or not isinstance(value, str):
            raise TypeError(f"save_file: metadata must map str to str, got {key!r}: {value!r}")
    packed = safetensors.numpy.save(arrays)
    if metadata:
        # The library writes metadata in an arbitrary order, which differs from run to run.
        length = int.from_bytes(packed[:8], "little")
        tensors = json.loads(packed[8 : 8 + length])
        header = json.dumps({"__metadata__": dict(sorted(metadata.items())), **tensors}).encode()
        header += b" " * (-len(header) % 8)
        packed = len(header).to_bytes(8, "little") + header + packed[8 + length :]
    with atomic_write(path) as file:
        file.write(packed)


def _writable(name: object, value: object) -> Array:
    """`value` as a C-ordered array in native byte order, as the format needs."""
    if not isinstance(name, str):
        raise TypeError(f"save_file: names must be str, got {name!r}")
    if name == "__metadata__":
        raise ValueError("save_file: the name '__metadata__' is reserved; use metadata=")
    if isinstance(value, HasNumpy):
        value = (value.cpu() if hasattr(value, "cpu") else value).numpy()
    if not isinstance(value, np.ndarray | np.generic):
        raise TypeError(f"save_file: {name} must be an array, got {type(value).__name__}")
    # Not ascontiguousarray, which makes 0-d arrays 1-d.
    array = np.asarray(value, value.dtype.newbyteorder("="), order="C")
    if array.dtype not in _WRITABLE:
        raise TypeError(
            f"save_file: {name} has dtype {array.dtype}, which safetensors does not hold. "
            f"It holds {', '.join(sorted(str(dtype) for dtype in _WRITABLE))}"
        )
    return array


def load_file(path: StrPath) -> dict[str, Array]:
    """Arrays by name from a safetensors file, or from what `torch.save` wrote (.pt, .pth, .th).

    The format is told by the content, not by the name. From a PyTorch file only arrays and plain
    containers are read, and nothing in it is run; a `{"state_dict": ...}` around the weights and a
    "module." before every name (from DataParallel) are taken off. bfloat16 becomes float32. Each
    array is C-ordered and may be written to.

    Raises FileNotFoundError for a missing file, ValueError for a truncated or foreign one.
    """
    path = _existing(path)
    if is_torch_file(path):
        return _state_dict(path, load_torch(path))
    import safetensors

    try:
        tensors = safetensors.deserialize(path.read_bytes())
    except safetensors.SafetensorError as error:
        raise _not_safetensors(path, error) from None
    arrays = {}
    for name, tensor in tensors:
        if tensor["dtype"] not in _DTYPES:
            raise ValueError(f"{path}: {name} has dtype {tensor['dtype']}, which NumPy lacks")
        array = np.frombuffer(tensor["data"], _DTYPES[tensor["dtype"]])
        if tensor["dtype"] == "BF16":
            array = (array.astype(np.uint32) << 16).view(np.float32)
        arrays[name] = array.reshape(tensor["shape"])
    return arrays


def read_metadata(path: StrPath) -> dict[str, str]:
    """The text kept beside the arrays of a safetensors file; the arrays are not read.

    Raises FileNotFoundError for a missing file, ValueError if it is not safetensors.
    """
    import safetensors

    path = _existing(path)
    try:
        with safetensors.safe_open(path, framework="numpy") as file:
            return dict(sorted((file.metadata() or {}).items()))
    except safetensors.SafetensorError as error:
        raise _not_safetensors(path, error) from None


def _existing(path: StrPath) -> Path:
    path = Path(path)
    if path.is_dir():
        raise ValueError(f"{path} is a folder. Give the name of a weights file in it")
    if not path.exists():
        raise FileNotFoundError(f"no file {path} (working folder {Path.cwd()}). Check the name")
    return path


def _not_safetensors(path: Path, error: Exception) -> ValueError:
    return ValueError(
        f"{path} ({path.stat().st_size:,} bytes) is not a whole safetensors or PyTorch file "
        f"({error}). It may be truncated: fetch or write it again"
    )


def _state_dict(path: Path, content: Any) -> dict[str, Array]:
    """The weights in what `torch.save` wrote."""
    if isinstance(content, dict) and isinstance(content.get("state_dict"), dict):
        content = content["state_dict"]
    if not isinstance(content, dict):
        raise ValueError(f"{path}: expected a dict of tensors, found {type(content).__name__}")
    others = [str(name) for name, value in content.items() if not isinstance(value, np.ndarray)]
    if others:
        raise ValueError(
            f"{path}: expected a dict of tensors (or one under 'state_dict'), but these entries "
            f"are none: {', '.join(others[:8])}. Save only model.state_dict()"
        )
    names = [str(name) for name in content]
    prefix = "module." if names and all(name.startswith("module.") for name in names) else ""
    # Copies: tensors of one file may be views of one storage.
    return {
        str(name).removeprefix(prefix): np.array(value, order="C")
        for name, value in content.items()
    }
