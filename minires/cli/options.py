"""Options that several commands share, and the checks of names."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from minires._names import unknown


def _checked(kind: str, name: str | None, known: Any) -> str | None:
    if name is not None and name not in known:
        raise typer.BadParameter(unknown(kind, name, known))
    return name


def check_model(name: str | None) -> str | None:
    from minires.models import list_models

    return _checked("model", name, list_models())


def check_recipe(name: str | None) -> str | None:
    from minires.training.recipes import RECIPES

    return _checked("recipe", name, RECIPES)


def check_data(name: str | None) -> str | None:
    from minires.data import list_datasets

    if name is not None and Path(name).is_dir():
        return name
    return _checked("data set", name, list_datasets())


def check_shortcut(name: str | None) -> str | None:
    from minires.models import SHORTCUTS

    return _checked("shortcut", name, SHORTCUTS)


Model = Annotated[
    str | None,
    typer.Option("--model", metavar="NAME", callback=check_model, help="See `minires models`."),
]
Data = Annotated[
    str | None,
    typer.Option(
        "--data",
        metavar="NAME",
        callback=check_data,
        help="digits, cifar10, cifar100, or a folder of images (one sub-folder per class).",
    ),
]
DataDir = Annotated[
    Path | None,
    typer.Option("--data-dir", metavar="DIR", help="Where the files of cifar10 or cifar100 are."),
]
Download = Annotated[
    bool, typer.Option("--download", help="Fetch cifar10 or cifar100 into --data-dir if missing.")
]
Size = Annotated[
    int | None,
    typer.Option(
        "--size", metavar="PIXELS", min=1, help="Side of images from a folder. [default: 224]"
    ),
]
Limit = Annotated[
    int | None,
    typer.Option("--limit", metavar="N", min=1, help="Use N images of each set, for a quick try."),
]
Shortcut = Annotated[
    str | None,
    typer.Option(
        "--shortcut",
        metavar="A|B|C",
        callback=check_shortcut,
        help="A pads with zeros, B projects where the shape changes, C projects everywhere.",
    ),
]
Threads = Annotated[
    int | None,
    typer.Option(
        "--threads",
        metavar="N",
        min=1,
        help="Threads to compute with. [env: MINIRES_THREADS; default: 1 for images of up to "
        "16x16, or else one per core]",
    ),
]


def check_device(name: str | None) -> str | None:
    from minires.kernels.arrays import parse_device

    if name is not None:
        try:
            parse_device(name)
        except ValueError as error:
            raise typer.BadParameter(str(error)) from None
    return name


def check_precision(name: str | None) -> str | None:
    from minires.training.precision import PRECISIONS

    return _checked("precision", name, PRECISIONS)


COMPUTING = "Where and how it is computed"
Device = Annotated[
    str | None,
    typer.Option(
        "--device",
        metavar="cpu|cuda|cuda:N",
        callback=check_device,
        help="cuda needs an NVIDIA GPU and CuPy; see `minires info`. [default: cpu]",
        rich_help_panel=COMPUTING,
    ),
]
Precision = Annotated[
    str | None,
    typer.Option(
        "--precision",
        metavar="fp32|tf32|bf16|fp16",
        callback=check_precision,
        help="Of activations and products, on cuda; weights are kept in float32. [default: fp32]",
        rich_help_panel=COMPUTING,
    ),
]
NoGraph = Annotated[
    bool,
    typer.Option(
        "--no-graph",
        help="On cuda: launch kernels one by one, not whole steps as CUDA graphs.",
        rich_help_panel=COMPUTING,
    ),
]


def load_kernels(paths: list[Path] | None) -> list[Path] | None:
    """Register the kernels of these files, and say which."""
    if paths:
        from minires.cli.console import output
        from minires.kernels import load

        for path in paths:
            names = ", ".join(f"{k.operation} {k.name}" for k in load(path))
            output().print(f"kernels of {path}: {names}", markup=False, soft_wrap=True)
    return paths or None


Kernels = Annotated[
    list[Path] | None,
    typer.Option(
        "--kernels",
        metavar="FILE",
        callback=load_kernels,
        help="Compute with the kernels that this Python file registers; may be repeated.",
    ),
]
