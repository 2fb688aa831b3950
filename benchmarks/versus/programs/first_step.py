"""Training steps from the start of a process: first_step MODEL BATCH SIZE minires|torch

Prints the process's age in seconds when the library was imported and when the first step was done,
and the seconds of the second step.
"""

from __future__ import annotations

import importlib
import json
import os
import sys
import time


def age() -> float:
    """Seconds since this process began, in hundredths."""
    with open("/proc/self/stat") as file:
        ticks = int(file.read().rpartition(")")[2].split()[19])
    return time.clock_gettime(time.CLOCK_BOOTTIME) - ticks / os.sysconf("SC_CLK_TCK")


def main() -> None:
    model, batch, size, framework = sys.argv[1], *map(int, sys.argv[2:4]), sys.argv[4]
    library = importlib.import_module("versus.ours" if framework == "minires" else "versus.theirs")
    imported = age()
    step = library.training_step(library.Work(model, batch, size))
    step()
    first = age()
    step()
    print(json.dumps({"imported": imported, "first": first, "second": age() - first}))


if __name__ == "__main__":
    main()
