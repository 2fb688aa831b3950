"""What the machine is: the facts that compiled kernels and measurements of them depend on.

Nothing heavy is imported to find out, because every run may ask.
"""

from __future__ import annotations

import os
import platform
from functools import lru_cache
from pathlib import Path


@lru_cache(maxsize=1)
def processor_name() -> str:
    """The processor as it calls itself."""
    named = _cpuinfo("model name")
    return named or sysctl("machdep.cpu.brand_string") or platform.processor() or platform.machine()


@lru_cache(maxsize=1)
def vector_bytes() -> int:
    """The width of the vector registers that kernels are compiled for: as the system lists the
    processor's features, or as Numba is told to see them; 16 bytes, which every 64-bit machine has,
    where none are listed."""
    text = os.environ.get("NUMBA_CPU_FEATURES")
    if text is None and os.environ.get("NUMBA_CPU_NAME", "").lower() == "generic":
        text = ""
    if text is None:
        features = set(_cpuinfo("flags").split())
    else:
        features = {name[1:] for name in text.split(",") if name.startswith("+")}
    if "avx512f" in features:
        return 64
    return 32 if "avx" in features else 16


def _cpuinfo(key: str) -> str:
    """A fact of the first processor from Linux's list, or nothing."""
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith(key):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return ""


def sysctl(name: str) -> str:
    """A fact of macOS, or nothing."""
    if platform.system() != "Darwin":
        return ""
    import subprocess

    try:
        done = subprocess.run(
            ["sysctl", "-n", name], capture_output=True, text=True, check=False, timeout=10
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip()
