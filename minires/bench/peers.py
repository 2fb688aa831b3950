"""Other libraries' convolutions, to be timed beside ours where they are installed.

minires needs none of them; they are imported when they are asked for by name.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

from minires._names import unknown
from minires.bench.gate import Problem
from minires.bench.machine import package_version
from minires.bench.places import from_torch, to_torch
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


def peer_calls(
    peer: str, problem: Problem, precision: str = ""
) -> dict[str, Callable[[], Any]]:
    """Calls of another library that solve the problem at its place, by name.

    precision: "tf32" for factors rounded to it on a CUDA device; otherwise they are not. What a
    call returns is for the place's `get`. Raises as `check_installed`.
    """
    check_installed(peer)
    return _torch_calls(problem, precision)


def _torch_calls(problem: Problem, precision: str) -> dict[str, Callable[[], Any]]:
    """PyTorch's eager mode in both memory layouts, cuDNN's choice of algorithm by measurement."""
    torch: Any = importlib.import_module("torch")
    torch.set_num_threads(num_threads())
    torch.backends.cudnn.benchmark = True
    return {
        "torch NCHW": _torch_call(torch, problem, torch.contiguous_format, precision),
        "torch channels_last": _torch_call(torch, problem, torch.channels_last, precision),
    }


def _torch_call(torch: Any, problem: Problem, layout: Any, precision: str) -> Callable[[], Any]:
    g, flags = problem.geometry, torch.backends.cudnn
    device = "cuda" if problem.place.name == "cuda" else "cpu"
    on_device, tf32 = device == "cuda", precision == "tf32"
    a, b = (to_torch(torch, x).to(device).contiguous(memory_format=layout) for x in problem.host)
    stride, padding, dilation = map(list, (g.stride, g.padding, g.dilation))
    if problem.operation == "conv2d":
        convolve = torch.nn.functional.conv2d

        def forward() -> Any:
            flags.allow_tf32 = tf32
            return convolve(a, b, None, stride, padding, dilation, g.groups)

        return forward if on_device else lambda: from_torch(forward())
    wants_input = problem.operation == "conv2d_grad_input"
    # The tensor whose gradient is wanted has to be there, but is not read.
    shape = g.x_shape if wants_input else g.weight_shape
    unread = torch.empty(shape, dtype=a.dtype, device=device).contiguous(memory_format=layout)
    gy, x, weight = (a, unread, b) if wants_input else (b, a, unread)
    backward = torch.ops.aten.convolution_backward
    settings = stride, padding, dilation, False, [0, 0], g.groups
    mask = [wants_input, not wants_input, False]

    def gradient() -> Any:
        flags.allow_tf32 = tf32
        return backward(gy, x, weight, None, *settings, mask)[0 if wants_input else 1]

    return gradient if on_device else lambda: from_torch(gradient())
