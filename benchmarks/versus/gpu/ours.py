"""What is timed of minires on a device: training steps and inference, as CUDA graphs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

import minires as mr
import minires.functional as F
from minires.kernels.cuda.graph import Workplace
from minires.optim import SGD
from minires.training.device_steps import DeviceSteps
from minires.training.graphs import GraphedStep
from minires.training.precision import MixedPrecision, kernels_of
from versus.work import SETTINGS, Call, Work


def training_step(work: Work, precision: str, model: Any) -> Call:
    """Forward, cross-entropy, backward, SGD with momentum and decay; nothing is read back."""
    place = Workplace("cuda")
    model.to("cuda")
    optimizer = SGD(model.parameters(), **SETTINGS)
    steps = DeviceSteps(model, optimizer, F.cross_entropy, place, precision=precision)
    steps.begin_epoch()
    x, y = on_device(work.images()), on_device(work.labels())
    return lambda: steps.run(x, y, lr=SETTINGS["lr"])


def inference(work: Work, precision: str, model: Any) -> Callable[[], Any]:
    """Answers to a batch, batch norm folded into the convolutions; they stay on the device."""
    place = Workplace("cuda")
    net = mr.nn.fold_batch_norms(model.eval()).to("cuda")
    mixed = MixedPrecision(net, precision)
    x = on_device(work.images())

    def answer(images: Any) -> Any:
        return mixed(mr.Tensor(images))._data

    graphed = GraphedStep(answer, net, place)

    def call() -> Any:
        with place, kernels_of(precision), mr.no_grad():
            return graphed(x)

    return call


def on_device(array: np.ndarray) -> Any:
    """A copy of an array on the device, in the same memory order."""
    return mr.Tensor(array).to("cuda")._data


def weights(model: Any) -> dict[str, np.ndarray]:
    """Of a net on any device, as arrays of the host."""
    return {name: t.to("cpu").numpy().copy() for name, t in model.state_dict().items()}
