"""Bottleneck: what three layers of a bottleneck cost beside two layers of a basic block.

He et al. (2015), section 4.1 and figure 5; table 1 for whole nets.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path

from minires import models, nn
from minires.anatomy.truths import BlockCost, BottleneckCost, bottleneck_cost
from minires.experiments.lab import Lab
from minires.experiments.report import Figure, Report, Table

NETS = ("resnet18", "resnet34", "resnet50", "resnet101", "resnet152")
PAPER = {"resnet18": 1.8, "resnet34": 3.6, "resnet50": 3.8, "resnet101": 7.6, "resnet152": 11.3}
BOTTLENECKS = ("resnet50", "resnet101", "resnet152")


@dataclass(frozen=True)
class Net:
    """multiply_adds: of one image. all_projected: parameters and multiply-adds with option C."""

    name: str
    layers: int
    parameters: int
    multiply_adds: int
    all_projected: tuple[int, int]


@dataclass(frozen=True)
class BottleneckResult:
    """blocks: by arithmetic. nets: counted by building them, as the paper strides."""

    blocks: BottleneckCost
    nets: list[Net]


def run(lab: Lab) -> BottleneckResult:
    """Count blocks and whole nets. Nothing is trained."""
    names = lab.settings.models or NETS
    nets = []
    for name in names:
        lab.log(f"counting {name}")
        options = {"stride_on": "1x1"} if "stride_on" in models.entry(name).options else {}
        cost = models.describe(name, **options)
        everywhere = models.describe(name, shortcut="C", **options)
        nets.append(Net(name, cost.layers, cost.parameters, cost.multiply_adds,
                        (everywhere.parameters, everywhere.multiply_adds)))  # fmt: skip
    with nn.init.skip_init():
        return BottleneckResult(bottleneck_cost(), nets)


def describe(result: BottleneckResult) -> Report:
    basic, narrow, projected, wide = result.blocks.examples
    found = [
        f"A basic block on {basic.channels} channels has {basic.total_weights:,} weights; a "
        f"bottleneck on {narrow.channels} has {narrow.total_weights:,} "
        f"({100 * (narrow.total_weights / basic.total_weights - 1):+.1f} %), with four times the "
        "channels between blocks.",
        f"A basic block on {wide.channels} channels would have {wide.total_weights:,}: "
        f"{wide.total_weights / narrow.total_weights:.1f} times as many as the bottleneck.",
        f"A projection on the shortcut makes the bottleneck "
        f"{projected.total_weights / narrow.total_weights:.2f} times as large: the shortcut "
        "connects its two wide ends, so here the identity matters for cost.",
    ]
    by_name = {net.name: net for net in result.nets}
    if {"resnet34", "resnet50"} <= by_name.keys():
        shallow, deep = by_name["resnet34"], by_name["resnet50"]
        found.append(
            f"Two-layer blocks replaced by bottlenecks take ResNet-34 to 50 layers for "
            f"{100 * (deep.multiply_adds / shallow.multiply_adds - 1):+.1f} % multiply-adds."
        )
    for net in result.nets:
        if net.name in BOTTLENECKS:
            parameters, multiply_adds = net.all_projected
            found.append(
                f"{net.name} with projections everywhere (C) would take "
                f"{multiply_adds / net.multiply_adds:.2f} times the multiply-adds and "
                f"{parameters / net.parameters:.2f} times the parameters."
            )
    return Report(
        title="Bottleneck: what do three layers cost?",
        question="A bottleneck has three convolutions where a basic block has two, and four times "
        "as many channels at its ends. How can it cost the same?",
        paper=[
            "The two designs of figure 5, 64 channels basic and 256 channels bottleneck, have "
            "similar time complexity.",
            "Identity shortcuts are particularly important here: with projections instead, time "
            "and size would double, because the shortcut connects the high-dimensional ends.",
            "Multiply-adds: "
            + ", ".join(f"{net} {cost}e9" for net, cost in PAPER.items())
            + " (table 1).",
        ],
        found=found,
        limits=[
            "Multiply-adds are not seconds: 1x1 convolutions move more memory for each one. "
            "Nothing was trained or timed."
        ],
        tables=[
            Table(
                "blocks",
                f"One block at {result.blocks.size}x{result.blocks.size} pixels",
                ("block", "channels", "layers", "weights", "multiply-adds (M)"),
                [_block(cost) for cost in result.blocks.examples],
            ),
            Table(
                "nets",
                "Whole nets for 224x224 images, the bottleneck's stride on its first 1x1",
                ("net", "layers", "parameters", "multiply-adds (G)", "in the paper (G)",
                 "with C everywhere (G)"),
                [(n.name, n.layers, n.parameters, n.multiply_adds / 1e9, PAPER.get(n.name),
                  n.all_projected[1] / 1e9) for n in result.nets],
                digits=2,
            ),
        ],
        figures=[
            Figure("bottleneck", "Cost of blocks by width, and the example of figure 5",
                   partial(_draw, result)),
        ],
    )  # fmt: skip


def _block(cost: BlockCost) -> tuple[str, int, str, int, float]:
    layers = ", ".join(f"{k}x{k} {c}→{o}" for _, k, c, o in cost.layers)
    return cost.name, cost.channels, layers, cost.total_weights, cost.total_multiply_adds / 1e6


def _draw(result: BottleneckResult, path: Path) -> None:
    result.blocks.plot(path)
