"""What is printed of a record: every row of the goals, reached or not."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterator, Mapping
from typing import Any

GOALS = {
    **{f"train resnet20 {p}": 1.5 for p in ("fp32", "tf32", "bf16")},
    **{f"train {m} fp32": 1.2 for m in ("resnet18", "resnet50")},
    **{f"train {m} {p}": 1.0 for m in ("resnet18", "resnet50") for p in ("tf32", "bf16")},
    **{f"inference {m} {p}": 1.0 for m in ("resnet20", "resnet18", "resnet50")
       for p in ("fp32", "tf32", "bf16")},
}  # fmt: skip
"""How many times as fast as PyTorch's best."""
LAYERS = {"fp32": 1.2, "tf32": 1.0, "bf16": 0.9}
"""The same, geometric mean over a net's convolutions and their three passes."""
WHOLE = "whole part"
"""Names the row that says why a part could not be measured at all."""
SHARE, SECONDS, MEMORY = 0.85, 120.0, 0.8
"""Of copy bandwidth; of the full run; of PyTorch's memory."""

Lines = Iterator[str]


def text(record: Mapping[str, Any]) -> str:
    """Every part that was measured."""
    shown = {"limits": _limits, "layers": _layers, "memory-bound": _memory_bound, "train": _steps,
             "inference": _steps, "peak-memory": _peak, "recipe": _recipe}  # fmt: skip
    parts = ["A rehearsal: the times mean nothing."] if record.get("rehearsal") else []
    for name, show in shown.items():
        if name in record:
            parts.append("\n".join([name, "-" * len(name), *_part(show, name, record[name])]))
    return "\n\n".join(parts)


def _part(show: Callable[..., Lines], name: str, rows: Mapping[str, Any]) -> Lines:
    """Its rows, and why it ended if it failed as a whole."""
    known = {key: row for key, row in rows.items() if key != WHOLE}
    if known:
        yield from show(name, known)
    if len(known) < len(rows):
        yield f"FAILED: {rows['whole part']['failed']}"


def _verdict(value: float, goal: float, least: bool = True) -> str:
    reached = value >= goal if least else value <= goal
    return f"goal {goal:g}: {'reached' if reached else 'missed'}"


def _limits(_: str, part: Mapping[str, Any]) -> Lines:
    for dtype, rate in part["gflops"].items():
        yield f"{dtype:10s} {rate / 1e3:8.1f} TFLOP/s"
    yield f"{'copy':10s} {part['copy_gbs']:8.0f} GB/s"


def _steps(part: str, section: Mapping[str, Any]) -> Lines:
    for name, found in section.items():
        if "failed" in found:
            yield f"{name}: FAILED: {found['failed']}"
            continue
        yield f"{name}, batch {found['batch']} at {found['size']}x{found['size']}"
        for way, times in found["times"].items():
            low, high = times["quartiles_ms"]
            yield (
                f"  {way:20s} {found['images_per_second'][way]:10.0f} images/s "
                f"{times['median_ms']:9.3f} ms ({low:.3f} to {high:.3f})"
            )
        for way, why in found["skipped"].items():
            yield f"  {way:20s} skipped: {why}"
        goal = GOALS.get(f"{part} {name}")
        verdict = f", {_verdict(found['ratio'], goal)}" if goal else ""
        yield f"  {found['ratio']:.2f} times as fast as {found['peer']}{verdict}"


def geometric_mean(found: Mapping[str, Any]) -> float | None:
    """Of the ratios of layers and passes; None if there is none."""
    ratios = [one["ratio"] for one in found.values() if one.get("ratio")]
    return math.exp(statistics.fmean(map(math.log, ratios))) if ratios else None


def _layers(_: str, section: Mapping[str, Any]) -> Lines:
    for precision, found in section.items():
        for name, one in found.items():
            if "failed" in one:
                yield f"{name} {precision}: FAILED: {one['failed']}"
                continue
            mine = next(row for row in one["rows"] if row["chosen"])
            if mine["times"] is None:
                yield f"{name} {precision}: {one['kernel']} REFUSED: {mine['refused']}"
                continue
            ratio = f"{one['ratio']:5.2f}" if one["ratio"] else "    -"
            yield (
                f"{name:58s} {precision} {one['kernel']:12s} {mine['times']['median_ms']:8.4f} ms "
                f"{ratio} of {one['peer'] or 'nobody'}, {100 * mine['share']:.0f} % of the limit"
            )
        mean = geometric_mean(found)
        if mean is not None:
            yield f"geometric mean, {precision}: {mean:.2f}, {_verdict(mean, LAYERS[precision])}"


def _memory_bound(_: str, section: Mapping[str, Any]) -> Lines:
    for name, found in section.items():
        if "failed" in found:
            yield f"{name:36s} FAILED: {found['failed']}"
        else:
            yield (
                f"{name:36s} {found['gbs']:8.0f} GB/s, {100 * found['share']:3.0f} % of copying, "
                f"{_verdict(found['share'], SHARE)}"
            )


def _peak(_: str, section: Mapping[str, Any]) -> Lines:
    for precision, found in section.items():
        for name, one in found["runs"].items():
            failed = f"FAILED: {one['failed']}" if "failed" in one else ""
            shown = failed or f"{one['peak'] / 1e6:10,.0f} MB"
            yield f"{precision} {name:10s} {shown}"
        if found["share"] is not None:
            yield f"  {found['share']:.2f}, {_verdict(found['share'], MEMORY, least=False)}"


def _recipe(_: str, section: Mapping[str, Any]) -> Lines:
    summary = section.get("summary", {})
    for name, run in section.get("runs", {}).items():
        if "failed" in run:
            yield f"{name}: FAILED: {run['failed']}"
        else:
            yield f"{name}: {100 * run['test_accuracy']:.2f} %, {run['seconds']:.1f} s"
    for side in ("minires", "torch"):
        if side in summary:
            found = summary[side]
            deviation = found["deviation"]
            spread = "" if deviation is None else f" +- {100 * deviation:.2f}"
            yield (
                f"{side}: {100 * found['accuracy']:.2f} %{spread}, {found['seconds']:.1f} s"
                + (f", {_verdict(found['seconds'], SECONDS, least=False)}"
                   if side == "minires" else "")
            )  # fmt: skip
    if summary.get("within_a_deviation") is not None:
        yield f"within one deviation: {summary['within_a_deviation']}"
    if "failed" in summary:
        yield f"FAILED: {summary['failed']}"
