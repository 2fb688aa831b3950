"""Every convolution of the networks, pass by pass."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from minires.bench.conv import DEFAULT, Row, bench_conv
from minires.bench.gate import PASSES
from minires.bench.layers import ConvLayer, conv_layers
from versus.work import Work


def layers(works: Sequence[Work], rounds: int, say: Callable[[str], None]) -> dict[str, Any]:
    """What minires chooses against PyTorch's better layout; wrong kernels are not timed.

    A geometry that two of the networks have, with the same batch, is timed once.
    """
    seen: set[Any] = set()
    found: dict[str, Any] = {}
    for work in works:
        table = conv_layers(work.model, work.batch, work.size)
        table = [layer for layer in table if layer.geometry not in seen]
        seen.update(layer.geometry for layer in table)
        for layer in table:
            say(f"layers: {work.model} {layer.label}")
            found |= one_layer(work.model, layer, rounds)
    return {"layers": found, **summary(found)}


def one_layer(model: str, layer: ConvLayer, rounds: int, **options: Any) -> dict[str, Any]:
    """Every pass of one layer, by "model layer, operation"; options: of `bench_conv`."""
    report = bench_conv([layer], [DEFAULT, "torch"], rounds=rounds, **options)
    found = {}
    for operation in PASSES.values():
        rows = [row for row in report.rows if row.operation == operation]
        if rows:
            found[f"{model} {layer.label}, {operation}"] = _compared(rows)
    return found


def summary(found: Mapping[str, Any]) -> dict[str, float | None]:
    """The geometric mean of the ratios, and the least."""
    ratios = [entry["ratio"] for entry in found.values() if entry["ratio"] is not None]
    return {
        "geometric_mean": math.exp(statistics.fmean(map(math.log, ratios))) if ratios else None,
        "least": min(ratios, default=None),
    }


def _compared(rows: Sequence[Row]) -> dict[str, Any]:
    mine = next(row for row in rows if row.chosen)
    others = [row for row in rows if not row.chosen and row.times is not None]
    ratio, peer = None, None
    if mine.times is not None and others:
        best = min(others, key=lambda row: row.times.median if row.times else math.inf)
        if best.times is not None:
            ratio, peer = best.times.median / mine.times.median, best.kernel
    return {"kernel": mine.kernel, "peer": peer, "ratio": ratio,
            "rows": [row.record() for row in rows]}  # fmt: skip
