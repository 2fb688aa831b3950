"""A run's folder: settings, metrics, weights and the checkpoint to go on from.

    config.json          the settings
    metrics.jsonl        one line per finished epoch
    model.safetensors    the weights after the last finished epoch, with all that `load` needs
    checkpoint/last.safetensors   weights, optimiser and random state at the end of that epoch
    curve.png            loss and error by epoch

Every file but metrics.jsonl is replaced as a whole, so a crash leaves the old one or the new one.
The checkpoint is written last: what the other files know beyond it is dropped on resuming.
"""

from __future__ import annotations

import datetime
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from minires.files import atomic_write_text, load_file, read_metadata, save_file

StrPath = str | os.PathLike[str]

FORMAT = "minires-run-1"


class Checkpoint(NamedTuple):
    """Arrays by name, and the numbers and names beside them."""

    arrays: dict[str, Any]
    state: dict[str, Any]


class RunFolder:
    """The folder of a run that exists; make one with `create`, find one with `open`."""

    def __init__(self, path: StrPath) -> None:
        self.path = Path(path)

    @classmethod
    def create(cls, path: StrPath, config: Mapping[str, Any]) -> RunFolder:
        """Make the folder with its config.json. It must not exist yet, or be empty.

        Raises FileExistsError if it holds something, NotADirectoryError if it is a file, and
        another OSError if it cannot be made or written.
        """
        folder = Path(path)
        if (folder / "config.json").exists():
            raise FileExistsError(
                f"{folder} holds a run already: resume that, or choose another folder"
            )
        if folder.exists() and not folder.is_dir():
            raise NotADirectoryError(f"{folder} is a file: choose another folder for the run")
        try:
            folder.mkdir(parents=True, exist_ok=True)
            if any(folder.iterdir()):
                raise FileExistsError(f"{folder} is not empty: choose another folder for the run")
            (folder / "checkpoint").mkdir()
            run = cls(folder)
            run.metrics_path.touch()
            text = json.dumps({"format": FORMAT, **config}, indent=2)
            atomic_write_text(folder / "config.json", text + "\n")
        except OSError as error:
            if error.strerror is None:  # raised above, with its own words
                raise
            raise type(error)(f"cannot write the run to {folder}: {error.strerror}") from None
        return run

    @classmethod
    def open(cls, path: StrPath) -> RunFolder:
        """The run in a folder. Raises FileNotFoundError if there is none."""
        folder = Path(path)
        if not (folder / "config.json").is_file():
            what = "no such folder" if not folder.exists() else "it has no config.json"
            raise FileNotFoundError(f"{folder} is not the folder of a run: {what}")
        return cls(folder)

    @property
    def model_path(self) -> Path:
        return self.path / "model.safetensors"

    @property
    def metrics_path(self) -> Path:
        return self.path / "metrics.jsonl"

    @property
    def curve_path(self) -> Path:
        return self.path / "curve.png"

    @property
    def checkpoint_path(self) -> Path:
        return self.path / "checkpoint" / "last.safetensors"

    def config(self) -> dict[str, Any]:
        """The settings. Raises ValueError if they are not those of a run of ours."""
        path = self.path / "config.json"
        try:
            config = json.loads(path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise ValueError(f"{path} is not whole JSON: {error}") from None
        if not isinstance(config, dict) or config.get("format") != FORMAT:
            raise ValueError(f"{path}: expected the format {FORMAT!r}; not a run of this version")
        return config

    def append_metrics(self, record: Mapping[str, Any]) -> None:
        """Add one line, in one write."""
        line = (json.dumps(dict(record), allow_nan=False) + "\n").encode()
        descriptor = os.open(self.metrics_path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
        try:
            os.write(descriptor, line)
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

    def metrics(self) -> list[dict[str, Any]]:
        """The records of the finished epochs. A line that a crash cut short is left out."""
        lines = self.metrics_path.read_text(encoding="utf-8").splitlines(keepends=True)
        return [json.loads(line) for line in lines if line.endswith("\n")]

    def keep_metrics(self, epochs: int) -> list[dict[str, Any]]:
        """Drop the records after the first `epochs`; returns those that stay."""
        records = self.metrics()[:epochs]
        atomic_write_text(self.metrics_path, "".join(json.dumps(r) + "\n" for r in records))
        return records

    def save_checkpoint(self, checkpoint: Checkpoint) -> None:
        """Replace the checkpoint."""
        metadata = {"format": FORMAT, "state": json.dumps(checkpoint.state, sort_keys=True)}
        save_file(self.checkpoint_path, checkpoint.arrays, metadata)

    def load_checkpoint(self) -> Checkpoint:
        """Raises FileNotFoundError if there is none, ValueError if it is truncated."""
        metadata = read_metadata(self.checkpoint_path)
        if metadata.get("format") != FORMAT:
            raise ValueError(f"{self.checkpoint_path} is not a checkpoint of this version")
        return Checkpoint(load_file(self.checkpoint_path), json.loads(metadata["state"]))


def default_folder(label: str, parent: StrPath = "runs") -> Path:
    """`runs/<date>-<label>`, with -2, -3, ... after it if that exists."""
    name = f"{datetime.date.today():%Y-%m-%d}-{label}"
    folder, number = Path(parent) / name, 1
    while folder.exists():
        number += 1
        folder = Path(parent) / f"{name}-{number}"
    return folder
