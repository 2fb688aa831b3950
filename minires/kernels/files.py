"""Kernels from a file of the user's: run it, see what it registers.

    kernels = mr.kernels.load("my_kernel.py")

From then on they are used unasked wherever they fit, unless they say `worth=`.
"""

from __future__ import annotations

import importlib.util
import os
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from minires.kernels.registry import Kernel, available, operation

_EXAMPLE = '@minires.kernels.register("conv2d", name="mine")'


def load(path: str | os.PathLike[str]) -> list[Kernel]:
    """Run a Python file that registers kernels; returns them in the order of the file.

    The file may import its neighbours. If it fails, nothing of it stays registered.

    Raises FileNotFoundError if there is no such file, ImportError naming the line if it fails, and
    ValueError if it registers nothing or is no Python file.
    """
    file = Path(path)
    if not file.is_file():
        raise FileNotFoundError(f"{file}: no such file of kernels")
    if file.suffix == ".cu":
        raise ValueError(
            f"{file}: a CUDA source needs Python that launches it; load a .py file that registers "
            "minires.kernels.cuda_source"
        )
    if file.suffix != ".py":
        raise ValueError(f"{file}: expected a Python file that registers kernels (*.py)")
    known = available()
    before = {kernel.operation: [k for k in known if k.operation == kernel.operation]
              for kernel in known}  # fmt: skip
    try:
        _execute(file)
        old = set(map(id, known))
        new = [kernel for kernel in available() if id(kernel) not in old]
        if not new:
            raise ValueError(f"{file} registers no kernel; put {_EXAMPLE} above a function")
    except BaseException:
        for name, kernels in before.items():
            operation(name).kernels = kernels
            operation(name).forget()
        raise
    return new


def _execute(file: Path) -> None:
    name = f"minires_kernels_{file.stem}"
    spec = importlib.util.spec_from_file_location(name, file.absolute())
    if spec is None or spec.loader is None:  # not for a *.py file
        raise ImportError(f"{file} cannot be imported")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        with _neighbours(file.absolute().parent):
            spec.loader.exec_module(module)
    except Exception as error:
        del sys.modules[name]
        lines = [f.lineno for f in traceback.extract_tb(error.__traceback__)
                 if f.filename == str(file.absolute())]  # fmt: skip
        line = error.lineno if isinstance(error, SyntaxError) else lines[-1] if lines else None
        where = f"{file}:{line}" if line else str(file)
        text = error.msg if isinstance(error, SyntaxError) else error
        raise ImportError(f"{where}: {type(error).__name__}: {text}") from error


@contextmanager
def _neighbours(folder: Path) -> Iterator[None]:
    """Inside the block, files of this folder can be imported."""
    sys.path.insert(0, str(folder))
    try:
        yield
    finally:
        sys.path.remove(str(folder))
