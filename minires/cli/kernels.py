"""`minires kernels`: list them, check one of your own, time it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from minires.kernels import Kernel

app = typer.Typer(
    name="kernels",
    help="List the kernels behind each operation, check one of your own, time it.\n\n"
    "Without a command: the list.\n\n"
    "Example: `minires kernels check my_kernel.py`",
    rich_markup_mode="markdown",
    invoke_without_command=True,
)

Operation = Annotated[
    str | None, typer.Argument(metavar="[OPERATION]", help="Only the kernels of this one.")
]


@app.callback()
def _default(context: typer.Context) -> None:
    if context.invoked_subcommand is None:
        list_kernels(None, None)


@app.command("list")
def list_kernels(
    operation: Operation = None,
    files: Annotated[
        list[Path] | None,
        typer.Option("--kernels", metavar="FILE", help="And those of this Python file."),
    ] = None,
) -> None:
    """What computes each operation: backend, dtypes, which geometries, how much memory.

    Of several that fit, the last that is worth it is used; MINIRES_KERNELS=conv2d=NAME chooses.

    Example: `minires kernels list conv2d`
    """
    from minires._names import unknown
    from minires.cli.console import output, short, table
    from minires.kernels import ConvGeometry, available, conv_geometry, load

    for path in files or ():
        load(path)
    found = available()
    names = {kernel.operation for kernel in found}
    if operation is not None and operation not in names:
        raise typer.BadParameter(unknown("operation", operation, names))
    sample = conv_geometry((16, 64, 56, 56), (64, 64, 3, 3), 1, 1)

    def workspace(kernel: Kernel) -> str:
        geometry: ConvGeometry | None = sample if kernel.operation.startswith("conv2d") else None
        if geometry is None or not kernel.supports(geometry, "float32"):
            return ""
        size = kernel.workspace_bytes(geometry, "float32")
        return "" if size is None else f"{short(size)}B"

    rows = table("kernel", "backend", "dtypes", "exact", ">workspace", "supports")
    for column in rows.columns[:-1]:
        column.no_wrap = True
    for name in dict.fromkeys(kernel.operation for kernel in found):
        if operation not in (None, name):
            continue
        rows.add_row(f"[bold]{name}[/]")
        for kernel in found:
            if kernel.operation == name:
                rows.add_row(
                    f"  {kernel.name}",
                    kernel.backend,
                    _dtypes(kernel),
                    "yes" if kernel.exact else "no",
                    workspace(kernel),
                    kernel.constraint,
                )
    output().print(rows)
    if any(kernel.workspace for kernel in found if operation in (None, kernel.operation)):
        output().print(f"workspace: bytes besides arguments and results for {sample} in float32")


def _dtypes(kernel: Kernel) -> str:
    """`float32, 64`, `float16`, `any`."""
    floats = [name.removeprefix("float") for name in kernel.dtypes if name.startswith("float")]
    others = [name for name in kernel.dtypes if not name.startswith("float")]
    return ", ".join(([f"float{', '.join(floats)}"] if floats else []) + others) or "any"
