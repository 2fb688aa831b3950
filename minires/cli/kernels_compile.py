"""`minires kernels compile`."""

from __future__ import annotations

import time
from typing import Annotated

import typer


def compile_kernels(
    models: Annotated[
        list[str] | None, typer.Argument(metavar="[MODEL]...", help="Networks. [default: resnet20]")
    ] = None,
    batch: Annotated[
        int | None, typer.Option(metavar="N", min=1, help="Images per batch. [128, or 16 large]")
    ] = None,
    size: Annotated[
        int | None, typer.Option(metavar="PIXELS", min=1, help="Side of the images. [the usual]")
    ] = None,
    processes: Annotated[
        int | None, typer.Option(metavar="N", min=1, help="That compile. [one per core]")
    ] = None,
) -> None:
    """Compile what training a network needs, in several processes, before it is needed.

    Kernels are compiled once per machine and kept on disk. `minires train` does the same by
    itself, with less company; this is for scripts, notebooks and images of containers.

    Example: `minires kernels compile resnet18 resnet50`
    """
    from minires.bench import ahead
    from minires.cli.console import output

    console = output()
    for model in models or ["resnet20"]:
        begun = time.monotonic()
        with console.status(f"{model}: looking for its kernels", spinner="line") as status:

            def progress(done: int, total: int, begun: float = begun, model: str = model) -> None:
                seconds = time.monotonic() - begun
                status.update(f"{model}: {done} of {total} kernels in {seconds:.0f} s")

            count = ahead.compile_kernels(
                model, batch, size, processes=processes, progress=progress
            )
        seconds = time.monotonic() - begun
        console.print(f"{model}: {count} kernels ready after {seconds:.0f} s", soft_wrap=True)
