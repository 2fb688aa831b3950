import numpy as np
import pytest

from minires.data import Dataset
from minires.training import Normalization


@pytest.fixture
def dataset():
    rng = np.random.default_rng(3)
    images = rng.integers(0, 256, (11, 3, 5, 4), dtype=np.uint8)
    return Dataset(images, np.zeros(11, np.int64), ["only"])


def test_pixel_mean_leaves_no_mean_image(dataset):
    x = Normalization.fit("pixel_mean", dataset).transform()(dataset.images)
    np.testing.assert_allclose(x.mean(axis=0), 0, atol=1e-6)
    expected = dataset.images / 255 - (dataset.images / 255).mean(axis=0)
    np.testing.assert_allclose(x, expected, atol=1e-6)


def test_channels_have_mean_zero_and_deviation_one(dataset):
    x = Normalization.fit("channels", dataset).transform()(dataset.images)
    np.testing.assert_allclose(x.mean(axis=(0, 2, 3)), 0, atol=1e-5)
    np.testing.assert_allclose(x.std(axis=(0, 2, 3)), 1, atol=1e-5)


@pytest.mark.parametrize("kind", ["pixel_mean", "channels"])
def test_text_keeps_every_bit(dataset, kind):
    before = Normalization.fit(kind, dataset)
    after = Normalization.from_json(before.to_json())
    assert after.mean.dtype == np.float32
    np.testing.assert_array_equal(after.mean, before.mean)
    np.testing.assert_array_equal(
        after.transform()(dataset.images), before.transform()(dataset.images)
    )


def test_unknown_kind(dataset):
    with pytest.raises(ValueError, match=r"unknown normalization 'channel'\. .* 'channels'"):
        Normalization.fit("channel", dataset)
