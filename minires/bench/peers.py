"""Other libraries' convolutions, to be timed beside ours where they are installed.

minires needs none of them; they are imported when they are asked for by name.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

import numpy as np

from minires._names import unknown
from minires.bench.gate import Problem
from minires.bench.machine import package_version
from minires.kernels.threads import num_threads

PEERS = ("torch",)

HOW_TO_INSTALL = 'pip install "minires[bench]"'


def installed(peer: str) -> bool:
    """Whether this library can be imported; it is not imported to find out."""
    return package_version(peer) is not None


def check_installed(peer: str) -> None:
    """Raises ValueError for a library that is not known, ImportError for one not installed."""
    if peer not in PEERS:
        raise ValueError(unknown("library", peer, PEERS))
    if not installed(peer):
        raise ImportError(
            f"bench: {peer} is asked for and not installed: {HOW_TO_INSTALL}, or leave it out"
        )


def peer_calls(peer: str, problem: Problem) -> dict[str, Callable[[], Any]]:
    """Calls of another library that solve the problem, by name; they return arrays.

    Raises as `check_installed`.
    """
    check_installed(peer)
    return _torch_calls(problem)


def _torch_calls(problem: Problem) -> dict[str, Callable[[], Any]]:
    """PyTorch's eager mode in both memory layouts."""
    torch: Any = importlib.import_module("torch")
    torch.set_num_threads(num_threads())
    return {
        "torch NCHW": _torch_call(torch, problem, torch.contiguous_format),
        "torch channels_last": _torch_call(torch, problem, torch.channels_last),
    }


def _torch_call(torch: Any, problem: Problem, layout: Any) -> Callable[[], Any]:
    g = problem.geometry
    a, b = (
        torch.tensor(np.ascontiguousarray(array)).contiguous(memory_format=layout)
        for array in problem.arrays
    )
    stride, padding, dilation = map(list, (g.stride, g.padding, g.dilation))
    if problem.operation == "conv2d":
        convolve = torch.nn.functional.conv2d
        return lambda: convolve(a, b, None, stride, padding, dilation, g.groups).numpy()
    wants_input = problem.operation == "conv2d_grad_input"
    # The tensor whose gradient is wanted has to be there, but is not read.
    shape = g.x_shape if wants_input else g.weight_shape
    unread = torch.empty(shape, dtype=a.dtype).contiguous(memory_format=layout)
    gy, x, weight = (a, unread, b) if wants_input else (b, a, unread)
    backward = torch.ops.aten.convolution_backward
    settings = stride, padding, dilation, False, [0, 0], g.groups
    mask = [wants_input, not wants_input, False]
    return lambda: backward(gy, x, weight, None, *settings, mask)[0 if wants_input else 1].numpy()
