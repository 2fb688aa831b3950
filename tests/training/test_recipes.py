import json

import numpy as np
import pytest

from minires.data import Dataset, digits
from minires.training import Normalization, Recipe
from minires.training.recipes import RECIPES, choose


def images(name="cifar10", size=32, channels=3, n=6):
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (n, channels, size, size), dtype=np.uint8)
    return Dataset(pixels, np.arange(n) % 2, ["a", "b"], name)


def test_paper_recipe_is_section_4_2():
    recipe = choose(images())
    assert recipe.name == "paper"
    assert (recipe.batch_size, recipe.momentum, recipe.weight_decay) == (128, 0.9, 1e-4)
    assert not recipe.nesterov
    assert recipe.label_smoothing == 0
    assert (recipe.crop_padding, recipe.flip, recipe.normalization) == (4, True, "pixel_mean")
    steps = recipe.total_steps(391)
    assert steps == 64_000
    rate = recipe.learning_rates(steps)
    at = {step: rate(step) for step in (0, 31_999, 32_000, 47_999, 48_000, 63_999)}
    expected = {0: 0.1, 31_999: 0.1, 32_000: 0.01, 47_999: 0.01, 48_000: 0.001, 63_999: 0.001}
    assert at == pytest.approx(expected, rel=1e-12)


def test_paper_recipe_starts_deep_nets_carefully():
    assert choose(images(), "paper", "resnet56").careful_lr is None
    deep = choose(images(), "paper", "resnet110")
    assert (deep.careful_lr, deep.careful_error, deep.lr) == (0.01, 0.8, 0.1)


@pytest.mark.parametrize(
    ("name", "size", "expected"),
    [
        ("digits", 8, "digits"),
        ("cifar100", 32, "paper"),
        ("icons", 64, "fast"),
        ("holiday", 96, "photos"),
    ],
)
def test_the_usual_recipe_of_a_set(name, size, expected):
    assert choose(images(name, size)).name == expected


def test_digits_are_never_mirrored():
    recipe = choose(digits("test"))
    assert not recipe.flip
    assert recipe.crop_padding == 1


def test_unknown_recipe_suggests_the_nearest():
    with pytest.raises(ValueError, match=r"unknown recipe 'papr'\. Did you mean 'paper'\?"):
        choose(images(), "papr")


def test_epochs_take_the_place_of_iterations_and_milestones_move_along():
    recipe = RECIPES["paper"].replace(epochs=4)
    assert recipe.iterations is None
    assert recipe.total_steps(10) == 40
    rate = recipe.learning_rates(40)
    at = [rate(step) for step in (0, 19, 20, 29, 30)]
    assert at == pytest.approx([0.1, 0.1, 0.01, 0.01, 0.001])
    assert recipe.replace(iterations=7).epochs is None


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({"epochs": 0}, ValueError, "epochs must be at least 1, got 0"),
        ({"batch_size": -1}, ValueError, "batch_size must be at least 1, got -1"),
        ({"lr": float("nan")}, ValueError, "lr must be a number from 0 up, got nan"),
        ({"schedule": "onecicle"}, ValueError, "Did you mean 'onecycle'"),
        ({"normalization": "pixels"}, ValueError, "unknown normalization 'pixels'"),
        ({"epochs": 1, "iterations": 1}, ValueError, "one of the two"),
        ({"learning_rate": 1.0}, TypeError, "unknown recipe setting 'learning_rate'"),
    ],
)
def test_bad_settings(change, error, words):
    with pytest.raises(error, match=words):
        RECIPES["fast"].replace(**change)


@pytest.mark.parametrize("name", sorted(RECIPES))
def test_recipes_survive_json(name):
    recipe = RECIPES[name]
    assert Recipe(**json.loads(json.dumps(recipe.as_dict()))) == recipe


@pytest.mark.parametrize("name", sorted(RECIPES))
def test_augmentation_keeps_the_shape_and_is_random(name):
    recipe = RECIPES[name]
    dataset = images(size=40)
    augment = recipe.augmentation(dataset, Normalization.fit(recipe.normalization, dataset))
    first, again, other = (augment(dataset.images, np.random.default_rng(s)) for s in (1, 1, 2))
    assert first.shape == dataset.images.shape
    assert first.dtype == np.float32
    np.testing.assert_array_equal(first, again)
    assert (first != other).any()


def test_padding_is_zero_after_the_mean_is_subtracted():
    dataset = images(n=64)
    dataset.images[:] = 200
    recipe = RECIPES["paper"]
    x = recipe.augmentation(dataset, Normalization.fit("pixel_mean", dataset))(
        dataset.images, np.random.default_rng(0)
    )
    # Every image is its own mean, so the pixels and the padding are alike.
    np.testing.assert_allclose(x, 0, atol=1e-6)
