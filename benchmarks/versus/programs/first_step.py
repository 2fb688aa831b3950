"""Training steps from the start of a process: first_step MODEL BATCH SIZE minires|torch

Prints the process's age in seconds when the library was imported and when the first step was done,
and the seconds of the second step. Ours compiles with the help of other processes, as training from
the command line does.
"""

from __future__ import annotations

import importlib
import json
import os
import sys
import time
from contextlib import AbstractContextManager, nullcontext


def age() -> float:
    """Seconds since this process began, in hundredths."""
    with open("/proc/self/stat") as file:
        ticks = int(file.read().rpartition(")")[2].split()[19])
    return time.clock_gettime(time.CLOCK_BOOTTIME) - ticks / os.sysconf("SC_CLK_TCK")


def help_to_compile(model: str, batch: int, size: int) -> AbstractContextManager[None]:
    """Only of a cold start: nothing is compiled in a warm one."""
    from minires.bench.ahead import helped

    return helped(model, {}, (3, size, size), batch)


def main() -> None:
    model, batch, size, framework = sys.argv[1], *map(int, sys.argv[2:4]), sys.argv[4]
    library = importlib.import_module("versus.ours" if framework == "minires" else "versus.theirs")
    imported = age()
    with help_to_compile(model, batch, size) if framework == "minires" else nullcontext():
        step = library.training_step(library.Work(model, batch, size))
        step()
    first = age()
    step()
    print(json.dumps({"imported": imported, "first": first, "second": age() - first}))


if __name__ == "__main__":
    main()
