"""At each join: how the gradient divides between the shortcut and the branch.

A block computes y = relu(F(x) + x). On the way back the gradient at y passes the relu's mask and
then goes both ways at once: unchanged through the shortcut, and through F's derivative. Nothing
decides between them: the two add up again at the block's input.

    dL/dx  =  mask dL/dy  +  (dF/dx)^T mask dL/dy          He et al. (2016), equation 1
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from minires.anatomy.drawing import Path
from minires.anatomy.parts import (
    Array,
    BlockParts,
    Loss,
    check_sum,
    dot,
    largest,
    norm,
    opened,
    rms,
)
from minires.anatomy.text import aligned
from minires.nn import Module

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class Join:
    """One block and the gradient at its input.

    name: as in `named_blocks()`. shortcut: "identity", "padding" (option A where the shape
        changes), "projection" (options B and C), or "none".
    by_shortcut, by_branch: (N, C, H, W), the gradient at the block's input that comes by each way;
        None where there is no such way, or where arrays were not wanted.
    shortcut_norm, branch_norm, whole_norm: Euclidean norms of the two and of their sum.
    arriving_norm: of the gradient at the block's output, before the join's relu.
    cosine: of the angle between the two; 0 if one of them is zero.
    x_rms, f_rms: root mean square of the join's two inputs on the way forward: the shortcut's
        output and F(x).
    """

    name: str
    shortcut: str
    by_shortcut: Array | None
    by_branch: Array | None
    shortcut_norm: float
    branch_norm: float
    whole_norm: float
    arriving_norm: float
    cosine: float
    x_rms: float
    f_rms: float

    @property
    def share(self) -> float:
        """The shortcut's share, |by shortcut| / (|by shortcut| + |by branch|), 0 to 1."""
        both = self.shortcut_norm + self.branch_norm
        return self.shortcut_norm / both if both else 0.0


@dataclass(frozen=True)
class Joins:
    """All blocks of a network, in the order of the forward pass; index by position or name.

    loss: of the batch. max_relative_difference: between the sum of the two ways and the gradient
    of one ordinary backward pass, at the worst element of any block, relative to the largest.
    """

    blocks: tuple[Join, ...]
    loss: float
    max_relative_difference: float

    def __iter__(self) -> Iterator[Join]:
        return iter(self.blocks)

    def __len__(self) -> int:
        return len(self.blocks)

    def __getitem__(self, which: int | str) -> Join:
        if isinstance(which, int):
            return self.blocks[which]
        for join in self.blocks:
            if join.name == which:
                return join
        raise KeyError(f"no block {which!r}; there are {', '.join(j.name for j in self.blocks)}")

    def table(self) -> str:
        """A line per block."""
        heading = ("block", "shortcut", "|g| shortcut", "|g| branch", "|g| whole", "share",
                   "cosine", "rms x", "rms F(x)")  # fmt: skip
        return aligned(heading, [
            (j.name, j.shortcut, f"{j.shortcut_norm:.3e}", f"{j.branch_norm:.3e}",
             f"{j.whole_norm:.3e}", f"{100 * j.share:.1f} %", f"{j.cosine:+.3f}",
             f"{j.x_rms:.3f}", f"{j.f_rms:.3f}")
            for j in self.blocks
        ])  # fmt: skip

    def plot(self, path: Path = None) -> Figure:
        """The two ways' norms, their angle, and the forward magnitudes, by block."""
        from minires.anatomy.figures import draw_joins

        return draw_joins(self, path)


def joins(
    model: Module, x: Any, y: Any, *, loss: Loss | None = None, arrays: bool = True
) -> Joins:
    """How the gradient of a batch divides at every join of a residual network.

    model: a network of residual blocks, in training or evaluation mode; plain blocks have a branch
        only. It is left as it is: parameters, gradients, running statistics, mode.
    x: floating-point images (N, C, H, W), a Tensor or an array. y: labels (N,), or what `loss`
        takes. loss: `loss(logits, y)`, one number; cross-entropy if None.
    arrays: whether to keep the gradients themselves, two arrays of the block's input size each.

    Raises TypeError for a model without blocks or images that are no floating-point numbers,
    ValueError for shapes that do not fit, ArithmeticError if the two ways do not add up to the
    gradient of one ordinary backward pass.
    """
    with opened("joins", model, x, y, loss) as net:
        whole = net.whole()
        parts = net.parts()
        arriving, found, worst = parts.start(), [], 0.0
        while parts.blocks:
            block = parts.blocks.pop()
            by_branch, by_shortcut = block.divide(arriving)
            total = _sum(by_branch, by_shortcut, whole.gradients[block.name])
            magnitude = largest(by_branch) + largest(by_shortcut)
            worst = max(worst, check_sum(block.name, total, whole.gradients[block.name], magnitude))
            found.append(_join(block, arriving, by_branch, by_shortcut, total, arrays))
            arriving = total
    return Joins(tuple(reversed(found)), whole.loss, worst)


def _sum(a: Array | None, b: Array | None, like: Array) -> Array:
    if a is None or b is None:
        return next((g for g in (a, b) if g is not None), like * 0)
    total: Array = a + b
    return total


def _join(
    block: BlockParts,
    arriving: Array,
    by_branch: Array | None,
    by_shortcut: Array | None,
    total: Array,
    arrays: bool,
) -> Join:
    norms = norm(by_shortcut), norm(by_branch)
    product = norms[0] * norms[1]
    cosine = dot(by_shortcut, by_branch) / product if product else 0.0
    x, f = block.shortcut.output, block.branch.output
    return Join(
        name=block.name,
        shortcut=block.shortcut_kind,
        by_shortcut=by_shortcut if arrays else None,
        by_branch=by_branch if arrays else None,
        shortcut_norm=norms[0],
        branch_norm=norms[1],
        whole_norm=norm(total),
        arriving_norm=norm(arriving),
        cosine=min(1.0, max(-1.0, cosine)),
        x_rms=rms(None if x is None else x._data),
        f_rms=rms(None if f is None else f._data),
    )
