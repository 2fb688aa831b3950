"""A residual network taken into its parts, so that gradients can be followed through each.

A network that can be taken apart has `stem(x)`, `named_blocks()` and `head(x)`, and its blocks have
`branch(x)`, `shortcut(x)` and `join(branch, shortcut)`; logits are

    head(block_n(... block_1(stem(x)))),    block(x) = join(branch(x), shortcut(x))

Nothing else is asked of a block. A branch or shortcut that is None does not exist.

At fixed activations the derivative of each part is a linear map. A `Part` holds the activations and
applies the map's adjoint to as many gradients as one likes, batch norm in training mode (which
couples the images of a batch) like anything else.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np

from minires import functional as F
from minires.autograd import Tensor, enable_grad, grad, no_grad
from minires.functional.random import get_rng_state, set_rng_state
from minires.nn import Module

Array = np.ndarray[Any, Any]
Loss = Callable[[Tensor, Any], Tensor]


class Part:
    """A function's output at given inputs, and the adjoint of its derivative there.

    inputs: tensors of values, or None for what does not exist. output: likewise.
    """

    def __init__(self, function: Callable[..., Tensor | None], *inputs: Tensor | None) -> None:
        self.inputs = [None if t is None else t.detach().requires_grad_() for t in inputs]
        with enable_grad():
            self.output = function(*self.inputs)

    def pull(self, gradient: Array | None) -> list[Array | None]:
        """The gradients that reach the inputs if `gradient` reaches the output.

        None: nothing does. What is returned must not be changed if the output is an input itself.
        """
        output = self.output
        if gradient is None or output is None or not output.requires_grad:
            return [None] * len(self.inputs)
        for position, known in enumerate(self.inputs):
            if output is known:
                return [gradient if i == position else None for i in range(len(self.inputs))]
        leaves = [t for t in self.inputs if t is not None]
        found = iter(grad(output, leaves, Tensor._wrap(gradient), retain_graph=True,
                          allow_unused=True))  # fmt: skip
        pulled = [None if t is None else next(found) for t in self.inputs]
        return [None if g is None else g._data for g in pulled]


class BlockParts:
    """One block at a given input: its two pathways and the join."""

    def __init__(self, name: str, block: Any, x: Tensor) -> None:
        self.name = name
        downsample = getattr(block, "downsample", None)
        self.projected = downsample is not None and next(downsample.parameters(), None) is not None
        self.branch = Part(block.branch, x)
        self.shortcut = Part(block.shortcut, x)
        self.join = Part(block.join, self.branch.output, self.shortcut.output)
        if self.join.output is None:
            raise ValueError(f"{name}: join(branch, shortcut) gives nothing")

    @property
    def output(self) -> Tensor:
        output: Tensor = self.join.output  # type: ignore[assignment]
        return output

    @property
    def shortcut_kind(self) -> str:
        """ "identity", "projection" (with parameters), "padding" (without), or "none"."""
        output = self.shortcut.output
        if output is None:
            return "none"
        if output is self.shortcut.inputs[0]:
            return "identity"
        return "projection" if self.projected else "padding"

    def divide(self, gradient: Array) -> tuple[Array | None, Array | None]:
        """The gradients at the block's input by branch and by shortcut, from that at its output."""
        at_branch, at_shortcut = self.join.pull(gradient)
        return self.branch.pull(at_branch)[0], self.shortcut.pull(at_shortcut)[0]


@dataclass
class Parts:
    """A network at a batch of images. head: from what the last block returns to the loss."""

    stem: Part
    blocks: list[BlockParts]
    head: Part

    def start(self) -> Array:
        """The loss's gradient at the head's input, where every path begins on its way back."""
        loss = self.head.output
        gradient = self.head.pull(np.ones_like(loss._data))[0]  # type: ignore[union-attr]
        if gradient is None:
            raise ValueError("the loss does not depend on what the last block returns")
        return gradient


@dataclass
class Whole:
    """What an ordinary forward and backward pass gives.

    gradients: by name, at the input of every block, of the "head" and at the "image".
    weights: of the parameters that were asked for.
    """

    loss: float
    gradients: dict[str, Array]
    weights: list[Array]


class Opened:
    """A copy of a network for one batch, to be run whole and in parts, again and again.

    Every run draws the same random numbers.
    """

    def __init__(self, model: Any, x: Tensor, y: Any, loss: Loss | None) -> None:
        self.model, self.x, self.y = model, x, y
        self.loss = F.cross_entropy if loss is None else loss
        self.random = get_rng_state()
        self.names = [name for name, _ in model.named_blocks()]

    def _loss(self, logits: Tensor) -> Tensor:
        loss = self.loss(logits, self.y)
        if not isinstance(loss, Tensor) or loss.size != 1:
            raise ValueError(f"loss: expected one number as a Tensor, got {loss!r}")
        return loss

    def parts(self) -> Parts:
        set_rng_state(self.random)
        stem = Part(self.model.stem, self.x)
        h, blocks = stem.output, []
        for name, block in self.model.named_blocks():
            blocks.append(BlockParts(name, block, h))  # type: ignore[arg-type]
            h = blocks[-1].output
        return Parts(stem, blocks, Part(lambda h: self._loss(self.model.head(h)), h))

    def whole(self, weights: Sequence[Tensor] = ()) -> Whole:
        """One tape over everything, walked once.

        weights: parameters whose gradients are wanted too.

        Raises ValueError if a block is not what its parts make it, ArithmeticError if the loss is
        not finite.
        """
        set_rng_state(self.random)
        places: dict[str, Tensor] = {"image": self.x.detach().requires_grad_()}
        with enable_grad():
            h = self.model.stem(places["image"])
            for name, block in self.model.named_blocks():
                places[name] = h
                h = _joined(name, block, h)
            places["head"] = h
            loss = self._loss(self.model.head(h))
        if not np.isfinite(loss.item()):
            raise ArithmeticError(f"the loss is {loss.item()}: there is no gradient to follow")
        found = [g._data for g in grad(loss, [*places.values(), *weights])]  # type: ignore[union-attr]
        gradients = dict(zip(places, found, strict=False))
        return Whole(loss.item(), gradients, found[len(places) :])


def _joined(name: str, block: Any, x: Tensor) -> Tensor:
    """The block's output from its parts; checked against what it gives when it is called."""
    random = get_rng_state()
    with no_grad():
        expected = block(x)._data
    set_rng_state(random)
    output: Tensor = block.join(block.branch(x), block.shortcut(x))
    # It may compute the same in one pass, and round otherwise.
    allowed = float(np.finfo(expected.dtype).eps) ** 0.5 * largest(expected)
    if largest(output._data - expected) > allowed:
        raise ValueError(
            f"{name}: this block's forward is not join(branch(x), shortcut(x)), so its parts "
            "do not tell where its gradient comes from"
        )
    return output


@contextmanager
def opened(
    what: str, model: Module, x: Any, y: Any, loss: Loss | None = None, dtype: Any = None
) -> Iterator[Opened]:
    """A copy of the model with its batch, to work on: the model itself is not touched.

    x: images (N, C, H, W). dtype: to compute in; the model's own if None.
    Raises TypeError for a model that cannot be taken apart, ValueError for images that do not fit.
    """
    require_blocks(what, model)
    random = get_rng_state()
    working = copy.deepcopy(model).requires_grad_(False)
    if dtype is not None:
        working.to(dtype)
    try:
        yield Opened(working, as_images(what, x, floating_dtype(working)), y, loss)
    finally:
        set_rng_state(random)


def require_blocks(what: str, model: Any) -> None:
    """Raise TypeError unless the model has a stem, blocks and a head."""
    missing = [name for name in ("stem", "named_blocks", "head") if not hasattr(model, name)]
    if missing:
        raise TypeError(
            f"{what}: needs a network of blocks, with stem(x), named_blocks() and head(x), as "
            f"those of minires.models; {type(model).__name__} has no {' and no '.join(missing)}"
        )
    if next(iter(model.named_blocks()), None) is None:
        raise ValueError(f"{what}: {type(model).__name__} has no block")


def floating_dtype(model: Module) -> Any:
    """The dtype of the model's parameters; float32 if it has none."""
    return next((p.dtype for p in model.parameters()), np.dtype(np.float32))


def as_images(what: str, x: Any, dtype: Any) -> Tensor:
    """Images as a tensor of this dtype that is part of no graph.

    Raises TypeError for integers, which are pixels not yet normalised.
    """
    array = x._data if isinstance(x, Tensor) else np.asarray(x)
    if array.dtype.kind != "f":
        raise TypeError(
            f"{what}: x holds {array.dtype}; give the floating-point images that the model takes "
            "(a transform makes them of pixels)"
        )
    if array.ndim != 4:
        raise ValueError(f"{what}: x is a batch of images (N, C, H, W), got shape {array.shape}")
    return Tensor._wrap(array.astype(dtype, copy=False))


def dot(a: Array | None, b: Array | None) -> float:
    """The inner product of all elements, summed in float64; 0 with None."""
    if a is None or b is None:
        return 0.0
    axes = list(range(a.ndim))
    return float(np.einsum(a, axes, b, axes, [], dtype=np.float64))


def norm(array: Array | None) -> float:
    """The Euclidean norm of all elements, summed in float64; 0 for None."""
    return dot(array, array) ** 0.5


def largest(array: Array | None) -> float:
    """The largest magnitude; 0 for None."""
    return 0.0 if array is None or array.size == 0 else float(np.abs(array).max())


def rms(array: Array | None) -> float:
    """The root of the mean square of all elements; 0 for None."""
    return 0.0 if array is None else norm(array) / max(array.size, 1) ** 0.5


ROUNDING = 1e4
"""How many units of rounding a sum may be off: a deep net has some hundred operations in a row."""


def check_sum(what: str, total: Array, whole: Array, magnitude: float) -> float:
    """The largest |total - whole| relative to the largest |whole|.

    magnitude: of the terms that were added up: where they cancel, rounding is relative to them.
    Raises ArithmeticError if the two differ by more than rounding can explain.
    """
    difference, scale = largest(total - whole), largest(whole)
    allowed = ROUNDING * float(np.finfo(whole.dtype).eps) * max(magnitude, scale)
    if not difference <= allowed:
        raise ArithmeticError(
            f"{what}: the parts add up to something else than the whole gradient: they differ by "
            f"{difference:.3g} where rounding explains {allowed:.3g} (largest element "
            f"{scale:.3g}). Does some part depend on more than its input?"
        )
    return difference / scale if scale else 0.0


