"""ResNet-20 in full by the paper's recipe (section 4.2), by minires and by PyTorch.

Both get the same images, the same normalisation (pixel mean), padding by 4 with random crops and
flips, batches, learning rates and weight decay; what they draw at random differs. PyTorch keeps the
images on the device too, draws there, and replays a CUDA graph of its step.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from typing import Any

import numpy as np
import torch
import torch.nn.functional as TF

import minires as mr
from minires.data import Dataset
from minires.training import Recipe, Trainer
from minires.training.normalization import Normalization
from versus.gpu.machine import Machine, autocast, set_precision
from versus.ours import net
from versus.theirs import TorchResNet


def model_of(found: Machine) -> str:
    """What is trained: the paper's ResNet-20, or less in a rehearsal."""
    return "resnet8" if found.rehearsal else "resnet20"


def recipe_runs(
    found: Machine, train_set: Dataset, test_set: Dataset, recipe: Recipe, precision: str,
    seeds: Sequence[int], save: Callable[[str, Any], None],
) -> None:  # fmt: skip
    """Runs in turn, each saved as "minires seed" or "torch seed"."""
    set_precision(precision)
    for seed in seeds:
        for name, run in (("minires", our_run), ("torch", their_run)):
            try:
                save(f"{name} {seed}", run(found, train_set, test_set, recipe, precision, seed))
            except Exception as error:
                save(f"{name} {seed}", {"failed": f"{type(error).__name__}: {error}"})
            found.release()


def our_run(
    found: Machine, train_set: Dataset, test_set: Dataset, recipe: Recipe, precision: str, seed: int
) -> dict[str, Any]:
    """As `minires train` does it: a test after every epoch is part of the seconds."""
    start = time.perf_counter()
    mr.manual_seed(seed)
    options = {"num_classes": len(train_set.classes), "in_channels": train_set.images.shape[1]}
    model = net(model_of(found), **options)
    trainer = Trainer(
        model, train_set, test_set, recipe, seed=seed, device="cuda", precision=precision
    )
    history = [metrics.as_dict() for metrics in trainer.run()]
    return {
        "seconds": time.perf_counter() - start,
        "test_accuracy": history[-1]["test_accuracy"],
        "images_per_second": statistics.median(m["images_per_second"] for m in history),
        "curve": [[m["epoch"], m["train_loss"], m["test_accuracy"]] for m in history],
    }


def their_run(
    found: Machine, train_set: Dataset, test_set: Dataset, recipe: Recipe, precision: str, seed: int
) -> dict[str, Any]:
    """The same in PyTorch; the test comes once, at the end."""
    start = time.perf_counter()
    torch.manual_seed(seed)
    training = _TorchTraining(found, train_set, recipe, precision)
    epochs = training.train()
    accuracy = training.test(test_set)
    found.synchronize()
    seconds = time.perf_counter() - start
    return {"seconds": seconds, "test_accuracy": accuracy, "curve": epochs}


class _TorchTraining:
    """A net, its images on the device, and a step that is a CUDA graph."""

    def __init__(
        self, found: Machine, train_set: Dataset, recipe: Recipe, precision: str
    ) -> None:
        self.found, self.recipe, self.precision = found, recipe, precision
        self.normalization = Normalization.fit(recipe.normalization, train_set)
        images = np.ascontiguousarray(self.normalization.transform()(train_set.images))
        p = recipe.crop_padding
        # NHWC, so that a crop's pixels are rows, and the batch comes out channels_last.
        padded = TF.pad(torch.tensor(images), (p, p, p, p)).permute(0, 2, 3, 1).contiguous()
        self.padded = padded.to(found.torch_device)
        self.labels = torch.tensor(np.asarray(train_set.labels)).to(found.torch_device)
        self.size = images.shape[2:]
        torch_net = TorchResNet(model_of(found))
        self.net = torch_net.to(found.torch_device, memory_format=torch.channels_last)
        fused = found.torch_device == "cuda"
        self.optimizer = torch.optim.SGD(
            self.net.parameters(), lr=recipe.lr, momentum=recipe.momentum,
            weight_decay=recipe.weight_decay, fused=fused,
        )  # fmt: skip
        self.total = torch.zeros((), device=found.torch_device)

    def train(self) -> list[list[float]]:
        """The recipe's steps; [epoch, mean training loss] of each epoch."""
        batch, count = self.recipe.batch_size, len(self.labels)
        steps = self.recipe.total_steps(-(-count // batch))
        rates = self.recipe.learning_rates(steps)
        curve, rate, done, epoch = [], None, 0, 0
        with ExitStack() as held:
            while done < steps:
                order = torch.randperm(count, device=self.found.torch_device)
                self.total.zero_()
                first = done
                for chosen in order.split(batch):
                    if done == steps:
                        break
                    x, y = self.images(chosen), self.labels[chosen]
                    if rates(done) != rate:  # a graph keeps the learning rate it was captured with
                        rate = rates(done)
                        for group in self.optimizer.param_groups:
                            group["lr"] = rate
                        replay = None
                    if len(chosen) < batch:
                        self.step(x, y)
                    elif replay is None:
                        held.close()
                        replay = self._captured(held, x, y)
                    else:
                        self.x.copy_(x)
                        self.y.copy_(y)
                        replay()
                    done += 1
                epoch += 1
                curve.append([epoch, float(self.total) / (done - first)])
        return curve

    def _captured(self, held: ExitStack, x: Any, y: Any) -> Callable[[], Any]:
        """A graph of the step, which has been taken once with x and y."""
        self.x, self.y = x.clone(memory_format=torch.channels_last), y.clone()
        kept = {k: v.clone() for k, v in self.net.state_dict().items()}
        if self.found.rehearsal:
            self.step(self.x, self.y)
            return lambda: self.step(self.x, self.y)
        # Warming up takes steps; they are undone, and the one that counts is replayed.
        momenta = [
            state["momentum_buffer"].clone() if "momentum_buffer" in state else None
            for state in (self.optimizer.state[p] for p in self.net.parameters())
        ]
        total = self.total.clone()
        replay = held.enter_context(self.found.graph(lambda: self.step(self.x, self.y)))
        self.net.load_state_dict(kept)
        for parameter, before in zip(self.net.parameters(), momenta, strict=True):
            buffer = self.optimizer.state[parameter]["momentum_buffer"]
            buffer.zero_() if before is None else buffer.copy_(before)
        self.total.copy_(total)
        replay()
        return replay

    def step(self, x: Any, y: Any) -> Any:
        self.optimizer.zero_grad(set_to_none=True)
        with autocast(self.found, self.precision):
            loss = TF.cross_entropy(self.net(x), y)
        loss.backward()
        self.optimizer.step()
        self.total += loss.detach()

    def images(self, chosen: Any) -> Any:
        """A batch, cropped at random places, half of it mirrored: (N, C, H, W), channels_last."""
        (H, W), n, device = self.size, len(chosen), self.padded.device
        places = 2 * self.recipe.crop_padding + 1
        down, right = (torch.randint(places, (n, 1), device=device) for _ in range(2))
        rows = down + torch.arange(H, device=device)
        columns = right + torch.arange(W, device=device)
        x = self.padded[chosen[:, None, None], rows[:, :, None], columns[:, None, :]]
        if self.recipe.flip:
            mirrored = torch.rand(n, 1, 1, 1, device=device) < 0.5
            x = torch.where(mirrored, x.flip(2), x)
        return x.permute(0, 3, 1, 2)

    def test(self, test_set: Dataset, batch: int = 1000) -> float:
        """The share of right answers."""
        images = np.ascontiguousarray(self.normalization.transform()(test_set.images))
        labels = torch.tensor(np.asarray(test_set.labels)).to(self.found.torch_device)
        x = torch.tensor(images).to(self.found.torch_device)
        x = x.contiguous(memory_format=torch.channels_last)
        self.net.eval()
        right = 0
        with torch.inference_mode(), autocast(self.found, self.precision):
            for first in range(0, len(labels), batch):
                answers = self.net(x[first : first + batch]).argmax(1)
                right += int((answers == labels[first : first + batch]).sum())
        return right / len(labels)


def summary(runs: Mapping[str, Any]) -> dict[str, Any]:
    """Mean and deviation of accuracy and the median of the seconds, by side; whether the means are
    within one deviation of each other."""
    found: dict[str, Any] = {}
    for side in ("minires", "torch"):
        those = [run for name, run in runs.items()
                 if name.startswith(f"{side} ") and "failed" not in run]  # fmt: skip
        if those:
            accuracies = [run["test_accuracy"] for run in those]
            found[side] = {
                "runs": len(those),
                "accuracy": statistics.fmean(accuracies),
                "deviation": statistics.stdev(accuracies) if len(those) > 1 else None,
                "seconds": statistics.median(run["seconds"] for run in those),
            }
    if {"minires", "torch"} <= set(found):
        deviations = [found[side]["deviation"] for side in ("minires", "torch")]
        apart = abs(found["minires"]["accuracy"] - found["torch"]["accuracy"])
        known = None not in deviations
        found["within_a_deviation"] = apart <= max(deviations) if known else None
    return found


def rehearsal_sets() -> tuple[Dataset, Dataset]:
    """A few small images in place of CIFAR-10."""
    rng = np.random.default_rng(0)

    def images(count: int, split: str) -> Dataset:
        pixels = rng.integers(0, 256, (count, 3, 8, 8), np.uint8)
        classes = [str(i) for i in range(10)]
        return Dataset(pixels, np.arange(count) % 10, classes, "rehearsal", split)

    return images(5, "train"), images(2, "test")
