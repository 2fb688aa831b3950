"""minires and PyTorch side by side on a GPU: layers, memory-bound work, networks, a whole training.

    python benchmarks/gpu_vs_torch.py --data-dir data       every part: about an hour on an H200
    python benchmarks/gpu_vs_torch.py layers train --models resnet50 --precisions bf16
    python benchmarks/gpu_vs_torch.py --rehearse            without a GPU: see below
    python benchmarks/gpu_vs_torch.py --show benchmarks/results/gpu_vs_torch.json

Needs CuPy (`pip install -e ".[cuda12]"`, or cuda13) and PyTorch with CUDA. The peer is the best of
PyTorch eager, as a CUDA graph, and compiled, all channels_last, at the same precision: fp32 with
tf32 off, tf32, bf16. Contenders take turns in one process. What is wrong is not timed: kernels are
held to the float64 reference, nets to PyTorch's answers and to its weights after two steps.

The record is written after every row, so that an interruption loses the row it falls in and
nothing else. A later run with the same --out, of the same commit on the same machine, replaces the
rows that it measures and keeps the others; the record of another commit or machine is put aside.

--rehearse runs everything on tiny shapes, our kernels on the emulator, PyTorch on the processor, so
that nothing fails for a silly reason when there is a GPU. Its times mean nothing, and no record is
written unless --out names a folder.
"""

from __future__ import annotations

import argparse
import json
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from versus.gpu.tables import WHOLE
from versus.work import Work

PRECISIONS = ("fp32", "tf32", "bf16")
PARTS = ("limits", "layers", "memory-bound", "train", "inference", "peak-memory", "recipe")
RESULTS = Path(__file__).parent / "results"
NAME = "gpu_vs_torch.json"
WORK = {
    "resnet20": Work("resnet20", 128, 32),
    "resnet18": Work("resnet18", 128, 224),
    "resnet50": Work("resnet50", 128, 224),
}
REHEARSAL = Work("resnet8", 2, 8)


def main(arguments: list[str] | None = None) -> int:
    """Measure, print, write; the exit status is 1 if a part failed."""
    options = _options(arguments)
    from versus.gpu import tables

    if options.show:
        print(tables.text(json.loads(options.show.read_text())))
        return 0
    try:
        import torch  # noqa: F401
    except ImportError:
        raise SystemExit('PyTorch is not installed: pip install -e ".[bench]"') from None
    from versus.gpu.machine import machine

    out = options.out
    if out is None and not options.rehearse:
        out = RESULTS
    record = Record(out, options)
    with machine(options.rehearse) as found:
        record.begin(found)
        for part in options.parts:
            print(f"== {part}", file=sys.stderr, flush=True)
            save = record.saver(part)
            try:
                MEASURES[part](found, options, save)
            except Exception as error:  # the other parts may have better luck
                traceback.print_exc()
                save(WHOLE, {"failed": f"{type(error).__name__}: {error}"})
    print(tables.text(record.content))
    if record.path is not None:
        print(f"\nrecord: {record.path}")
    return 1 if failures(record.content) else 0


def failures(content: Any) -> list[str]:
    """Why rows failed, wherever they stand in a record."""
    if isinstance(content, dict):
        own = [content["failed"]] if "failed" in content else []
        return own + [why for value in content.values() for why in failures(value)]
    return []


class Record:
    """What is known so far, in a file that is written anew with every row.

    folder: where; None to keep it in memory alone.
    """

    def __init__(self, folder: Path | None, options: argparse.Namespace) -> None:
        self.options = options
        self.path = None if folder is None else folder / NAME
        self.content: dict[str, Any] = {}

    def begin(self, found: Any) -> None:
        """Note the machine, and go on with the file if it is of the same machine and commit."""
        from minires.bench.machine import machine

        facts = machine("cpu" if found.rehearsal else "cuda")
        if self.path is not None:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            if self.path.exists():
                self.content = json.loads(self.path.read_text())
                if _origin(self.content["machine"]) != _origin(facts):
                    date = self.content["machine"]["date"].replace(":", "")
                    self.path.rename(self.path.with_name(f"{self.path.stem}-{date}.json"))
                    self.content = {}
        self.content["machine"] = facts
        self.content["rehearsal"] = found.rehearsal
        self.content["rounds"] = self.options.rounds

    def saver(self, part: str) -> Callable[[str, Any], None]:
        """What a part calls with the name of a row and the row; names may be paths, a/b."""
        rows = self.content.setdefault(part, {})
        rows.pop(WHOLE, None)

        def save(name: str, row: Any) -> None:
            *folders, last = name.split("/")
            place = rows
            for folder in folders:
                place = place.setdefault(folder, {})
            place[last] = row
            self.write()
            shown = f"FAILED: {row['failed']}" if isinstance(row, dict) and "failed" in row else ""
            print(f"{part}: {name} {shown}", file=sys.stderr, flush=True)

        return save

    def write(self) -> None:
        from minires.bench.record import write_record

        if self.path is not None:
            write_record(self.path, self.content)


def _origin(facts: dict[str, Any]) -> tuple[Any, ...]:
    """What the rows of one record have in common."""
    gpu = facts.get("gpu")
    return facts["commit"], facts["cpu"], gpu and gpu["name"], gpu and gpu["driver"]


def _limits(found: Any, options: argparse.Namespace, save: Callable[[str, Any], None]) -> None:
    limits = found.limits
    save("gflops", dict(limits.gflops))
    save("loops", dict(limits.tile))
    save("blas", dict(limits.blas))
    save("copy_gbs", limits.copy_gbs)


def _layers(found: Any, options: argparse.Namespace, save: Callable[[str, Any], None]) -> None:
    """The convolutions of ResNet-50, three passes at each precision, one after the other."""
    from versus.gpu.machine import DTYPES
    from versus.single_layers import one_layer

    from minires.bench.layers import conv_layers

    work = Work("resnet20", 2, 8) if found.rehearsal else WORK["resnet50"]
    chosen = conv_layers(work.model, work.batch, work.size)
    for layer in chosen[:2] if found.rehearsal else chosen:
        for precision in options.precisions:
            settings = {"device": found.place, "dtype": DTYPES[precision], "limit": found.limits}
            try:
                rows = one_layer(work.model, layer, options.rounds, **settings)
            except Exception as error:
                rows = {layer.label: {"failed": f"{type(error).__name__}: {error}"}}
            for name, row in rows.items():
                save(f"{precision}/{name}", row)
        found.release()


def _memory_bound(
    found: Any, options: argparse.Namespace, save: Callable[[str, Any], None]
) -> None:
    from versus.gpu.memory_bound import memory_bound

    memory_bound(found, tuple(options.precisions), options.rounds, save)


def _networks(kind: str) -> Callable[..., None]:
    def measure(found: Any, options: argparse.Namespace, save: Callable[[str, Any], None]) -> None:
        from versus.gpu import steps
        from versus.gpu.theirs import WAYS

        ways = [way for way in WAYS if options.compiled or way != "torch compiled"]
        works, precisions = _works(found, options), options.precisions
        steps.networks(kind, found, works, precisions, options.rounds, ways, save)

    return measure


def _works(found: Any, options: argparse.Namespace) -> list[Work]:
    if found.rehearsal:
        return [REHEARSAL]
    return [
        Work(name, options.batch or WORK[name].batch, WORK[name].size) for name in options.models
    ]


def _peak_memory(found: Any, options: argparse.Namespace, save: Callable[[str, Any], None]) -> None:
    """Of training steps of the last network, each side in a process of its own."""
    from versus import processes

    work = _works(found, options)[-1]
    rehearse = ["rehearse"] if found.rehearsal else []
    found.release()
    for precision in options.precisions:
        program = ["-m", "versus.programs.gpu_peak_memory", *work.arguments]
        runs = {}
        for who in ("minires", "torch"):
            one = processes.run([*program, who, precision, *rehearse], timeout=options.patience)
            runs[who] = {"failed": one["skipped"]} if "skipped" in one else one
        peaks = [runs[who].get("peak") for who in ("minires", "torch")]
        share = peaks[0] / peaks[1] if all(peaks) else None
        save(precision, {"model": work.model, "batch": work.batch, "runs": runs, "share": share})


def _recipe(found: Any, options: argparse.Namespace, save: Callable[[str, Any], None]) -> None:
    """ResNet-20 in full, at each precision that was asked for with --recipe-precision."""
    from versus.gpu import recipe

    from minires.data import cifar10
    from minires.training import recipes

    rule = recipes.RECIPES["paper"]
    if found.rehearsal:
        sets = recipe.rehearsal_sets()
        rule = rule.replace(iterations=4, batch_size=2, milestones=(0.5, 0.75))
    elif options.data_dir is None:
        save("runs", {})
        save("summary", {"failed": "the full run needs --data-dir, the folder of CIFAR-10"})
        return
    else:
        sets = cifar10(options.data_dir, "train"), cifar10(options.data_dir, "test")
        if options.iterations:
            rule = rule.replace(iterations=options.iterations)
    runs: dict[str, Any] = {}

    def keep(name: str, run: Any) -> None:
        runs[name] = run
        save("runs", runs)
        save("summary", recipe.summary(runs))

    seeds = range(1 if found.rehearsal else options.seeds)
    recipe.recipe_runs(found, *sets, rule, options.recipe_precision, seeds, keep)


MEASURES: dict[str, Callable[..., None]] = {
    "limits": _limits, "layers": _layers, "memory-bound": _memory_bound,
    "train": _networks("train"), "inference": _networks("inference"),
    "peak-memory": _peak_memory, "recipe": _recipe,
}  # fmt: skip


def _options(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("parts", nargs="*", metavar="PART", default=list(PARTS),
                        help=f"of {', '.join(PARTS)}; all if none is named")  # fmt: skip
    parser.add_argument("--models", nargs="+", choices=WORK, default=list(WORK))
    parser.add_argument("--precisions", nargs="+", choices=PRECISIONS, default=list(PRECISIONS))
    parser.add_argument("--batch", type=int, help="images per batch, instead of 128")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--no-compile", dest="compiled", action="store_false",
                        help="leave torch.compile out")  # fmt: skip
    parser.add_argument("--data-dir", type=Path, help="of CIFAR-10, for the part recipe")
    parser.add_argument("--seeds", type=int, default=3, help="of the part recipe, on each side")
    parser.add_argument("--iterations", type=int, help="of the part recipe, instead of 64,000")
    parser.add_argument("--recipe-precision", choices=PRECISIONS, default="bf16")
    parser.add_argument("--patience", type=float, default=300.0, metavar="SECONDS",
                        help="for a process that measures memory")  # fmt: skip
    parser.add_argument("--rehearse", action="store_true", help="without a GPU, tiny, no record")
    parser.add_argument("--out", type=Path, help=f"folder for {NAME} [benchmarks/results]")
    parser.add_argument("--show", type=Path, metavar="RECORD", help="print a record and end")
    options = parser.parse_args(arguments)
    wrong = set(options.parts) - set(PARTS)
    if wrong:
        parser.error(f"no part {', '.join(sorted(wrong))}; there are {', '.join(PARTS)}")
    return options


if __name__ == "__main__":
    sys.exit(main())
