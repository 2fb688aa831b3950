"""`minires models`."""

from __future__ import annotations

from typing import Annotated

import typer


def models(
    pattern: Annotated[
        str, typer.Argument(metavar="[PATTERN]", help="Only these, for example 'plain*'.")
    ] = "*",
) -> None:
    """List the networks with their size and cost.

    Layers are counted as in "Deep Residual Learning": convolutions and fully connected layers,
    without projections on shortcuts. Multiply-adds are for one image of the size shown.

    Example: `minires models 'resnet1*'`
    """
    from minires.cli.console import output, short, table
    from minires.models import count_parameters, create, entry, list_models, weighted_layers
    from minires.nn import init

    names = list_models(pattern)
    if not names:
        raise typer.BadParameter(f"no model matches {pattern!r}; `minires models` lists them all")
    rows = table("model", ">layers", ">parameters", ">multiply-adds", ">input", ">classes")
    for name in names:
        shape = entry(name).input_shape
        with init.skip_init():
            model = create(name)
        layers = weighted_layers(model, shape)
        rows.add_row(
            name,
            f"{sum(not layer.shortcut for layer in layers)}",
            f"{count_parameters(model):,}",
            short(sum(layer.multiply_adds for layer in layers)),
            "x".join(map(str, shape)),
            f"{layers[-1].output_shape[0]}",
        )
    output().print(rows)
