"""By path length: the gradient as a sum over all paths, exactly.

A residual net of n blocks can be unrolled into 2^n paths from the image to the loss: at each join a
path comes either through the branch or through the shortcut (Veit et al., 2016, "Residual Networks
Behave Like Ensembles of Relatively Shallow Networks", section 3). The length of a path is the
number of branches on it, and C(n, k) paths have length k.

At fixed activations backward is linear, so all paths of a length can be carried together. Let g_k
be the gradient at a block's output over all paths with k branches behind it, M the derivative of
the join (the relu's mask), S and B those of shortcut and branch. At the block's input

    g'_k = S^T M^T g_k + B^T M^T g_(k-1)

which starts from g_0, the gradient at the head's input. n(n+1)/2 passes through a branch give
every length at every depth: nothing is sampled. The sum over k is the whole gradient.

Veit et al. instead draw single paths and average the norms of their gradients, which
`single_paths` does. The two differ: gradients of different paths point in different directions and
cancel in part, so the norm of all paths of a length is below their number times the mean norm.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from minires._names import unknown
from minires.anatomy.drawing import Path
from minires.anatomy.parts import (
    Array,
    BlockParts,
    Loss,
    Part,
    check_sum,
    largest,
    norm,
    opened,
)
from minires.anatomy.text import aligned
from minires.nn import Module

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class Depth:
    """The gradient at one depth, by the length of the path behind it.

    name: of the block whose input this is; "head" behind the last block, "image" in front of all.
    counts: how many paths have length 0, 1, ..., n; binomial numbers if n blocks have both ways.
    norms: float64 (K + 1,), the Euclidean norm of the gradient over all paths of each length.
    whole_norm: of the whole gradient.
    """

    name: str
    counts: tuple[int, ...]
    norms: Array
    whole_norm: float

    @property
    def norm_per_path(self) -> Array:
        """(K + 1,), norms / counts: the norm of the mean gradient of a single path."""
        pairs = zip(self.norms, self.counts, strict=False)
        return np.array([norm / count if count else 0.0 for norm, count in pairs])


@dataclass(frozen=True)
class Paths:
    """What `paths` found.

    depths: "image" if wanted, then every block in the order of the forward pass, then "head".
    gradients: for the names in `at`, the gradients by length, (N, C, H, W) each, length 0 first;
        None for lengths that no path has.
    whole: for the same names, the whole gradient of one ordinary backward pass.
    max_relative_difference: between the sum over lengths and the whole gradient, at the worst
        element of any depth, relative to the largest; None if lengths were left out.
    loss: of the batch. dtype: of the computation.
    """

    depths: tuple[Depth, ...]
    gradients: dict[str, tuple[Array | None, ...]] = field(repr=False)
    whole: dict[str, Array] = field(repr=False)
    max_relative_difference: float | None
    loss: float
    dtype: str

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(depth.name for depth in self.depths)

    @property
    def lengths(self) -> int:
        """How many lengths were followed: 0 to lengths - 1."""
        return len(self.depths[0].norms)

    def depth(self, name: str | None = None) -> Depth:
        """The numbers at a block's input, the "head" or the "image"; by default the first depth.

        Raises KeyError for a name that is not there.
        """
        if name is None:
            return self.depths[0]
        for depth in self.depths:
            if depth.name == name:
                return depth
        raise KeyError(unknown("depth", name, self.names))

    def table(self, at: str | None = None) -> str:
        """A line per length, at one depth."""
        depth = self.depth(at)
        heading = ("branches", "paths", "|g| of all", "|g| per path", "of the whole")
        return aligned(heading, [
            (str(k), f"{depth.counts[k]:,}" if depth.counts[k] < 1e7 else f"{depth.counts[k]:.3e}",
             f"{depth.norms[k]:.3e}", f"{per_path:.3e}",
             f"{100 * depth.norms[k] / (depth.whole_norm or 1.0):.1f} %")
            for k, per_path in enumerate(depth.norm_per_path)
        ])  # fmt: skip

    def plot(
        self, path: Path = None, at: str | None = None, singles: SinglePaths | None = None
    ) -> Figure:
        """The three pictures of Veit et al. (2016), figure 6: how many paths have each length,
        the gradient of a single one, and what each length contributes.

        singles: what `single_paths` found for the same batch, to draw beside it.
        """
        from minires.anatomy.figures import draw_paths

        return draw_paths(self, self.depth(at), singles, path)


@dataclass(frozen=True)
class SinglePaths:
    """Gradients of single paths at the first block's input.

    lengths: int64 (L,), branches on the path. norms: float64 (L, samples), Euclidean.
    """

    lengths: Array
    norms: Array

    @property
    def mean(self) -> Array:
        """(L,), the mean norm of a path of each length."""
        return np.asarray(self.norms.mean(axis=1))


def paths(
    model: Module,
    x: Any,
    y: Any,
    *,
    at: str | Sequence[str] | None = None,
    max_length: int | None = None,
    dtype: Any = None,
    loss: Loss | None = None,
) -> Paths:
    """The gradient of a batch by path length, at every depth of a residual network.

    model: a network of residual blocks, in training or evaluation mode; left as it is. Plain
        blocks have one way only, so a plain net has one path, of full length.
    x: floating-point images (N, C, H, W), a Tensor or an array. y: labels (N,), or what `loss`
        takes. loss: `loss(logits, y)`, one number; cross-entropy if None.
    at: where to keep the gradients themselves and not only their norms: names of blocks (their
        input), "head" or "image"; by default the first block, behind the stem.
    max_length: follow paths with at most so many branches; the sum is then not checked.
    dtype: to compute in (float64 where lengths cancel each other); the model's own if None.

    Lengths whose gradient is exactly zero are not carried on.

    Raises TypeError for a model without blocks or images that are no floating-point numbers,
    ValueError for shapes or names that do not fit, ArithmeticError if the sum over lengths is not
    the gradient of one ordinary backward pass.
    """
    with opened("paths", model, x, y, loss, dtype) as net:
        kept = _kept(at, net.names)
        if max_length is not None and max_length < 0:
            raise ValueError(f"paths: max_length is 0 or more, got {max_length}")
        whole = net.whole()
        parts = net.parts()
        stem, n = parts.stem, len(parts.blocks)
        longest = n if max_length is None else min(max_length, n)
        stack: list[Array | None] = [parts.start()]
        counts = [1]
        depths: list[Depth] = []
        gradients: dict[str, tuple[Array | None, ...]] = {}
        worst = 0.0

        def arrive(name: str) -> None:
            """Measure the stack at a depth, and check it against the whole gradient there."""
            nonlocal worst
            expected = whole.gradients[name]
            if max_length is None:
                worst = max(worst, _check(name, stack, expected))
            norms = np.zeros(longest + 1)
            norms[: len(stack)] = [norm(g) for g in stack]
            counted = (*counts, *[0] * (n + 1 - len(counts)))
            depths.append(Depth(name, counted, norms, norm(expected)))
            if name in kept:
                gradients[name] = (*stack, *[None] * (longest + 1 - len(stack)))

        arrive("head")
        while parts.blocks:
            block = parts.blocks.pop()
            stack = _through(block, stack, longest)
            counts = _counted(block, counts)
            arrive(block.name)
        if "image" in kept:
            stack = [stem.pull(g)[0] for g in stack]
            arrive("image")
    return Paths(
        depths=tuple(reversed(depths)),
        gradients=gradients,
        whole={name: whole.gradients[name] for name in kept},
        max_relative_difference=worst if max_length is None else None,
        loss=whole.loss,
        dtype=str(stem.output._data.dtype),  # type: ignore[union-attr]
    )


def single_paths(
    model: Module,
    x: Any,
    y: Any,
    *,
    lengths: Sequence[int] | None = None,
    samples: int = 4,
    seed: int = 0,
    dtype: Any = None,
    loss: Loss | None = None,
) -> SinglePaths:
    """The gradients of drawn single paths, as Veit et al. (2016), section 5, measured them.

    lengths: how many branches a path shall have; all that exist by default. samples: paths of each
    length, drawn from `seed` evenly among all of that length. The rest is as for `paths`.

    Raises ValueError for a length that no path has, and as `paths` does.
    """
    rng = np.random.default_rng(seed)
    with opened("single_paths", model, x, y, loss, dtype) as net:
        parts = net.parts()
        blocks = parts.blocks[::-1]
        free = [i for i, b in enumerate(blocks) if _exists(b.branch) and _exists(b.shortcut)]
        fixed = [i for i, b in enumerate(blocks) if _exists(b.branch) and not _exists(b.shortcut)]
        known = range(len(fixed), len(fixed) + len(free) + 1)
        wanted = list(known if lengths is None else lengths)
        for length in wanted:
            if length not in known:
                raise ValueError(
                    f"single_paths: paths have {known[0]} to {known[-1]} branches, got {length}"
                )
        start = parts.start()
        norms = np.zeros((len(wanted), samples))
        for row, length in zip(norms, wanted, strict=True):
            for sample in range(samples):
                drawn = {*fixed, *rng.choice(free, length - len(fixed), replace=False).tolist()}
                row[sample] = norm(_along(blocks, drawn, start))
    return SinglePaths(np.array(wanted), norms)


def _along(blocks: Sequence[BlockParts], branches: Collection[int], start: Array) -> Array | None:
    """The gradient that comes back through these blocks, by the branch of those listed."""
    gradient: Array | None = start
    for i, block in enumerate(blocks):
        at_branch, at_shortcut = block.join.pull(gradient)
        if i in branches:
            gradient = block.branch.pull(at_branch)[0]
        else:
            gradient = block.shortcut.pull(at_shortcut)[0]
    return gradient


def _kept(at: str | Sequence[str] | None, names: Sequence[str]) -> Collection[str]:
    """The depths whose arrays are wanted."""
    wanted = [names[0]] if at is None else [at] if isinstance(at, str) else list(at)
    known = ("image", *names, "head")
    for name in wanted:
        if name not in known:
            raise ValueError(f"paths: at: {unknown('depth', name, known)}")
    return wanted


def _through(block: BlockParts, stack: list[Array | None], longest: int) -> list[Array | None]:
    """The stack at a block's input, from that at its output (which it uses up)."""
    result: list[Array | None] = [None] * (min(len(stack), longest) + 1)
    for k in range(len(stack)):
        gradient, stack[k] = stack[k], None
        if gradient is None:
            continue
        at_branch, at_shortcut = block.join.pull(gradient)
        by_shortcut = block.shortcut.pull(_unless_zero(at_shortcut))[0]
        if by_shortcut is not None:
            before = result[k]
            result[k] = by_shortcut if before is None else before + by_shortcut
        if k < longest:
            result[k + 1] = block.branch.pull(_unless_zero(at_branch))[0]
    return result


def _unless_zero(gradient: Array | None) -> Array | None:
    """None in place of a gradient that is zero everywhere: it would stay so."""
    return gradient if gradient is not None and gradient.any() else None


def _counted(block: BlockParts, counts: list[int]) -> list[int]:
    """The number of paths of each length with one more block."""
    result = [0] * (len(counts) + 1)
    for k, count in enumerate(counts):
        result[k] += count * _exists(block.shortcut)
        result[k + 1] += count * _exists(block.branch)
    return result


def _exists(way: Part) -> bool:
    return way.output is not None and way.output.requires_grad


def _check(name: str, stack: Sequence[Array | None], whole: Array) -> float:
    total, magnitude = np.zeros_like(whole), 0.0
    for gradient in stack:
        if gradient is not None:
            total += gradient
            magnitude += largest(gradient)
    return check_sum(name, total, whole, magnitude)
