"""Where the engine's tests run: on an emulated device everywhere, and on a GPU with `-m gpu`."""

from __future__ import annotations

import sys
from collections.abc import Iterator

import pytest

from minires.kernels.cuda import emulate


@pytest.fixture(params=["emulated", pytest.param("gpu", marks=pytest.mark.gpu)])
def cuda(request: pytest.FixtureRequest) -> Iterator[str]:
    """The name of a CUDA device, emulated or real."""
    if request.param == "gpu":
        cupy = pytest.importorskip("cupy", reason="no CuPy: install minires[cuda12] or [cuda13]")
        try:
            cupy.cuda.runtime.getDeviceCount()
        except cupy.cuda.runtime.CUDARuntimeError as error:
            pytest.skip(f"no GPU: {error}")
        yield "cuda:0"
        return
    if not sys.platform.startswith("linux") or emulate.compiler() is None:
        pytest.skip("the emulator needs Linux and a C++ compiler")
    with emulate.device():
        yield "cuda:0"
