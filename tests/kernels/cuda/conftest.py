"""Where the CUDA kernels run: emulated on the CPU everywhere, and on a GPU with `-m gpu`."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from minires.kernels.cuda import emulate, source


class Emulated:
    """Calls functions of NumPy arrays on the emulator."""

    def __call__(self, function: Callable[..., Any], *args: Any) -> Any:
        with emulate.device():
            return function(*args)


class OnGPU:
    """Calls functions of CuPy arrays with NumPy arrays; the memory order is kept."""

    def __init__(self, cupy: Any) -> None:
        self.cupy = cupy

    def __call__(self, function: Callable[..., Any], *args: Any) -> Any:
        given = [self.cupy.asarray(a, order="K") if isinstance(a, np.ndarray) else a for a in args]
        results = function(*given)
        if isinstance(results, tuple):
            return tuple(map(self.cupy.asnumpy, results))
        return self.cupy.asnumpy(results)


@pytest.fixture(params=["emulated", pytest.param("gpu", marks=pytest.mark.gpu)])
def device(request: pytest.FixtureRequest) -> Any:
    """Something that calls a CUDA kernel's host function with NumPy arrays."""
    if request.param == "gpu":
        cupy = pytest.importorskip("cupy", reason="no CuPy: install minires[cuda12] or [cuda13]")
        try:
            cupy.cuda.runtime.getDeviceCount()
        except cupy.cuda.runtime.CUDARuntimeError as error:
            pytest.skip(f"no GPU: {error}")
        return OnGPU(cupy)
    return request.getfixturevalue("emulator")


@pytest.fixture(scope="session")
def emulator() -> Emulated:
    """The emulator, which needs Linux and a C++ compiler."""
    if not sys.platform.startswith("linux") or emulate.compiler() is None:
        pytest.skip("the emulator needs Linux and a C++ compiler")
    return Emulated()


@pytest.fixture
def own_cache(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A cache of compiled libraries of the test's own."""
    monkeypatch.setitem(os.environ, "MINIRES_CACHE", str(tmp_path))
    return tmp_path


@pytest.fixture
def altered(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Replaces a text in a source; what is compiled from then on is compiled of it."""

    def alter(file: str, old: str, new: str) -> None:
        text = (source.FOLDER / file).read_text()
        assert old in text, f"{file} has changed: it has no {old!r}"
        monkeypatch.setitem(source._given, file, text.replace(old, new))
        source.text.cache_clear()
        fresh = emulate.EmulatedDevice()
        monkeypatch.setattr(emulate, "_device", lambda capability: fresh)

    yield alter
    monkeypatch.undo()
    source.text.cache_clear()
