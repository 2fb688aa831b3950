"""`minires experiment`."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from minires.cli import options

if TYPE_CHECKING:
    from minires.experiments import Settings

OUT = Path("experiments")
LENGTH = "Another length (otherwise as in the paper)"


def experiment(
    context: typer.Context,
    name: Annotated[
        str, typer.Argument(metavar="NAME", help="degradation, paths, ... or list.")
    ] = "list",
    quick: Annotated[
        bool, typer.Option("--quick", help="Minutes on two cores instead of the papers' lengths.")
    ] = False,
    data: Annotated[
        str | None,
        typer.Option(
            "--data",
            metavar="NAME",
            help="cifar10, cifar100 or digits. [default: cifar10, or digits for a quick run "
            "without --data-dir]",
        ),
    ] = None,
    data_dir: options.DataDir = None,
    seeds: Annotated[
        int | None,
        typer.Option(metavar="N", min=1, help="Runs of each net. [default: 3, quick 2]"),
    ] = None,
    model: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME", help="A net in place of the paper's; may be given several times."
        ),
    ] = None,
    run: Annotated[
        list[Path] | None,
        typer.Option(
            metavar="RUN",
            exists=True,
            help="A trained net to look into instead of training one (lesion, paths); may be given "
            "several times.",
        ),
    ] = None,
    epochs: Annotated[
        int | None, typer.Option(metavar="N", min=1, rich_help_panel=LENGTH)
    ] = None,
    limit: Annotated[
        int | None,
        typer.Option(
            metavar="N", min=1, help="Train on N images.", rich_help_panel=LENGTH
        ),
    ] = None,
    out: Annotated[
        Path,
        typer.Option(
            metavar="DIR", help="Folder of reports and runs; finished runs in it are used again."
        ),
    ] = OUT,
    resume: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            exists=True,
            help="Go on with the experiment in this folder of --out, with its own settings.",
        ),
    ] = None,
    threads: options.Threads = None,
) -> None:
    """Run an experiment of the papers and write a report on it.

    The report says what the paper found, what this run found, and what it cannot show. An
    interrupted experiment goes on when the same command is given again.

    Example: `minires experiment degradation --quick`

    Example: `minires experiment paths --quick --data-dir data`

    Example: `minires experiment --resume experiments/degradation`
    """
    if resume is not None:
        _resume(context, resume, threads)
        return
    if name == "list":
        _list()
        return
    from minires._names import unknown
    from minires.experiments import EXPERIMENTS, Settings

    if name not in EXPERIMENTS:
        raise typer.BadParameter(unknown("experiment", name, [*EXPERIMENTS, "list"]))
    for net in model or ():
        options.check_model(net)
    settings = Settings.choose(
        out,
        quick=quick,
        data=data,
        data_dir=data_dir,
        seeds=seeds,
        models=tuple(model or ()),
        runs=run or (),
        epochs=epochs,
        limit=limit,
    )
    _carry_out(name, settings, threads)


def _resume(context: typer.Context, folder: Path, threads: int | None) -> None:
    """Go on with an experiment. Raises BadParameter if other settings were given."""
    from minires.experiments import Settings

    given = [
        "NAME" if name == "name" else "--" + name.replace("_", "-")
        for name in context.params
        if name not in ("resume", "threads")
        and getattr(context.get_parameter_source(name), "name", "") == "COMMANDLINE"
    ]
    if given:
        raise typer.BadParameter(
            f"--resume goes on with the settings of the experiment: leave out {', '.join(given)}"
        )
    _carry_out(folder.absolute().name, Settings.load(folder), threads)


def _list() -> None:
    from minires.cli.console import output, table
    from minires.experiments import EXPERIMENTS

    rows = table("experiment", "what it shows", "from")
    for found in EXPERIMENTS.values():
        rows.add_row(found.name, found.summary, found.source)
    output().print(rows)


def _carry_out(name: str, settings: Settings, threads: int | None) -> None:
    from minires.cli.console import errors, output
    from minires.cli.sets import use_threads
    from minires.experiments import carry_out

    use_threads(threads, settings.sets().train)
    console = output()
    try:
        folder = carry_out(
            name, settings, lambda line: console.print(line, markup=False, soft_wrap=True)
        )
    except KeyboardInterrupt:
        begun = shlex.quote(str(Path(settings.out) / name))
        errors().print(
            "interrupted; finished runs and epochs are kept\n"
            f"Go on with: minires experiment --resume {begun}",
            soft_wrap=True,
        )
        raise typer.Exit(130) from None
    page = folder / "report.md"
    found = page.read_text(encoding="utf-8").split("## What this run found\n\n")[1]
    console.print("\n" + found.split("\n\n")[0], markup=False, soft_wrap=True)
    console.print(f"\nreport: {page}", markup=False, soft_wrap=True)
