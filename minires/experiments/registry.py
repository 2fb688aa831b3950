"""The experiments by name, and how one is carried out."""

from __future__ import annotations

import platform
import shlex
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np

import minires
from minires._names import unknown
from minires.experiments.lab import Lab
from minires.experiments.report import Report
from minires.experiments.settings import Settings
from minires.training import Progress


@dataclass(frozen=True)
class Experiment:
    """summary: in a few words. source: where it was published.

    Its module `minires.experiments.<name>` has `run(lab)`, which returns a dataclass of numbers,
    and `describe(result)`, which makes a `Report` of them.
    """

    name: str
    summary: str
    source: str

    def run(self, lab: Lab) -> Any:
        return self._module().run(lab)

    def describe(self, result: Any) -> Report:
        report: Report = self._module().describe(result)
        return report

    def _module(self) -> Any:
        return import_module(f"minires.experiments.{self.name}")


HE, HE2, VEIT = "He et al. 2015", "He et al. 2016", "Veit et al. 2016"
EXPERIMENTS = {
    experiment.name: experiment
    for experiment in (
        Experiment("degradation", "deeper plain nets train worse, residual nets do not",
                   f"{HE}, 4.2, figure 6"),
        Experiment("options", "shortcuts A, B and C side by side", f"{HE}, 3.3 and table 3"),
        Experiment("depth", "how many layers: chosen on held-out images", f"{HE}, 4.2, table 6"),
        Experiment("responses", "how strongly layers respond, by depth", f"{HE}, 4.2, figure 7"),
        Experiment("lesion", "delete and shuffle blocks of a trained net", f"{VEIT}, 4"),
        Experiment("paths", "which path lengths carry the gradient", f"{VEIT}, 5, figure 6"),
        Experiment("vanishing", "gradients along a chain of neurons, and in deep nets",
                   f"{HE}, 4.1"),
        Experiment("identity", "learning the identity with and without a shortcut",
                   f"{HE}, 3.1; {HE2}"),
        Experiment("bottleneck", "what the three layers of a bottleneck cost",
                   f"{HE}, 4.1, figure 5"),
    )
}  # fmt: skip


def carry_out(
    name: str,
    settings: Settings,
    log: Callable[[str], None] = print,
    on_step: Callable[[str, Progress], None] | None = None,
) -> Path:
    """Run an experiment, or go on with it, and write its report; returns the report's folder.

    log: takes lines of progress. on_step: called after every batch with the name of the run.

    Runs that are finished in `settings.out` are used as they are, unfinished ones go on after
    their last epoch. Raises ValueError for an unknown name, and what `Run` raises.
    """
    if name not in EXPERIMENTS:
        raise ValueError(unknown("experiment", name, EXPERIMENTS))
    experiment = EXPERIMENTS[name]
    folder = Path(settings.out) / name
    folder.mkdir(parents=True, exist_ok=True)
    settings.save(folder)
    lab = Lab(settings, log, on_step)
    result = experiment.run(lab)
    report = experiment.describe(result)
    report.limits += lab.limits()
    report.write(folder, result, [f"`{command(name, settings)}`", *lab.how(), _versions()])
    return folder


def command(name: str, settings: Settings) -> str:
    """The command that runs the same experiment."""
    words = ["minires", "experiment", name]
    if settings.quick:
        words.append("--quick")
    if not settings.quick or settings.data_dir is not None or settings.data != "digits":
        words += ["--data", settings.data]
    if settings.data_dir is not None:
        words += ["--data-dir", Path(settings.data_dir).name]
    words += ["--seeds", str(settings.seeds)]
    for model in settings.models:
        words += ["--model", model]
    for run in settings.runs:
        words += ["--run", Path(run).name]
    for option, value in (("--epochs", settings.epochs), ("--limit", settings.limit)):
        if value is not None:
            words += [option, str(value)]
    return shlex.join(words)


def _versions() -> str:
    return (
        f"minires {minires.__version__}, NumPy {np.__version__}, Python "
        f"{platform.python_version()}, {platform.machine()}."
    )
