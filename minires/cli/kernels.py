"""`minires kernels`: list them, check one of your own, time it, find the fastest."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from minires.cli.kernels_bench import bench
from minires.cli.kernels_check import check
from minires.cli.kernels_compile import compile_kernels
from minires.cli.kernels_tune import tune

if TYPE_CHECKING:
    from minires.kernels import Kernel

app = typer.Typer(
    name="kernels",
    help="List the kernels behind each operation, check one of your own, time it, find the "
    "fastest.\n\n"
    "Without a command: the list.\n\n"
    "Example: `minires kernels check my_kernel.py`",
    rich_markup_mode="markdown",
    invoke_without_command=True,
)

app.command()(check)
app.command()(bench)
app.command()(tune)
app.command("compile")(compile_kernels)

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

    Of several that fit, the last that is worth it is used, or what `minires kernels tune` found to
    be the fastest; MINIRES_KERNELS=conv2d=NAME chooses.

    Example: `minires kernels list conv2d`
    """
    from minires._names import unknown
    from minires.cli.console import output, short, table
    from minires.kernels import available, conv_geometry, load

    for path in files or ():
        load(path)
    found = available()
    names = list(dict.fromkeys(kernel.operation for kernel in found))
    if operation is not None and operation not in names:
        raise typer.BadParameter(unknown("operation", operation, names))
    shown = [kernel for kernel in found if operation in (None, kernel.operation)]
    sample = conv_geometry((16, 64, 56, 56), (64, 64, 3, 3), 1, 1)

    def workspace(kernel: Kernel) -> str:
        is_conv = kernel.operation.startswith("conv2d")
        if not is_conv or not kernel.supports(sample, "float32"):
            return ""
        size = kernel.workspace_bytes(sample, "float32")
        return "" if size is None else f"{short(size)}B"

    columns = ("kernel", "backend", "dtypes", "exact", ">workspace", "supports")
    cells = {
        kernel: (
            kernel.name,
            kernel.backend,
            " ".join(_short_dtype(dtype) for dtype in kernel.dtypes) or "any",
            "yes" if kernel.exact else "no",
            workspace(kernel),
            kernel.constraint,
        )
        for kernel in shown
    }
    widths = [max(map(len, column)) for column in zip(columns, *cells.values(), strict=True)]
    for name in dict.fromkeys(kernel.operation for kernel in shown):
        rows = table(*columns)
        rows.title, rows.title_justify, rows.title_style = f"\n{name}", "left", "bold"
        rows.show_header = name == shown[0].operation
        for column, width in zip(rows.columns[:-1], widths, strict=False):
            column.min_width, column.no_wrap = width, True
        for kernel in shown:
            if kernel.operation == name:
                rows.add_row(*cells[kernel])
        output().print(rows)
    if any(kernel.workspace for kernel in shown):
        output().print(f"workspace: bytes besides arguments and results for {sample} in float32")


def _short_dtype(name: str) -> str:
    """`f32`, `bf16`."""
    return name.replace("float", "f")
