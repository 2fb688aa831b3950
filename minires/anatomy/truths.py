"""Small truths by arithmetic: gradients along a chain of single neurons, the cost of a bottleneck.

Each function returns its numbers, which know how to draw themselves. The truths that need a little
training, learning the identity and small responses, are in `truths_trained`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from minires import nn
from minires._names import unknown
from minires.anatomy.text import aligned
from minires.models import summary
from minires.models.blocks import BasicBlock, Bottleneck

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Floats = NDArray[np.float64]


def _sigmoid(z: Floats) -> Floats:
    return 0.5 * (1.0 + np.tanh(0.5 * z))  # exp(-z) would overflow for large -z


ACTIVATIONS: dict[str, tuple[Callable[[Floats], Floats], Callable[[Floats], Floats]]] = {
    "sigmoid": (_sigmoid, lambda z: _sigmoid(z) * (1.0 - _sigmoid(z))),
    "tanh": (np.tanh, lambda z: 1.0 - np.tanh(z) ** 2),
    "relu": (lambda z: np.maximum(z, 0.0), lambda z: (z > 0).astype(np.float64)),
    "linear": (lambda z: z, np.ones_like),
}
"""Activations σ with their derivatives σ'."""

# -- a chain of single neurons --------------------------------------------------------------------


@dataclass(frozen=True)
class Chain:
    """A net of one neuron per layer, z_l = w_l x_{l-1} + b_l and x_l = σ(z_l) (+ x_{l-1}).

    L is the number of layers; further axes are chains side by side, `...` below.

    w: (L, ...) weights. z: (L, ...). x: (L + 1, ...), x[0] the input.
    factors: (L, ...), dx_l/dx_{l-1} = w_l σ'(z_l), plus 1 with the shortcut.
    """

    activation: str
    shortcut: bool
    w: Floats
    z: Floats
    x: Floats
    factors: Floats

    @property
    def gradient(self) -> Floats:
        """(L + 1, ...): dx_L/dx_l for l = 0..L, the product of the factors after layer l."""
        ones = np.ones((1, *self.factors.shape[1:]))
        return np.concatenate([np.cumprod(self.factors[::-1], axis=0)[::-1], ones])

    @property
    def weight_gradient(self) -> Floats:
        """(L, ...): dx_L/dw_l = x_{l-1} σ'(z_l) * dx_L/dx_l."""
        slope = ACTIVATIONS[self.activation][1](self.z)
        return np.asarray(self.x[:-1] * slope * self.gradient[1:])


def neuron_chain(
    w: Any, x: Any = 1.0, b: Any = 0.0, activation: str = "sigmoid", shortcut: bool = False
) -> Chain:
    """Run a chain of single neurons and take its derivative apart, factor by factor.

    w: (L,) or (L, ...) for many chains at once. x: the input. b: biases, broadcast to w.
    activation: "sigmoid", "tanh", "relu" or "linear". shortcut: add each neuron's input to its
        output, as a residual block does.

    The example is Nielsen's (Neural Networks and Deep Learning, chapter 5): without a shortcut
    dx_L/dx_0 = Π w_l σ'(z_l), where σ' of the sigmoid is at most 1/4; with one it is
    Π (1 + w_l σ'(z_l)). Raises ValueError for no layers or another activation.
    """
    if activation not in ACTIVATIONS:
        raise ValueError(unknown("activation", activation, ACTIVATIONS))
    w = np.asarray(w, np.float64)
    if w.ndim < 1 or len(w) < 1:
        raise ValueError(f"neuron_chain: expected weights (L, ...) with L >= 1, got {w.shape}")
    σ, slope = ACTIVATIONS[activation]
    biases = np.broadcast_to(np.asarray(b, np.float64), w.shape)
    xs = [np.broadcast_to(np.asarray(x, np.float64), w.shape[1:])]
    zs = []
    for weight, bias in zip(w, biases, strict=True):
        zs.append(weight * xs[-1] + bias)
        xs.append(σ(zs[-1]) + xs[-1] if shortcut else σ(zs[-1]))
    z = np.stack(zs)
    return Chain(activation, shortcut, w, z, np.stack(xs), w * slope(z) + shortcut)


@dataclass(frozen=True)
class Vanishing:
    """|dx_L/dx_0| of random chains by depth.

    depths: (L,), 1 to L. initialisations: name -> standard deviation of the weights.
    plain, residual: name -> (3, L), the 10, 50 and 90 % quantiles over the draws.
    """

    activation: str
    depths: NDArray[np.int64]
    initialisations: dict[str, float]
    plain: dict[str, Floats]
    residual: dict[str, Floats]

    def plot(self, path: Any = None) -> Figure:
        """The gradient by depth, without and with shortcuts; each has a scale of its own."""
        from minires.anatomy import drawing

        with drawing.canvas(
            9.6, 3.9, f"A chain of {len(self.depths)} neurons ({self.activation})",
            "The gradient that reaches the first neuron: median of random chains, and 10 to 90 %. "
            "Mind the two scales.", path,
        ) as figure:  # fmt: skip
            left, right = figure.subplots(1, 2)
            for axes, found, name in (
                (left, self.plain, "without shortcuts:  Π w σ'(z)"),
                (right, self.residual, "with shortcuts:  Π (1 + w σ'(z))"),
            ):
                for (label, quantiles), colour in zip(found.items(), drawing.SERIES, strict=False):
                    low, middle, high = np.where(quantiles > 0, quantiles, np.nan)
                    axes.fill_between(self.depths, low, high, color=colour, alpha=0.09, lw=0)
                    axes.plot(self.depths, middle, color=colour, lw=1.8, label=label)
                axes.set_yscale("log")
                axes.set_xlabel("depth L")
                axes.axhline(1, color=drawing.NEUTRAL, lw=0.8, ls=":")
                low, high = axes.get_ylim()
                axes.set_ylim(min(low, 0.1), max(high, 10))
                drawing.heading(axes, name)
            if self.activation == "sigmoid":
                left.plot(self.depths, 0.25**self.depths, color=drawing.NEUTRAL, lw=1, ls="--",
                          label="(1/4)$^L$: the bound for |w| ≤ 1")  # fmt: skip
            left.set_ylabel("|∂x$_L$ / ∂x$_0$|")
            left.legend(frameon=False, fontsize=8.5, loc="lower left")
        return figure


WEIGHTS = {"w ~ N(0, 0.5²)": 0.5, "w ~ N(0, 1)": 1.0, "w ~ N(0, 2)": math.sqrt(2.0),
           "w ~ N(0, 4²)": 4.0}  # fmt: skip
"""Initialisations by the standard deviation of the weights; N(0, 2) is He's for one input."""


def vanishing(
    depth: int = 50,
    draws: int = 2000,
    activation: str = "sigmoid",
    initialisations: Mapping[str, float] | None = None,
    x: float = 1.0,
    seed: int = 0,
) -> Vanishing:
    """How the gradient of random neuron chains vanishes or explodes with depth.

    depth: of the deepest chain. draws: chains for each initialisation.
    initialisations: name -> standard deviation of the weights; None for `WEIGHTS`.

    Every chain is used with and without shortcuts, with the same weights.
    """
    chosen = dict(WEIGHTS if initialisations is None else initialisations)
    if depth < 1 or draws < 1:
        raise ValueError(f"vanishing: depth and draws must be at least 1, got {depth}, {draws}")
    rng = np.random.default_rng(seed)
    found: dict[bool, dict[str, Floats]] = {False: {}, True: {}}
    for name, std in chosen.items():
        w = std * rng.standard_normal((depth, draws))
        for shortcut, quantiles in found.items():
            # The first l factors are a chain of depth l: one run gives every depth.
            factors = neuron_chain(w, x, 0.0, activation, shortcut).factors
            size = np.abs(np.cumprod(factors, axis=0))
            quantiles[name] = np.quantile(size, (0.1, 0.5, 0.9), axis=1)
    return Vanishing(activation, np.arange(1, depth + 1), chosen, found[False], found[True])


# -- the bottleneck's arithmetic ------------------------------------------------------------------


@dataclass(frozen=True)
class BlockCost:
    """What the convolutions of one residual block cost.

    channels: of its input and output. layers: (name, kernel size, in, out) of each convolution.
    weights: parameters of each of them. multiply_adds: of each, for one image of `size` x `size`.
    """

    name: str
    channels: int
    size: int
    layers: tuple[tuple[str, int, int, int], ...]
    weights: tuple[int, ...]
    multiply_adds: tuple[int, ...]

    @property
    def total_weights(self) -> int:
        return sum(self.weights)

    @property
    def total_multiply_adds(self) -> int:
        return sum(self.multiply_adds)


def block_cost(block: nn.Module, name: str, channels: int, size: int) -> BlockCost:
    """Count a block's convolutions by sending an image of (channels, size, size) through it."""
    found = summary.weighted_layers(block, (channels, size, size))
    convolutions = [block.get_submodule(layer.name) for layer in found]
    weights = [conv.weight.shape for conv in convolutions]
    return BlockCost(
        name,
        channels,
        size,
        tuple((layer.name, w[2], w[1], w[0]) for layer, w in zip(found, weights, strict=True)),
        tuple(layer.parameters for layer in found),
        tuple(layer.multiply_adds for layer in found),
    )


@dataclass(frozen=True)
class BottleneckCost:
    """Basic blocks and bottlenecks side by side.

    widths: (W,), channels of the 3x3 convolutions. basic, bottleneck: (W,), parameters of a basic
        block of that width and of a bottleneck around it, which has four times as many channels
        at both ends. wide: (W,), a basic block with as many channels as the bottleneck has there.
    size: pixels along an edge; multiply-adds are parameters times size². (Stride 1, padded.)
    examples: the blocks of figure 5 in the paper, and the two that it saves from: a basic block on
        256 channels, and a bottleneck whose shortcut is a projection.
    """

    widths: NDArray[np.int64]
    size: int
    basic: NDArray[np.int64]
    bottleneck: NDArray[np.int64]
    wide: NDArray[np.int64]
    examples: tuple[BlockCost, ...]

    def table(self) -> str:
        """The examples as text: parameters and multiply-adds."""
        heading = "block", "channels", "weights", f"multiply-adds at {self.size}x{self.size}"
        return aligned(heading, [
            (e.name, str(e.channels), f"{e.total_weights:,}", f"{e.total_multiply_adds:,}")
            for e in self.examples
        ])  # fmt: skip

    def plot(self, path: Any = None) -> Figure:
        """Cost by width, and the layers that make up the blocks of figure 5."""
        from minires.anatomy import drawing

        with drawing.canvas(
            10.2, 4.1, "What a bottleneck saves",
            "It costs what a basic block of a quarter of its channels costs: 17 w² against 18 w², "
            "not 288 w².", path,
        ) as figure:  # fmt: skip
            left, right = figure.subplots(1, 2, width_ratios=(1, 1.25))
            lines = (
                ("basic, 4w channels: 288 w²", self.wide, drawing.NEUTRAL, "--"),
                ("basic, w channels: 18 w²", self.basic, drawing.PLAIN, "-"),
                ("bottleneck, 4w channels: 17 w²", self.bottleneck, drawing.RESIDUAL, "-"),
            )
            for label, weights, colour, dashes in lines:
                left.plot(self.widths, weights, dashes, color=colour, lw=1.8, marker="o", ms=3.5,
                          label=label)  # fmt: skip
            left.set_xscale("log", base=2)
            left.set_yscale("log")
            left.set_xticks(self.widths, [str(w) for w in self.widths])
            left.set_xlabel("w, channels of the 3x3 convolutions")
            left.set_ylabel(f"weights  (x {self.size**2:,} = multiply-adds)")
            left.legend(frameon=False, fontsize=8.5)
            drawing.heading(left, "one block, by width")
            for row, cost in enumerate(self.examples):
                start = 0
                for (_, kernel, C, O), count in zip(cost.layers, cost.weights, strict=True):
                    colour = drawing.PLAIN if kernel == 3 else drawing.RESIDUAL
                    right.barh(row, count, left=start, height=0.55, color=colour,
                               edgecolor="white", lw=1.5)  # fmt: skip
                    if count > 100_000:
                        right.text(start + count / 2, row, f"{kernel}x{kernel}\n{C} → {O}",
                                   ha="center", va="center", fontsize=8, color="white")  # fmt: skip
                    start += count
                right.text(start + 15_000, row, f"{start:,}", va="center", fontsize=8.5)
            right.set_yticks(range(len(self.examples)), [e.name for e in self.examples])
            right.invert_yaxis()
            right.set_xlim(0, 1.2 * max(e.total_weights for e in self.examples))
            right.xaxis.set_major_formatter(lambda value, _: f"{value / 1e6:g} M")
            right.set_xlabel("weights  (blue: 3x3 convolutions, red: 1x1)")
            right.grid(axis="y", visible=False)
            drawing.heading(right, "the 64/256 example of the paper")
        return figure


def bottleneck_cost(
    widths: Sequence[int] = (16, 32, 64, 128, 256), size: int = 56
) -> BottleneckCost:
    """The bottleneck's arithmetic, counted on real blocks ("Deep Residual Learning", figure 5).

    On w channels a basic block has 2 * 9 w² weights. A bottleneck on 4w channels has 4w * w (1x1
    down), 9 w² (3x3) and w * 4w (1x1 up): 17 w² in place of 2 * 9 * (4w)² = 288 w². Every weight
    is used once per pixel, so multiply-adds are these numbers times `size`².

    widths: the w's. size: height and width of the image. Raises ValueError for no width.
    """
    if not widths:
        raise ValueError("bottleneck_cost: give at least one width")
    with nn.init.skip_init():  # only counted
        examples = (
            block_cost(BasicBlock(64, 64), "basic, 64 channels", 64, size),
            block_cost(Bottleneck(256, 64), "bottleneck, 256 channels", 256, size),
            block_cost(
                Bottleneck(256, 64, shortcut="C"), "bottleneck with a projection", 256, size
            ),
            block_cost(BasicBlock(256, 256), "basic, 256 channels", 256, size),
        )
        counts = [
            [
                block_cost(BasicBlock(w, w), "", w, 1).total_weights,
                block_cost(Bottleneck(4 * w, w), "", 4 * w, 1).total_weights,
                block_cost(BasicBlock(4 * w, 4 * w), "", 4 * w, 1).total_weights,
            ]
            for w in widths
        ]
    basic, bottleneck, wide = np.array(counts, np.int64).T
    return BottleneckCost(np.array(widths, np.int64), size, basic, bottleneck, wide, examples)
