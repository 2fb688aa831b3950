"""A profile as a trace: the Trace Event format (JSON), which Perfetto and Chrome open.

Modules, operations and kernels are slices that nest by time on one track. An arrow leads from each
operation of the forward pass to the step of backward that differentiates it.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from minires.files import StrPath, atomic_write_text

if TYPE_CHECKING:
    from minires.bench.profile import Span, profile

PROCESS, THREAD = 1, 1


def write_trace(path: StrPath, profile: profile) -> None:
    """Write the spans of a profile; an existing file is replaced as a whole."""
    document = {
        "traceEvents": trace_events(profile),
        "displayTimeUnit": "ms",
        "otherData": {"wall_ms": round(profile.wall * 1e3, 3), "steps": profile.steps},
    }
    atomic_write_text(path, json.dumps(document, separators=(",", ":")) + "\n")


def trace_events(profile: profile) -> list[dict[str, Any]]:
    """The events, in microseconds since the beginning of the profile."""
    events: list[dict[str, Any]] = [
        _event("M", "process_name", args={"name": "minires"}),
        _event("M", "thread_name", args={"name": "Python"}),
    ]
    arrows = 0
    for span in profile.spans:
        start = (span.start - profile.begun) / 1e3
        length = (span.end - span.start) / 1e3
        details = {"cat": span.kind, "dur": length, "args": _details(span)}
        events.append(_event("X", _title(span), ts=start, **details))
        if span.forward is not None:
            arrows += 1
            begun = (span.forward.start - profile.begun) / 1e3
            arrow = {"cat": "backward", "id": arrows}
            events.append(_event("s", "backward of", ts=begun, **arrow))
            events.append(_event("f", "backward of", ts=start, bp="e", **arrow))
    return events


def _event(phase: str, name: str, **rest: Any) -> dict[str, Any]:
    return {"ph": phase, "name": name, "pid": PROCESS, "tid": THREAD, **rest}


def _title(span: Span) -> str:
    if span.kind == "module":
        return span.layer or span.name
    return f"{span.name} ({span.algorithm})" if span.algorithm else span.name


def _details(span: Span) -> dict[str, Any]:
    """What a click on the slice shows."""
    details: dict[str, Any] = {"layer": span.layer, "pass": span.phase}
    if span.kind == "module":
        details["class"] = span.name
    if span.shapes:
        details |= {"shapes": span.shapes, "dtype": span.dtype}
    seconds = (span.end - span.start) * 1e-9
    if span.cost is not None and seconds > 0:
        details |= {"flops": span.cost.flops, "bytes": span.cost.bytes}
        details["GFLOP/s"] = round(span.cost.flops / seconds * 1e-9, 2)
        details["GB/s"] = round(span.cost.bytes / seconds * 1e-9, 2)
    return details
