"""`minires paths`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from minires.cli import options

if TYPE_CHECKING:
    from minires.cli.sets import Source
    from minires.data import Dataset
    from minires.training import Run, TrainedModel

EPOCHS = 6
IMAGES = 1200  # of another set than the digits, unless --limit says otherwise


def paths(
    model: options.Model = None,
    shortcut: options.Shortcut = None,
    html: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Train the net, record its joins in every epoch, and write them as one page for "
            "the browser.",
        ),
    ] = None,
    run: Annotated[
        Path | None,
        typer.Option(
            metavar="RUN", exists=True, help="The net in this folder, trained already."
        ),
    ] = None,
    data: options.Data = None,
    data_dir: options.DataDir = None,
    size: options.Size = None,
    limit: options.Limit = None,
    epochs: Annotated[
        int | None,
        typer.Option(metavar="N", min=1, help=f"To record, with --html. [default: {EPOCHS}]"),
    ] = None,
    batch_size: Annotated[
        int, typer.Option(metavar="N", min=1, help="Images that are looked at.")
    ] = 32,
    seed: Annotated[int, typer.Option(metavar="N", min=0)] = 0,
    threads: options.Threads = None,
) -> None:
    """Show how the gradient divides at every shortcut, and which path lengths carry it.

    Without --html: two tables, for a batch and a new net or a trained one. With it: a short
    training on the digits, or on --data, and a page with a slider over its epochs.

    Example: `minires paths --model resnet20`

    Example: `minires paths --model resnet20 --html paths.html`

    Example: `minires paths --run runs/2025-01-31-digits-resnet20`
    """
    from minires.anatomy.parts import require_blocks
    from minires.cli.sets import Source, use_threads

    _check(run is not None, html, model=model, shortcut=shortcut, epochs=epochs)
    if run is None:
        source = Source.from_options(data or "digits", data_dir, size, limit)
    else:
        source = _source(run, data, data_dir, size, limit)
    train_set = source.load("train")
    use_threads(threads, train_set)
    if run is not None:
        trained = _trained(run, train_set)
        require_blocks("paths", trained.model)
        if html is None:
            _show(trained, train_set, batch_size)
        else:
            _write_known(html, run, trained, train_set, batch_size)
        return
    begun = _begin(source, train_set, model or "resnet20", shortcut, epochs, seed)
    require_blocks("paths", begun.trained.model)
    if html is None:
        _show(begun.trained, train_set, batch_size)
    else:
        _write_new(html, begun, batch_size)


def _check(known: bool, html: Path | None, **training: object) -> None:
    """Raise BadParameter for options that do not go together."""
    given = ["--" + name for name, value in training.items() if value is not None]
    if known and given:
        raise typer.BadParameter(f"--run has a net already: leave out {', '.join(given)}")
    if html is None and training["epochs"] is not None:
        raise typer.BadParameter("--epochs goes with --html: the tables need no training")
    if html is not None and not html.absolute().parent.is_dir():
        raise typer.BadParameter(f"--html: the folder {html.parent} does not exist")


def _source(
    run: Path, data: str | None, data_dir: Path | None, size: int | None, limit: int | None
) -> Source:
    """Where the images of a run come from, or those that the options name instead."""
    from minires.cli.sets import Source
    from minires.training import RunFolder

    known = RunFolder.open(run).config()["source"]
    if data is not None or known is None:
        if data is None:
            raise typer.BadParameter(f"{run} does not say which data it is for: give --data")
        return Source.from_options(data, data_dir, size, limit)
    if data_dir is not None:
        known = {**known, "data_dir": str(data_dir.absolute())}
    return Source(**known)


def _trained(run: Path, train_set: Dataset) -> TrainedModel:
    from minires.training import load_model

    trained = load_model(run)
    if trained.classes != train_set.classes:
        raise ValueError(
            f"{run} tells {len(trained.classes)} classes apart, {train_set.name} has "
            f"{len(train_set.classes)}: give the data it was trained on"
        )
    trained.model.train()
    return trained


def _begin(
    source: Source,
    train_set: Dataset,
    model: str,
    shortcut: str | None,
    epochs: int | None,
    seed: int,
) -> Run:
    """A short training that has not begun."""
    from minires.training import Run, recipes

    test_set, small = source.load("test"), train_set.name == "digits"
    if not small and source.limit is None:
        train_set = train_set.take(min(IMAGES, len(train_set)))
        test_set = test_set.take(min(IMAGES, len(test_set)))
    recipe = recipes.choose(train_set, "digits" if small else "fast", model)
    return Run.new(
        model,
        train_set,
        test_set,
        recipe.replace(epochs=epochs or EPOCHS),
        options={} if shortcut is None else {"shortcut": shortcut},
        seed=seed,
    )


def _show(trained: TrainedModel, train_set: Dataset, batch_size: int) -> None:
    """The joins and the path lengths of a batch, as tables."""
    from minires.anatomy.joins import joins
    from minires.anatomy.paths import paths as follow
    from minires.cli.console import output
    from minires.experiments.recording import look_batch

    x, y = look_batch(train_set, trained.normalization, batch_size)
    console = output()
    divided = joins(trained.model, x, y, arrays=False)
    followed = follow(trained.model, x, y)
    for text in (
        f"{trained.name} on {len(y)} images of {train_set.name}, loss {divided.loss:.4g}\n",
        divided.table(),
        "\nby path length, at the input of the first block\n",
        followed.table(),
        f"\nThe parts add up to the whole gradient: largest relative difference "
        f"{max(divided.max_relative_difference, followed.max_relative_difference or 0):.1e}.",
    ):
        console.print(text, soft_wrap=True, markup=False)


def _write_new(html: Path, run: Run, batch_size: int) -> None:
    """Train, record and write the page."""
    from minires.experiments.graph import write_page
    from minires.experiments.recording import record_training
    from minires.training import epoch_header, epoch_line

    trainer = run.trainer
    print(epoch_header())
    recording = record_training(
        run,
        images=batch_size,
        on_epoch=lambda metrics: print(epoch_line(metrics, trainer.epochs), flush=True),
    )
    write_page(html, run.trained, recording, run.history, _facts(batch_size, trainer.epochs))
    _tell(html)


def _write_known(
    html: Path, run: Path, trained: TrainedModel, train_set: Dataset, batch_size: int
) -> None:
    """Write the page of a run: as it was recorded, or else as the net is now."""
    from minires.experiments.graph import write_page
    from minires.experiments.recording import (
        FILE,
        JoinMoment,
        Recording,
        load_recording,
        look_batch,
    )
    from minires.training import EpochMetrics, RunFolder

    history = [EpochMetrics(**record) for record in RunFolder.open(run).metrics()]
    if (run / FILE).is_file():
        recording = load_recording(run)
    else:
        batch = look_batch(train_set, trained.normalization, batch_size)
        recording = Recording((JoinMoment.of(trained.model, *batch, epoch=len(history)),))
    write_page(html, trained, recording, history, _facts(batch_size, len(history)))
    _tell(html)


def _facts(images: int, epochs: int) -> list[str]:
    counted = f"{epochs} epoch{'' if epochs == 1 else 's'}"
    return [f"{counted} of training", f"gradient of a batch of {images} images"]


def _tell(html: Path) -> None:
    print(f"\n{html}: {html.stat().st_size / 1024:,.0f} KB; open it in any browser")
