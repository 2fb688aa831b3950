"""What a timing depends on: the processor, its caches, versions, threads, the commit."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import platform
import subprocess
import time
from functools import lru_cache
from pathlib import Path
from typing import Any

from minires.kernels.host import processor_name, sysctl

VECTOR_EXTENSIONS = {
    "sse2": "SSE2", "avx": "AVX", "avx2": "AVX2", "fma": "FMA", "avx512f": "AVX-512F",
    "avx512vnni": "AVX-512 VNNI", "neon": "NEON", "sve": "SVE",
}  # fmt: skip

PACKAGES = ("numpy", "numba", "llvmlite", "torch", "cupy-cuda12x", "cupy-cuda13x")


def machine(device: str = "cpu") -> dict[str, Any]:
    """The facts that go with every record of timings, as plain values for JSON.

    caches: bytes by name ("L1d", "L2", "L3") of the first core, where the system tells; memory in
    bytes. versions: of Python and of the packages that compute, None for one not installed.
    commit: of the source tree that minires is imported from, None for an installed package.
    device: "cuda" adds "gpu", with its name, capability, driver and memory in bytes.
    """
    import minires
    from minires.kernels.threads import available_cores, num_threads

    gpu = {"gpu": gpu_facts()} if device == "cuda" else {}
    return {
        **gpu,
        "cpu": processor_name(),
        "cores": available_cores(),
        "threads": num_threads(),
        "simd": vector_extensions(),
        "caches": caches(),
        "memory": memory(),
        "system": platform.platform(),
        "versions": {
            "minires": minires.__version__,
            "python": platform.python_version(),
            **{name: package_version(name) for name in PACKAGES},
        },
        "blas": blas_library(),
        "commit": commit(),
        "date": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }


def gpu_facts() -> dict[str, Any]:
    """The CUDA device that CuPy computes on, and what drives it."""
    from minires.kernels.cuda.launch import import_cupy

    cuda = import_cupy().cuda
    properties = cuda.runtime.getDeviceProperties(cuda.Device().id)
    return {
        "name": properties["name"].decode(),
        "capability": f"{properties['major']}.{properties['minor']}",
        "multiprocessors": int(properties["multiProcessorCount"]),
        "memory": int(properties["totalGlobalMem"]),
        "driver": int(cuda.runtime.driverGetVersion()),
        "runtime": int(cuda.runtime.runtimeGetVersion()),
    }


def vector_extensions() -> list[str]:
    """The vector instructions that Numba's compiler finds on this machine."""
    import llvmlite.binding

    features = llvmlite.binding.get_host_cpu_features()
    return [shown for name, shown in VECTOR_EXTENSIONS.items() if features.get(name)]


@lru_cache(maxsize=1)
def caches() -> dict[str, int]:
    """Bytes of each data cache that the first core sees; empty where the system does not tell."""
    found: dict[str, int] = {}
    for index in sorted(Path("/sys/devices/system/cpu/cpu0/cache").glob("index*")):
        try:
            level, kind, size = (
                (index / name).read_text().strip() for name in ("level", "type", "size")
            )
        except OSError:
            continue
        if kind != "Instruction" and size[:-1].isdecimal():
            unit = {"K": 1 << 10, "M": 1 << 20}.get(size[-1], 1)
            found[f"L{level}" + ("d" if kind == "Data" else "")] = int(size[:-1]) * unit
    if not found:
        names = {"L1d": "hw.l1dcachesize", "L2": "hw.l2cachesize", "L3": "hw.l3cachesize"}
        sizes = {level: sysctl(name) for level, name in names.items()}
        found = {level: int(size) for level, size in sizes.items() if size.isdecimal()}
    return found


def memory() -> int | None:
    """Bytes of main memory, None where the system does not tell."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return None


def package_version(name: str) -> str | None:
    """The version of an installed package; the package is not imported."""
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def blas_library() -> str | None:
    """The library behind NumPy's matrix products."""
    import threadpoolctl

    for pool in threadpoolctl.threadpool_info():
        if pool["user_api"] == "blas":
            kind = f" ({pool['architecture']})" if pool.get("architecture") else ""
            return f"{pool['internal_api']} {pool['version']}{kind}"
    return None


@lru_cache(maxsize=1)
def commit() -> str | None:
    """The commit that minires is run from, with "+changes" if files of it were edited since.

    None if the package is not part of a git working tree: then the version says it all.
    """
    package = Path(__file__).parents[1]
    # A package in an environment that lies inside somebody's repository is not a part of it.
    if _git(package, "ls-files", "--error-unmatch", "__init__.py") is None:
        return None
    head = _git(package, "rev-parse", "--short", "HEAD")
    changed = _git(package, "status", "--porcelain", "--untracked-files=no", ".")
    return f"{head}+changes" if head and changed else head


def _git(folder: Path, *arguments: str) -> str | None:
    try:
        done = subprocess.run(
            ["git", "-C", str(folder), *arguments],
            capture_output=True, text=True, check=False, timeout=10,
        )  # fmt: skip
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None
