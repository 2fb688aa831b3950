"""Everything that needs a GPU, as one command: checks, sanitizers, tuning, benchmarks, with logs.

    python benchmarks/gpu_day.py --out gpu-day --data-dir data
    python benchmarks/gpu_day.py --out gpu-day --budget 540      within nine minutes, then the rest:
    python benchmarks/gpu_day.py --out gpu-day --budget 540      what is done is not done again
    python benchmarks/gpu_day.py --out gpu-day memcheck train    these steps, again
    python benchmarks/gpu_day.py --list
    python benchmarks/gpu_day.py --out gpu-day --rehearse        without a GPU

Each step is a process with a time limit and a log in the folder; `steps.json` there says how each
ended. The order is that of value: whether the kernels are right, then the rows of the speed table,
then what takes long. A step that fails does not stop the others. Records of measurements are in the
folder too, and the table of the fastest kernels that later steps go by; copy gpu_vs_torch.json to
benchmarks/results to keep it.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

BENCHMARKS = Path(__file__).resolve().parent
ROOT = BENCHMARKS.parent
KERNEL_TESTS = ["tests/kernels/cuda/test_cuda_kernels.py", "tests/kernels/cuda/test_cuda_extras.py"]
STATES = "steps.json"

# The pool of CuPy would hide what reads or writes past an array, up to the next multiple of 512.
WITHOUT_POOL = (
    "import sys, cupy, pytest; cupy.cuda.set_allocator(None); sys.exit(pytest.main(sys.argv[1:]))"
)


@dataclass(frozen=True)
class Step:
    """A command and the seconds it may take; needs: a program without which it is skipped."""

    name: str
    command: list[str]
    limit: float
    needs: str = ""


def steps(out: Path, data: Path | None, rehearse: bool) -> list[Step]:
    """All of them, the most valuable first."""
    python = sys.executable
    tests = [python, "-m", "pytest", "-q", "-p", "no:cacheprovider"]
    marked = ["-m", "not gpu"] if rehearse else ["-m", "gpu"]
    compare = [python, str(BENCHMARKS / "gpu_vs_torch.py")]
    measured = ["--out", str(out), *(["--rehearse", "--rounds", "1"] if rehearse else [])]
    minires = [python, "-c", "from minires.cli import main; main()"]

    def benchmark(name: str, limit: float, *parts: str) -> Step:
        return Step(name, [*compare, *parts, *measured], limit)

    def tune(model: str, dtype: str) -> Step:
        small = ["--batch", "1", "--size", "8", "--rounds", "1"]
        where = small if rehearse else ["--batch", "128", "--device", "cuda", "--dtype", dtype]
        command = [*minires, "kernels", "tune", "--model", model, *where]
        return Step(f"tune-{model}-{dtype}", command, 240)

    def sanitizer(tool: str) -> Step:
        program = sanitizer_path()
        checked = [python, "-c", WITHOUT_POOL, "-q", "-p", "no:cacheprovider", "-m", "gpu"]
        command = [program or "compute-sanitizer", "--tool", tool, "--error-exitcode", "9",
                   *checked, *KERNEL_TESTS]  # fmt: skip
        return Step(tool, command, 600, needs="compute-sanitizer")

    recipe = [] if data is None else ["--data-dir", str(data)]
    quick = ["--models", "resnet20"]
    return [
        Step("machine", [*minires, "info"], 60),
        Step("kernel-tests", [*tests, *marked, *KERNEL_TESTS[: 1 if rehearse else 2]], 400),
        benchmark("limits", 120, "limits"),
        benchmark("memory-bound", 180, "memory-bound"),
        benchmark("train-resnet20", 300, "train", *quick),
        tune("resnet50", "float32"),
        tune("resnet50", "bfloat16"),
        tune("resnet20", "float32"),
        benchmark("layers", 600, "layers"),
        benchmark("train", 600, "train"),
        benchmark("inference", 500, "inference"),
        benchmark("peak-memory", 400, "peak-memory"),
        sanitizer("memcheck"),
        Step("all-tests", [*tests, *marked, "tests/kernels/cuda" if rehearse else "tests"], 900),
        sanitizer("racecheck"),
        sanitizer("initcheck"),
        Step("resources", [python, "-m", "minires.kernels.cuda.resources"], 600),
        benchmark("recipe", 1800, "recipe", *recipe),
    ]


def sanitizer_path() -> str | None:
    """compute-sanitizer, on the path or where CUDA is usually installed."""
    usual = Path("/usr/local/cuda/bin/compute-sanitizer")
    return shutil.which("compute-sanitizer") or (str(usual) if usual.exists() else None)


def run(step: Step, out: Path, seconds: float) -> dict[str, Any]:
    """How it ended: "ok", "failed", "out of time" or "skipped"; its output goes to a log.

    Whatever it started ends with it.
    """
    if step.needs and not (shutil.which(step.needs) or Path(step.command[0]).exists()):
        return {"ended": "skipped", "why": f"{step.needs} is not installed"}
    log, start = out / f"{step.name}.log", time.monotonic()
    environment = os.environ | {"PYTHONPATH": _path(), "PYTHONUNBUFFERED": "1"}
    tuned = out / "tuning.json"
    if step.name.startswith("tune-") or tuned.exists():
        environment["MINIRES_TUNING"] = str(tuned)
    with open(log, "w", encoding="utf-8") as output:
        output.write(f"$ {' '.join(step.command)}\n")
        output.flush()
        process = subprocess.Popen(
            step.command, stdout=output, stderr=subprocess.STDOUT, cwd=ROOT, env=environment,
            start_new_session=True,
        )  # fmt: skip
        try:
            status = process.wait(timeout=seconds)
            ended = "ok" if status == 0 else "failed"
        except subprocess.TimeoutExpired:
            ended, status = "out of time", None
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
    return {
        "ended": ended, "status": status, "seconds": round(time.monotonic() - start, 1),
        "log": log.name, "last": _last_line(log), "command": step.command,
    }  # fmt: skip


def _path() -> str:
    given = os.environ.get("PYTHONPATH")
    return str(ROOT) if not given else f"{ROOT}{os.pathsep}{given}"


def _last_line(log: Path) -> str:
    lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
    return lines[-1][:200] if lines else ""


def day(
    chosen: list[Step], out: Path, budget: float, again: bool, states: dict[str, Any]
) -> dict[str, Any]:
    """Run the steps that are not done, until the budget of seconds is used up.

    A step is given what is left, if that is at least a quarter of its limit; otherwise the next
    one is looked at.
    """
    end = time.monotonic() + budget
    for step in chosen:
        if not again and states.get(step.name, {}).get("ended") == "ok":
            print(f"{step.name:22s} done before")
            continue
        left = end - time.monotonic()
        if left < step.limit / 4:
            print(f"{step.name:22s} left for another time: {left:.0f} s are left of the budget")
            continue
        states[step.name] = {"ended": "interrupted"}
        write(out, states)
        print(f"{step.name:22s} ", end="", flush=True)
        states[step.name] = found = run(step, out, min(step.limit, left))
        write(out, states)
        shown = found.get("why") or f"{found['seconds']:6.1f} s  {found['last']}"
        print(f"{found['ended']:12s} {shown}", flush=True)
    return states


def write(out: Path, states: Mapping[str, Any]) -> None:
    """The state of every step, whole or not at all."""
    temporary = out / f".{STATES}.tmp"
    temporary.write_text(json.dumps(states, indent=1) + "\n")
    os.replace(temporary, out / STATES)


def main(arguments: list[str] | None = None) -> int:
    """The exit status is 1 if a step failed, now or in an earlier call."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("steps", nargs="*", metavar="STEP", help="these, even if they are done")
    parser.add_argument("--out", type=Path, help="folder for logs and records")
    parser.add_argument("--budget", type=float, default=float("inf"), metavar="SECONDS")
    parser.add_argument("--data-dir", type=Path, help="of CIFAR-10, for the full training")
    parser.add_argument("--rehearse", action="store_true", help="without a GPU, on tiny shapes")
    parser.add_argument("--list", action="store_true", help="print the steps and end")
    options = parser.parse_args(arguments)
    if options.out is None and not options.list:
        parser.error("--out names the folder for logs and records")
    out = (options.out or Path("gpu-day")).resolve()
    data = options.data_dir and options.data_dir.resolve()
    known = steps(out, data, options.rehearse)
    names = [step.name for step in known]
    wrong = [name for name in options.steps if name not in names]
    if wrong:
        parser.error(f"no step {', '.join(wrong)}; there are {', '.join(names)}")
    if options.list:
        for step in known:
            print(f"{step.name:22s} {step.limit:5.0f} s  {' '.join(step.command)}")
        return 0
    out.mkdir(parents=True, exist_ok=True)
    path = out / STATES
    states = json.loads(path.read_text()) if path.exists() else {}
    chosen = [step for step in known if not options.steps or step.name in options.steps]
    day(chosen, out, options.budget, bool(options.steps), states)
    return int(any(state["ended"] not in ("ok", "skipped") for state in states.values()))


if __name__ == "__main__":
    sys.exit(main())
