"""What is timed of PyTorch on a device: channels_last, eager, as a CUDA graph, and compiled."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

import torch
import torch.nn.functional as TF

from versus.gpu.machine import Machine, autocast
from versus.theirs import fold
from versus.work import SETTINGS, Call, Work

WAYS = ("torch eager", "torch CUDA graph", "torch compiled")


def images(found: Machine, work: Work) -> Any:
    """The batch on the device, channels_last."""
    x = torch.tensor(work.images()).to(found.torch_device)
    return x.contiguous(memory_format=torch.channels_last)


def training_step(
    found: Machine, work: Work, precision: str, way: str, net: Any, held: ExitStack
) -> Call:
    """Forward, cross-entropy, backward, SGD with momentum and decay; nothing is read back.

    held: keeps a CUDA graph for as long as it may be replayed.
    """
    net = net.to(found.torch_device, memory_format=torch.channels_last)
    fused = found.torch_device == "cuda"
    optimizer = torch.optim.SGD(net.parameters(), fused=fused, **SETTINGS)
    x, labels = images(found, work), torch.tensor(work.labels()).to(found.torch_device)
    forward = found.compiled(net) if way == "torch compiled" else net

    def step() -> Any:
        optimizer.zero_grad(set_to_none=True)
        with autocast(found, precision):
            loss = TF.cross_entropy(forward(x), labels)
        loss.backward()
        optimizer.step()
        return loss

    return held.enter_context(found.graph(step)) if way == "torch CUDA graph" else step


def inference(
    found: Machine, work: Work, precision: str, way: str, net: Any, held: ExitStack
) -> Call:
    """Answers to a batch, batch norm folded into the convolutions; they stay on the device."""
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    net = fold(net.eval()).to(found.torch_device, dtype, memory_format=torch.channels_last)
    x = images(found, work).to(dtype)
    forward = found.compiled(net) if way == "torch compiled" else net
    kept: list[Any] = []

    def answer() -> Any:
        with torch.inference_mode():
            kept[:] = [forward(x)]
        return kept[0]

    if way != "torch CUDA graph":
        return answer
    replay = held.enter_context(found.graph(answer))

    def replayed() -> Any:
        replay()
        return kept[0]

    return replayed


def weights(net: Any) -> dict[str, Any]:
    """As arrays of the host."""
    return {name: t.detach().float().cpu().numpy().copy() for name, t in net.state_dict().items()}
