"""What is timed of minires: training steps and inference."""

from __future__ import annotations

from typing import Any

import numpy as np

import minires as mr
import minires.functional as F
from minires.models.resnet import cifar_resnet
from minires.optim import SGD
from versus.work import SETTINGS, Call, Work


def net(name: str, **options: Any) -> Any:
    """A registered network, or the paper's family at the least depth, for rehearsals."""
    if name == "resnet8":
        return cifar_resnet(8, **options)
    return mr.models.create(name, **options)


def training_step(work: Work, model: Any = None) -> Call:
    """One training step: forward, cross-entropy, backward, SGD with momentum and decay."""
    model = net(work.model) if model is None else model
    optimizer = SGD(model.parameters(), **SETTINGS)
    x, labels = mr.tensor(work.images()), work.labels()

    def step() -> float:
        model.zero_grad()
        loss = F.cross_entropy(model(x), labels)
        loss.backward()
        optimizer.step()
        return loss.item()

    return step


def inference(work: Work, model: Any) -> Call:
    """Answers to a batch, batch norm folded into the convolutions."""
    net = mr.nn.fold_batch_norms(model.eval())
    x = mr.tensor(work.images())

    def answer() -> np.ndarray:
        with mr.no_grad():
            return net(x).numpy()

    return answer
