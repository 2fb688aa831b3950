"""Pictures of what a network looks at: filters, saliency, Grad-CAM, and a channel being refined.

After Chu, Yang & Tadinada (2017), "Visualizing Residual Networks", and the methods it uses. Each
function takes the model as it is, works on a copy in evaluation mode, and returns arrays that know
how to draw themselves. Patches and receptive fields are in `receptive`.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from minires.anatomy.parts import Array, as_images, floating_dtype, require_blocks
from minires.autograd import Function, Tensor, grad, no_grad, set_grad_enabled
from minires.autograd.hooks import Handle
from minires.functional.activation import AddReLU, ReLU
from minires.nn import Conv2d, Module

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass
class Look:
    """One pass of a copy of a model, on the tape. image: the input, a leaf. layers: by name."""

    model: Module
    image: Tensor
    logits: Tensor
    layers: dict[str, Tensor]


def look(
    what: str, model: Module, x: Any, layers: Sequence[str] = (), record: bool = True
) -> Look:
    """Run a copy of the model in evaluation mode and keep what some of its layers return.

    layers: full names of sub-modules, as in `named_modules()`. Parameters get no gradients.
    record: on the tape.
    Raises AttributeError for an unknown name, TypeError and ValueError for x as `as_images`.
    """
    working = copy.deepcopy(model).requires_grad_(False).eval()
    image = as_images(what, x, floating_dtype(model)).requires_grad_()
    found: dict[str, Tensor] = {}
    for name in layers:
        working.get_submodule(name).register_forward_hook(
            lambda module, args, output, name=name: found.update({name: output})
        )
    with set_grad_enabled(record):
        logits = working(image)
    for name in layers:
        if not isinstance(found.get(name), Tensor):
            raise ValueError(
                f"{what}: {name} is not called on the model's way forward; give a layer that is, "
                "such as a block or a convolution"
            )
    return Look(working, image, logits, found)


def nodes(tensor: Tensor) -> Iterator[Function]:
    """Every operation that a tensor was computed by, each once."""
    waiting, seen = [tensor.grad_fn], set()
    while waiting:
        node = waiting.pop()
        if node is None or id(node) in seen:
            continue
        seen.add(id(node))
        yield node
        waiting += [edge[0] for edge in node.edges or () if isinstance(edge, tuple)]


def chosen_classes(what: str, logits: Tensor, classes: Any) -> np.ndarray:
    """(N,) class indices: those given, one for all or one each; the model's own choice for None."""
    N, K = logits.shape
    if classes is None:
        return logits._data.argmax(axis=1)
    chosen = np.broadcast_to(np.asarray(classes), (N,)) if np.ndim(classes) == 0 else classes
    chosen = np.asarray(chosen)
    if chosen.shape != (N,) or chosen.dtype.kind not in "iu":
        raise ValueError(
            f"{what}: classes is an integer for all {N} images, or one each; got {classes!r}"
        )
    if chosen.min(initial=0) < 0 or chosen.max(initial=0) >= K:
        raise ValueError(f"{what}: the model has classes 0 to {K - 1}, got {classes!r}")
    return chosen


def score_gradient(logits: Tensor, classes: np.ndarray, place: Tensor) -> Array:
    """The gradient of one logit per image at a place on the tape.

    It is taken of their sum: an image's logit depends on that image alone.
    """
    total = logits[np.arange(len(classes)), classes].sum()
    return np.asarray(grad(total, [place])[0])


# -- first filters --------------------------------------------------------------------------------


@dataclass(frozen=True)
class Filters:
    """The filters that see pixels. layer: their convolution. weight: (O, C, KH, KW)."""

    layer: str
    weight: Array

    def images(self) -> Array:
        """(O, KH, KW, 3) for colour, (O, KH, KW) otherwise: 0.5 is zero, the largest is 0 or 1.

        Each filter has a scale of its own. Of other than 3 channels the mean is shown.
        """
        w = self.weight if self.weight.shape[1] == 3 else self.weight.mean(axis=1, keepdims=True)
        largest = np.abs(w).max(axis=(1, 2, 3), keepdims=True)
        shown = 0.5 + 0.5 * np.divide(w, largest, out=np.zeros_like(w), where=largest > 0)
        return shown.transpose(0, 2, 3, 1) if w.shape[1] == 3 else shown[:, 0]

    def plot(self, path: Any = None) -> Figure:
        """All filters in a grid."""
        from minires.anatomy import drawing

        O, C, KH, KW = self.weight.shape
        columns = min(O, 16)
        rows = -(-O // columns)
        with drawing.canvas(
            max(0.62 * columns, 4.5), 0.62 * rows + 0.85, f"The {O} filters of {self.layer}",
            f"{KH}x{KW} on {C} channel{'s' * (C != 1)}; grey is zero, each on its own scale.", path,
        ) as figure:  # fmt: skip
            grid = figure.subplots(rows, columns, squeeze=False).ravel()
            for axes in grid[O:]:
                axes.set_axis_off()
            for axes, image in zip(grid, self.images(), strict=False):
                drawing.picture(axes, image, cmap="gray", vmin=0, vmax=1)
                axes.set_axis_on()
                axes.set(xticks=[], yticks=[])
                axes.spines[:].set(visible=True, color="#9a9a9a", linewidth=0.6)
        return figure


def first_filters(model: Module) -> Filters:
    """The weights of the first convolution. Raises ValueError for a model without one."""
    for name, module in model.named_modules():
        if isinstance(module, Conv2d):
            return Filters(name, module.weight.numpy().copy())
    raise ValueError(f"first_filters: {type(model).__name__} has no convolution")


# -- saliency -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Saliency:
    """How the score of a class depends on each pixel. N images, C H W their sizes.

    method: what made it. x: (N, C, H, W). gradient: (N, C, H, W). classes: (N,), whose scores.
    logits: (N, K).
    """

    method: str
    x: Array
    gradient: Array
    classes: np.ndarray
    logits: Array

    @property
    def map(self) -> Array:
        """(N, H, W): the largest magnitude over the channels (Simonyan et al., section 3.1)."""
        return np.asarray(np.abs(self.gradient).max(axis=1))

    def plot(self, path: Any = None, names: Sequence[str] | None = None) -> Figure:
        """Each image with its map below. names: of the classes."""
        return _plot_maps(self.method, "the brighter, the more the score depends on the pixel",
                          self.x, self.map, self.classes, names, path)  # fmt: skip


def saliency(model: Module, x: Any, classes: Any = None) -> Saliency:
    """The gradient of each image's class score with respect to its pixels.

    x: images (N, C, H, W), as the model takes them. classes: an integer, or one for each image;
        None for what the model takes each image for. Scores are logits, before any softmax.

    Simonyan, Vedaldi & Zisserman (2014), "Deep Inside Convolutional Networks", section 3.
    """
    seen = look("saliency", model, x)
    chosen = chosen_classes("saliency", seen.logits, classes)
    gradient = score_gradient(seen.logits, chosen, seen.image)
    return Saliency("Class saliency", seen.image._data, gradient, chosen, seen.logits._data)


def guided_backprop(model: Module, x: Any, classes: Any = None) -> Saliency:
    """Saliency by guided backpropagation: ReLUs let back only gradients that are positive.

        backward of relu:  g -> g * (y > 0)            guided:  g -> max(g, 0) * (y > 0)

    Arguments as for `saliency`. At a residual join both pathways get what the join's ReLU lets
    back. It is no gradient of anything, but its pictures are sharp.

    Springenberg et al. (2015), "Striving for Simplicity: The All Convolutional Net", section 3.4.
    """
    seen = look("guided_backprop", model, x)
    chosen = chosen_classes("guided_backprop", seen.logits, classes)
    for node in nodes(seen.logits):
        if isinstance(node, ReLU | AddReLU):
            node.hooks = node.hooks or {}
            Handle(node.hooks.setdefault(0, {}), lambda g: Tensor._wrap(np.maximum(g._data, 0)))
    gradient = score_gradient(seen.logits, chosen, seen.image)
    return Saliency("Guided backpropagation", seen.image._data, gradient, chosen, seen.logits._data)


# -- Grad-CAM -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class GradCAM:
    """Where a layer found what speaks for a class. h w: the size of the layer's maps, K of them.

    layer: its name. x: (N, C, H, W). weights: (N, K), the mean gradient of the score over each map.
    map: (N, h, w), relu(sum_k weights_k * map_k). classes: (N,). logits: (N, number of classes).
    """

    layer: str
    x: Array
    weights: Array
    map: Array
    classes: np.ndarray
    logits: Array

    def upsampled(self) -> Array:
        """(N, H, W): the map at the size of the image, linear between the centres of its cells."""
        H, W = self.x.shape[2:]
        rows, cols = _between_centres(self.map.shape[1], H), _between_centres(self.map.shape[2], W)
        return np.einsum("Hh,nhw,Ww->nHW", rows, self.map, cols)

    def plot(self, path: Any = None, names: Sequence[str] | None = None) -> Figure:
        """Each image with its map laid over it below. names: of the classes."""
        return _plot_maps(f"Grad-CAM at {self.layer}", "where the layer found the class", self.x,
                          self.upsampled(), self.classes, names, path, over=True)  # fmt: skip


def grad_cam(model: Module, x: Any, classes: Any = None, layer: str | None = None) -> GradCAM:
    """Grad-CAM: the maps of a layer, weighted by what the class score gains from each.

    layer: the full name of a module that returns maps (N, K, h, w); None for the last block.
    The other arguments are those of `saliency`.

    Selvaraju et al. (2017), "Grad-CAM", equations 1 and 2.
    """
    if layer is None:
        require_blocks("grad_cam without a layer", model)
        layer = [name for name, _ in model.named_blocks()][-1]
    seen = look("grad_cam", model, x, [layer])
    maps = seen.layers[layer]
    if maps.ndim != 4:
        raise ValueError(f"grad_cam: {layer} returns {maps.shape}, not maps (N, K, h, w)")
    chosen = chosen_classes("grad_cam", seen.logits, classes)
    weights = score_gradient(seen.logits, chosen, maps).mean(axis=(2, 3))
    found = np.maximum(np.einsum("nk,nkhw->nhw", weights, maps._data), 0)
    return GradCAM(layer, seen.image._data, weights, found, chosen, seen.logits._data)


def _between_centres(cells: int, pixels: int) -> Array:
    """(pixels, cells): weights of linear interpolation between cell centres, constant outside."""
    places = np.clip((np.arange(pixels) + 0.5) * cells / pixels - 0.5, 0, cells - 1)
    return np.maximum(0, 1 - np.abs(places[:, None] - np.arange(cells)))


# -- refinement along a stage ---------------------------------------------------------------------


@dataclass(frozen=True)
class Refinement:
    """One channel along the blocks of a stage, which all return maps of one size. B blocks.

    stage, channel: which. blocks: their names. x: (N, C, H, W) the images.
    branches: (B, N, h, w), the channel of F(x), what each block adds.
    shortcuts: (B, N, h, w), the channel it is added to; None for a plain net.
    outputs: (B, N, h, w), the channel of each block's output.
    """

    stage: str
    channel: int
    blocks: tuple[str, ...]
    x: Array
    branches: Array
    shortcuts: Array | None
    outputs: Array

    @property
    def change(self) -> Array:
        """(B,): the size of what a block adds relative to what it adds it to (rms of both)."""
        if self.shortcuts is None:
            raise ValueError("change: a plain net adds to nothing")
        added, to = (
            np.sqrt(np.square(maps, dtype=np.float64).mean(axis=(1, 2, 3)))
            for maps in (self.branches, self.shortcuts)
        )
        return np.divide(added, to, out=np.full_like(added, np.inf), where=to > 0)

    @property
    def likeness(self) -> Array:
        """(B - 1,): the correlation of the channel's maps after one block and after the next."""
        flat = self.outputs.reshape(len(self.blocks), -1).astype(np.float64)
        flat = flat - flat.mean(axis=1, keepdims=True)
        norms = np.sqrt((flat * flat).sum(axis=1))
        products = (flat[1:] * flat[:-1]).sum(axis=1)
        below = norms[1:] * norms[:-1]
        return np.divide(products, below, out=np.zeros_like(products), where=below > 0)

    def plot(self, path: Any = None, image: int = 0) -> Figure:
        """The channel after each block, and what the block added, for one of the images."""
        from minires.anatomy import drawing

        B = len(self.blocks)
        shown = self.outputs[:, image]
        high = float(shown.max()) or 1.0
        wide = float(np.abs(self.branches[:, image]).max()) or 1.0
        with drawing.canvas(
            max(1.35 * (B + 1) + 0.6, 7.6), 3.7, f"Channel {self.channel} along {self.stage}",
            "Above: the channel after each block. Below: what the block's branch added "
            "(red more, blue less).", path,
        ) as figure:  # fmt: skip
            grid = figure.subplots(2, B + 1)
            drawing.picture(grid[0, 0], to_show(self.x)[image], cmap="gray", vmin=0, vmax=1)
            grid[0, 0].set_title("image", fontsize=8.5)
            grid[1, 0].set_axis_off()
            for b, name in enumerate(self.blocks):
                drawing.picture(grid[0, b + 1], shown[b], cmap="magma", vmin=0, vmax=high)
                drawing.picture(grid[1, b + 1], self.branches[b, image], cmap="RdBu_r",
                                vmin=-wide, vmax=wide)  # fmt: skip
                grid[0, b + 1].set_title(name, fontsize=8.5)
                if self.shortcuts is not None:
                    grid[1, b + 1].set_title(f"|F| / |x| = {self.change[b]:.2f}", fontsize=8)
        return figure


def refinement(
    model: Module, x: Any, stage: str = "layer1", channel: int | None = None
) -> Refinement:
    """Follow one channel along the blocks of a stage (Chu et al., 2017).

    Within a stage every block adds to the same channels, so a channel means the same thing from
    the first block to the last and is made better on the way; a plain net starts anew each time.

    stage: as in `model.stages()`. channel: None for the one that varies most at the stage's end.
    Raises ValueError for an unknown stage or channel.
    """
    require_blocks("refinement", model)
    names = [n for n, _ in model.named_blocks() if n.startswith(f"{stage}.")]
    if not names:
        known = sorted({n.partition(".")[0] for n, _ in model.named_blocks()})
        raise ValueError(f"refinement: no blocks in {stage!r}; stages are {', '.join(known)}")
    working: Any = copy.deepcopy(model).eval()
    image = as_images("refinement", x, floating_dtype(model))
    taken: list[tuple[Array, Array | None, Array]] = []
    with no_grad():
        h = working.stem(image)
        for name, block in working.named_blocks():
            branch, shortcut = block.branch(h), block.shortcut(h)
            h = block.join(branch, shortcut)
            if name in names:
                taken.append((branch._data, None if shortcut is None else shortcut._data, h._data))
    last = taken[-1][2]
    if channel is None:
        channel = int(last.var(axis=(0, 2, 3)).argmax())
    if not 0 <= channel < last.shape[1]:
        raise ValueError(f"refinement: {stage} has channels 0 to {last.shape[1] - 1}, no {channel}")
    branches, shortcuts, outputs = (
        [part[:, channel] for part in parts if part is not None]
        for parts in zip(*taken, strict=True)
    )
    return Refinement(
        stage, channel, tuple(names), image._data, np.stack(branches),
        np.stack(shortcuts) if shortcuts else None, np.stack(outputs),
    )  # fmt: skip


# -- drawing --------------------------------------------------------------------------------------


def to_show(x: Array) -> Array:
    """Images on one scale from 0 to 1: (N, 3, H, W) -> (N, H, W, 3), other C -> (N, H, W)."""
    low, high = float(x.min(initial=0)), float(x.max(initial=0))
    shown = (x - low) / ((high - low) or 1.0)
    return shown.transpose(0, 2, 3, 1) if x.shape[1] == 3 else shown.mean(axis=1)


def _plot_maps(
    title: str,
    subtitle: str,
    x: Array,
    maps: Array,
    classes: np.ndarray,
    names: Sequence[str] | None,
    path: Any,
    over: bool = False,
) -> Figure:
    """At most ten images above, their maps below: bright on black, or laid over the image."""
    from minires.anatomy import drawing

    count = min(len(x), 10)
    with drawing.canvas(
        max(1.25 * count + 0.2, 6.6), 3.35, title, f"Scores of the class named above; {subtitle}.",
        path,
    ) as figure:  # fmt: skip
        grid = figure.subplots(2, count, squeeze=False)
        for n, image in enumerate(to_show(x)[:count]):
            drawing.picture(grid[0, n], image, cmap="gray", vmin=0, vmax=1)
            label = str(classes[n]) if names is None else names[int(classes[n])]
            grid[0, n].set_title(label, fontsize=9)
            high = float(maps[n].max()) or 1.0
            if over:
                drawing.picture(grid[1, n], image, cmap="gray", vmin=0, vmax=1)
                drawing.picture(grid[1, n], maps[n], cmap="inferno", vmin=0, vmax=high, alpha=0.65)
            else:
                drawing.picture(grid[1, n], maps[n], cmap="inferno", vmin=0, vmax=high)
    return figure
