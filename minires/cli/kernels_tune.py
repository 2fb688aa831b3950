"""`minires kernels tune`."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Annotated

import typer

from minires.cli import options

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rich.table import Table

    from minires.bench.tune import Tuned

DTYPES = ("float32", "float64", "float16", "bfloat16")


def tune(
    model: Annotated[
        str,
        typer.Option(
            "--model", "--layers", metavar="NAME", callback=options.check_model,
            help="The network whose convolutions are measured; see `minires models`.",
        ),
    ] = "resnet20",
    batch: Annotated[
        int | None, typer.Option(metavar="N", min=1, help="Images. [default: 128, 16 at 224]")
    ] = None,
    size: Annotated[
        int | None, typer.Option(metavar="PIXELS", min=1, help="Side of the images.")
    ] = None,
    device: Annotated[str, typer.Option(metavar="cpu|cuda", help="Where it will run.")] = "cpu",
    dtype: Annotated[
        str, typer.Option(metavar="float32|float64", help="float16 and bfloat16 too, on cuda.")
    ] = "float32",
    rounds: Annotated[int, typer.Option(metavar="N", min=1, help="Visits to each kernel.")] = 5,
    threads: options.Threads = None,
) -> None:  # fmt: skip
    """Measure which kernel is the fastest for each convolution, and use it from then on.

    Wrong kernels are refused. The table is kept in the user's cache folder, for this machine and
    these kernels; MINIRES_TUNING=off goes without it, MINIRES_TUNING=FILE names another. Kernels
    that are asked for by name and algorithm="exact" go before it.

    Example: `minires kernels tune --model resnet18 --batch 16`

    Example: `minires kernels tune --model resnet50 --batch 128 --device cuda`
    """  # fmt: skip
    from minires.bench.tune import tune as measure
    from minires.cli.console import output
    from minires.kernels import selection
    from minires.kernels.threads import set_num_threads

    known = DTYPES if device == "cuda" else DTYPES[:2]
    if dtype not in known:
        raise typer.BadParameter(f"--dtype takes {', '.join(known)} on {device}, got {dtype!r}")
    if threads is not None:
        set_num_threads(threads)
    console = output()
    with console.status("", spinner="line") as status:
        found = measure(
            model, batch, size, device=device, dtype=dtype, rounds=rounds, progress=status.update
        )
    console.print(_table(found))
    for one in found:
        for name, why in one.entry.refused.items():
            console.print(f"refused: {name}, {one.operation} of {one.layer.geometry}: {why}",
                          style="red", markup=False, soft_wrap=True)  # fmt: skip
    before, after = _sum(found, "ruled"), _sum(found, "chosen")
    if math.isfinite(before) and after:
        console.print(
            f"all convolutions of a step: {before * 1e3:.3g} ms by the conditions, "
            f"{after * 1e3:.3g} ms by this table"
        )
    console.print(f"table: {selection.table_path(device)}", markup=False, soft_wrap=True)
    if any(one.entry.refused for one in found):
        raise typer.Exit(1)


def _sum(found: Sequence[Tuned], which: str) -> float:
    """Seconds of a step's convolutions; infinite if one of the kernels was refused."""
    return sum(
        one.layer.count * one.entry.seconds.get(getattr(one, which), math.inf) for one in found
    )


def _table(found: Sequence[Tuned]) -> Table:
    from minires.bench.gate import PASSES
    from minires.cli.console import table

    names = {operation: name for name, operation in PASSES.items()}
    rows = table("layer", "pass", "by condition", "fastest", ">times", "milliseconds")
    for one in found:
        times = sorted(one.entry.seconds.items(), key=lambda item: item[1])
        changed = one.chosen != one.ruled
        rows.add_row(
            one.layer.label, names[one.operation], one.ruled,
            f"[bold green]{one.chosen}[/]" if changed else one.chosen,
            f"{one.gain:.2f}" if changed else "",
            ", ".join(f"{name} {seconds * 1e3:.3g}" for name, seconds in times),
        )  # fmt: skip
    return rows
