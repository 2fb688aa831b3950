"""Data sets by name, and what the package exports."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import minires.data
from minires.data import digits, list_datasets, load


def test_names() -> None:
    assert list_datasets() == ["cifar10", "cifar100", "digits", "image_folder"]


def test_digits_by_name(tmp_path: Path) -> None:
    for data_dir in (None, tmp_path):
        assert np.array_equal(load("digits", "test", data_dir).images, digits("test").images)
    assert len(load("digits")) == 1437


def test_options_reach_the_set(tmp_path: Path) -> None:
    (tmp_path / "train" / "a").mkdir(parents=True)
    Image.new("RGB", (9, 9)).save(tmp_path / "train" / "a" / "1.png")
    data = load("image_folder", "train", tmp_path, size=5, grayscale=True)
    assert data.images.shape == (1, 1, 5, 5)
    assert len(load("image_folder", None, tmp_path / "train", size=5)) == 1
    with pytest.raises(FileNotFoundError, match="no cifar100 in"):
        load("cifar100", "test", tmp_path)


def test_errors(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"unknown data set 'cifar'. Did you mean 'cifar10'"):
        load("cifar")
    with pytest.raises(ValueError, match="cifar10 needs data_dir"):
        load("cifar10")
    with pytest.raises(ValueError, match="unknown split of digits"):
        load("digits", "val")
    with pytest.raises(TypeError, match="size"):
        load("cifar10", data_dir=tmp_path, size=3)


def test_every_public_name_is_there() -> None:
    assert all(hasattr(minires.data, name) for name in minires.data.__all__)


def test_import_is_light() -> None:
    heavy = ["PIL", "pooch", "requests", "safetensors", "urllib.request", "tarfile", "torch"]
    code = f"import sys, minires.data; print([m for m in {heavy} if m in sys.modules])"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env=os.environ
    )
    assert done.stdout.strip() == "[]"
