"""Magnitudes by depth: layer responses, gradients, activations and weights.

The response of a layer is what it gives after batch norm and before the ReLU or the addition. In
"Deep Residual Learning" (section 4.2, figure 7) the standard deviations of the 3x3 layers'
responses are smaller in residual nets than in plain ones, and smaller the deeper the net.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from minires.anatomy.drawing import Path
from minires.anatomy.parts import Array, Loss, as_images, floating_dtype, norm, opened
from minires.anatomy.text import aligned
from minires.autograd import Tensor, no_grad
from minires.functional.random import get_rng_state, set_rng_state
from minires.nn import BatchNorm2d, Conv2d, Linear, Module

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class Responses:
    """Mean and standard deviation of each layer's response, over images, channels and pixels.

    layers: names of the convolutions in the order of the forward pass. mean, std: float64.
    """

    layers: tuple[str, ...]
    mean: Array
    std: Array

    def table(self) -> str:
        """A line per layer."""
        return aligned(("layer", "mean", "standard deviation"), [
            (name, f"{mean:+.4f}", f"{std:.4f}")
            for name, mean, std in zip(self.layers, self.mean, self.std, strict=True)
        ])  # fmt: skip

    def plot(self, path: Path = None, **others: Responses) -> Figure:
        """Standard deviations by layer, and sorted (figure 7 of the paper).

        others: those of other networks, to draw beside it, by label.
        """
        from minires.anatomy.figures import draw_responses

        return draw_responses({"this net": self, **others}, path)


def responses(model: Module, x: Any, *, kernel_size: int | None = 3) -> Responses:
    """The responses of the layers of a network to a batch of images.

    model: any module with convolutions, in training or evaluation mode; left as it is.
    x: floating-point images (N, C, H, W).
    kernel_size: only convolutions of this size, 3x3 as in the paper; None for all of them.

    A convolution whose output goes into a batch norm responds with what that gives; another one, as
    the last of a pre-activation block, with its own output.

    Raises ValueError if there is no such layer, TypeError for images of integers.
    """
    moments: dict[str, tuple[float, float] | None] = {}
    convolved: dict[int, tuple[str, Tensor]] = {}

    def on_convolution(name: str) -> Any:
        def hook(module: Module, args: Any, output: Tensor) -> None:
            moments[name] = None  # keeps its place
            convolved[id(output)] = name, output

        return hook

    def on_norm(module: Module, args: Any, output: Tensor) -> None:
        if id(args[0]) in convolved:
            moments[convolved.pop(id(args[0]))[0]] = _moments(output._data)

    with _running(model) as working:
        for name, module in working.named_modules():
            if isinstance(module, Conv2d):
                if kernel_size is None or module.kernel_size == (kernel_size, kernel_size):
                    module.register_forward_hook(on_convolution(name))
            elif isinstance(module, BatchNorm2d):
                module.register_forward_hook(on_norm)
        working(as_images("responses", x, floating_dtype(working)))
    for name, output in convolved.values():
        moments[name] = _moments(output._data)
    if not moments:
        size = "" if kernel_size is None else f"{kernel_size}x{kernel_size} "
        raise ValueError(f"responses: {type(model).__name__} has no {size}convolution")
    mean, std = np.array(list(moments.values()), np.float64).T
    return Responses(tuple(moments), mean, std)


def _moments(array: Array) -> tuple[float, float]:
    values = array.astype(np.float64)
    return float(values.mean()), float(values.std())


@contextmanager
def _running(model: Module) -> Iterator[Module]:
    """A copy to be run without recording; random numbers go on afterwards as if it had not."""
    random = get_rng_state()
    try:
        with no_grad():
            yield copy.deepcopy(model)
    finally:
        set_rng_state(random)


@dataclass(frozen=True)
class GradientNorms:
    """Euclidean norms of a loss's gradient, from the image to the head.

    places: "image", the blocks (their input) in the order of the forward pass, and "head".
    activations: the norm at each place. layers: names of convolutions and fully connected layers.
    weights: the norm of the gradient of each one's weight. values: of the weight itself.
    """

    loss: float
    places: tuple[str, ...]
    activations: Array
    layers: tuple[str, ...]
    weights: Array
    values: Array

    def table(self) -> str:
        """A line per place, then a line per layer."""
        places = [(f"at {name}", f"{g:.3e}", "", "")
                  for name, g in zip(self.places, self.activations, strict=True)]  # fmt: skip
        layers = [(name, f"{g:.3e}", f"{w:.3e}", f"{g / w if w else 0.0:.3e}")
                  for name, g, w in zip(self.layers, self.weights, self.values, strict=True)]
        return aligned(("", "|gradient|", "|weight|", "ratio"), [*places, *layers])

    def plot(self, path: Path = None, **others: GradientNorms) -> Figure:
        """Both kinds of norms by depth; others: those of other networks, by label."""
        from minires.anatomy.figures import draw_gradient_norms

        return draw_gradient_norms({"this net": self, **others}, path)


def gradient_norms(model: Module, x: Any, y: Any, *, loss: Loss | None = None) -> GradientNorms:
    """The size of the gradient of a batch by depth: at the input of every block, and of weights.

    model: a network of residual or plain blocks, in training or evaluation mode; left as it is.
    x: floating-point images (N, C, H, W). y: labels (N,), or what `loss` takes.
    loss: `loss(logits, y)`, one number; cross-entropy if None.

    Raises TypeError for a model without blocks or images of integers, ValueError for shapes.
    """
    with opened("gradient_norms", model, x, y, loss) as net:
        layers = {
            name: module.weight.requires_grad_()
            for name, module in net.model.named_modules() if isinstance(module, Conv2d | Linear)
        }  # fmt: skip
        whole = net.whole(list(layers.values()))
    places = ("image", *net.names, "head")
    return GradientNorms(
        loss=whole.loss,
        places=places,
        activations=np.array([norm(whole.gradients[place]) for place in places]),
        layers=tuple(layers),
        weights=np.array([norm(g) for g in whole.weights]),
        values=np.array([norm(w._data) for w in layers.values()]),
    )


@dataclass(frozen=True)
class Histograms:
    """Distributions of values, layer by layer.

    edges: float64 (bins + 1,), the same for all. counts: int64 (layers, bins), of the values in
    each bin; zeros are left out. zeros, beyond: float64 (layers,), the share of all values that are
    exactly zero, as what a ReLU cut, and of those beyond the outer edges.
    """

    names: tuple[str, ...]
    edges: Array
    counts: Array = field(repr=False)
    zeros: Array = field(repr=False)
    beyond: Array = field(repr=False)


@dataclass(frozen=True)
class ModelHistograms:
    """activations: of what the stem and every block give, their output after the join.
    weights: of every convolution and fully connected layer."""

    activations: Histograms
    weights: Histograms

    def plot(self, path: Path = None) -> Figure:
        """Both as densities by depth."""
        from minires.anatomy.figures import draw_histograms

        return draw_histograms(self, path)


def histograms(model: Module, x: Any, *, bins: int = 60) -> ModelHistograms:
    """Distributions of activations, for a batch of images, and of weights, by depth.

    model: a network of blocks, in training or evaluation mode; left as it is.
    x: floating-point images (N, C, H, W).

    The bins span five standard deviations of all values to each side of their mean, or less if
    there are none so far out.

    Raises TypeError for a model without blocks or images of integers, ValueError below 1 bin.
    """
    if bins < 1:
        raise ValueError(f"histograms: bins is at least 1, got {bins}")
    weights = {
        name: module.weight._data
        for name, module in model.named_modules() if isinstance(module, Conv2d | Linear)
    }  # fmt: skip
    with opened("histograms", model, x, None) as net, no_grad():
        h = net.model.stem(net.x)
        activations = {"stem": h._data}
        for name, block in net.model.named_blocks():
            h = block(h)
            activations[name] = h._data
    return ModelHistograms(_histograms(activations, bins), _histograms(weights, bins))


def _histograms(arrays: dict[str, Array], bins: int) -> Histograms:
    values = [array.astype(np.float64).ravel() for array in arrays.values()]
    mean, std = _moments(np.concatenate(values))
    low = max(min(v.min() for v in values), mean - 5 * std)
    high = min(max(v.max() for v in values), mean + 5 * std)
    if not low < high:  # all values are the same
        low, high = low - 0.5, high + 0.5
    edges = np.linspace(low, high, bins + 1)
    return Histograms(
        tuple(arrays),
        edges,
        np.array([np.histogram(v[v != 0], edges)[0] for v in values]),
        np.array([(v == 0).mean() for v in values]),
        np.array([((v < low) | (v > high)).mean() for v in values]),
    )
