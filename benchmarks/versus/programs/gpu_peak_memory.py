"""The most device memory that training steps hold: gpu_peak_memory MODEL BATCH SIZE WHO PRECISION

WHO is minires or torch. Prints the bytes in arrays at the peak of four steps, model, optimiser and
batch included, as the allocator of each side counts them, and what it took from the driver.
With a sixth word, "rehearse", minires runs on the emulator, and the bytes are of the process.
"""

from __future__ import annotations

import json
import sys
from contextlib import ExitStack

from versus import steps
from versus.gpu import ours, theirs
from versus.gpu.machine import Machine, machine, set_precision
from versus.programs.peak_memory import status
from versus.work import Work


def main() -> None:
    model, batch, size, who, precision = sys.argv[1], *map(int, sys.argv[2:4]), *sys.argv[4:6]
    with machine("rehearse" in sys.argv[6:]) as found, ExitStack() as held:
        set_precision(precision)
        work = Work(model, batch, size)
        if who == "minires":
            print(json.dumps(_ours(found, work, precision)))
            return
        net = steps.same_nets(work.model)[1]
        step = theirs.training_step(found, work, precision, "torch eager", net, held)
        for _ in range(4):
            step()
        if found.rehearsal:
            print(json.dumps({"peak": status("VmHWM"), "taken": status("VmRSS")}))
            return
        import torch

        found.synchronize()
        print(json.dumps({"peak": torch.cuda.max_memory_allocated(),
                          "taken": torch.cuda.max_memory_reserved()}))  # fmt: skip


def _ours(found: Machine, work: Work, precision: str) -> dict[str, int]:
    if found.rehearsal:
        _steps(work, precision)
        return {"peak": status("VmHWM"), "taken": status("VmRSS")}
    import cupy

    class Peak(cupy.cuda.MemoryHook):  # CuPy's pools count what they hold, not what they held
        name = "peak"
        held = peak = taken = 0

        def malloc_postprocess(self, **about: int) -> None:
            self.held += about["mem_size"]
            self.peak = max(self.peak, self.held)

        def free_postprocess(self, **about: int) -> None:
            self.held -= about["mem_size"]

        def alloc_postprocess(self, **about: int) -> None:
            self.taken += about["mem_size"]

    with Peak() as hook:
        _steps(work, precision)
        found.synchronize()
    return {"peak": hook.peak, "taken": hook.taken}


def _steps(work: Work, precision: str) -> None:
    step = ours.training_step(work, precision, steps.same_nets(work.model)[0])
    for _ in range(4):
        step()


if __name__ == "__main__":
    main()
