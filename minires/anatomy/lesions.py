"""Lesions: blocks deleted or exchanged in a trained network, without training it again.

Veit et al. (2016), section 4: a residual net loses little when one block is deleted, and its error
grows smoothly with the number of deleted or exchanged blocks; a plain net is at chance after the
first.

Deleting a block takes its branch away: what is left is join(0, shortcut(x)). An identity shortcut
passes x on; a block that changes the shape keeps its padding or projection. A plain block has no
shortcut: without its branch it passes x on, which is possible only where the shape stays the same.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from minires._names import unknown
from minires.anatomy.drawing import Path
from minires.anatomy.parts import as_images, floating_dtype, require_blocks
from minires.anatomy.text import aligned
from minires.autograd import Tensor, no_grad
from minires.nn import Module

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Pair = tuple[str, str]
COUNTS = (1, 2, 3, 5, 8, 12, 16, 20)


class DeletedBlock(Module):
    """A block without its branch: join(0, shortcut(x)), or x itself if there is no shortcut."""

    def __init__(self, block: Any) -> None:
        super().__init__()
        self.block = block
        self.in_channels, self.out_channels = block.in_channels, block.out_channels
        self.stride, self.cut = block.stride, getattr(block, "plain", False)

    def branch(self, x: Tensor) -> None:
        """There is none."""

    def shortcut(self, x: Tensor) -> Tensor:
        return x if self.cut else self.block.shortcut(x)

    def join(self, branch: None, shortcut: Tensor) -> Tensor:
        if self.cut:
            return shortcut
        return self.block.join(Tensor._wrap(np.zeros_like(shortcut._data)), shortcut)

    def forward(self, x: Tensor) -> Tensor:
        return self.join(None, self.shortcut(x))


def deletable_blocks(model: Module) -> list[str]:
    """Names of the blocks that can be deleted: all but plain blocks that change the shape."""
    return [name for name, block in _blocks(model).items() if _problem(block) is None]


def random_blocks(model: Module, k: int, seed: int) -> list[str]:
    """k different blocks that can be deleted, drawn from `seed`, in the order of the net.

    Raises ValueError if there are fewer.
    """
    names = deletable_blocks(model)
    if not 0 <= k <= len(names):
        raise ValueError(f"random_blocks: {len(names)} blocks can be deleted, got k={k}")
    drawn = np.random.default_rng(seed).choice(len(names), k, replace=False)
    return [names[i] for i in sorted(drawn)]


def delete_blocks(model: Module, names: Iterable[str]) -> Module:
    """A copy of the model without these blocks' branches; `named_blocks()` lists the names.

    Raises ValueError for a name that is no block, or a plain block that changes the shape.
    """
    names = [names] if isinstance(names, str) else list(names)
    model = copy.deepcopy(model)
    blocks = _blocks(model)
    for name in names:
        block = _block("delete_blocks", blocks, name)
        problem = _problem(block)
        if problem is not None:
            raise ValueError(f"delete_blocks: {name} {problem}")
        _put(model, name, block if isinstance(block, DeletedBlock) else DeletedBlock(block))
    return model


def delete_random(model: Module, k: int, seed: int) -> Module:
    """A copy without k blocks drawn from `seed`: those of `random_blocks`."""
    return delete_blocks(model, random_blocks(model, k, seed))


def deleted_blocks(model: Module) -> list[str]:
    """Names of the blocks whose branch was deleted."""
    return [name for name, block in _blocks(model).items() if isinstance(block, DeletedBlock)]


def random_swaps(model: Module, k: int, seed: int) -> list[Pair]:
    """k pairs of different blocks that can change places, drawn from `seed`.

    Blocks can if they keep the shape and work on the same one. Raises ValueError if none can.
    """
    blocks = _blocks(model)
    pairs = [
        (a, b) for i, a in enumerate(blocks) for b in list(blocks)[i + 1 :]
        if _misfit(blocks[a], blocks[b]) is None
    ]  # fmt: skip
    if k < 0 or (k and not pairs):
        raise ValueError(f"random_swaps: {len(pairs)} pairs of blocks can change places, got k={k}")
    rng = np.random.default_rng(seed)
    return [pairs[int(rng.integers(len(pairs)))] for _ in range(k)]


def swap_blocks(model: Module, *pairs: Pair) -> Module:
    """A copy of the model in which the blocks at two places are exchanged, pair after pair.

    Raises ValueError for a name that is no block, or blocks that do not fit each other's place.
    """
    model = copy.deepcopy(model)
    for a, b in pairs:
        blocks = _blocks(model)
        first, second = (_block("swap_blocks", blocks, name) for name in (a, b))
        problem = _misfit(first, second)
        if problem is not None:
            raise ValueError(f"swap_blocks: {a} and {b} cannot change places: {problem}")
        _put(model, a, second)
        _put(model, b, first)
    return model


def kendall_tau(order: Sequence[int]) -> float:
    """Kendall's rank correlation between an order of 0, ..., n - 1 and the sorted one.

    1 for the sorted order, -1 for the reverse: the share of pairs in order minus that out of order.
    """
    array = np.asarray(order)
    n = len(array)
    if sorted(array.tolist()) != list(range(n)):
        raise ValueError(f"kendall_tau: expected each of 0 to {n - 1} once, got {list(order)}")
    if n < 2:
        return 1.0
    signs = np.sign(array[None, :] - array[:, None])
    return float(np.triu(signs, 1).sum() / (n * (n - 1) / 2))


@dataclass(frozen=True)
class Lesion:
    """One lesioned network.

    kind: "single" and "random" for deletions, "swap" for exchanges. blocks: the deleted ones, or
    the exchanged pairs in turn. seed: what a random lesion was drawn from. tau: Kendall's
    correlation of the blocks' order with the intact one. error: share of images that are wrong.
    """

    kind: str
    blocks: tuple[str, ...] | tuple[Pair, ...]
    seed: int | None
    tau: float
    error: float

    @property
    def count(self) -> int:
        """How many blocks were deleted, or pairs exchanged."""
        return len(self.blocks)


@dataclass(frozen=True)
class LesionStudy:
    """Errors (0 to 1) of a network under lesions.

    intact: without any. images: how many were classified. blocks: names of all blocks.
    """

    intact: float
    lesions: tuple[Lesion, ...]
    images: int
    blocks: tuple[str, ...]

    def of(self, kind: str) -> list[Lesion]:
        """The lesions of one kind: "single", "random" or "swap"."""
        return [lesion for lesion in self.lesions if lesion.kind == kind]

    def by_count(self, kind: str) -> dict[int, list[float]]:
        """The errors of one kind by the number of blocks or pairs."""
        found: dict[int, list[float]] = {}
        for lesion in self.of(kind):
            found.setdefault(lesion.count, []).append(lesion.error)
        return found

    def table(self) -> str:
        """A line per deleted block and per number of random deletions and exchanges."""
        lines = [("none", "1", f"{100 * self.intact:.2f} %", "", "")]
        lines += [(f"without {lesion.blocks[0]}", "1", f"{100 * lesion.error:.2f} %", "", "")
                  for lesion in self.of("single")]  # fmt: skip
        for kind, text in (("random", "without {} drawn blocks"), ("swap", "{} exchanges")):
            for count, errors in self.by_count(kind).items():
                values = 100 * np.array(errors)
                lines.append((text.format(count), str(len(errors)), f"{values.mean():.2f} %",
                              f"{values.min():.2f} %", f"{values.max():.2f} %"))  # fmt: skip
        return aligned(("lesion", "nets", "error", "least", "largest"), lines)

    def plot(self, path: Path = None, twin: LesionStudy | None = None) -> Figure:
        """Error by deleted block, by number of deletions, and by how far the order is changed.

        twin: the same of another network, as the plain twin, to draw beside it.
        """
        from minires.anatomy.figures import draw_lesions

        return draw_lesions(self, twin, path)


def lesion_study(
    model: Module,
    data: Any,
    *,
    single: bool = True,
    random: Sequence[int] = COUNTS,
    swaps: Sequence[int] = COUNTS,
    seeds: int = 5,
    batch_size: int = 128,
    on_batch: Callable[[int, int], None] | None = None,
) -> LesionStudy:
    """The error of a trained network against what is done to its blocks.

    model: a network of blocks; evaluated as it is in evaluation mode, on a copy.
    data: arrays (x, y), images (N, C, H, W) and labels (N,), or batches of them, as a `Loader`.
    single: delete each block on its own. random: delete so many drawn blocks. swaps: exchange so
        many drawn pairs. Numbers that the net is too small for are left out.
    seeds: how often each number is drawn.
    on_batch: called with the batches done and in all.

    All lesions share the intact net's work up to their first changed block.

    Raises TypeError for a model without blocks, ValueError if there is no image.
    """
    require_blocks("lesion_study", model)
    model = copy.deepcopy(model).eval()
    intact = _blocks(model)
    plans = [*_singles(model, single), *_draws(model, random, swaps, seeds)]
    nets = [list(intact.values()), *[_arranged(intact, kind, what) for kind, what, _ in plans]]
    batches = list(_batches(data, batch_size))
    wrong, images = np.zeros(len(nets), np.int64), 0
    for done, (x, y) in enumerate(batches, 1):
        x = as_images("lesion_study", x, floating_dtype(model))
        with no_grad(), np.errstate(over="ignore", invalid="ignore"):
            wrong += _wrong(model, nets, x, np.asarray(y))
        images += len(y)
        if on_batch is not None:
            on_batch(done, len(batches))
    if not images:
        raise ValueError("lesion_study: no images")
    places = {id(block): i for i, block in enumerate(intact.values())}
    lesions = [
        Lesion(kind, tuple(what), seed, _tau(net, places) if kind == "swap" else 1.0, error)
        for (kind, what, seed), net, error in zip(
            plans, nets[1:], (wrong[1:] / images).tolist(), strict=True
        )
    ]
    return LesionStudy(float(wrong[0] / images), tuple(lesions), images, tuple(intact))


Plan = tuple[str, Sequence[Any], int | None]


def _singles(model: Module, wanted: bool) -> list[Plan]:
    return [("single", [name], None) for name in deletable_blocks(model)] if wanted else []


def _draws(
    model: Module, random: Sequence[int], swaps: Sequence[int], seeds: int
) -> Iterable[Plan]:
    most = len(deletable_blocks(model))
    for k in random:
        if k <= most:
            yield from (("random", random_blocks(model, k, s), s) for s in range(seeds))
    try:
        random_swaps(model, 1, 0)
    except ValueError:  # no two blocks fit each other's place
        return
    for k in swaps:
        yield from (("swap", random_swaps(model, k, s), s) for s in range(seeds))


def _arranged(intact: dict[str, Any], kind: str, what: Sequence[Any]) -> list[Any]:
    """The blocks of a lesioned net in the order in which they are called."""
    blocks = dict(intact)
    for item in what:
        if kind == "swap":
            a, b = item
            blocks[a], blocks[b] = blocks[b], blocks[a]
        else:
            blocks[item] = DeletedBlock(blocks[item])
    return list(blocks.values())


def _wrong(model: Any, nets: Sequence[Sequence[Any]], x: Tensor, y: Any) -> Any:
    """How many images each net gets wrong. The first is intact; the others leave it where they
    first differ."""
    wrong = np.zeros(len(nets), np.int64)
    h = model.stem(x)

    def finish(net: int, h: Tensor, start: int) -> None:
        for block in nets[net][start:]:
            h = block(h)
        wrong[net] = (model.head(h)._data.argmax(axis=1) != y).sum()

    waiting = set(range(1, len(nets)))
    for place, block in enumerate(nets[0]):
        for net in [n for n in waiting if nets[n][place] is not block]:
            waiting.remove(net)
            finish(net, h, place)
        h = block(h)
    for net in (0, *waiting):  # those that differ nowhere: pairs exchanged and exchanged back
        finish(net, h, len(nets[0]))
    return wrong


def _tau(net: Sequence[Any], places: dict[int, int]) -> float:
    return kendall_tau([places[id(block)] for block in net])


def _batches(data: Any, batch_size: int) -> Iterable[tuple[Any, Any]]:
    if isinstance(data, tuple) and len(data) == 2:
        x, y = data
        starts = range(0, len(y), batch_size)
        return ((x[i : i + batch_size], y[i : i + batch_size]) for i in starts)
    return iter(data)


def _blocks(model: Any) -> dict[str, Any]:
    require_blocks("lesions", model)
    return dict(model.named_blocks())


def _block(what: str, blocks: dict[str, Any], name: str) -> Any:
    if name not in blocks:
        raise ValueError(f"{what}: {unknown('block', name, blocks)}")
    return blocks[name]


def _problem(block: Any) -> str | None:
    """Why a block cannot be deleted."""
    if not getattr(block, "plain", False) or _keeps_shape(block):
        return None
    return "has no shortcut and changes the shape: nothing can pass without its branch"


def _keeps_shape(block: Any) -> bool:
    return bool(block.in_channels == block.out_channels and block.stride == 1)


def _misfit(a: Any, b: Any) -> str | None:
    """Why two blocks cannot change places."""
    if not (_keeps_shape(a) and _keeps_shape(b)):
        return "one of them changes the shape"
    if a.in_channels != b.in_channels:
        return f"one works on {a.in_channels} channels, the other on {b.in_channels}"
    return None


def _put(model: Module, name: str, block: Module) -> None:
    parent, _, last = name.rpartition(".")
    model.get_submodule(parent).add_module(last, block)
