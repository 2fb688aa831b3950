"""Recipes: everything that decides how a net is trained, as one value.

    recipe = recipes.choose("cifar10", "paper", model="resnet110")
    recipe = recipe.replace(epochs=10, lr=0.05)

Steps are counted over the whole run: step 0 is the first batch of the first epoch.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Any

from minires import models, optim
from minires._names import unknown
from minires.data import Dataset, transforms
from minires.training.normalization import KINDS, Normalization

SCHEDULES = ("constant", "multistep", "onecycle")


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How to train.

    summary: what it is for, in a few words. model: the net it is meant for.
    epochs, iterations: the length, by one of the two; the last epoch may be cut short.
    lr: the learning rate; with "onecycle" its peak.
    schedule: "constant", "multistep" (times `gamma` at each of `milestones`, fractions of the
        run) or "onecycle" (up during the first `warmup` of the run, then down to nearly zero).
    careful_lr: if not None, the learning rate until the training error, a moving average over
        about 50 batches, is below `careful_error`. Deep nets need it to get started at all.
    label_smoothing: share of the target spread over all classes.
    normalization: "pixel_mean" (subtract the training set's mean image) or "channels" (subtract
        each channel's mean and divide by its standard deviation).
    crop_padding: pad by so many pixels of zero and crop at random; 0 for none.
    resized_crop: bounds of the share of the image that is cut out at random and resized to the
        whole; None for no such crop.
    flip: mirror half of the images. color_pca: shift their colours (RGB only), see `ColorPCA`.

    Raises ValueError for settings out of range.
    """

    name: str
    summary: str
    model: str
    epochs: int | None = None
    iterations: int | None = None
    batch_size: int = 128
    lr: float = 0.1
    momentum: float = 0.9
    nesterov: bool = False
    weight_decay: float = 1e-4
    schedule: str = "multistep"
    milestones: tuple[float, ...] = (0.5, 0.75)
    gamma: float = 0.1
    warmup: float = 0.3
    careful_lr: float | None = None
    careful_error: float = 0.8
    label_smoothing: float = 0.0
    normalization: str = "pixel_mean"
    crop_padding: int = 4
    resized_crop: tuple[float, float] | None = None
    flip: bool = True
    color_pca: bool = False

    def __post_init__(self) -> None:
        if (self.epochs is None) == (self.iterations is None):
            raise ValueError(
                "Recipe: give the length as epochs or as iterations, one of the two; got "
                f"epochs={self.epochs}, iterations={self.iterations}"
            )
        for name in ("epochs", "iterations", "batch_size"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"Recipe: {name} must be at least 1, got {value}")
        for name, allowed in (("schedule", SCHEDULES), ("normalization", KINDS)):
            if getattr(self, name) not in allowed:
                raise ValueError(unknown(name, getattr(self, name), allowed))
        for name in ("lr", "weight_decay"):
            value = getattr(self, name)
            if not (math.isfinite(value) and value >= 0):
                raise ValueError(f"Recipe: {name} must be a number from 0 up, got {value}")
        for name in ("milestones", "resized_crop"):  # lists, when they come from JSON
            if getattr(self, name) is not None:
                object.__setattr__(self, name, tuple(getattr(self, name)))

    def replace(self, **changes: Any) -> Recipe:
        """A copy with some settings changed; `epochs` takes the place of `iterations`, and back.

        Raises TypeError for a setting that does not exist.
        """
        names = [field.name for field in dataclasses.fields(self)]
        for name in changes:
            if name not in names:
                raise TypeError(unknown("recipe setting", name, names))
        for one, other in (("epochs", "iterations"), ("iterations", "epochs")):
            if changes.get(one) is not None:
                changes.setdefault(other, None)
        return dataclasses.replace(self, **changes)

    def total_steps(self, steps_per_epoch: int) -> int:
        """Batches in the whole run."""
        if self.iterations is not None:
            return self.iterations
        return (self.epochs or 0) * steps_per_epoch

    def learning_rates(self, total_steps: int) -> optim.Schedule:
        """The learning rate as a function of the step."""
        if self.schedule == "onecycle":
            return optim.OneCycle(self.lr, total_steps, warmup=self.warmup)
        if self.schedule == "multistep":
            steps = [round(fraction * total_steps) for fraction in self.milestones]
            return optim.MultiStep(self.lr, steps, self.gamma)
        return optim.Constant(self.lr)

    def augmentation(self, dataset: Dataset, normalization: Normalization) -> transforms.Transform:
        """What is done to the images of a training set; random, and normalisation.

        Padding comes after normalisation, so that it is zero for the net, as in the paper.
        """
        height, width = dataset.images.shape[2:]
        steps: list[transforms.Transform] = []
        if self.resized_crop is not None:
            steps.append(transforms.RandomResizedCrop((height, width), self.resized_crop))
        steps.append(normalization.transform())
        if self.crop_padding:
            steps.append(transforms.RandomCrop((height, width), self.crop_padding))
        if self.flip:
            steps.append(transforms.RandomHorizontalFlip())
        if self.color_pca:
            steps.append(transforms.ColorPCA.from_dataset(dataset))
        return transforms.Compose(steps)

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for JSON; `Recipe(**d)` is the way back."""
        return dataclasses.asdict(self)


_RECIPES = (
    Recipe(
        name="digits",
        summary="8x8 digits in less than a minute: one cycle, shifts by a pixel",
        model="resnet20",
        epochs=20,
        batch_size=64,
        lr=0.1,
        nesterov=True,
        weight_decay=2e-3,
        schedule="onecycle",
        label_smoothing=0.1,
        normalization="channels",
        crop_padding=1,
        flip=False,
    ),
    Recipe(
        name="paper",
        summary='"Deep Residual Learning", section 4.2: 64,000 steps',
        model="resnet20",
        iterations=64_000,
    ),
    Recipe(
        name="fast",
        summary="small colour images without a GPU: one cycle, 15 epochs",
        model="resnet20",
        epochs=15,
        batch_size=128,
        lr=0.2,
        nesterov=True,
        weight_decay=5e-4,
        schedule="onecycle",
        label_smoothing=0.1,
        normalization="channels",
    ),
    Recipe(
        name="photos",
        summary="a few hundred or thousand photographs of your own: one cycle, 30 epochs",
        model="resnet18",
        epochs=30,
        batch_size=32,
        lr=0.05,
        nesterov=True,
        weight_decay=5e-4,
        schedule="onecycle",
        label_smoothing=0.1,
        normalization="channels",
        crop_padding=0,
        resized_crop=(0.35, 1.0),
    ),
    Recipe(
        name="imagenet",
        summary='as "Deep Residual Learning", section 3.4, with today\'s crops: 90 epochs',
        model="resnet18",
        epochs=90,
        batch_size=256,
        milestones=(1 / 3, 2 / 3),
        normalization="channels",
        crop_padding=0,
        resized_crop=(0.08, 1.0),
        color_pca=True,
    ),
)
RECIPES = {recipe.name: recipe for recipe in _RECIPES}
USUAL = {"digits": "digits", "cifar10": "paper", "cifar100": "paper"}

CAREFUL_LAYERS = 110
"""Nets from this depth on start carefully in the recipe "paper"."""


def choose(dataset: Dataset, name: str | None = None, model: str | None = None) -> Recipe:
    """The recipe of this name, or the usual one for the set, as it is for this model.

    The recipe "paper" starts nets of 110 layers and more at a learning rate of 0.01 until the
    training error is below 80 % (section 4.2). Raises ValueError for an unknown name.
    """
    if name is None:
        small = max(dataset.images.shape[2:]) <= 64
        name = USUAL.get(dataset.name, "fast" if small else "photos")
    if name not in RECIPES:
        raise ValueError(unknown("recipe", name, RECIPES))
    recipe = RECIPES[name]
    model = model or recipe.model
    if name == "paper" and models.describe(model).layers >= CAREFUL_LAYERS:
        return recipe.replace(careful_lr=0.01)
    return recipe
