"""Magnitudes by depth while a network trains."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from minires.anatomy.drawing import Path
from minires.anatomy.profiles import GradientNorms, Responses, gradient_norms, responses
from minires.nn import Module

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from minires.training import Progress


@dataclass(frozen=True)
class Moment:
    """A network at one time. step: batches trained on before."""

    step: int
    responses: Responses
    gradients: GradientNorms


class Recorder:
    """Looks at a network every so many training steps, always with the same images.

        recorder = Recorder(run.trained.model, x, y, every=100)
        run.train(on_step=recorder)

    model: a network of blocks. Looking does not change it, nor how its training goes on.
    x, y: a batch of normalised images (N, C, H, W) and labels (N,). every: steps between moments.
    moments: what was seen, in order.

    Raises ValueError for `every` below 1.
    """

    def __init__(self, model: Module, x: Any, y: Any, every: int = 100) -> None:
        if every < 1:
            raise ValueError(f"Recorder: every is at least 1 step, got {every}")
        self.model, self.x, self.y, self.every = model, x, y, every
        self.steps = 0
        self.moments: list[Moment] = []

    def __call__(self, progress: Progress | None = None) -> None:
        """Count a training step, and look if it is time; as `on_step` of a run."""
        self.steps = self.steps + 1 if progress is None else progress.done
        if self.steps % self.every == 0:
            self.look()

    def look(self) -> Moment:
        """Record the network as it is now."""
        moment = Moment(
            self.steps, responses(self.model, self.x), gradient_norms(self.model, self.x, self.y)
        )
        self.moments.append(moment)
        return moment

    def plot(self, path: Path = None) -> Figure:
        """Responses and gradient norms by depth, a line per moment. Raises ValueError before the
        first."""
        from minires.anatomy.figures import draw_recording

        if not self.moments:
            raise ValueError(f"Recorder: nothing recorded yet, after {self.steps} steps")
        return draw_recording(self.moments, path)
