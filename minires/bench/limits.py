"""The two limits of a machine or of its GPU: how fast it multiplies matrices and moves memory.

No direct convolution is faster than the first, nothing that touches large arrays once is faster
than the second. They are measured, not looked up, because they depend on the clock, the vector
units, the memory and on what a virtual machine gets of them; the result is kept on disk.

Arrays that stay in a cache can be read faster than memory, so a kernel on small arrays may pass
the copy bandwidth; and an algorithm that saves multiplications may pass the matrix-product rate.
"""

from __future__ import annotations

import hashlib
import json
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
from minires.bench.places import Place, place_of
from minires.files import atomic_write_text
from minires.kernels.environment import cache_folder
from minires.kernels.selection import facts_of
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
    machine: the processor. measured: when, UTC. device: "cpu", or "cuda" for a GPU, whose
        name `machine` has then; `tile` are loops over its registers, and threads do not count.
    """

    gflops: Mapping[str, float]
    copy_gbs: float
    threads: int
    machine: str
    blas: Mapping[str, float] = field(default_factory=dict)
    tile: Mapping[str, float] = field(default_factory=dict)
    measured: str = ""
    device: str = "cpu"

    @property
    def name(self) -> str:
        """`AMD EPYC, 2 threads`, or the name of the GPU."""
        if self.device != "cpu":
            return self.machine
        return f"{self.machine}, {self.threads} thread{'s' * (self.threads != 1)}"

    def rate(self, dtype: Any) -> float:
        """10^9 operations/s in this dtype. Raises ValueError for one that was not measured."""
        name = dtype if isinstance(dtype, str) else np.dtype(dtype).name
        if name not in self.gflops:
            raise ValueError(
                f"limits: the matrix-product rate was measured in {', '.join(self.gflops)}, "
                f"not in {name}"
            )
        return self.gflops[name]

    def ridge(self, dtype: Any) -> float:
        """Operations per byte from which on arithmetic is the limit, below it memory."""
        return self.rate(dtype) / self.copy_gbs


def limits(
    threads: int | None = None, refresh: bool = False, device: str = "cpu"
) -> Limits:
    """The limits of this machine on `threads` threads, by default as many as minires uses.

    Measured once, in about two seconds, and kept in `cache_folder()` by processor, threads and
    version; `refresh` measures again (they were taken on a busy machine, say). Where the folder
    cannot be written they are kept for this process alone.

    device: "cuda" for those of the GPU, by its name, driver and capability.

    Raises ValueError unless the number is between 1 and the available cores and the device is
    known, and what `minires.bench.places.Gpu` raises without a GPU.
    """
    count = num_threads() if threads is None else threads
    if not 1 <= count <= available_cores():
        raise ValueError(
            f"limits: threads must be from 1 to {available_cores()}, the available cores; "
            f"got {threads}"
        )
    place = place_of(device)
    name = f"limits-{_key(count)}" if device == "cpu" else f"limits-cuda-{_device_key()}"
    path = cache_folder() / f"{name}.json"
    found = None if refresh else (_known.get(path) or _read(path))
    if found is None:
        found = _measure(count) if device == "cpu" else measure_device(place)
        _write(path, found)
    _known[path] = found
    return found


_known: dict[Path, Limits] = {}


def _key(threads: int) -> str:
    import minires

    parts = (processor_name(), available_cores(), threads, minires.__version__, np.__version__)
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:16]


def _device_key() -> str:
    facts = facts_of("cuda")
    parts = [(name, facts[name]) for name in sorted(facts) if name != "kernels"]
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


def measure_device(place: Place, **sizes: int) -> Limits:
    """The limits of a CUDA device, or of the emulator; sizes: as of `device_rates`."""
    from minires.bench.device_limits import device_rates

    ours, blas, copy = device_rates(place, **sizes)
    return Limits(
        gflops={dtype: max(rate, blas.get(dtype, 0.0)) for dtype, rate in ours.items()},
        copy_gbs=copy,
        threads=1,
        machine=str(facts_of("cuda")["gpu"]),
        blas=blas,
        tile=ours,
        measured=time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        device="cuda",
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
