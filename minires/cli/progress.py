"""What `minires train` shows: a line per epoch, a line that moves, and a table at the end."""

from __future__ import annotations

import shlex
import time
from collections.abc import Callable
from pathlib import Path

import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn

from minires.bench.ahead import helped
from minires.cli.console import clock, duration, errors, facts, output
from minires.cli.profiling import StepProfiler
from minires.kernels.cpu.compiling import announced
from minires.models import count_parameters
from minires.training import EpochMetrics, Run, epoch_header, epoch_line
from minires.training import Progress as Step


def train_with_display(run: Run, profile: bool = False) -> None:
    """Train what is left of a run. Ctrl-C ends with a word on how to go on.

    profile: watch a few steps, show where their time goes and write trace.json into the folder.
    """
    console = output()
    _show_start(console, run)
    profiler = StepProfiler(console, Path(_folder(run), "trace.json")) if profile else None
    shape, config = run.trainer.train_set.images.shape[1:], run.config
    try:
        with helped(config["model"], config["options"], shape, run.trainer.recipe.batch_size):
            if console.is_terminal:
                _train_with_moving_line(console, run, profiler)
            else:
                _train_with_lines(run, profiler)
    except KeyboardInterrupt:
        done, folder = run.trainer.epoch, _folder(run)
        errors().print(
            f"interrupted in epoch {done + 1}; {done} finished epochs are kept in {folder}\n"
            f"Go on with: minires train --resume {shlex.quote(folder)}",
            soft_wrap=True,
        )
        raise typer.Exit(130) from None
    finally:
        if profiler is not None:
            profiler.finish()
    _show_end(console, run)


def _train_with_lines(run: Run, also: StepProfiler | None) -> None:
    epochs = run.trainer.epochs
    with announced(_tell_once()):
        run.train(lambda metrics: print(epoch_line(metrics, epochs), flush=True), also)


def _train_with_moving_line(console: Console, run: Run, also: StepProfiler | None) -> None:
    trainer = run.trainer
    begun, start = trainer.step, time.monotonic()
    progress = Progress(
        TextColumn("{task.description}"),
        BarColumn(max(4, min(30, console.width - 72)), complete_style="cyan"),
        TextColumn("{task.fields[numbers]}"),
        console=console,
        transient=True,
        refresh_per_second=5,
    )
    width = len(str(trainer.epochs))
    line = progress.add_task(f"epoch {trainer.epoch + 1:{width}}/{trainer.epochs}", numbers="")

    def on_step(step: Step) -> None:
        left = (time.monotonic() - start) / (step.done - begun) * (step.total - step.done)
        doing = "testing" if step.step == step.steps else f"{clock(left)} left"
        progress.update(
            line,
            description=f"epoch {step.epoch:{width}}/{step.epochs}",
            completed=step.step,
            total=step.steps,
            numbers=f"loss {step.loss:.3f}  accuracy {100 * step.accuracy:4.1f} %  "
            f"{step.images_per_second:6,.0f} images/s  {doing}",
        )
        if also is not None:
            also(step)

    def on_epoch(metrics: EpochMetrics) -> None:
        console.print(epoch_line(metrics, trainer.epochs), soft_wrap=True)

    def on_compiled(count: int, seconds: float) -> None:
        text = f"compiling kernels for this machine, once: {count} in {seconds:.0f} s"
        progress.update(line, numbers=text)

    with progress, announced(on_compiled):
        run.train(on_epoch, on_step)


def _tell_once() -> Callable[[int, float], None]:
    """For `announced`, where no line can move: one line on stderr."""
    told: list[int] = []

    def on_compiled(count: int, seconds: float) -> None:
        if not told:
            errors().print("compiling kernels for this machine, once: about a minute")
        told.append(count)

    return on_compiled


def _show_start(console: Console, run: Run) -> None:
    trainer, recipe, config = run.trainer, run.trainer.recipe, run.config
    train_set, test_set = trainer.train_set, trainer.test_set
    size = "x".join(map(str, train_set.images.shape[1:]))
    tested = "" if test_set is None else f" and {len(test_set):,} test"
    careful = ""
    if trainer.careful:
        bound = f"{100 * recipe.careful_error:g} %"
        careful = f", {recipe.careful_lr:g} until the error is below {bound}"
    lines = [
        f"{config['model']} ({count_parameters(trainer.model):,} parameters) on {train_set.name}: "
        f"{len(train_set):,} training{tested} images of {size}, {len(train_set.classes)} classes",
        f"recipe {recipe.name}: {_count(trainer.epochs, 'epoch')}, "
        f"{_count(trainer.total_steps, 'step')}, batch {recipe.batch_size}, "
        f"learning rate {recipe.lr:g} ({recipe.schedule}{careful}), "
        f"weight decay {recipe.weight_decay:g}; seed {config['seed']}, "
        f"{_count(config['threads'], 'thread')}",
        _folder(run),
    ]
    if trainer.on_device is not None:
        lines.append(trainer.on_device.description())
    if trainer.epoch:
        lines.append(f"going on after epoch {trainer.epoch}")
    for line in lines:
        console.print(line, style="dim", soft_wrap=True, markup=False)
    console.print()
    console.print(epoch_header(), style="bold", soft_wrap=True)


def _show_end(console: Console, run: Run) -> None:
    last, best, folder = run.last, run.best, shlex.quote(_folder(run))
    rows = facts()
    rows.add_row("model", str(run.config["model"]))
    rows.add_row("parameters", f"{count_parameters(run.trained.model):,}")
    rows.add_row("epochs", f"{last.epoch} ({last.step:,} steps)")
    rows.add_row("train accuracy", f"{100 * last.train_accuracy:.2f} % (on augmented images)")
    if last.test_accuracy is not None:
        rows.add_row("test accuracy", f"[bold green]{100 * last.test_accuracy:.2f} %[/]")
        rows.add_row("best", f"{100 * (best.test_accuracy or 0):.2f} % after epoch {best.epoch}")
    speed = sum(m.images_per_second for m in run.history) / len(run.history)
    rows.add_row("time", f"{duration(run.seconds)}, training {speed:,.0f} images/s")
    if run.trainer.on_device is not None:
        rows.add_row("steps", run.trainer.on_device.launching())
    rows.add_row("run", _folder(run))
    console.print()
    console.print(rows, soft_wrap=True)
    steps = [
        ("accuracy, class by class", f"minires eval {folder}"),
        ("the learning curve", f"{_folder(run)}/curve.png"),
    ]
    if run.trained.data == "digits":
        command = "minires train --data cifar10 --data-dir data --download --recipe fast"
        steps.append(("colour photographs", command))
    console.print()
    for what, how in steps:
        console.print(f"{what + ':':26}{how}", soft_wrap=True, markup=False)


def _count(number: int, what: str) -> str:
    return f"{number:,} {what}{'' if number == 1 else 's'}"


def _folder(run: Run) -> str:
    return "" if run.folder is None else str(run.folder.path)
