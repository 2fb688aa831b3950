"""What is usual, what is refused, and what comes back from settings.json."""

import numpy as np
import pytest

from minires.experiments import Settings


def test_quick_without_a_folder_takes_the_digits_and_two_seeds():
    settings = Settings.choose("out", quick=True)
    assert (settings.data, settings.seeds) == ("digits", 2)
    assert Settings.choose("out", data_dir="x").data == "cifar10"
    assert Settings.choose("out", data_dir="x").seeds == 3
    assert Settings.choose("out", quick=True, data_dir="x").data == "cifar10"


@pytest.mark.parametrize(
    ("given", "match"),
    [
        ({}, "needs data_dir"),
        ({"quick": True, "data": "cifar100"}, "needs data_dir"),
        ({"data": "digit"}, "Did you mean 'digits'"),
        ({"quick": True, "seeds": 0}, "seeds must be at least 1"),
        ({"quick": True, "limit": -1}, "limit must be at least 1"),
    ],
)
def test_bad_settings_say_what_to_do(given, match):
    with pytest.raises(ValueError, match=match):
        Settings.choose("out", **given)


def test_settings_come_back(tmp_path):
    settings = Settings.choose(tmp_path, quick=True, models=["resnet20"], runs=["a"], epochs=3)
    settings.save(tmp_path)
    assert Settings.load(tmp_path) == settings
    with pytest.raises(FileNotFoundError, match="no experiment"):
        Settings.load(tmp_path / "nothing")


def test_held_out_images_are_in_neither_other_set():
    sets = Settings.choose("out", quick=True).sets()
    whole = Settings.choose("out", data="digits").sets()
    assert whole.validation is None
    assert len(sets.train) + len(sets.validation) == len(whole.train)
    assert len(sets.validation) == len(whole.train) // 6
    together = np.concatenate([sets.train.images, sets.validation.images]).reshape(-1, 64)
    assert {tuple(i) for i in together} == {tuple(i) for i in whole.train.images.reshape(-1, 64)}
    assert len(Settings.choose("out", quick=True, limit=10).sets().train) == 10


def test_the_full_length_is_the_papers():
    settings = Settings.choose("out", data_dir="x")
    sets = Settings.choose("out", data="digits").sets()
    assert settings.recipe(sets.train, "resnet20").name == "digits"
    quick = Settings.choose("out", quick=True, epochs=4)
    assert quick.recipe(sets.train, "resnet20").epochs == 4
    assert quick.recipe(sets.train, "resnet20").batch_size == 32
