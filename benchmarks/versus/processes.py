"""Measurements that need a process of their own: memory, start-up, other frameworks."""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from versus.work import Work

PROGRAMS = Path(__file__).parent / "programs"
FRAMEWORKS = {
    "minires": 128, "torch": 128, "jax": 128, "mygrad": 128, "dezero": 128, "tinygrad": 16,
}  # fmt: skip
"""Images per batch; tinygrad, which takes minutes to compile, comes last and has fewer."""

SAME_LOSSES = 3  # of the first steps
BLAS_VARIABLES = ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS")


def run(
    arguments: Sequence[str],
    *,
    python: str = sys.executable,
    threads: int | None = None,
    cache: Path | None = None,
    timeout: float = 1800,
) -> dict[str, Any]:
    """Run a Python program and return the JSON object on its last line, with its seconds.

    threads: for the usual variables of BLAS libraries and for ours. cache: Numba's cache folder.

    A program that fails gives {"skipped": the last line of what it said}.
    """
    paths = [str(PROGRAMS.parents[1]), os.environ.get("PYTHONPATH", "")]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, paths))}
    if threads is not None:
        environment |= dict.fromkeys((*BLAS_VARIABLES, "MINIRES_THREADS"), str(threads))
    if cache is not None:
        environment["NUMBA_CACHE_DIR"] = str(cache)
    start = time.perf_counter()
    try:
        done = subprocess.run(
            [python, *arguments], capture_output=True, text=True, check=False,
            env=environment, timeout=timeout,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        return {"skipped": f"took more than {timeout:.0f} s"}
    seconds = time.perf_counter() - start
    if done.returncode:
        lines = done.stderr.strip().splitlines() or [f"exit status {done.returncode}"]
        return {"skipped": lines[-1]}
    lines = done.stdout.strip().splitlines()
    found: dict[str, Any] = json.loads(lines[-1]) if lines else {}
    return {**found, "process_seconds": seconds}


def import_times(packages: Sequence[str], rounds: int) -> dict[str, Any]:
    """Seconds of a process that imports a package, less those of one that imports nothing."""
    codes = {"nothing": "pass", **{name: f"import {name}" for name in packages}}
    seconds: dict[str, list[float]] = {name: [] for name in codes}
    for _ in range(rounds + 1):
        for name, code in codes.items():
            found = run(["-c", code])
            if "skipped" not in found:
                seconds[name].append(found["process_seconds"])
    # The first of each may have read from the disk.
    medians = {name: statistics.median(s[1:]) for name, s in seconds.items() if len(s) > 1}
    bare = medians.pop("nothing")
    return {name: median - bare for name, median in medians.items()}


def startup(work: Work, threads: int) -> dict[str, Any]:
    """Seconds from the start of a process to the end of its first training step.

    cold: with an empty cache of compiled kernels; warm: a second process with what the first left.
    """
    program = ["-m", "versus.programs.first_step", *work.arguments]
    with tempfile.TemporaryDirectory() as folder:
        found = {
            "minires cold": run([*program, "minires"], threads=threads, cache=Path(folder)),
            "minires warm": run([*program, "minires"], threads=threads, cache=Path(folder)),
        }
    return {**found, "torch eager": run([*program, "torch"], threads=threads)}


def peak_memory(work: Work, threads: int) -> dict[str, Any]:
    """Bytes that training steps add, at their peak, to a process that has the model and a batch.

    Each in a fresh process: the peak of resident memory (VmHWM) over three steps, less the
    resident memory when framework, model, optimiser and images are in place. A process for
    minires goes before, so that compiled kernels are read from the cache.
    """
    program = ["-m", "versus.programs.peak_memory", *work.arguments]
    run([*program, "minires"], threads=threads)
    names = ("minires", "torch NCHW", "torch channels_last")
    return {name: run([*program, *name.split()], threads=threads) for name in names}


def framework(
    name: str, batch: int, steps: int, threads: int, python: str | None = None
) -> dict[str, Any]:
    """A ResNet-20 training step in a framework, in a process of its own.

    All begin with the same weights and images: `losses_differ` is by how much the losses of the
    first steps differ from those of minires at this batch, as a share. python: the interpreter.
    """
    found = _framework(name, batch, steps, threads, python)
    if "skipped" in found:
        return found
    expected = _framework("minires", batch, 1, threads)["losses"][:SAME_LOSSES]
    pairs = zip(found["losses"], expected, strict=False)
    found["losses_differ"] = max(abs(loss / other - 1) for loss, other in pairs)
    found["images_per_second"] = batch / statistics.median(found["seconds"])
    return found


def _framework(
    name: str, batch: int, steps: int, threads: int, python: str | None = None
) -> dict[str, Any]:
    program = str(PROGRAMS / f"resnet20_{name}.py")
    arguments = [program, "--batch", str(batch), "--steps", str(steps)]
    return run(arguments, python=python or sys.executable, threads=threads)
