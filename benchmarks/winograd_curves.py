"""Does Winograd's rounding show in training? The same runs with it and without, over seeds.

    python benchmarks/winograd_curves.py data --seeds 3 --epochs 5 --images 10000

Trains ResNet-20 on CIFAR-10 from the same initial weights and in the same order with the default
kernels and with `algorithm="exact"`, writes the curves as JSON and as a picture, and says whether
the algorithms differ by more than the seeds do.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import replace
from pathlib import Path

import numpy as np

import minires as mr
from minires.bench.machine import machine

RESULTS = Path(__file__).parent / "results"
ALGORITHMS = {"any": "Winograd where it pays", "exact": "no Winograd"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", help="folder with CIFAR-10")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--images", type=int, default=10_000, help="of the training set")
    options = parser.parse_args()
    train, test = (mr.data.cifar10(options.data, part) for part in ("train", "test"))
    train, test = train.subset(np.arange(options.images)), test.subset(np.arange(2000))
    recipe = replace(mr.training.recipes.choose(train, "fast"), epochs=options.epochs)
    curves: dict[str, list[list[float]]] = {name: [] for name in ALGORITHMS}
    for seed in range(options.seeds):
        for name in ALGORITHMS:
            with mr.kernels.use(algorithm=name):
                run = mr.training.fit("resnet20", train, test, recipe, seed=seed, log=None)
            losses = [metrics.train_loss for metrics in run.history]
            curves[name].append(losses)
            shown = " ".join(f"{loss:.4f}" for loss in losses)
            print(f"seed {seed}, {ALGORITHMS[name]:22}  train loss {shown}, "
                  f"test accuracy {run.history[-1].test_accuracy:.2%}", flush=True)  # fmt: skip
    final = {name: np.array(seeds)[:, -1] for name, seeds in curves.items()}
    between = float(abs(final["any"].mean() - final["exact"].mean()))
    within = float(max(values.std(ddof=1) for values in final.values()))
    print(f"last train loss: algorithms differ by {between:.4f}, seeds by {within:.4f} (deviation)")
    record = {
        "settings": vars(options) | {"data": "cifar10"},
        "train_loss": curves,
        "between_algorithms": between,
        "between_seeds": within,
        "machine": machine(),
    }
    RESULTS.joinpath("winograd_curves.json").write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
