"""Telling that kernels are being compiled, which happens once per machine and takes a while.

Numba compiles a kernel at its first call and keeps the result: beside the source, or where that
cannot be written in the user's cache folder, or in NUMBA_CACHE_DIR. The key holds the processor
and its features, so that machines may share the folder.

    with announced(lambda count, seconds: print(f"{count} kernels compiled in {seconds:.0f} s")):
        train()
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from minires.kernels import threads

Report = Callable[[int, float], None]


class _Clock:
    """Hears of every function that Numba compiles; those of others' are compiled inside ours."""

    def __init__(self, report: Report, after: float) -> None:
        self.report, self.after = report, after
        self.depth = self.count = 0
        self.begun = self.seconds = 0.0

    def notify(self, event: Any) -> None:
        """Called by Numba at the beginning and at the end of each compilation."""
        if event.is_start:
            if self.depth == 0:
                self.begun = time.monotonic()
            self.depth += 1
            return
        self.depth -= 1
        if self.depth == 0:
            self.count += 1
            self.seconds += time.monotonic() - self.begun
            if self.seconds >= self.after:
                self.report(self.count, self.seconds)


@contextmanager
def announced(report: Report, after: float = 1.0) -> Iterator[None]:
    """In the block, call `report(count, seconds)` after each kernel that had to be compiled.

    after: seconds of compiling before the first report, so that a few small kernels say nothing.
    What comes from the cache is not compiled. Numba is not imported for it before a kernel needs
    it.
    """
    with _listening(_Clock(report, after).notify):
        yield


@contextmanager
def at_first_compilation(call: Callable[[], None]) -> Iterator[None]:
    """In the block, call something when the first kernel that had to be compiled begins to be."""
    waiting = [call]

    def notify(event: Any) -> None:
        if waiting and event.is_start:
            waiting.pop()()

    with _listening(notify):
        yield


@contextmanager
def _listening(notify: Callable[[Any], None]) -> Iterator[None]:
    """In the block, `notify` hears of the beginning and the end of every compilation."""
    undo: list[Callable[[], None]] = []

    def listen() -> None:
        from numba.core import event

        class Listener(event.Listener):
            """Hands on what it hears."""

            def on_start(self, event: Any) -> None:
                notify(event)

            def on_end(self, event: Any) -> None:
                notify(event)

        listener = Listener()
        event.register("numba:compile", listener)
        undo.append(lambda: event.unregister("numba:compile", listener))

    forget = threads.at_first_kernel(listen)
    try:
        yield
    finally:
        forget()
        for call in undo:
            call()
