"""`minires kernels`."""

from __future__ import annotations

from typing import Annotated

import typer


def kernels(
    operation: Annotated[
        str | None, typer.Argument(metavar="[OPERATION]", help="Only the kernels of this one.")
    ] = None,
) -> None:
    """List the kernels behind each operation; of several, the last that fits is used.

    Example: `minires kernels conv2d`
    """
    from minires._names import unknown
    from minires.cli.console import output, table
    from minires.kernels import available

    found = available()
    names = {kernel.operation for kernel in found}
    if operation is not None and operation not in names:
        raise typer.BadParameter(unknown("operation", operation, names))
    rows = table("operation", "backend", "kernel", "what it does")
    for kernel in found:
        if operation in (None, kernel.operation):
            rows.add_row(kernel.operation, kernel.backend, kernel.name, kernel.summary)
    output().print(rows)
