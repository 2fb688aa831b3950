"""The device that is measured, or what stands in for it in a rehearsal.

A rehearsal runs every line on a machine without a GPU: our kernels on the emulator, PyTorch on the
processor, CUDA graphs of PyTorch as plain calls. Its numbers mean nothing.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch

from minires.bench.limits import Limits, limits, measure_device
from minires.bench.places import Emulator, Place, place_of

DTYPES = {"fp32": "float32", "tf32": "tf32", "bf16": "bfloat16"}
"""Precisions, and what `minires.bench.bench_conv` calls them."""


@dataclass(frozen=True)
class Machine:
    """place: where our kernels run. torch_device: where PyTorch runs. limits: of the device."""

    place: Place
    torch_device: str
    limits: Limits
    rehearsal: bool

    def synchronize(self) -> None:
        """Wait until the device has done all it was given, on every stream."""
        if not self.rehearsal:
            torch.cuda.synchronize()

    def reading(self, call: Callable[[], Any], calls: int) -> float:
        """Seconds per call of whole steps: of the wall, from an idle device to an idle device."""
        self.synchronize()
        start = time.perf_counter()
        for _ in range(calls):
            call()
        self.synchronize()
        return (time.perf_counter() - start) / calls

    @contextmanager
    def graph(self, step: Callable[[], Any]) -> Iterator[Callable[[], Any]]:
        """A CUDA graph of a step of PyTorch's, as a call; in a rehearsal the step itself."""
        if self.rehearsal:
            yield step
            return
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(3):
                step()
        torch.cuda.current_stream().wait_stream(stream)
        captured = torch.cuda.CUDAGraph()
        with torch.cuda.graph(captured):
            step()
        yield captured.replay
        captured.reset()

    def compiled(self, net: Any) -> Any:
        """torch.compile with CUDA graphs; in a rehearsal without a compiler behind it."""
        if self.rehearsal:
            return torch.compile(net, backend="eager")
        return torch.compile(net, mode="reduce-overhead")

    def release(self) -> None:
        """Give cached memory of both sides back, so that the next nets have all of it."""
        if not self.rehearsal:
            import gc

            import cupy

            gc.collect()
            torch.cuda.empty_cache()
            cupy.get_default_memory_pool().free_all_blocks()


@contextmanager
def machine(rehearse: bool) -> Iterator[Machine]:
    """The GPU of this machine, or the stand-ins. Raises what `place_of` raises without a GPU."""
    if not rehearse:
        yield Machine(place_of("cuda"), "cuda", limits(device="cuda"), rehearsal=False)
        return
    from minires.kernels.cuda import emulate

    place, threads = Emulator(), torch.get_num_threads()
    torch.set_num_threads(1)  # tiny work is not worth waking others for
    try:
        with emulate.device():
            found = measure_device(place, repeats=1, size=8, megabytes=1, tries=1)
            yield Machine(place, "cpu", found, rehearsal=True)
    finally:
        torch.set_num_threads(threads)


def set_precision(precision: str) -> None:
    """Whether PyTorch rounds float32 factors to tf32: never silently."""
    torch.backends.cuda.matmul.allow_tf32 = precision == "tf32"
    torch.backends.cudnn.allow_tf32 = precision == "tf32"
    torch.backends.cudnn.benchmark = True


def autocast(found: Machine, precision: str) -> Any:
    """bf16 for what PyTorch thinks fit for it, float32 for the rest; nothing at fp32 and tf32."""
    if precision != "bf16":
        return nullcontext()
    return torch.autocast(found.torch_device, torch.bfloat16)
