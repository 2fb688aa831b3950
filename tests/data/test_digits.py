"""The digits that come with the package."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest

from minires.data import digits


def test_the_source_s_images_and_labels() -> None:
    everything = digits("all")
    assert everything.images.shape == (1797, 1, 8, 8)
    assert everything.classes == tuple("0123456789")
    # Class counts of the published test set.
    counts = [178, 182, 177, 183, 181, 182, 181, 179, 174, 180]
    assert np.bincount(everything.labels).tolist() == counts
    assert everything.labels[:10].tolist() == list(range(10))
    zero = """
        0  0  5 13  9  1  0  0
        0  0 13 15 10 15  5  0
        0  3 15  2  0 11  8  0
        0  4 12  0  0  8  8  0
        0  5  8  0  0  9  8  0
        0  4 11  0  1 12  7  0
        0  2 14  5 10 12  0  0
        0  0  6 13 10  0  0  0
    """  # first row of the source's table
    ink = np.array(zero.split(), int).reshape(8, 8)
    assert np.array_equal(everything.images[0, 0], np.floor(ink * 255 / 16 + 0.5))
    # Every image: back to 0..16, compared with the published table by its hash.
    back = np.rint(everything.images * (16 / 255)).astype(np.uint8)
    assert hashlib.sha256(back.tobytes()).hexdigest() == (
        "8f26b2bd9d135c256808f68f14fdabddde6d9c7f869ae419704b051f0f14b3b3"
    )


def test_the_split_is_a_stratified_partition() -> None:
    train, test, everything = digits(), digits("test"), digits("all")
    assert (len(train), len(test)) == (1437, 360)
    assert (train.split, test.split) == ("train", "test")
    share = np.bincount(test.labels) / np.bincount(everything.labels)
    assert np.abs(share - 0.2).max() < 0.01
    both = sorted(image.tobytes() for part in (train, test) for image in part.images)
    assert both == sorted(image.tobytes() for image in everything.images)


def test_scale_reaches_black_and_white() -> None:
    images = digits().images
    assert images.dtype == np.uint8
    assert (images.min(), images.max()) == (0, 255)
    assert len(np.unique(images)) == 17


def test_unknown_split() -> None:
    with pytest.raises(ValueError, match=r"unknown split of digits 'tests'. Did you mean 'test'"):
        digits("tests")
