"""minires and PyTorch side by side on the CPU: networks, layers, memory, threads, start-up.

    python benchmarks/cpu_vs_torch.py                     every section: an hour on two cores
    python benchmarks/cpu_vs_torch.py train layers --models resnet20 --rounds 3
    python benchmarks/cpu_vs_torch.py --allocator no-trim --out benchmarks/results
    python benchmarks/cpu_vs_torch.py --markdown benchmarks/results/cpu_vs_torch-stock.json

Needs `pip install -e ".[bench]"`. Contenders take turns in one process (`minires.bench.timing`);
reported are medians with quartiles, and the ratio to the best of PyTorch's ways: eager and
compiled, in both memory layouts. Nets must give the same answers and kernels agree with a float64
reference, or they are not timed. Memory, start-up and other frameworks are measured in processes
of their own (`versus/processes.py` says how).

glibc gives large arrays back to the system at once, and touching such memory again costs page
faults, which hits PyTorch's fresh outputs more than our reused ones. `--allocator no-trim` tells
glibc never to do so, for both sides: the script starts itself again with MALLOC_MMAP_MAX_=0 and
MALLOC_TRIM_THRESHOLD_ at its largest. The record says which it was.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
from pathlib import Path
from typing import Any

from versus.work import WORK, Work

SECTIONS = ("train", "inference", "share", "layers", "memory", "threads", "startup", "frameworks")
NO_TRIM = {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": str(2**62)}
MALLOC = ("MALLOC_MMAP_MAX_", "MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_",
          "MALLOC_TOP_PAD_")  # fmt: skip


def main() -> None:
    options = _options()
    if options.markdown:
        from versus.tables import markdown

        print(markdown(json.loads(options.markdown.read_text())))
        return
    _restart_with(options.allocator)
    record = measure(options)
    from versus.tables import text

    print(text(record))
    if options.out:
        from minires.bench.record import write_record

        options.out.mkdir(parents=True, exist_ok=True)
        path = options.out / f"cpu_vs_torch-{options.allocator}.json"
        write_record(path, record)
        print(f"\nrecord: {path}")


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("sections", nargs="*", metavar="SECTION", default=list(SECTIONS),
                        help=f"of {', '.join(SECTIONS)}; all if none is named")  # fmt: skip
    parser.add_argument("--models", nargs="+", choices=WORK, default=list(WORK))
    parser.add_argument("--batch", type=int, help="images, instead of each model's own number")
    parser.add_argument("--size", type=int, help="side of the images, instead of 32 or 224")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--no-compile", dest="compiled", action="store_false",
                        help="leave torch.compile out")  # fmt: skip
    parser.add_argument("--allocator", choices=("stock", "no-trim"), default="stock")
    parser.add_argument("--python", action="append", default=[], metavar="NAME=PATH",
                        help="interpreter that has jax, tinygrad, mygrad or dezero; PATH alone is "
                        "for the four")  # fmt: skip
    parser.add_argument("--framework-batch", type=int, default=128)
    parser.add_argument("--out", type=Path, help="folder for the JSON record")
    parser.add_argument("--markdown", type=Path, metavar="RECORD",
                        help="print a record's tables for the README; nothing is timed")
    options = parser.parse_args()
    wrong = set(options.sections) - set(SECTIONS)
    if wrong:
        parser.error(f"no section {', '.join(sorted(wrong))}; there are {', '.join(SECTIONS)}")
    if "share" in options.sections and "train" not in options.sections:
        parser.error("share is worked out from train: name both")
    return options


def _restart_with(allocator: str) -> None:
    """Start again with the environment that this allocator needs, unless it is so already."""
    wanted = NO_TRIM if allocator == "no-trim" else {}
    if {name: os.environ[name] for name in MALLOC if name in os.environ} == wanted:
        return
    others = {name: value for name, value in os.environ.items() if name not in MALLOC}
    sys.stdout.flush()
    os.execve(sys.executable, [sys.executable, *sys.argv], others | wanted)


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """The sections that were asked for, as a record."""
    try:
        import torch
    except ImportError:
        raise SystemExit('PyTorch is not installed: pip install -e ".[bench]"') from None
    from versus import processes, single_layers, steps

    from minires.bench.limits import limits
    from minires.bench.machine import machine
    from minires.kernels.threads import num_threads

    torch.set_num_threads(num_threads())
    works = [
        Work(name, options.batch or WORK[name].batch, options.size or WORK[name].size)
        for name in options.models
    ]
    chosen, rounds, found = options.sections, options.rounds, limits(refresh=True)
    record: dict[str, Any] = {
        "machine": machine() | {"allocator": options.allocator},
        "limits": {"gflops": dict(found.gflops), "copy_gbs": found.copy_gbs},
        "rounds": rounds,
    }

    def say(what: str) -> None:
        print(what, file=sys.stderr, flush=True)

    if "train" in chosen:
        record["train"] = steps.train(works, rounds, options.compiled, say)
    if "inference" in chosen:
        record["inference"] = steps.infer(
            [w for w in works if w.model != "resnet110"], rounds, options.compiled, say
        )
    if "share" in chosen:
        record["share"] = steps.share(works, record["train"])
    if "layers" in chosen:
        record["layers"] = single_layers.layers(works, rounds, say)
    if "memory" in chosen:
        say("memory")
        record["memory"] = {w.model: processes.peak_memory(w, num_threads()) for w in works}
    if "threads" in chosen:
        record["threads"] = steps.scaling(works[:2], rounds, say)
    if "startup" in chosen:
        say("start-up")
        record["startup"] = {
            "imports": processes.import_times(("minires", "torch"), rounds),
            "steps": {w.model: processes.startup(w, num_threads()) for w in works[:2]},
        }
    if "frameworks" in chosen:
        say("other frameworks")
        record["frameworks"] = _frameworks(options, num_threads())
    return record


def _frameworks(options: argparse.Namespace, threads: int) -> dict[str, Any]:
    from versus.processes import FRAMEWORKS, frameworks

    pythons: dict[str, str] = {}
    for text in options.python:
        name, equals, path = text.rpartition("=")
        for framework in [name] if equals else FRAMEWORKS[2:]:
            pythons[framework] = path
    found = frameworks(options.framework_batch, options.rounds, threads, pythons)
    for one in found.values():
        if "skipped" not in one:
            one["images_per_second"] = one["batch"] / statistics.median(one["seconds"])
    return found


if __name__ == "__main__":
    main()
