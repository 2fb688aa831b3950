"""A kernel of the user's in CUDA C: its source, and a Python function that launches it.

    @mr.kernels.register("conv2d", backend="cuda", name="mine")
    @mr.kernels.cuda_source("my_kernel.cu")              # or the text itself
    def conv2d(cuda, x, weight, g):
        x, weight = cuda.dense(x), cuda.dense(weight)
        y = cuda.empty(g.y_shape, x.dtype)
        run = cuda.kernel("conv2d_mine", T=x.dtype)      # extern "C" __global__ void conv2d_mine
        run((blocks,), (256,), (x, weight, y, y.size, np.int32(g.C)))
        return y

Registering needs no GPU. The source is compiled when it is first launched: by CuPy for CuPy arrays,
or by a C++ compiler inside `with minires.kernels.cuda.emulate.device():`, which is how
`minires kernels check` runs it where there is no GPU.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from functools import update_wrapper
from pathlib import Path
from typing import Any

Launch = Callable[..., Any]


class Cuda:
    """What a launching function is given: arrays and compiled kernels of the inputs' device.

    multiprocessors: of the device.
    """

    def __init__(self, device: Any, name: str) -> None:
        self._device, self._name = device, name
        self.multiprocessors: int = device.multiprocessors

    def empty(self, shape: Sequence[int], dtype: Any) -> Any:
        """An array on the device, with arbitrary contents."""
        return self._device.xp.empty(shape, dtype)

    def zeros(self, shape: Sequence[int], dtype: Any) -> Any:
        """An array of zeros on the device."""
        return self._device.xp.zeros(shape, dtype)

    def dense(self, array: Any) -> Any:
        """The array with its elements side by side, the last axis fastest; copied if it is not."""
        return self._device.xp.ascontiguousarray(array)

    def kernel(self, name: str, **definitions: Any) -> Callable[..., None]:
        """A kernel of the source: a function of (grid, block, arguments, shared=0).

        definitions: macros; a dtype becomes its C++ name (float, double, f16, bf16).
        Arguments are dense arrays, NumPy scalars of the parameter's type (np.int32 for `int`), and
        Python integers for `long long`.
        """
        compiled: Callable[..., None] = self._device.module(self._name, **definitions).kernel(name)
        return compiled


class CudaKernel:
    """A CUDA source and the function that launches it: called like any other kernel."""

    def __init__(self, text: str, name: str, launch: Launch) -> None:
        self._text, self._name, self._launch = text, name, launch
        update_wrapper(self, launch)

    def __call__(self, *args: Any) -> Any:
        from minires.kernels.cuda import launch, source

        device = launch.device_of(args[0])
        return self._launch(Cuda(device, source.give(self._name, self._text)), *args)


def cuda_source(source: str | os.PathLike[str], launch: Launch | None = None) -> Any:
    """A kernel from CUDA C source: with `launch` the kernel, without it a decorator of `launch`.

    source: a path to a .cu file, relative to the calling Python file, or the text itself. Kernels
        in it are `extern "C" __global__ void name(...)`.
    launch: a function of (cuda, *the operation's arguments) that returns the operation's results;
        `cuda` is a `Cuda`.

    Raises FileNotFoundError for a file that is not there, and ValueError for a text without a
    kernel.
    """
    if isinstance(source, str) and "__global__" in source:
        text, name = source, "source.cu"
    elif isinstance(source, str) and "\n" in source:
        raise ValueError('cuda_source: no kernel in the text; expected extern "C" __global__ void')
    else:
        path = Path(sys._getframe(1).f_code.co_filename).parent / source
        if not path.is_file():
            raise FileNotFoundError(f"cuda_source: no file {path}")
        text, name = path.read_text(), path.name
        if "__global__" not in text:
            raise ValueError(f'cuda_source: no kernel in {path}; expected extern "C" __global__')
    if launch is not None:
        return CudaKernel(text, name, launch)
    return lambda function: CudaKernel(text, name, function)
