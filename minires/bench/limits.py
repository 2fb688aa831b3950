"""The two limits of this machine: how fast it multiplies matrices, how fast it moves memory.

No direct convolution is faster than the first, nothing that touches large arrays once is faster
than the second. They are measured, not looked up, because they depend on the clock, the vector
units, the memory and on what a virtual machine gets of them; the result is kept on disk.

Arrays that stay in a cache can be read faster than memory, so a kernel on small arrays may pass
the copy bandwidth; and an algorithm that saves multiplications may pass the matrix-product rate.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from threading import Barrier
from typing import Any

import numpy as np

from minires.bench.machine import caches, memory, processor_name
from minires.files import atomic_write_text
from minires.kernels.threads import available_cores, num_threads

DTYPES = ("float32", "float64")
SIZE = 1536  # of the square matrices that BLAS multiplies
TRY_SECONDS = 0.03  # how long one try of a loop of ours should take
TRIES = 5  # of which the best counts: a limit is what the machine can do at all
PAUSE = 0.05  # seconds, so that BLAS's threads have stopped spinning


@dataclass(frozen=True)
class Limits:
    """What this machine can do on `threads` threads.

    gflops: 10^9 operations/s of a matrix product, by name of dtype; the best of BLAS on large
        matrices and of our own register tile in the L1 cache, which `blas` and `tile` give apart.
    copy_gbs: 10^9 bytes/s of copying large arrays, reads and writes both counted.
    machine: the processor. measured: when, UTC.
    """

    gflops: Mapping[str, float]
    copy_gbs: float
    threads: int
    machine: str
    blas: Mapping[str, float] = field(default_factory=dict)
    tile: Mapping[str, float] = field(default_factory=dict)
    measured: str = ""

    def rate(self, dtype: Any) -> float:
        """10^9 operations/s in this dtype. Raises ValueError for one that was not measured."""
        name = np.dtype(dtype).name
        if name not in self.gflops:
            raise ValueError(
                f"limits: the matrix-product rate was measured in {', '.join(self.gflops)}, "
                f"not in {name}"
            )
        return self.gflops[name]

    def ridge(self, dtype: Any) -> float:
        """Operations per byte from which on arithmetic is the limit, below it memory."""
        return self.rate(dtype) / self.copy_gbs


def limits(threads: int | None = None, refresh: bool = False) -> Limits:
    """The limits of this machine on `threads` threads, by default as many as minires uses.

    Measured once, in about two seconds, and kept in `cache_folder()` by processor, threads and
    version; `refresh` measures again (they were taken on a busy machine, say). Where the folder
    cannot be written they are kept for this process alone.

    Raises ValueError unless the number is between 1 and the available cores.
    """
    count = num_threads() if threads is None else threads
    if not 1 <= count <= available_cores():
        raise ValueError(
            f"limits: threads must be from 1 to {available_cores()}, the available cores; "
            f"got {threads}"
        )
    path = cache_folder() / f"limits-{_key(count)}.json"
    found = None if refresh else (_known.get(path) or _read(path))
    if found is None:
        found = _measure(count)
        _write(path, found)
    _known[path] = found
    return found


_known: dict[Path, Limits] = {}


def cache_folder() -> Path:
    """Where measured limits are kept: $XDG_CACHE_HOME/minires, by default ~/.cache/minires."""
    base = os.environ.get("XDG_CACHE_HOME", "")
    # The standard says that a relative path is to be ignored.
    return (Path(base) if os.path.isabs(base) else Path.home() / ".cache") / "minires"


def _key(threads: int) -> str:
    import minires

    parts = (processor_name(), available_cores(), threads, minires.__version__, np.__version__)
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:16]


def _read(path: Path) -> Limits | None:
    """What was kept; None if there is nothing, or nothing that makes sense."""
    try:
        found = Limits(**json.loads(path.read_text()))
        numbers = [found.copy_gbs, *(found.gflops[dtype] for dtype in DTYPES)]
        return found if all(number > 0 for number in numbers) else None
    except (OSError, ValueError, TypeError, KeyError):
        return None


def _write(path: Path, found: Limits) -> None:
    """Keep it, whole or not at all; a folder that cannot be written is no error."""
    with suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        atomic_write_text(path, json.dumps(asdict(found), indent=1))


def _measure(threads: int) -> Limits:
    blas = {dtype: _blas_rate(np.dtype(dtype), threads) for dtype in DTYPES}
    time.sleep(PAUSE)
    tile = {dtype: _tile_rate(np.dtype(dtype), threads) for dtype in DTYPES}
    return Limits(
        gflops={dtype: max(blas[dtype], tile[dtype]) for dtype in DTYPES},
        copy_gbs=_copy_rate(threads),
        threads=threads,
        machine=processor_name(),
        blas=blas,
        tile=tile,
        measured=time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    )


def _blas_rate(dtype: Any, threads: int) -> float:
    """10^9 operations/s of NumPy's product of two square matrices."""
    import threadpoolctl

    rng = np.random.default_rng(0)
    a, b = (rng.standard_normal((SIZE, SIZE)).astype(dtype) for _ in range(2))
    out = np.empty_like(a)
    with threadpoolctl.threadpool_limits(threads, user_api="blas"):
        np.matmul(a, b, out=out)
        seconds = min(_timed(lambda: np.matmul(a, b, out=out)) for _ in range(TRIES))
    return float(2 * SIZE**3 / seconds / 1e9)


def _tile_rate(dtype: Any, threads: int) -> float:
    """10^9 operations/s of our register tile, every thread with its own operands in L1."""
    from minires.bench.probe import ROWS, STEPS, VECTORS, tile_products
    from minires.kernels.cpu.simd import lanes

    columns = VECTORS * lanes(dtype)
    flops = 2 * ROWS * STEPS * columns

    def work(_: int) -> Callable[[int], None]:
        a, b = np.full(ROWS * STEPS, 1e-3, dtype), np.full(STEPS * columns, 1e-3, dtype)
        c = np.zeros(ROWS * columns, dtype)
        return lambda repeats: tile_products(a, b, c, STEPS, columns, repeats)

    return _rate(work, threads) * flops / 1e9


def _copy_rate(threads: int) -> float:
    """10^9 bytes/s of copying arrays that no cache holds, every thread a part of its own."""
    last = max(caches().values(), default=0)
    total = min(max(4 * last, 64 << 20), (memory() or 1 << 30) // 8)
    size = total // threads // 8

    def work(_: int) -> Callable[[int], None]:
        source, target = np.ones(size), np.zeros(size)

        def copy(repeats: int) -> None:
            for _ in range(repeats):
                np.copyto(target, source)

        return copy

    return _rate(work, threads) * 2 * 8 * size / 1e9


def _rate(make: Callable[[int], Callable[[int], Any]], threads: int) -> float:
    """Repeats per second of all threads together; make(i) gives thread i its work(repeats).

    The work must release the interpreter's lock. Threads wait for each other at the start; the
    time is from the first start to the last end.
    """
    works = [make(i) for i in range(threads)]
    works[0](1)  # compiles, where there is something to compile
    once = _timed(lambda: works[0](1))
    repeats = max(1, round(TRY_SECONDS / max(once, 1e-7)))
    barrier = Barrier(threads)

    def run(work: Callable[[int], Any]) -> tuple[float, float]:
        barrier.wait()
        start = time.perf_counter()
        work(repeats)
        return start, time.perf_counter()

    best = 0.0
    with ThreadPoolExecutor(threads) as pool:
        for _ in range(TRIES):
            starts, ends = zip(*pool.map(run, works), strict=True)
            best = max(best, threads * repeats / (max(ends) - min(starts)))
    return best


def _timed(call: Callable[[], Any]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start
