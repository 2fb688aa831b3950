"""What training steps add to a process: peak_memory MODEL BATCH SIZE minires|torch [LAYOUT]

Prints resident bytes when library, model, optimiser and batch are in place, and the peak of three
steps. Linux tells both (VmRSS and VmHWM of proc(5)). Steps of another model of the kind go before,
whose memory is given back: what a library loads or compiles when it first computes is no part of
a step.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import importlib
import json
import sys
from pathlib import Path


def status(name: str) -> int:
    """Bytes of one line of /proc/self/status."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1]) * 1024
    raise SystemExit(f"this system does not tell {name} of a process")


def give_back(framework: str) -> None:
    """Return free memory to the system, as far as library and allocator can."""
    gc.collect()
    if framework == "minires":
        importlib.import_module("minires.kernels.memory").release()
    with contextlib.suppress(OSError, AttributeError):  # where there is no glibc
        ctypes.CDLL("libc.so.6").malloc_trim(0)


def main() -> None:
    model, batch, size, framework = sys.argv[1], *map(int, sys.argv[2:4]), sys.argv[4]
    library = importlib.import_module("versus.ours" if framework == "minires" else "versus.theirs")
    work, layout = library.Work(model, batch, size), sys.argv[5:6]
    library.training_step(work, *layout)()
    give_back(framework)
    step = library.training_step(work, *layout)
    with contextlib.suppress(OSError):  # forget the peak of the imports
        Path("/proc/self/clear_refs").write_text("5")
    before = status("VmRSS")
    for _ in range(3):
        step()
    print(json.dumps({"before": before, "added": status("VmHWM") - before}))


if __name__ == "__main__":
    main()
