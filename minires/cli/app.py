"""The commands under one name, and what happens when one fails.

Exit status: 0 done, 1 failed, 2 wrongly called, 130 interrupted. A failure is one message on
stderr; MINIRES_DEBUG=1 shows the traceback as well.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from typing import Any

import typer

from minires._names import nearest
from minires.cli.evaluate import evaluate
from minires.cli.experiment import experiment
from minires.cli.gradcheck import gradcheck
from minires.cli.info import info
from minires.cli.kernels import app as kernels
from minires.cli.models import models
from minires.cli.paths import paths
from minires.cli.train import train

# Typer exports this one; its bases are the same errors in every version.
_UsageError: Any = typer.BadParameter.__base__
_EXPECTED = (
    ValueError, TypeError, OSError, RuntimeError, ArithmeticError, ImportError, MemoryError
)  # fmt: skip

app = typer.Typer(
    name="minires",
    help="Train, test and take apart residual networks, on an engine written from scratch.\n\n"
    "Example: `minires train` learns to read digits in less than a minute.",
    rich_markup_mode="markdown",
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command()(train)
app.command("eval")(evaluate)
app.command()(models)
app.command()(gradcheck)
app.add_typer(kernels)
app.command()(paths)
app.command()(experiment)
app.command()(info)


def _version(wanted: bool) -> None:
    if wanted:
        import minires

        print(f"minires {minires.__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: bool = typer.Option(
        False, "--version", callback=_version, is_eager=True, help="Show the version and stop."
    ),
) -> None:
    """Shared by all commands."""


def run(arguments: Sequence[str]) -> int:
    """Run the command with these arguments; returns the exit status."""
    arguments = list(arguments) or ["--help"]
    try:
        status = app(arguments, prog_name="minires", standalone_mode=False)
    except _UsageError as error:
        where = error.ctx.command_path if error.ctx is not None else "minires"
        _report(f"{_usage_message(error)}\nTry: {where} --help")
        return 2
    except typer.Abort:
        return 130
    except Exception as error:
        if os.environ.get("MINIRES_DEBUG", "0") not in ("", "0"):
            raise
        text = str(error)
        if not isinstance(error, _EXPECTED) or not text:
            text = f"{type(error).__name__}: {text} (MINIRES_DEBUG=1 shows where)"
        _report(text)
        return 1
    return status if isinstance(status, int) else 0


def _usage_message(error: Any) -> str:
    """What Typer says, but for an unknown option the nearest one."""
    option = getattr(error, "option_name", None)
    if option is None or error.ctx is None or type(error).__name__ != "NoSuchOption":
        text = re.sub(r"^Invalid value: ", "", error.format_message())
        return re.sub(r"^Invalid value for '(.+?)': ", r"\1: ", text)
    known = [name for parameter in error.ctx.command.params for name in parameter.opts]
    guess = nearest(option, known)
    return f"no option {option}." + (f" Did you mean {guess}?" if guess else "")


def _report(message: str) -> None:
    from rich.text import Text

    from minires.cli.console import errors

    text = Text("error: ", style="bold red")
    text.append(message, style="not bold red")
    errors().print(text, soft_wrap=True)
