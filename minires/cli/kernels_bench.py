"""`minires kernels bench`."""

from __future__ import annotations

import math
import re
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from minires.cli import options

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rich.console import Console
    from rich.table import Table

    from minires.bench.conv import ConvReport, Row
    from minires.bench.layers import ConvLayer
    from minires.bench.record import Comparison
    from minires.kernels import Kernel

SHAPE, WEIGHT, PADDING = "16x64x56x56", "64x64x3x3", "1"
DTYPES = {
    "cpu": ("float32", "float64"),
    "cuda": ("float32", "float64", "float16", "bfloat16", "tf32"),
}
"""By device. tf32: float32 arrays whose factors may be rounded."""
SLOW_START = 0.1  # seconds of a first call from which on it is shown


def bench(
    file: Annotated[
        Path | None,
        typer.Argument(metavar="[MY_KERNEL.PY]", help="A file that registers kernels of yours."),
    ] = None,
    against: Annotated[
        str | None,
        typer.Option(
            metavar="NAME,NAME",
            help="Kernels to time beside it (`minires kernels list`), default for the one that "
            "minires chooses, torch for PyTorch. [default: default,im2col, and torch if there]",
        ),
    ] = None,
    layers: Annotated[
        str | None,
        typer.Option(
            metavar="MODEL", callback=options.check_model, help="Every convolution of a network."
        ),
    ] = None,
    batch: Annotated[
        int | None,
        typer.Option(metavar="N", min=1, help="Images, with --layers. [default: 128, 16 at 224]"),
    ] = None,
    size: Annotated[
        int | None,
        typer.Option(metavar="PIXELS", min=1, help="Side of the images, with --layers."),
    ] = None,
    shape: Annotated[
        str | None,
        typer.Option(metavar="NxCxHxW", help=f"One convolution's input. [default: {SHAPE}]"),
    ] = None,
    weight: Annotated[
        str | None, typer.Option(metavar="OxCxKHxKW", help=f"Its weight. [default: {WEIGHT}]")
    ] = None,
    stride: Annotated[str, typer.Option(metavar="N|NxN", help="Of --shape.")] = "1",
    padding: Annotated[
        str | None, typer.Option(metavar="N|NxN", help="Of --shape. [default: 0]")
    ] = None,
    dilation: Annotated[str, typer.Option(metavar="N|NxN", help="Of --shape.")] = "1",
    groups: Annotated[int, typer.Option(metavar="N", min=1, help="Of --shape.")] = 1,
    pick: Annotated[
        str | None,
        typer.Option(
            metavar="PASS,PASS",
            help="Of forward, grad-input and grad-weight. [default: all, or those in the file]",
        ),
    ] = None,
    rounds: Annotated[int, typer.Option(metavar="N", min=1, help="Visits to each kernel.")] = 7,
    dtype: Annotated[
        str,
        typer.Option(metavar="float32|float64", help="On cuda float16, bfloat16 and tf32 too."),
    ] = "float32",
    device: Annotated[str, typer.Option(metavar="cpu|cuda", help="Whose kernels.")] = "cpu",
    threads: Annotated[
        int | None,
        typer.Option(metavar="N", min=1, help="[env: MINIRES_THREADS; default: one per core]"),
    ] = None,
    refresh_limits: Annotated[
        bool, typer.Option("--refresh-limits", help="Measure the machine's limits again.")
    ] = False,
    picture: Annotated[
        Path | None, typer.Option(metavar="PNG", help="Write a roofline picture here.")
    ] = None,
    json: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write the record of this run here.")
    ] = None,
    compare: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="An earlier record: what changed beyond noise?"),
    ] = None,
) -> None:
    """Time convolution kernels side by side, and against what this machine can do.

    A kernel that differs from the float64 reference, on the timed shape or on a ragged one, is
    refused and not timed, and so is one that would take minutes a call; the exit status is then 1.
    Times are medians of interleaved calls, ± half the distance of their quartiles. GFLOP/s count
    the direct algorithm, whatever computes it; the limit is the larger of two: arithmetic at the
    matrix-product rate, bytes at that of copying.

    Example: `minires kernels bench my_kernel.py --against im2col,winograd,torch --layers resnet18`

    Example: `minires kernels bench --shape 16x64x56x56 --weight 64x64x3x3 --padding 1`
    """
    from minires.bench.conv import bench_conv
    from minires.bench.limits import limits
    from minires.bench.record import compare as compare_records
    from minires.bench.record import read_record, write_record
    from minires.bench.roofline import plot_roofline
    from minires.cli.console import output
    from minires.kernels.threads import set_num_threads

    if device not in DTYPES:
        raise typer.BadParameter(f"--device takes {' or '.join(DTYPES)}, got {device!r}")
    if dtype not in DTYPES[device]:
        known = " or ".join(DTYPES[device])
        raise typer.BadParameter(f"--dtype takes {known} on {device}, got {dtype!r}")
    if threads is not None:
        set_num_threads(threads)
    chosen = _layers(layers, batch, size, shape, weight, stride, padding, dilation, groups)
    old = None if compare is None else read_record(compare)
    own = [] if file is None else _load(file, device)
    passes = _passes(pick, own)
    console = output()
    with console.status("", spinner="line") as status:
        status.update("measuring the machine's limits")
        found = limits(refresh=refresh_limits, device=device)
        report = bench_conv(
            chosen, _names(against), passes,
            own=own, rounds=rounds, dtype=dtype, device=device, limit=found,
            progress=status.update,
        )  # fmt: skip
    _show(console, report)
    record = report.record()
    if json is not None:
        write_record(json, record)
        console.print(f"record: {json}", soft_wrap=True)
    if picture is not None and report.timed:
        title = f"Convolutions of {layers}" if layers else f"Convolution {chosen[0].geometry}"
        plot_roofline(report, picture, title)
        console.print(f"picture: {picture}", soft_wrap=True)
    if old is not None:
        _show_comparison(console, compare_records(old, record))
    if report.refused:
        raise typer.Exit(1)


def _layers(
    model: str | None, batch: int | None, size: int | None, shape: str | None,
    weight: str | None, stride: str, padding: str | None, dilation: str, groups: int,
) -> list[ConvLayer]:  # fmt: skip
    """The layers of the options, which name either a network or one convolution."""
    from minires.bench.layers import conv_layers, shape_layer

    if model is not None:
        if shape is not None or weight is not None:
            raise typer.BadParameter("give --layers, or --shape and --weight, not both")
        return conv_layers(model, batch, size)
    if batch is not None or size is not None:
        raise typer.BadParameter("--batch and --size go with --layers; --shape has both in it")
    if (shape is None) != (weight is None):
        raise typer.BadParameter("--shape and --weight go together")
    if shape is None and padding is None:
        padding = PADDING
    return [
        shape_layer(
            _numbers("--shape", shape or SHAPE, 4),
            _numbers("--weight", weight or WEIGHT, 4),
            stride=_numbers("--stride", stride, 2),
            padding=_numbers("--padding", padding or "0", 2),
            dilation=_numbers("--dilation", dilation, 2),
            groups=groups,
        )
    ]


def _numbers(option: str, text: str, count: int) -> tuple[int, ...]:
    """`16x64x56x56` as numbers; one number stands for two."""
    example = SHAPE if count == 4 else "1 or 2x1"
    if not re.fullmatch(r"\d+(x\d+)*", text):
        raise typer.BadParameter(f"{option} takes whole numbers such as {example}, got {text!r}")
    numbers = tuple(map(int, text.split("x")))
    if count == 2 and len(numbers) == 1:
        numbers *= 2
    if len(numbers) != count:
        raise typer.BadParameter(f"{option} takes {count} numbers such as {example}, got {text!r}")
    return numbers


def _load(file: Path, device: str) -> list[Kernel]:
    """The convolution kernels in a file."""
    from minires.bench.gate import PASSES
    from minires.kernels import load

    kernels = load(file)
    own = [k for k in kernels if k.operation in PASSES.values() and k.backend == device]
    if not own:
        others = ", ".join(f"{k.backend}/{k.operation}" for k in kernels)
        raise typer.BadParameter(
            f"{file} registers {others}; what is timed on {device} are its kernels of "
            + ", ".join(PASSES.values())
        )
    return own


def _passes(pick: str | None, own: Sequence[Kernel]) -> list[str]:
    from minires.bench.gate import PASSES

    if pick is None:
        operations = {k.operation for k in own}
        return [name for name, op in PASSES.items() if not operations or op in operations]
    names = {op: name for name, op in PASSES.items()}
    return [names.get(name, name) for name in _names(pick)]


def _names(text: str | None) -> list[str]:
    return [name for name in map(str.strip, (text or "").split(",")) if name]


def _show(console: Console, report: ConvReport) -> None:
    limits, dtype = report.limits, report.rows[0].dtype if report.rows else "float32"
    console.print(
        f"limits of {limits.name}: "
        f"{limits.rate(dtype):,.0f} GFLOP/s in {dtype}, copying {limits.copy_gbs:,.1f} GB/s "
        f"(measured {limits.measured[:10]})",
        soft_wrap=True,
    )
    for layer in dict.fromkeys(row.layer for row in report.rows):
        rows = [row for row in report.rows if row.layer == layer]
        console.print()
        console.print(_heading(rows[0], report), soft_wrap=True)
        console.print(_table(rows))
    notes = []
    if any(row.chosen for row in report.rows):
        notes.append("* what minires chooses")
    starts = {
        row.kernel: max(r.times.first_call for r in report.timed
                        if r.kernel == row.kernel and r.times)
        for row in report.timed
    }  # fmt: skip
    slow = [f"{name} {s:.1f} s" for name, s in starts.items() if s >= SLOW_START]
    if slow:
        notes.append(f"longest first calls (they compile, or load what was): {', '.join(slow)}")
    for name in dict.fromkeys(kernel for _, _, kernel in report.unsupported):
        where = [f"{layer} {op}" for layer, op, kernel in report.unsupported if kernel == name]
        more = f" and {len(where) - 3} more" if len(where) > 3 else ""
        notes.append(f"{name} does not take {'; '.join(where[:3])}{more}")
    for note in notes:
        console.print(note, style="dim", markup=False, soft_wrap=True)
    for row in report.refused:
        console.print(
            f"refused: {row.kernel}, {row.operation} of {row.shape}: {row.refused}",
            style="red", markup=False, soft_wrap=True,
        )  # fmt: skip


def _heading(row: Row, report: ConvReport) -> str:
    shape = "" if row.layer == row.shape else f": {row.shape}"
    memory = row.cost.intensity < report.limits.ridge(row.dtype)
    return (
        f"[bold]{row.layer}[/]{shape}, {row.cost.flops / 1e9:.3g} GFLOP a pass, "
        f"{row.cost.intensity:.3g} per byte: limit {row.limit * 1e3:.3g} ms, by "
        f"{'memory' if memory else 'arithmetic'}"
    )


def _table(rows: Sequence[Row]) -> Table:
    from minires.bench.gate import PASSES
    from minires.cli.console import table

    made = table("kernel", ">ms", ">±", ">GFLOP/s", ">GB/s", ">of limit", ">workspace", ">error")
    made.columns[0].no_wrap = True
    for name, operation in PASSES.items():
        those = [row for row in rows if row.operation == operation]
        if not those:
            continue
        made.add_section()
        made.add_row(f"[dim]{name}[/]")
        fastest = min((r.times.median for r in those if r.times), default=math.nan)
        for row in those:
            made.add_row(*_cells(row, fastest))
    return made


def _cells(row: Row, fastest: float) -> list[str]:
    from minires.cli.console import short

    name = f"  {row.kernel}{' *' if row.chosen else ''}"
    if row.times is None:
        return [f"[red]{name}[/]", "[red]refused[/]"]
    ms = f"{row.times.median * 1e3:.3g}"
    return [
        name,
        f"[bold green]{ms}[/]" if row.times.median == fastest else ms,
        f"{100 * row.times.spread:.0f} %",
        f"{row.gflops:.0f}",
        f"{row.gbs:.1f}",
        f"{100 * (row.share or 0):.0f} %",
        "?" if row.workspace is None else f"{short(row.workspace)}B",
        "" if row.error is None else f"{row.error:.0e}",
    ]


def _show_comparison(console: Console, found: Comparison) -> None:
    from minires.bench.gate import PASSES
    from minires.bench.record import FASTER, GONE, NEW, SLOWER
    from minires.cli.console import table

    console.print()
    for difference in found.differences:
        console.print(f"not the same as then: {difference}", style="yellow", soft_wrap=True)
    if found.drift != 1.0:
        console.print(
            f"the machine: PyTorch took {found.drift:.2f} times as long as then, "
            "which is taken off below"
        )
    judged = [c for c in found.changes if c.ratio is not None]
    changed = [c for c in judged if c.verdict in (FASTER, SLOWER)]
    if changed:
        rows = table("layer", "pass", "kernel", ">then, ms", ">now, ms", ">time", ">noise", "")
        names = {operation: name for name, operation in PASSES.items()}
        for change in changed:
            colour = {FASTER: "green", SLOWER: "red"}[change.verdict]
            rows.add_row(
                change.layer, names[change.operation], change.kernel,
                f"{(change.old or 0) * 1e3:.3g}", f"{(change.new or 0) * 1e3:.3g}",
                f"{100 * ((change.ratio or 1) - 1):+.0f} %", f"{100 * (change.noise or 0):.0f} %",
                f"[{colour}]{change.verdict}[/]",
            )  # fmt: skip
        console.print(rows)
    console.print(f"{len(changed)} of {len(judged)} changed beyond noise")
    for verdict, text in ((NEW, "timed now and not then"), (GONE, "timed then and not now")):
        kernels = Counter(c.kernel for c in found.changes if c.verdict == verdict)
        if kernels:
            shown = ", ".join(f"{name} ({count})" for name, count in kernels.items())
            console.print(f"{text}: {shown}", markup=False, soft_wrap=True)
