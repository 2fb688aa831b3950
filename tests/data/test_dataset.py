"""Dataset and the statistics of a set."""

from __future__ import annotations

import numpy as np
import pytest

from minires.data import Dataset, channel_stats, per_pixel_mean

rng = np.random.default_rng(0)


def make(n: int = 7, channels: int = 3) -> Dataset:
    images = rng.integers(0, 256, (n, channels, 5, 4), dtype=np.uint8)
    return Dataset(images, np.arange(n) % 3, ["a", "b", "c"], "toy", "test")


class TestDataset:
    def test_length_and_indexing(self) -> None:
        data = make()
        assert len(data) == 7
        image, label = data[4]
        assert np.array_equal(image, data.images[4])
        assert label == 1
        assert type(label) is int
        images, labels = data[2:5]
        assert np.array_equal(images, data.images[2:5])
        assert labels.tolist() == [2, 0, 1]
        images, labels = data[[6, 0]]
        assert np.array_equal(images, data.images[[6, 0]])
        assert labels.tolist() == [0, 0]
        with pytest.raises(IndexError):
            data[7]

    def test_subset_keeps_order_and_names(self) -> None:
        data = make()
        part = data.subset([5, 1, 1])
        assert np.array_equal(part.images, data.images[[5, 1, 1]])
        assert part.labels.tolist() == [2, 1, 1]
        assert (part.classes, part.name, part.split) == (("a", "b", "c"), "toy", "test")
        assert np.array_equal(data.subset(data.labels == 2).images, data.images[[2, 5]])
        assert len(data.subset(slice(1, 4))) == 3
        with pytest.raises(IndexError):
            data.subset([7])

    def test_take(self) -> None:
        data = make()
        assert np.array_equal(data.take(3).images, data.images[:3])
        assert len(data.take(0)) == 0
        for n in (8, -1):
            with pytest.raises(ValueError, match=rf"expected 0 to 7 images .*toy test.*, got {n}"):
                data.take(n)

    def test_labels_of_any_integer_type_become_int64(self) -> None:
        images = np.zeros((2, 1, 1, 1), np.uint8)
        data = Dataset(images, np.array([0, 1], np.uint8), ["a", "b"])
        assert data.labels.dtype == np.int64
        assert data.images is images

    def test_repr(self) -> None:
        assert repr(make()) == "Dataset(toy test: 7 images 3x5x4, 3 classes)"

    @pytest.mark.parametrize(
        ("images", "labels", "error", "message"),
        [
            (np.zeros((2, 1, 3, 3), np.float32), [0, 0], TypeError, "uint8 .*, got float32"),
            (np.zeros((2, 3, 3), np.uint8), [0, 0], ValueError, r"\(N, C, H, W\), got .*2, 3, 3"),
            (np.zeros((2, 1, 3, 3), np.uint8), [0.0, 1.0], TypeError, "integers, got float64"),
            (np.zeros((2, 1, 3, 3), np.uint8), [0], ValueError, "each of 2 images"),
            (np.zeros((2, 1, 3, 3), np.uint8), [[0], [0]], ValueError, "each of 2 images"),
            (np.zeros((2, 1, 3, 3), np.uint8), [0, 2], ValueError, "label 2 of image 1 .* 0 to 1"),
            (np.zeros((2, 1, 3, 3), np.uint8), [-1, 0], ValueError, "label -1 of image 0"),
        ],
    )
    def test_what_does_not_fit(self, images, labels, error, message) -> None:
        with pytest.raises(error, match=message):
            Dataset(images, np.array(labels), ["a", "b"])


class TestStatistics:
    # More images than one block of the computation holds, in an odd memory order.
    data = Dataset(
        rng.integers(0, 256, (3, 4, 5, 1030), dtype=np.uint8).transpose(3, 0, 2, 1),
        np.zeros(1030, np.int64),
        ["a"],
    )

    def test_per_pixel_mean(self) -> None:
        mean = per_pixel_mean(self.data)
        assert mean.dtype == np.float32
        assert mean.shape == (3, 5, 4)
        expected = (self.data.images / 255.0).mean(axis=0)
        np.testing.assert_allclose(mean, expected, rtol=1e-6)

    def test_channel_stats(self) -> None:
        mean, std = channel_stats(self.data)
        scaled = self.data.images / 255.0
        assert mean.dtype == std.dtype == np.float32
        np.testing.assert_allclose(mean, scaled.mean(axis=(0, 2, 3)), rtol=1e-6)
        np.testing.assert_allclose(std, scaled.std(axis=(0, 2, 3)), rtol=1e-6)

    def test_constant_channel(self) -> None:
        flat = Dataset(np.full((600, 2, 3, 3), 77, np.uint8), np.zeros(600, int), ["a"])
        mean, std = channel_stats(flat)
        np.testing.assert_allclose(mean, 77 / 255, rtol=1e-6)
        assert std.tolist() == [0, 0]

    @pytest.mark.parametrize("statistics", [per_pixel_mean, channel_stats])
    def test_empty_set(self, statistics) -> None:
        with pytest.raises(ValueError, match="no statistics of an empty set"):
            statistics(self.data.take(0))
