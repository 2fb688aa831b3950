"""Compiling kernels in several processes at once, ahead of the training that needs them.

Numba compiles on one thread at a time. But what it compiles it keeps on disk, where other processes
find it: so helpers work out which kernels a training step calls (`dry_run.py`) and call each once.
They share the list from its end, where the last of the backward pass stands. A training that starts
meanwhile compiles from the beginning, and finds the rest done where they meet.

    minires kernels compile resnet18                       # before the first training
    mr.compile_kernels("resnet18", batch=16)               # the same from Python

`helped` does it for a training that is about to run; `minires train` does so.
"""

from __future__ import annotations

import json
import math
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from minires.bench.layers import BATCHES
from minires.files import atomic_write_text
from minires.kernels.cpu.compiling import at_first_compilation
from minires.kernels.threads import VARIABLE, available_cores
from minires.models.registry import Shape, entry

MOST_HELPERS = 3  # beside a training: what takes longest is one kernel, and that is one process's
TOTAL, SAID = "total", "said"  # files with the number of kernels, and with what helpers print
LARGEST = 1 << 22  # numbers in a batch of images: larger ones compile the same kernels

Progress = Callable[[int, int], None]
"""Called with the number of kernels done, and of all."""


def compile_kernels(
    model: str,
    batch: int | None = None,
    size: int | None = None,
    *,
    processes: int | None = None,
    progress: Progress | None = None,
    **options: Any,
) -> int:
    """Compile all kernels of a training step and an evaluation; returns how many there are.

    batch, size: images per batch and their side; by default 128 at 32 or 16 at 224, whichever
        the network is meant for: kernels are chosen by them. options: as for `models.create`.
    processes: by default one per core. progress: called while they work.

    What is on disk already is only looked at. Raises ValueError for an unknown network and for
    sizes below 1, RuntimeError if a process fails, with what it said.
    """
    C, H, W = entry(model).input_shape
    N = BATCHES.get(H, 16) if batch is None else batch
    count = available_cores() if processes is None else processes
    if min(N, H if size is None else size, count) < 1:
        raise ValueError(
            f"compile_kernels: batch, size and processes must be at least 1, got {batch}, {size} "
            f"and {processes}"
        )
    side = (H, W) if size is None else (size, size)
    with _Helpers(model, options, (options.get("in_channels", C), *side), N) as helpers:
        helpers.start(count)
        return helpers.wait(progress)


@contextmanager
def helped(model: str, options: Mapping[str, Any], shape: Shape, batch: int) -> Iterator[None]:
    """In the block, a training of this model: if a kernel has to be compiled, others help.

    shape: (C, H, W) of an image. Nothing is started while everything comes from the cache, and
    where there is one core. What helpers say or fail at changes nothing but the time.
    """
    count = min(available_cores() - 1, MOST_HELPERS)

    def call_for_help() -> None:
        if count:
            with suppress(OSError):
                helpers.start(count)

    helpers = _Helpers(model, options, shape, batch)
    with helpers, at_first_compilation(call_for_help):
        yield


class _Helpers:
    """Processes that compile the kernels of one training, and the folder where they meet.

    In the folder a process claims kernel i by making the file "i.claimed", and says that it is
    ready by "i.ready".
    """

    def __init__(self, model: str, options: Mapping[str, Any], shape: Shape, batch: int) -> None:
        N = min(batch, max(1, LARGEST // math.prod(shape)))
        self.job = {"model": model, "options": dict(options), "x_shape": [N, *shape]}
        self.processes: list[subprocess.Popen[bytes]] = []
        self.folder = Path()

    def __enter__(self) -> _Helpers:
        return self

    def __exit__(self, *exc: object) -> None:
        for process in self.processes:
            process.kill()
            process.wait()
        if self.processes:
            shutil.rmtree(self.folder, ignore_errors=True)

    def start(self, count: int) -> None:
        """Start `count` processes."""
        import minires

        self.folder = Path(tempfile.mkdtemp(prefix="minires-compile-"))
        here = str(Path(minires.__file__).parents[1])
        paths = [here, *filter(None, [os.environ.get("PYTHONPATH")])]
        environment = os.environ | {"PYTHONPATH": os.pathsep.join(paths), VARIABLE: "1"}
        command = [sys.executable, "-m", __name__, str(self.folder), json.dumps(self.job)]
        with (self.folder / SAID).open("wb") as said:
            for _ in range(count):
                self.processes.append(
                    subprocess.Popen(
                        command, env=environment, stdin=subprocess.DEVNULL, stdout=said,
                        stderr=said,
                    )
                )  # fmt: skip

    def wait(self, progress: Progress | None) -> int:
        """Until all is compiled; returns the number of kernels."""
        while any(process.poll() is None for process in self.processes):
            total = _total(self.folder)
            if progress is not None and total:
                progress(len(list(self.folder.glob("*.ready"))), total)
            time.sleep(0.1)
        failed = [process.returncode for process in self.processes if process.returncode]
        if failed:
            said = (self.folder / SAID).read_text(errors="replace").strip().splitlines()
            last = said[-1] if said else f"exit status {failed[0]}"
            raise RuntimeError(f"compiling {self.job['model']}: {last}")
        return _total(self.folder)


def _total(folder: Path) -> int:
    """How many kernels there are; 0 while nobody has said."""
    path = folder / TOTAL
    return int(path.read_text() or 0) if path.exists() else 0


def _help(folder: Path, job: Mapping[str, Any]) -> None:
    """What a helper does: claim kernels from the end of the list and call them."""
    from minires import nn
    from minires.bench.dry_run import Call, training_calls
    from minires.models.registry import create

    with nn.init.skip_init():
        model = create(job["model"], **job["options"])
    kernels: dict[tuple[str, str], list[Call]] = {}
    for call in training_calls(model, tuple(job["x_shape"])):
        kernels.setdefault((call.operation, call.kernel.name), []).append(call)
    atomic_write_text(folder / TOTAL, str(len(kernels)))
    parent = os.getppid()
    for i, calls in reversed(list(enumerate(kernels.values()))):
        if os.getppid() != parent:  # nobody waits any more
            return
        with suppress(FileExistsError):
            (folder / f"{i}.claimed").touch(exist_ok=False)
            for call in calls:
                call.kernel.function(*call.values())
            (folder / f"{i}.ready").touch()


if __name__ == "__main__":
    _help(Path(sys.argv[1]), json.loads(sys.argv[2]))
