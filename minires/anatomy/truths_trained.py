"""Small truths by training: learning the identity, and why the responses of blocks are small.

The nets are tiny, made of the library's own residual blocks, and trained with its own engine in
seconds.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from minires import functional as F
from minires import nn, optim
from minires.autograd import Tensor, no_grad
from minires.models.blocks import ResidualBlock

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Floats = NDArray[np.float64]

LEARNING_RATE = 0.01


class LinearBlock(ResidualBlock):
    """F(x) = W2 relu(W1 x) on vectors (N, width), joined as y = relu(F(x) + x).

    hidden: length of W1 x. scale: of the weights, relative to He's initialisation.
    plain: without the shortcut. relu_after: with the ReLU after the join, as in the paper.
    """

    def __init__(
        self,
        width: int,
        hidden: int,
        scale: float,
        plain: bool,
        rng: np.random.Generator,
        relu_after: bool = True,
    ) -> None:
        super().__init__(width, width, 1)
        self.fc1 = nn.Linear(width, hidden, bias=False)
        self.fc2 = nn.Linear(hidden, width, bias=False)
        for fc in (self.fc1, self.fc2):
            std = scale * np.sqrt(2.0 / fc.in_features)
            fc.weight.data[...] = std * rng.standard_normal(fc.weight.shape)
        self.relu_after = relu_after
        self.finish("none" if plain else "A", zero_gamma=False)

    def branch(self, x: Tensor) -> Tensor:
        return self.fc2(F.relu(self.fc1(x)))

    def join(self, branch: Tensor, shortcut: Tensor | None) -> Tensor:
        if self.relu_after:
            return super().join(branch, shortcut)
        return branch if shortcut is None else branch + shortcut


def _train(
    net: nn.Module,
    draw: Callable[[], NDArray[np.float32]],
    target: Callable[[NDArray[np.float32]], NDArray[np.float32]],
    steps: int,
) -> Floats:
    """Adam on the relative squared error |net(x) - target(x)|² / |target(x)|²; its value by step.

    The learning rate falls to zero in a straight line. A net that overflows is left at infinity.
    """
    optimiser = optim.Adam(net.parameters(), lr=LEARNING_RATE)
    errors = np.full(steps, np.inf)
    with np.errstate(over="ignore", invalid="ignore"):
        for step in range(steps):
            optimiser.lr = LEARNING_RATE * (1 - step / steps)
            x = draw()
            wanted = target(x)
            net.zero_grad()
            difference = net(Tensor(x)) - Tensor(wanted)
            loss = (difference * difference).mean() * float(1.0 / (wanted * wanted).mean())
            if not np.isfinite(loss.item()):
                break
            errors[step] = loss.item()
            loss.backward()
            optimiser.step()
    return errors


# -- learning the identity ------------------------------------------------------------------------


@dataclass(frozen=True)
class IdentityLearning:
    """Nets that had to learn to do nothing: net(x) = x, for x >= 0.

    blocks: (B,) numbers of blocks. scales: (S,) sizes of the first weights, 1 is He's.
    errors: (2, B, S, seeds, steps), the relative squared error by step; first axis: plain nets,
        then residual ones. An error of 1 is what a net gets that returns zero.
    responses: (2, width, width), column i is what the deepest plain and residual net of the middle
        scale (first seed) answer to the unit vector e_i; the identity matrix is right.
    """

    blocks: tuple[int, ...]
    scales: tuple[float, ...]
    errors: Floats
    responses: Floats

    @property
    def final(self) -> Floats:
        """(2, B, S): the error over the last tenth of the training, averaged over seeds."""
        last = max(1, self.errors.shape[-1] // 10)
        return np.asarray(self.errors[..., -last:].mean(axis=(-1, -2)))

    def plot(self, path: Any = None) -> Figure:
        """Errors by step and by depth, and the two nets' answers to unit vectors."""
        from minires.anatomy import drawing

        middle = len(self.scales) // 2
        names = (("plain", drawing.PLAIN), ("residual", drawing.RESIDUAL))
        with drawing.canvas(
            11.2, 3.7, "Learning to do nothing",
            "Two-layer blocks, trained to return their input. Without a shortcut the weights must "
            "become I, with one they must become 0.", path,
        ) as figure:  # fmt: skip
            curves, finals, *maps = figure.subplots(1, 4, width_ratios=(1.5, 1.5, 1, 1))
            for kind, (name, colour) in enumerate(names):
                runs = self.errors[kind, -1, middle].T
                lines = curves.plot(np.arange(1, len(runs) + 1), runs, color=colour, lw=1.2,
                                    alpha=0.8)  # fmt: skip
                lines[0].set_label(name)  # one entry in the legend for all seeds
                for s, (scale, dashes) in enumerate(zip(self.scales, (":", "-", "--", "-."),
                                                        strict=False)):  # fmt: skip
                    finals.plot(self.blocks, self.final[kind, :, s], dashes, color=colour, lw=1.6,
                                marker="o", ms=4, label=f"{scale:g}" if kind else None)
            curves.set_yscale("log")
            curves.set_xlabel("step")
            curves.set_ylabel("relative squared error")
            curves.legend(frameon=False, fontsize=8.5)
            drawing.heading(curves, f"{self.blocks[-1]} blocks, weights x {self.scales[middle]:g}")
            finals.set_yscale("log")
            finals.set_xscale("log", base=2)
            finals.set_xticks(self.blocks, [str(b) for b in self.blocks])
            finals.set_xlabel("blocks")
            finals.legend(frameon=False, fontsize=8, title="first weights x", title_fontsize=8)
            drawing.heading(finals, "after training, by depth")
            for axes, answers, (name, _) in zip(maps, self.responses, names, strict=True):
                drawing.picture(axes, answers, cmap="RdBu_r", vmin=-1, vmax=1)
                drawing.heading(axes, f"{name} net")
                axes.text(0.5, -0.06, "its answers to e$_1$, e$_2$, ...", fontsize=8.5, ha="center",
                          va="top", transform=axes.transAxes, color="#5a5a5a")  # fmt: skip
        return figure


def learn_identity(
    blocks: Sequence[int] = (1, 4, 8),
    scales: Sequence[float] = (0.1, 0.5, 1.0),
    *,
    width: int = 8,
    batch: int = 32,
    steps: int = 200,
    seeds: int = 2,
) -> IdentityLearning:
    """Train plain and residual nets to be the identity on vectors x >= 0 of `width` numbers.

    A block is relu(W2 relu(W1 x)), plus x inside the outer ReLU with a shortcut. Zero is where
    weights start and where weight decay pulls them: with a shortcut that is the answer, without
    one the answer is W1 = W2 = I ("Deep Residual Learning", section 3.1).

    blocks: depths of the nets. scales: of the first weights, relative to He's initialisation.
        At scale 1 a deep residual net without batch norm starts by doubling its signal's square
        at every block; it is slow to recover, and shown for it.
    """
    if not blocks or not scales or min(blocks) < 1 or seeds < 1 or steps < 1:
        raise ValueError(
            "learn_identity: needs blocks and scales, and at least 1 block, seed and step; got "
            f"blocks={list(blocks)}, scales={list(scales)}, seeds={seeds}, steps={steps}"
        )
    errors = np.zeros((2, len(blocks), len(scales), seeds, steps))
    responses = np.zeros((2, width, width))
    for kind, b, s, seed in np.ndindex(*errors.shape[:-1]):
        rng = np.random.default_rng((seed, b, s))
        net = nn.Sequential(
            *(LinearBlock(width, width, scales[s], kind == 0, rng) for _ in range(blocks[b]))
        )

        def draw(rng: np.random.Generator = rng) -> NDArray[np.float32]:
            return np.abs(rng.standard_normal((batch, width))).astype(np.float32)

        errors[kind, b, s, seed] = _train(net, draw, lambda x: x, steps)
        if (b, s, seed) == (len(blocks) - 1, len(scales) // 2, 0):
            with no_grad(), np.errstate(over="ignore", invalid="ignore"):
                responses[kind] = net(Tensor(np.eye(width, dtype=np.float32))).numpy().T
    return IdentityLearning(tuple(blocks), tuple(scales), errors, responses)


# -- why responses are small ----------------------------------------------------------------------


@dataclass(frozen=True)
class SmallResponses:
    """Nets that had to turn their input by an angle, and how large their blocks' answers are.

    Sizes are root mean squares over test inputs, relative to the size of the input x_0.

    blocks: (B,) numbers of blocks n. angle: in radians.
    plain, residual: n -> (n,), the size of each F_l(x_{l-1}).
    errors: (2, B), the relative squared error after training, of plain and residual nets.
    distance: (B,), the size of x_n - x_0 in the residual net. Since x_n - x_0 is the sum of the
        F's, their sizes add up to at least this: `distance / n` is the least possible mean.
    """

    blocks: tuple[int, ...]
    angle: float
    plain: dict[int, Floats]
    residual: dict[int, Floats]
    errors: Floats
    distance: Floats

    def plot(self, path: Any = None) -> Figure:
        """Sizes of responses by the number of blocks, and the least that would do."""
        from minires.anatomy import drawing

        with drawing.canvas(
            9.6, 3.8, "Why the responses of a residual net are small",
            f"Nets trained to turn vectors by {self.angle:g} rad. A residual block adds its share; "
            "a plain block must say everything again.", path,
        ) as figure:  # fmt: skip
            left, right = figure.subplots(1, 2)
            for name, found, colour, errors in (
                ("plain", self.plain, drawing.PLAIN, self.errors[0]),
                ("residual", self.residual, drawing.RESIDUAL, self.errors[1]),
            ):
                learned = f"{name} (error {errors[0]:.2g} to {errors[-1]:.2g})"
                left.plot(self.blocks, [found[n].mean() for n in self.blocks], color=colour, lw=1.8,
                          label=learned)  # fmt: skip
                for n in self.blocks:
                    left.plot([n] * n, found[n], "o", color=colour, ms=3.5, alpha=0.45)
                deepest = found[self.blocks[-1]]
                right.plot(np.arange(1, len(deepest) + 1), deepest, color=colour, lw=1.8,
                           marker="o", ms=4, label=name)  # fmt: skip
            left.plot(self.blocks, self.distance / np.array(self.blocks), color=drawing.NEUTRAL,
                      lw=1.2, ls="--", label="the least that will do: distance / n")  # fmt: skip
            left.set_xscale("log", base=2)
            left.set_yscale("log")
            left.set_xticks(self.blocks, [str(n) for n in self.blocks])
            left.set_xlabel("blocks n")
            left.set_ylabel("size of F(x), input = 1")
            left.legend(frameon=False, fontsize=8.5)
            drawing.heading(left, "by the number of blocks")
            right.set_ylim(0)
            right.set_xlabel("block")
            right.legend(frameon=False, fontsize=8.5)
            drawing.heading(right, f"along a net of {self.blocks[-1]} blocks")
        return figure


def small_responses(
    blocks: Sequence[int] = (1, 2, 4, 8, 16),
    angle: float = 1.0,
    *,
    width: int = 8,
    hidden: int = 32,
    batch: int = 32,
    steps: int = 300,
    seed: int = 0,
) -> SmallResponses:
    """Train nets of n blocks to turn vectors by an angle, and measure the blocks' responses.

    Turning by an angle is a change of the input, not a new thing: x and its image are close. A
    residual net can divide the change among its blocks, x_n = x_0 + ΣF_l, so that F_l need only
    be about 1/n of it; a plain block's response is the whole signal. That is the paper's picture
    of small responses (section 4.2, figure 7), where the target is a trained net's, not a turn.

    The join has no ReLU here, so that vectors may point anywhere. Plain nets start from He's
    initialisation and residual ones from a tenth of it, near the identity.

    width: length of the vectors, an even number; pairs of coordinates are turned.
    """
    if not blocks or min(blocks) < 1 or width < 2 or width % 2:
        raise ValueError(
            f"small_responses: needs numbers of blocks and an even width, got {list(blocks)}, "
            f"{width}"
        )
    turn = np.kron(
        np.eye(width // 2),
        [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]],
    ).astype(np.float32)
    sizes: tuple[dict[int, Floats], dict[int, Floats]] = {}, {}
    errors, distance = np.zeros((2, len(blocks))), np.zeros(len(blocks))
    for kind, b in np.ndindex(2, len(blocks)):
        n = blocks[b]
        rng = np.random.default_rng((seed, n))

        def draw(count: int = batch, rng: np.random.Generator = rng) -> NDArray[np.float32]:
            return rng.standard_normal((count, width)).astype(np.float32)

        scale, plain = (1.0, True) if kind == 0 else (0.1, False)
        net = nn.Sequential(
            *(LinearBlock(width, hidden, scale, plain, rng, relu_after=False) for _ in range(n))
        )
        _train(net, draw, lambda x: x @ turn.T, steps)
        x0 = draw(512)
        with no_grad():
            x, found = Tensor(x0), []
            for block in net:
                response = block.branch(x)
                found.append(_rms(response.numpy()) / _rms(x0))
                x = block.join(response, block.shortcut(x))
        sizes[kind][n] = np.array(found)
        errors[kind, b] = (_rms(x.numpy() - x0 @ turn.T) / _rms(x0)) ** 2
        if not plain:
            distance[b] = _rms(x.numpy() - x0) / _rms(x0)
    return SmallResponses(tuple(blocks), angle, *sizes, errors, distance)


def _rms(values: NDArray[np.float32]) -> float:
    return float(np.sqrt(np.mean(np.square(values, dtype=np.float64))))
