"""`minires gradcheck`."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Annotated

import typer

from minires.cli import options

if TYPE_CHECKING:
    from rich.console import Console

    from minires.testing import GradcheckReport
    from minires.testing.cases import OperationResult


def gradcheck(
    op: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help="Only this operation; may be given several times."),
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(
            metavar="NAME", callback=options.check_model, help="A whole network instead."
        ),
    ] = None,
    size: Annotated[
        int | None,
        typer.Option(
            metavar="PIXELS",
            min=1,
            help="Side of the images for --model. [default: 8, or 64 for ImageNet nets]",
        ),
    ] = None,
    second_order: Annotated[
        bool, typer.Option(help="Check gradients of gradients of operations, too.")
    ] = True,
    seed: Annotated[int, typer.Option(metavar="N", min=0)] = 0,
    kernels: options.Kernels = None,
) -> None:
    """Compare gradients with finite differences, in float64: every operation, or one network.

    The error is |analytic - numeric| along random directions, relative to the gradient's size.
    The exit status is 1 if a gradient is wrong.

    Example: `minires gradcheck --op conv2d`

    Example: `minires gradcheck --model resnet20`
    """
    from minires.cli.console import output

    if model is not None and op:
        raise typer.BadParameter("give --op or --model, not both")
    console = output()
    if model is not None:
        passed = _check_model(console, model, size, seed)
    else:
        if size is not None:
            raise typer.BadParameter("--size goes with --model")
        passed = _check_operations(console, op, second_order, seed)
    if not passed:
        raise typer.Exit(1)


def _check_operations(
    console: Console, names: list[str] | None, second_order: bool, seed: int
) -> bool:
    from minires._names import unknown
    from minires.cli.console import duration, table
    from minires.testing.cases import cases, check_all

    known = list(dict.fromkeys(case.operation for case in cases()))
    for name in names or ():
        if name not in known:
            raise typer.BadParameter(unknown("operation", name, known))
    start, done = time.perf_counter(), 0
    total = len(names or known)
    with console.status("", spinner="line") as status:

        def progress(result: OperationResult) -> None:
            nonlocal done
            done += 1
            status.update(f"{done}/{total}  {result.name}")

        status.update(f"0/{total}")
        results = check_all(names, second_order, seed, progress)
    rows = table("operation", ">uses", ">gradient", ">second order", ">kinks", "verdict")
    for result in results:
        rows.add_row(
            result.name,
            f"{result.cases}",
            _error(result.first_error),
            _error(result.second_error),
            f"{result.kinks}" if result.kinks else "",
            _verdict(result.passed),
        )
    console.print(rows)
    failures = [report for result in results for report in result.failures]
    for report in failures:
        console.print(report.summary(), style="red", markup=False, soft_wrap=True)
    wrong = sum(not result.passed for result in results)
    used = sum(result.cases for result in results)
    took = duration(time.perf_counter() - start)
    if wrong:
        console.print(f"operations with a wrong gradient: {wrong} of {len(results)} ({took})")
    else:
        console.print(f"every gradient right: operations {len(results)}, uses {used} ({took})")
    return not wrong


def _check_model(console: Console, name: str, size: int | None, seed: int) -> bool:
    import numpy as np

    from minires import models, testing
    from minires.autograd import Tensor
    from minires.cli.console import facts
    from minires.functional.random import manual_seed

    # A step through a deep net crosses kinks unless it is small, and a small one has fewer digits.
    eps, rtol = 1e-6, 1e-5
    channels, height, _ = models.entry(name).input_shape
    # Small, but the last batch norm must see more than one pixel of an image.
    side = size or (8 if height <= 32 else 64)
    shape = (2, channels, side, side)
    manual_seed(seed)
    model = models.create(name)
    x = np.random.default_rng(seed).standard_normal(shape)
    start = time.perf_counter()
    with console.status(f"{name} on {'x'.join(map(str, shape))}", spinner="line"):
        report: GradcheckReport = testing.gradcheck(
            model,
            Tensor(x, requires_grad=True),
            eps=eps,
            rtol=rtol,
            seed=seed,
            raise_exception=False,
        )
    report.name = name
    if not report.passed:
        console.print(report.summary(), style="red", markup=False, soft_wrap=True)
        return False
    rows = facts()
    elements = sum(tensor.size for tensor in report.tensors)
    rows.add_row("network", f"{name}, float64, training mode, images {'x'.join(map(str, shape))}")
    rows.add_row("checked", f"{len(report.tensors)} tensors with {elements:,} elements together")
    rows.add_row("directions", f"{len(report.directions)}")
    rows.add_row("worst error", _error(report.worst_error))
    rows.add_row("kinks", f"{report.rejected} steps across one rejected, and repeated shorter")
    rows.add_row("time", f"{time.perf_counter() - start:.1f} s")
    rows.add_row("verdict", _verdict(True))
    console.print(rows)
    for note in report.notes:
        console.print(f"note: {note}", markup=False, soft_wrap=True)
    return True


def _error(value: float) -> str:
    return "-" if value != value else f"{value:.1e}"


def _verdict(passed: bool) -> str:
    return "[green]right[/]" if passed else "[bold red]WRONG[/]"
