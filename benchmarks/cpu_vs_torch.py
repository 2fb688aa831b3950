"""minires and PyTorch side by side on the CPU: networks, layers, memory, threads, start-up.

    python benchmarks/cpu_vs_torch.py                     every section: an hour on two cores
    python benchmarks/cpu_vs_torch.py train layers --models resnet20 --rounds 3
    python benchmarks/cpu_vs_torch.py --allocator no-trim --out benchmarks/results --resume
    python benchmarks/cpu_vs_torch.py --markdown benchmarks/results/cpu_vs_torch-stock.json

Needs `pip install -e ".[bench]"`. Contenders take turns in one process (`minires.bench.timing`);
reported are medians with quartiles, and the ratio to the best of PyTorch's ways: eager and
compiled, in both memory layouts; with networks also what the machine gave meanwhile
(`versus/cores.py`). Nets must give the same answers and kernels agree with a float64
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
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

from versus.work import WORK, Work

SECTIONS = ("train", "inference", "share", "layers", "bandwidth", "memory", "threads", "startup",
            "frameworks")  # fmt: skip
OTHERS = ("jax", "tinygrad", "mygrad", "dezero")
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
    path = None
    if options.out:
        options.out.mkdir(parents=True, exist_ok=True)
        path = options.out / f"cpu_vs_torch-{options.allocator}.json"
    record = measure(options, path)
    from versus.tables import text

    print(text(record))
    if path:
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
    parser.add_argument("--framework-batch", type=int,
                        help="images in other frameworks; by default 128, in tinygrad 16")
    parser.add_argument("--out", type=Path,
                        help="folder for the JSON record, written after every part")
    parser.add_argument("--resume", action="store_true",
                        help="go on with the record in --out: measure only what it does not have")
    parser.add_argument("--markdown", type=Path, metavar="RECORD",
                        help="print a record's tables for the README; nothing is timed")
    options = parser.parse_args()
    wrong = set(options.sections) - set(SECTIONS)
    if wrong:
        parser.error(f"no section {', '.join(sorted(wrong))}; there are {', '.join(SECTIONS)}")
    if "share" in options.sections and "train" not in options.sections:
        parser.error("share is worked out from train: name both")
    if options.resume and not options.out:
        parser.error("--resume goes on with a record: name its folder with --out")
    return options


def _restart_with(allocator: str) -> None:
    """Start again with the environment that this allocator needs, unless it is so already."""
    wanted = NO_TRIM if allocator == "no-trim" else {}
    if {name: os.environ[name] for name in MALLOC if name in os.environ} == wanted:
        return
    others = {name: value for name, value in os.environ.items() if name not in MALLOC}
    sys.stdout.flush()
    os.execve(sys.executable, [sys.executable, *sys.argv], others | wanted)


def measure(options: argparse.Namespace, path: Path | None = None) -> dict[str, Any]:
    """The sections that were asked for, as a record; what is finished is kept in `path`.

    With --resume, what the record in `path` has already is not measured again, but what was
    skipped is tried again.
    """
    try:
        import torch
    except ImportError:
        raise SystemExit('PyTorch is not installed: pip install -e ".[bench]"') from None
    from minires.bench.limits import limits
    from minires.bench.machine import machine
    from minires.bench.record import write_record
    from minires.kernels.threads import num_threads

    torch.set_num_threads(num_threads())
    facts = machine()
    record: dict[str, Any] = {}
    if options.resume and path is not None and path.exists():
        record = json.loads(path.read_text())
        _check_same(record["machine"], facts, path)
    if not record:
        found = limits(refresh=True)
        record = {
            "machine": facts | {"allocator": options.allocator},
            "limits": {"gflops": dict(found.gflops), "copy_gbs": found.copy_gbs},
            "rounds": options.rounds,
        }
    for section, part, call in _parts(options, record, num_threads()):
        known = record.get(section) if part is None else record.get(section, {}).get(part)
        if known is not None and "skipped" not in known:
            continue
        print(": ".join(filter(None, (section, part))), file=sys.stderr, flush=True)
        if part is None:
            record[section] = call()
        else:
            record.setdefault(section, {})[part] = call()
        if path is not None:
            write_record(path, record)
    return record


def _check_same(then: dict[str, Any], now: dict[str, Any], path: Path) -> None:
    """Two machines or two versions do not go into one record."""
    for name in ("cpu", "threads", "commit", "versions"):
        if then[name] != now[name]:
            raise SystemExit(
                f"--resume: {path} was measured with {name} {then[name]}, this is {now[name]}; "
                "leave --resume out to begin again"
            )


Part = tuple[str, str | None, Callable[[], Any]]


def _parts(
    options: argparse.Namespace, record: dict[str, Any], threads: int
) -> Iterator[Part]:
    """(section, part of it or None, what measures it); `record` has the parts before."""
    from versus import bandwidth, processes, single_layers, steps

    works = [
        Work(name, options.batch or WORK[name].batch, options.size or WORK[name].size)
        for name in options.models
    ]
    chosen, rounds, compiled = options.sections, options.rounds, options.compiled

    def say(what: str) -> None:
        print(what, file=sys.stderr, flush=True)

    for work in works:
        if "train" in chosen:
            yield "train", work.model, partial(steps.train, work, rounds, compiled)
    for work in works:
        if "inference" in chosen and work.model != "resnet110":
            yield "inference", work.model, partial(steps.infer, work, rounds, compiled)
    if "share" in chosen:
        yield "share", None, lambda: steps.share(works, record["train"])
    if "layers" in chosen:
        yield "layers", None, lambda: single_layers.layers(works, rounds, say)
    for work in works:
        if "bandwidth" in chosen and work.model != "resnet110":
            yield "bandwidth", work.model, partial(bandwidth.bandwidth, work, rounds)
    for work in works:
        if "memory" in chosen:
            yield "memory", work.model, partial(processes.peak_memory, work, threads)
    for work in works[:2]:
        if "threads" in chosen:
            yield "threads", work.model, partial(steps.scaling, work, rounds)
    if "startup" in chosen:
        names = "minires", "torch"
        yield "imports", None, lambda: processes.import_times(names, rounds)
        for work in works[:2]:
            yield "startup", work.model, partial(processes.startup, work, threads)
    if "frameworks" in chosen:
        pythons = _pythons(options)
        for name, batch in processes.FRAMEWORKS.items():
            images = options.framework_batch or batch
            yield "frameworks", name, partial(
                processes.framework, name, images, rounds, threads, pythons.get(name)
            )


def _pythons(options: argparse.Namespace) -> dict[str, str]:
    """The interpreters of --python, by framework."""
    pythons: dict[str, str] = {}
    for text in options.python:
        name, equals, path = text.rpartition("=")
        for framework in [name] if equals else OTHERS:
            pythons[framework] = path
    return pythons


if __name__ == "__main__":
    main()
