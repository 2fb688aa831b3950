"""What tests of the kernel lab share."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import minires as mr


@contextmanager
def restored_kernels() -> Iterator[None]:
    """Kernels registered inside the block are gone after it."""
    known = mr.kernels.available()
    try:
        yield
    finally:
        for name in {kernel.operation for kernel in mr.kernels.available()}:
            operation = mr.kernels.operation(name)
            operation.kernels = [k for k in known if k.operation == name]
            operation.forget()
