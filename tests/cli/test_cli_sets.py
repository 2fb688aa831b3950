import numpy as np
import pytest

from minires.cli.sets import Source, use_threads
from minires.data import Dataset
from minires.kernels.threads import VARIABLE, available_cores, num_threads, set_num_threads


@pytest.fixture(autouse=True)
def threads_restored(monkeypatch):
    monkeypatch.delenv(VARIABLE, raising=False)
    yield
    monkeypatch.undo()
    set_num_threads(None)


def images(height, width):
    return Dataset(np.zeros((2, 1, height, width), np.uint8), np.zeros(2, np.int64), ["only"])


def test_small_images_get_one_thread_unless_told_otherwise(monkeypatch):
    many = available_cores()
    assert use_threads(None, images(16, 16)) == 1
    assert num_threads() == 1
    assert use_threads(None, images(16, 17)) == many
    assert use_threads(many, images(8, 8)) == many
    assert use_threads(1, images(224, 224)) == 1
    monkeypatch.setenv(VARIABLE, str(many))
    assert use_threads(None, images(8, 8)) == many


def test_validation_holds_images_out_of_the_training_set(monkeypatch):
    asked = []

    def load(name, split, data_dir, **options):
        asked.append((name, split, data_dir, options))
        return images(32, 32)

    monkeypatch.setattr("minires.data.load", load)
    source = Source("cifar10", "/data", validate=True)
    source.load("train", download=True)
    source.load("test")
    Source("cifar10", "/data").load("test")
    assert [split for _, split, _, _ in asked] == ["train45k", "val5k", "test"]
    assert [options["download"] for *_, options in asked] == [True, False, False]


def test_limit_takes_images_from_all_over_the_set(monkeypatch):
    monkeypatch.setattr("minires.data.load", lambda *args: _numbered(10))
    found = Source("digits", limit=4).load("train")
    np.testing.assert_array_equal(found.images[:, 0, 0, 0], [0, 2, 5, 7])
    assert len(Source("digits", limit=99).load("train")) == 10


def _numbered(n):
    pixels = np.arange(n, dtype=np.uint8).reshape(n, 1, 1, 1)
    return Dataset(pixels, np.zeros(n, np.int64), ["only"])
