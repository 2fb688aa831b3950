"""`minires train --profile`: a few steps watched after the first ones, and what they showed."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console

from minires.bench.profile import profile
from minires.training import Progress

WARM_UP = 3  # steps that compile and fill caches
STEPS = 5
ROWS = 20  # of each table


class StepProfiler:
    """Called after every step; watches `STEPS` of them and then prints where their time went.

    trace: where the trace is written. Watching ends with the epoch at the latest, so that the
    evaluation is not taken for training.
    """

    def __init__(self, console: Console, trace: Path) -> None:
        self.console, self.trace = console, trace
        self.seen = 0
        self.watched = 0
        self.running: profile | None = None
        self.finished = False

    def __call__(self, step: Progress) -> None:
        last = step.step == step.steps
        if self.running is not None:
            self.watched += 1
            if self.watched == STEPS or last:
                self.finish()
            return
        self.seen += 1
        if self.seen >= WARM_UP and not last and not self.finished:
            self.running = profile()
            self.running.__enter__()

    def finish(self) -> None:
        """Stop watching, and show what was seen, or say that nothing was."""
        found, self.running = self.running, None
        if found is None:
            if not self.finished:
                self.console.print(
                    f"\nno profile: watching begins after {WARM_UP} steps, in the middle of an "
                    "epoch; take smaller batches or more epochs",
                    soft_wrap=True,
                )
            return
        self.finished = True
        found.__exit__()
        if not self.watched:
            return
        found.steps = self.watched
        found.save_trace(self.trace)
        for by in ("operation", "layer"):
            text = found.table(by, rows=ROWS)
            self.console.print(f"\n{text}", soft_wrap=True, markup=False)
        where = f"\n{self.trace}: open it in https://ui.perfetto.dev or chrome://tracing\n"
        self.console.print(where, soft_wrap=True, markup=False)
