"""A profile's trace against the Trace Event format, as its viewers read it.

The rules are those of Google's document "Trace Event Format": which keys each kind of event has,
that complete events of one thread nest, and that a flow starts and ends inside of slices.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import minires as mr
from minires import functional as F
from minires import nn
from minires.optim import SGD

KEYS = {
    "M": {"name", "ph", "pid", "tid", "args"},
    "X": {"name", "cat", "ph", "ts", "dur", "pid", "tid", "args"},
    "s": {"name", "cat", "ph", "ts", "pid", "tid", "id"},
    "f": {"name", "cat", "ph", "ts", "pid", "tid", "id", "bp"},
}
"""By phase: metadata, complete event (a slice), start and end of a flow (an arrow)."""

ROUNDING = 1e-3  # microseconds: times are whole nanoseconds, written as microseconds


@pytest.fixture(scope="module")
def document(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Two training steps of a small network, as the file has them."""
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(),
                          nn.Linear(4 * 36, 2))  # fmt: skip
    optimizer = SGD(model.parameters(), lr=0.1, momentum=0.9)
    x = mr.Tensor(np.random.default_rng(0).standard_normal((2, 3, 8, 8)).astype(np.float32))
    with mr.profile(steps=2) as profile:
        for _ in range(2):
            model.zero_grad()
            F.cross_entropy(model(x), np.array([0, 1])).backward()
            optimizer.step()
    path = tmp_path_factory.mktemp("trace") / "trace.json"
    profile.save_trace(path)
    return read(path)


def read(path: Path) -> Any:
    def refuse(constant: str) -> None:
        raise ValueError(f"{constant} is no JSON")

    return json.loads(path.read_text(encoding="utf-8"), parse_constant=refuse)


def events(document: dict[str, Any], phase: str) -> list[dict[str, Any]]:
    return [event for event in document["traceEvents"] if event["ph"] == phase]


def test_every_event_has_the_keys_of_its_phase(document: dict[str, Any]) -> None:
    for event in document["traceEvents"]:
        assert set(event) == KEYS[event["ph"]], event
        assert isinstance(event["name"], str)
        assert event["name"]
        assert isinstance(event["pid"], int)
        assert isinstance(event["tid"], int)
        for key in {"ts", "dur"} & set(event):
            assert isinstance(event[key], int | float)
            assert math.isfinite(event[key])
            assert event[key] >= 0
    assert {event["ph"] for event in document["traceEvents"]} == set(KEYS)
    assert document["displayTimeUnit"] in ("ms", "ns")


def test_processes_and_threads_are_named_first(document: dict[str, Any]) -> None:
    named = {(e["name"], e["pid"], e["tid"]) for e in document["traceEvents"][:2]}
    tracks = {(e["pid"], e["tid"]) for e in document["traceEvents"]}
    assert named == {(name, *track) for name in ("process_name", "thread_name") for track in tracks}
    assert all(isinstance(event["args"]["name"], str) for event in events(document, "M"))


def test_times_never_go_back(document: dict[str, Any]) -> None:
    starts = [event["ts"] for event in events(document, "X")]
    assert starts == sorted(starts)
    assert max(e["ts"] + e["dur"] for e in events(document, "X")) <= (
        document["otherData"]["wall_ms"] * 1e3 + 1.0
    )


def test_slices_of_a_thread_lie_inside_one_another_or_apart(document: dict[str, Any]) -> None:
    for before, after in pairs(events(document, "X")):
        end, other = before["ts"] + before["dur"], after["ts"] + after["dur"]
        apart = after["ts"] >= end - ROUNDING
        assert apart or other <= end + ROUNDING, (before, after)


def pairs(slices: list[dict[str, Any]]) -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
    for i, before in enumerate(slices):
        for after in slices[i + 1 :]:
            if (before["pid"], before["tid"]) == (after["pid"], after["tid"]):
                yield before, after


def test_arrows_join_two_slices_and_point_forward_in_time(document: dict[str, Any]) -> None:
    starts = {event["id"]: event for event in events(document, "s")}
    ends = {event["id"]: event for event in events(document, "f")}
    assert starts.keys() == ends.keys()
    assert len(starts) == len(events(document, "s")) > 4
    for number, start in starts.items():
        end = ends[number]
        assert (start["name"], start["cat"]) == (end["name"], end["cat"])
        assert end["bp"] == "e"  # binds to the slice around it, not to the next one
        assert start["ts"] < end["ts"]
        for event in (start, end):
            assert any(
                s["ts"] <= event["ts"] <= s["ts"] + s["dur"] for s in events(document, "X")
            )
