"""`minires kernels check`."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from minires.testing.kernel_passes import PassResult
    from minires.testing.kernel_report import KernelReport


def check(
    file: Annotated[
        Path, typer.Argument(metavar="FILE", help="A Python file that registers kernels.")
    ],
    seed: Annotated[int, typer.Option(metavar="N", min=0, help="Of the drawn geometries.")] = 0,
) -> None:
    """Hold every kernel of a file to the contract, against the reference.

    Equal numbers within a bound on rounding, inputs untouched, results in memory of their own, any
    strides, NaN and infinity, the same bits every time, nothing outside of the arrays; then adjoint
    identities and finite differences with all of them in use. The exit status is 1 if one fails.

    Example: `minires kernels check my_kernel.py`
    """
    from minires.cli.console import output
    from minires.kernels import load
    from minires.testing import check_kernel
    from minires.testing.kernel_passes import check_passes

    kernels = load(file)
    reports: list[KernelReport] = []
    with output().status("", spinner="line") as status:
        for kernel in kernels:
            name = kernel.operation, kernel.name

            def progress(text: str, label: str = "/".join(name)) -> None:
                status.update(f"{label}: {text}")

            reports.append(
                check_kernel(
                    *name, backend=kernel.backend, seed=seed, raise_exception=False,
                    progress=progress,
                )
            )  # fmt: skip
        status.update("adjoint identities, finite differences")
        passes = check_passes(kernels) if all(reports) else []
    _show(reports, passes)
    if not (all(reports) and all(result.passed for result in passes)):
        raise typer.Exit(1)


def _show(reports: list[KernelReport], passes: list[PassResult]) -> None:
    from minires.cli.console import output, table
    from minires.testing.kernel_report import KINDS

    console = output()

    def line(text: str, style: str = "") -> None:
        console.print(text, style=style, markup=False, soft_wrap=True)

    rows = table("operation", "kernel", ">calls", ">not taken", ">worst error", "verdict")
    for report in reports:
        rows.add_row(
            report.operation,
            report.name,
            f"{report.calls}",
            f"{report.skipped or ''}",
            f"{report.worst:.2g}" if math.isfinite(report.worst) else "",
            "[green]right[/]" if report.passed else "[bold red]WRONG[/]",
        )
    console.print(rows)
    line("worst error: as a share of the bound on rounding; not taken: ruled out by only=, dtypes=")
    for report in reports:
        label = f"{report.operation}/{report.name}"
        if not report.passed:
            kinds = dict.fromkeys(KINDS[finding.kind] for finding in report.findings)
            line(f"\n{label} {', '.join(kinds)}", "red")
            for text in report.explanation():
                line(f"  {text}")
        for note in report.notes:
            line(f"{label}: {note}")
    for result in passes:
        verdict = "right" if result.passed else "WRONG"
        line(f"{result.what}: {verdict}; {result.text}", "" if result.passed else "red")
    if not all(reports):
        line("\nadjoint identities, finite differences: not tried until the kernels are right")
