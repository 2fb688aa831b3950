"""Batch norm folded into the convolution before it: one layer where there were two.

With running statistics batch norm is a scale and a shift per channel, and the convolution before it
is linear, so the pair is again a convolution. With s = gamma / sqrt(var + eps),

    s * (conv(x, w) + b - mean) + beta  =  conv(x, s * w) + (s * (b - mean) + beta)
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from minires import functional as F
from minires.autograd import Parameter, Tensor, enable_grad
from minires.functional.conv import convolution
from minires.nn import init
from minires.nn.layers import BatchNorm2d, Conv2d
from minires.nn.module import Module


class FoldedConv2d(Conv2d):
    """A convolution whose bias is added by the `FoldedNorm` behind it, on the way if it can be."""

    def forward(self, x: Tensor) -> Tensor:
        return convolution(
            x, self.weight, None, self.stride, self.padding, self.dilation, self.groups,
            put_off=True,
        )  # fmt: skip


class FoldedNorm(Module):
    """Stands where a batch norm stood that now is part of the convolution before it.

    What is left to do is to add the convolution's bias: with the ReLU, and the shortcut, that come
    next.
    """

    def __init__(self, conv: FoldedConv2d | None = None) -> None:
        super().__init__()
        self.conv = [conv]  # in a list: the convolution stays where it was in the net

    def _add(self, x: Tensor, shortcut: Tensor | None, rectify: bool) -> Tensor:
        conv = self.conv[0]
        return F.bias_relu(x, None if conv is None else conv.bias, shortcut, rectify)

    def forward(self, x: Tensor) -> Tensor:
        return self._add(x, None, rectify=False)

    def relu(self, x: Tensor) -> Tensor:
        """relu(self(x)) in one pass."""
        return self._add(x, None, rectify=True)

    def add_relu(self, x: Tensor, shortcut: Tensor) -> Tensor:
        """relu(self(x) + shortcut) in one pass."""
        return self._add(x, shortcut, rectify=True)


def fold_batch_norm(conv: Conv2d, bn: BatchNorm2d) -> Conv2d:
    """The convolution, with a bias, that computes bn(conv(x)) by the running statistics.

    Worked out in float64 and rounded once to the convolution's dtype.

    Raises TypeError for other layers, ValueError if the channels do not match or `bn` keeps no
    running statistics.
    """
    if not (isinstance(conv, Conv2d) and isinstance(bn, BatchNorm2d)):
        raise TypeError(
            f"fold_batch_norm: expected a Conv2d and a BatchNorm2d, got {type(conv).__name__} and "
            f"{type(bn).__name__}"
        )
    if conv.out_channels != bn.num_features:
        raise ValueError(
            f"fold_batch_norm: the convolution gives {conv.out_channels} channels, the batch norm "
            f"takes {bn.num_features}"
        )
    if bn.running_mean is None or bn.running_var is None:
        raise ValueError(
            "fold_batch_norm: this batch norm keeps no running statistics (it always normalises by "
            "those of the batch), so it is no fixed scale and shift"
        )
    return _merged(conv, bn, Conv2d)


def _merged(conv: Conv2d, bn: BatchNorm2d, kind: type[Conv2d]) -> Any:
    mean, var = _double(bn.running_mean), _double(bn.running_var)
    gamma, beta = (1.0, 0.0) if bn.weight is None else (_double(bn.weight), _double(bn.bias))
    bias = 0.0 if conv.bias is None else _double(conv.bias)
    scale = gamma / (var + bn.eps) ** 0.5
    with init.skip_init():
        folded = kind(
            conv.in_channels, conv.out_channels, conv.kernel_size, conv.stride, conv.padding,
            conv.dilation, conv.groups,
        )  # fmt: skip
    dtype = conv.weight.dtype
    folded.weight = Parameter((_double(conv.weight) * scale[:, None, None, None]).astype(dtype))
    folded.bias = Parameter(((bias - mean) * scale + beta).astype(dtype))
    return folded.train(conv.training)


def _double(tensor: Tensor) -> Any:
    return tensor._data.astype(np.float64)


def fold_batch_norms(model: Module, input_shape: Sequence[int] | None = None) -> Module:
    """A copy for inference in which every batch norm that follows a convolution is folded into it.

    Which follows which is found by running the copy on a batch of no images: a pair is a
    convolution whose output goes into one batch norm and nowhere else. In the batch norm's place
    stays a `FoldedNorm` without state, so the copy's `state_dict` has the convolutions' weights and
    biases under their usual names. A batch norm behind something else, as in pre-activation blocks,
    stays as it is. Forward hooks on folded layers do not come along.

    input_shape: (C, H, W) of an image; without it, 224 and 32 pixels are tried.

    Raises ValueError if the model is in training mode, cannot be run on images of that shape, or
    has no convolution with a batch norm behind it.
    """
    if any(module.training for module in model.modules()):
        raise ValueError(
            "fold_batch_norms: the model is in training mode, where batch norm depends on the "
            "batch; call model.eval() first"
        )
    folded = copy.deepcopy(model)
    pairs = _pairs(folded, input_shape)
    if not pairs:
        raise ValueError(
            f"fold_batch_norms: {type(model).__name__} has no convolution whose output goes into a "
            "batch norm with running statistics, and nowhere else"
        )
    for conv, bn in pairs:
        merged = _merged(folded.get_submodule(conv), folded.get_submodule(bn), FoldedConv2d)  # type: ignore[arg-type]
        _replace(folded, conv, merged)
        _replace(folded, bn, FoldedNorm(merged).eval())
    return folded


def _replace(model: Module, name: str, module: Module) -> None:
    parent, _, last = name.rpartition(".")
    model.get_submodule(parent).add_module(last, module)


@dataclass
class _Trace:
    """What happens to the outputs of convolutions while a model runs.

    outputs: by convolution, each output. norms: by batch norm, the convolution whose output it was
    called with, or None, call by call. convolutions: by identity of an output.
    """

    outputs: dict[str, list[Tensor]] = field(default_factory=dict)
    norms: dict[str, list[str | None]] = field(default_factory=dict)
    convolutions: dict[int, str] = field(default_factory=dict)

    def convolved(self, name: str) -> Any:
        def hook(module: Module, args: Any, output: Tensor) -> None:
            self.outputs.setdefault(name, []).append(output)
            self.convolutions[id(output)] = name

        return hook

    def normalised(self, name: str) -> Any:
        def hook(module: Module, args: Any) -> None:
            self.norms.setdefault(name, []).append(self.convolutions.get(id(args[0])))

        return hook


def _pairs(model: Module, input_shape: Sequence[int] | None) -> list[tuple[str, str]]:
    """Names of convolutions and batch norms that can be folded."""
    trace = _Trace()
    with ExitStack() as stack:
        for name, module in model.named_modules():
            if type(module) is Conv2d:  # a subclass may compute something else
                handle = module.register_forward_hook(trace.convolved(name))
            elif type(module) is BatchNorm2d and module.running_mean is not None:
                handle = module.register_forward_pre_hook(trace.normalised(name))
            else:
                continue
            stack.callback(handle.remove)
        uses = _uses(_run_empty(model, input_shape, trace))
    pairs = []
    for norm, calls in trace.norms.items():
        conv = calls[0]
        if len(calls) == 1 and conv is not None and len(trace.outputs[conv]) == 1:
            edge = trace.outputs[conv][0]._edge()
            if uses.get((id(edge[0]), edge[1])) == 1:
                pairs.append((conv, norm))
    return pairs


def _run_empty(model: Module, input_shape: Sequence[int] | None, trace: _Trace) -> Tensor:
    """The model's output, with its graph, for a batch of no images: shapes only, nothing to
    compute. Raises ValueError if no shape fits."""
    first = next((m for m in model.modules() if isinstance(m, Conv2d)), None)
    if input_shape is not None:
        shapes = [tuple(input_shape)]
    else:
        channels = 3 if first is None else first.in_channels
        shapes = [(channels, size, size) for size in (224, 32)]
    dtype = next((p.dtype for p in model.parameters()), np.dtype(np.float32))
    problems = []
    for shape in shapes:
        vars(trace).update(vars(_Trace()))
        try:
            with enable_grad():
                output: Tensor = model(Tensor(np.zeros((0, *shape), dtype), requires_grad=True))
        except ValueError as error:
            problems.append(str(error))
        else:
            return output
    tried = " or ".join("x".join(map(str, shape)) for shape in shapes)
    raise ValueError(
        f"fold_batch_norms: the model does not run on images of {tried}: {problems[-1]}. Give the "
        "shape of its images, input_shape=(C, H, W)"
    )


def _uses(output: Tensor) -> dict[tuple[int, int], int]:
    """How many operations on the way to `output` take each (node, output index) as an input."""
    uses: dict[tuple[int, int], int] = {}
    seen, stack = set(), [output._node]
    while stack:
        node = stack.pop()
        if node is None or id(node) in seen:
            continue
        seen.add(id(node))
        for edge in node.edges or ():
            if isinstance(edge, tuple):
                uses[id(edge[0]), edge[1]] = uses.get((id(edge[0]), edge[1]), 0) + 1
                stack.append(edge[0])
    return uses
