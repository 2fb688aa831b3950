"""What every ResNet-20 program does: read its options, time some steps, print one line of JSON.

Plain Python and NumPy: the programs run with interpreters that have no minires.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from typing import Any

import numpy as np

LR, MOMENTUM, DECAY = 0.01, 0.9, 1e-4
PARAMETERS = 269_722
"""Of the paper's ResNet-20 on CIFAR-10, option A: weights, gammas and betas, the classifier."""

STAGES = ((16, 1), (32, 2), (64, 2))
"""(width, stride) of the three stages of three blocks each."""


def batch_of(size: int) -> tuple[np.ndarray, np.ndarray]:
    """Images (N, 3, 32, 32) float32 and labels (N,)."""
    rng = np.random.default_rng(0)
    return rng.standard_normal((size, 3, 32, 32), dtype=np.float32), rng.integers(0, 10, size)


def initial_weights() -> tuple[list[np.ndarray], np.ndarray]:
    """The same for every framework: of the 19 convolutions (O, C, 3, 3), from the images on, with
    variance 2 / fan_out, and of the classifier (10, 64). Biases and betas are 0, gammas 1."""
    rng, convolutions, inside = np.random.default_rng(0), [], 3
    for width in [16] + [width for width, _ in STAGES for _ in range(6)]:
        weight = rng.standard_normal((width, inside, 3, 3)) * np.sqrt(2 / (9 * width))
        convolutions.append(weight.astype(np.float32))
        inside = width
    return convolutions, (rng.uniform(-1, 1, (10, 64)) / 8).astype(np.float32)


Build = Callable[[np.ndarray, np.ndarray], tuple[Callable[[], Any], int]]
"""(images, labels) -> a training step, which returns its loss, and the number of parameters."""


def main(name: str, version: str, build: Build) -> None:
    """Read the options, time the steps, print the line."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--steps", type=int, default=5)
    options = parser.parse_args()
    step, parameters = build(*batch_of(options.batch))
    if parameters != PARAMETERS:
        raise SystemExit(f"{name}: {parameters} parameters, ResNet-20 has {PARAMETERS}")
    start = time.perf_counter()
    losses = [float(step())]
    first = time.perf_counter() - start
    losses.append(float(step()))  # another one: a JIT may compile twice
    seconds = []
    for _ in range(options.steps):
        start = time.perf_counter()
        losses.append(float(step()))
        seconds.append(time.perf_counter() - start)
    if not losses[-1] < losses[0]:
        raise SystemExit(f"{name}: the loss did not fall: {losses}")
    print(
        json.dumps(
            {"name": name, "version": version, "batch": options.batch, "first": first,
             "seconds": seconds, "losses": losses}
        )
    )  # fmt: skip
