"""`minires train --profile`: the tables, the trace, and that training goes on as without it."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

import minires.bench.profile
from minires.bench.limits import Limits
from minires.cli.app import run
from minires.cli.profiling import STEPS, WARM_UP
from minires.kernels import registry

TRAIN = ["train", "--limit", "288", "--epochs", "1", "--batch-size", "32", "--threads", "1"]


@pytest.fixture(autouse=True)
def known_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    made = Limits({"float32": 100.0, "float64": 50.0}, 10.0, 1, "made")
    monkeypatch.setattr(minires.bench.profile, "limits", lambda device="cpu": made)


def metrics(folder: Path) -> list[tuple[float, float]]:
    lines = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
    return [(line["train_loss"], line["test_loss"]) for line in lines]


def test_tables_and_a_trace(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert run([*TRAIN, "--out", str(tmp_path / "watched"), "--profile"]) == 0
    out = capsys.readouterr().out
    assert f"time by operation, per step of {STEPS};" in out
    assert f"time by layer, per step of {STEPS};" in out
    for words in ("conv2d_grad_weight", "engine, in Python", "wall time"):
        assert words in out
    assert re.search(r"^layer\d\.\d\.conv\d ", out, re.MULTILINE)  # those that took the most
    path = tmp_path / "watched" / "trace.json"
    assert f"{path}: open it in https://ui.perfetto.dev" in out.replace("\n", " ")
    events = json.loads(path.read_text())["traceEvents"]
    updates = [e for e in events if e.get("cat") == "update"]
    assert len(updates) == STEPS
    assert registry.observer is None
    assert run([*TRAIN, "--out", str(tmp_path / "plain")]) == 0
    assert metrics(tmp_path / "watched") == metrics(tmp_path / "plain")


def test_watching_ends_with_the_epoch(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    short = [*TRAIN[:2], str(32 * (WARM_UP + 1)), *TRAIN[3:]]  # one step is left after warming up
    assert run([*short, "--out", str(tmp_path / "run"), "--profile"]) == 0
    assert "time by operation; limits" in capsys.readouterr().out
    events = json.loads((tmp_path / "run" / "trace.json").read_text())["traceEvents"]
    assert sum(e.get("cat") == "update" for e in events) == 1


def test_too_few_steps_are_said_to_be(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    short = [*TRAIN[:2], str(32 * WARM_UP), *TRAIN[3:]]
    assert run([*short, "--out", str(tmp_path / "run"), "--profile"]) == 0
    assert "no profile: watching begins after 3 steps" in capsys.readouterr().out
    assert not (tmp_path / "run" / "trace.json").exists()
