"""Noticing that an array the tape has saved was changed before backward could use it.

Every tensor shares a `Buffer` with its views. Changes made through minires (the optimiser's
step, `copy_`, item assignment) count up its version. Changes made behind its back, through
`.data` or `.numpy()`, cannot be counted, so an array that was ever handed out is also compared
by a checksum. Arrays that never leave the engine, the bulk of any network, are never read for it;
nor are those of a device, where comparing would make the host wait at every step.
"""

from __future__ import annotations

import weakref
import zlib
from typing import Any

import numpy as np


def checksum(array: Any) -> int:
    """CRC-32 of the array's elements; 0 for arrays that do not live in the host's memory."""
    if not isinstance(array, np.ndarray):
        return 0
    return zlib.crc32(np.ascontiguousarray(array.ravel(order="K")).view(np.uint8).data)


class Buffer:
    """The memory behind a tensor and its views.

    array: the whole array the views look into.
    version: how often minires changed it in place.
    exposed: whether somebody outside holds the array.
    readers: what is still to be made from the array (`pending.py`).
    moments: mean and biased variance per channel, if what made the array has summed them.
    """

    __slots__ = ("__weakref__", "array", "exposed", "first_checksum", "moments", "readers",
                 "version")  # fmt: skip

    def __init__(self, array: Any, exposed: bool = False) -> None:
        self.array = array
        self.version = 0
        self.exposed = exposed
        self.first_checksum: int | None = None
        self.readers: list[weakref.ref[Any]] | None = None
        self.moments: tuple[Any, Any] | None = None

    def awaited(self, pending: Any) -> None:
        """Have `pending.make()` called before this memory changes, if it is wanted then."""
        others = self.readers or ()
        self.readers = [r for r in others if r() is not None] + [weakref.ref(pending)]

    def settle(self) -> None:
        """To be called before the memory is changed or handed out."""
        if self.readers is not None:
            readers, self.readers = self.readers, None
            for reader in readers:
                pending = reader()
                if pending is not None:
                    pending.make()

    def unchanged(self) -> bool:
        """Whether nobody has written into the memory since the engine made it."""
        if self.version or not self.exposed:
            return not self.version
        return self.first_checksum is not None and checksum(self.array) == self.first_checksum

    def expose(self) -> None:
        """Note that the array is being handed out, with its contents at this moment."""
        self.settle()
        if not self.exposed:
            self.exposed = True
            self.first_checksum = checksum(self.array)


Saved = tuple[Any, Buffer, Any, int, int | None]
"""One array kept for backward: array, buffer, edge, and the buffer's version and checksum then.

The edge is that of the input; of an output, its index. A plain tuple, because each operation makes
several.
"""


def changed(saved: Saved) -> bool:
    """Whether somebody has written into a saved array's memory since."""
    _, buffer, _, version, then = saved
    if buffer.version != version or not buffer.exposed:
        return buffer.version != version
    return checksum(buffer.array) != (buffer.first_checksum if then is None else then)


class Rebuilt:
    """An array that is not kept for backward, because the operation that made it can do so again.

    Its buffer is not kept alive either; while somebody else does, and nothing has touched it, it is
    used as it is.
    """

    __slots__ = ("buffer", "edge")

    def __init__(self, buffer: Buffer, edge: Any) -> None:
        self.buffer = weakref.ref(buffer)
        self.edge = edge

    def kept(self) -> Any:
        """The array if it is still there as it was, else None."""
        buffer = self.buffer()
        return None if buffer is None or buffer.exposed or buffer.version else buffer.array
