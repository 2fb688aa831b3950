"""`minires train`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from minires.cli import options

if TYPE_CHECKING:
    from minires.training import Recipe, Run

RECIPE, RUN = "How to train (otherwise by the recipe)", "The run"


def train(
    context: typer.Context,
    data: options.Data = None,
    data_dir: options.DataDir = None,
    model: options.Model = None,
    shortcut: options.Shortcut = None,
    size: options.Size = None,
    limit: options.Limit = None,
    download: options.Download = False,
    validate: Annotated[
        bool,
        typer.Option(
            "--validate", help="Train on 45,000 images of CIFAR and test on the other 5,000."
        ),
    ] = False,
    recipe: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            callback=options.check_recipe,
            help="digits, paper, fast, photos or imagenet. [default: by the data]",
            rich_help_panel=RECIPE,
        ),
    ] = None,
    epochs: Annotated[
        int | None, typer.Option(metavar="N", min=1, rich_help_panel=RECIPE)
    ] = None,
    batch_size: Annotated[
        int | None, typer.Option(metavar="N", min=1, rich_help_panel=RECIPE)
    ] = None,
    lr: Annotated[
        float | None,
        typer.Option(metavar="RATE", min=0.0, help="Learning rate.", rich_help_panel=RECIPE),
    ] = None,
    weight_decay: Annotated[
        float | None, typer.Option(metavar="RATE", min=0.0, rich_help_panel=RECIPE)
    ] = None,
    seed: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            min=0,
            help="Of initialisation, order and augmentation. [default: 0]",
            rich_help_panel=RUN,
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            help="Folder to make for the run. [default: runs/DATE-DATA-MODEL]",
            rich_help_panel=RUN,
        ),
    ] = None,
    resume: Annotated[
        Path | None,
        typer.Option(
            metavar="RUN",
            exists=True,
            help="Go on with the run in this folder, with its own settings.",
            rich_help_panel=RUN,
        ),
    ] = None,
    profile: Annotated[
        bool,
        typer.Option(
            "--profile",
            help="Watch a few steps: print where their time goes, write trace.json into the run.",
            rich_help_panel=RUN,
        ),
    ] = False,
    device: options.Device = None,
    precision: options.Precision = None,
    no_graph: options.NoGraph = False,
    threads: options.Threads = None,
    kernels: options.Kernels = None,
) -> None:
    """Train a network and keep the run in a folder.

    Without options: a ResNet-20 learns to read 8x8 digits.

    Example: `minires train --data cifar10 --data-dir data --download --recipe fast`

    Example: `minires train --data photos/ --size 96 --epochs 20`

    Example: `minires train --data cifar10 --data-dir data --device cuda --precision bf16`

    Example: `minires train --resume runs/2025-01-31-cifar10-resnet20`
    """
    from minires.cli.progress import train_with_display

    computing = {"device": device, "precision": precision, "graph": False if no_graph else None}
    computing = {name: value for name, value in computing.items() if value is not None}
    if resume is not None:
        allowed = ("resume", "threads", "data_dir", "kernels", "profile", "device", "precision",
                   "no_graph")  # fmt: skip
        given = [name for name, value in context.params.items() if value not in (None, False)]
        others = ["--" + name.replace("_", "-") for name in given if name not in allowed]
        if others:
            raise typer.BadParameter(
                f"--resume goes on with the settings of the run: leave out {', '.join(others)}"
            )
        run = _resumed(resume, data_dir, threads, computing)
        _refuse_profile(profile, run.trainer.device)
        if run.finished:
            from minires.cli.console import output

            done = run.trainer.epochs
            output().print(f"{resume}: all {done} epochs are finished", soft_wrap=True)
            return
    else:
        from minires.cli.sets import Source

        _refuse_profile(profile, device)

        source = Source.from_options(data or "digits", data_dir, size, limit, validate)
        changes = {
            "epochs": epochs, "batch_size": batch_size, "lr": lr, "weight_decay": weight_decay,
        }  # fmt: skip
        changes = {name: value for name, value in changes.items() if value is not None}
        run = _new(source, model, shortcut, recipe, changes, seed or 0, out, download, threads,
                   computing)  # fmt: skip
    train_with_display(run, profile)


def _refuse_profile(profile: bool, device: str | None) -> None:
    if profile and device not in (None, "cpu"):
        raise typer.BadParameter(
            "--profile watches the processor, and a GPU works on while it looks: use NVIDIA's "
            "Nsight Systems (nsys profile minires train --no-graph ...)"
        )


def _new(
    source: Any,
    model: str | None,
    shortcut: str | None,
    recipe_name: str | None,
    changes: dict[str, Any],
    seed: int,
    out: Path | None,
    download: bool,
    threads: int | None,
    computing: dict[str, Any],
) -> Run:
    """A run from the options."""
    from minires.cli.sets import use_threads
    from minires.training import Run, default_folder, recipes

    train_set, test_set = source.load("train", download), source.load("test", download)
    recipe: Recipe = recipes.choose(train_set, recipe_name, model).replace(**changes)
    model = model or recipe.model
    return Run.new(
        model,
        train_set,
        test_set,
        recipe,
        options={} if shortcut is None else {"shortcut": shortcut},
        out=out or default_folder(f"{train_set.name}-{model}"),
        seed=seed,
        source=source.as_dict(),
        threads=use_threads(threads, train_set),
        **computing,
    )


def _resumed(
    folder: Path, data_dir: Path | None, threads: int | None, computing: dict[str, Any]
) -> Run:
    """The run in a folder, with its data and its number of threads."""
    from minires.cli.sets import Source
    from minires.kernels.threads import available_cores, set_num_threads
    from minires.training import Run, RunFolder

    config = RunFolder.open(folder).config()
    if threads is None and config["threads"] is not None:
        threads = min(config["threads"], available_cores())
    set_num_threads(threads)
    known = config["source"]
    if known is None:
        raise ValueError(
            f"{folder} was begun from Python: go on there with minires.training.Run.resume"
        )
    if data_dir is not None:
        known = {**known, "data_dir": str(data_dir.absolute())}
    source = Source(**known)
    return Run.resume(folder, source.load("train"), source.load("test"), **computing)
