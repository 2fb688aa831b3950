"""One file that holds a trained model: weights, and what is needed to use them.

safetensors, so any reader of that format gets the weights under their usual names. The metadata
holds the model's name and options, the classes, and the normalisation of the images.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from minires import functional as F
from minires import models
from minires._pickles import is_torch_file
from minires.autograd import Tensor, no_grad
from minires.files import load_file, read_metadata, save_file
from minires.nn import Module, init
from minires.training.normalization import Normalization
from minires.training.runs import RunFolder, StrPath

FORMAT = "minires-model-1"


@dataclass(frozen=True)
class TrainedModel:
    """A model with what it was trained for.

    model: in evaluation mode. classes: the name of each output. normalization: of its images.
    name, options: as for `models.create`; name is None for a model that was not made so.
    data: the name of the training set. image_shape: (C, H, W) of its images.
    """

    model: Module
    classes: tuple[str, ...]
    normalization: Normalization
    name: str | None
    data: str
    image_shape: tuple[int, ...]
    options: Mapping[str, Any] = field(default_factory=dict)

    def predict(self, images: Any) -> np.ndarray:
        """Probabilities, float32 (N, K), of uint8 images (N, C, H, W)."""
        x = self.normalization.transform()(images)
        device = next((p.device for p in self.model.parameters()), "cpu")
        with no_grad():
            logits = self.model(Tensor._wrap(x).to(device))
            return np.asarray(F.softmax(logits, axis=1).cpu().numpy())


def save_model(path: StrPath, trained: TrainedModel) -> None:
    """Write a model with its metadata, atomically. Equal models give equal bytes."""
    metadata = {
        "format": FORMAT,
        "model": json.dumps(trained.name),
        "options": json.dumps(dict(trained.options), sort_keys=True),
        "classes": json.dumps(trained.classes),
        "data": trained.data,
        "image_shape": json.dumps(trained.image_shape),
        "normalization": trained.normalization.to_json(),
    }
    state = {name: tensor.cpu() for name, tensor in trained.model.state_dict().items()}
    save_file(path, state, metadata)


def load_model(path: StrPath, model: Module | None = None) -> TrainedModel:
    """The model of a run's folder or of a `model.safetensors` file.

    model: where to put the weights, if the file does not name a model of `models`.

    Raises FileNotFoundError if there is none, ValueError if the file is truncated, does not fit,
    or was not written by `save_model`.
    """
    path = Path(path)
    if path.is_dir():
        path = RunFolder.open(path).model_path
    metadata = {} if path.is_file() and is_torch_file(path) else read_metadata(path)
    if metadata.get("format") != FORMAT:
        raise ValueError(
            f"{path} does not say which model it belongs to: it was not written by minires. Build "
            "the model and load_file the weights; for `minires eval`, give --model"
        )
    name, options = json.loads(metadata["model"]), json.loads(metadata["options"])
    classes = tuple(json.loads(metadata["classes"]))
    if model is None:
        if name is None:
            raise ValueError(
                f"{path} holds the weights of a model made in Python: build it again and pass it "
                "as model="
            )
        with init.skip_init():
            model = models.create(name, **options)
    model.load_state_dict(load_file(path))
    return TrainedModel(
        model=model.eval(),
        classes=classes,
        normalization=Normalization.from_json(metadata["normalization"]),
        name=name,
        data=metadata["data"],
        image_shape=tuple(json.loads(metadata["image_shape"])),
        options=options,
    )
