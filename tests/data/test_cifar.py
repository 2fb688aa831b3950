"""CIFAR readers, on small files made here in the official layouts."""

from __future__ import annotations

import dataclasses
import io
import pickle
import tarfile
from pathlib import Path

import numpy as np
import pytest

from minires.data import cifar, cifar10, cifar100

# As the official layouts, with few records in a file.
SMALL10 = dataclasses.replace(cifar.CIFAR10, train_records=20, test_records=12)
SMALL100 = dataclasses.replace(cifar.CIFAR100, train_records=30, test_records=12)
SMALL = {"cifar10": SMALL10, "cifar100": SMALL100}

Arrays = tuple[np.ndarray, np.ndarray]


def make(layout: cifar.Layout, split: str, seed: int = 0) -> Arrays:
    """(images (N, 3, 32, 32), labels) of all files of a split."""
    rng = np.random.default_rng([seed, split == "test"])
    files = layout.binary.test if split == "test" else layout.binary.train
    n = len(files) * (layout.test_records if split == "test" else layout.train_records)
    images = rng.integers(0, 256, (n, 3, 32, 32), dtype=np.uint8)
    return images, rng.integers(0, len(layout.classes), n)


def files_of(layout: cifar.Layout, form: str) -> dict[str, bytes]:
    """Name -> content of the files of a version, written independently of the reader."""
    version = getattr(layout, form)
    contents = {}
    for split in ("train", "test"):
        names = getattr(version, split)
        parts = zip(*(np.split(array, len(names)) for array in make(layout, split)), strict=True)
        for name, (images, labels) in zip(names, parts, strict=True):
            if form == "binary":
                coarse = b"\x13" if layout is SMALL100 else b""
                records = [
                    coarse + bytes([label]) + image.tobytes()
                    for image, label in zip(images, labels, strict=True)
                ]
                contents[name] = b"".join(records)
            else:
                batch = {
                    "batch_label": name,
                    layout.label_key: labels.tolist(),
                    "data": images.reshape(len(images), -1),
                    "filenames": ["x.png"] * len(images),
                }
                contents[name] = pickle.dumps(batch, protocol=2)
    return contents


def write(layout: cifar.Layout, form: str, where: Path, packed: bool) -> Path:
    """Write a version into `where`, as a folder or an archive; returns its path."""
    version = getattr(layout, form)
    contents = files_of(layout, form)
    if not packed:
        (where / version.folder).mkdir()
        for name, content in contents.items():
            (where / version.folder / name).write_bytes(content)
        return where / version.folder
    with tarfile.open(where / version.archive, "w:gz", compresslevel=1) as archive:
        for name, content in {"readme.html": b"<html>", **contents}.items():
            member = tarfile.TarInfo(f"{version.folder}/{name}")
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return where / version.archive


@pytest.mark.parametrize("name", ["cifar10", "cifar100"])
@pytest.mark.parametrize("form", ["binary", "python"])
@pytest.mark.parametrize("packed", [False, True])
def test_every_version(tmp_path: Path, name: str, form: str, packed: bool) -> None:
    layout = SMALL[name]
    place = write(layout, form, tmp_path, packed)
    for split in ("train", "test"):
        images, labels = make(layout, split)
        for data_dir in (tmp_path,) if packed else (tmp_path, str(place)):
            data = cifar.read(layout, data_dir, split)
            assert np.array_equal(data.images, images)
            assert np.array_equal(data.labels, labels)
            assert data.classes == layout.classes
            assert (data.name, data.split) == (name, split)
            assert data.images.transpose(0, 2, 3, 1).flags.c_contiguous


def test_development_split_is_a_fixed_partition(tmp_path: Path) -> None:
    write(SMALL10, "binary", tmp_path, packed=False)
    images, labels = make(SMALL10, "train")
    train, val = (cifar.read(SMALL10, tmp_path, split) for split in ("train45k", "val5k"))
    assert (len(train), len(val)) == (90, 10)
    assert np.array_equal(val.images, images[9::10])
    assert np.array_equal(val.labels, labels[9::10])
    assert np.array_equal(train.images, np.delete(images, np.s_[9::10], axis=0))


def test_the_binary_folder_is_read_before_others(tmp_path: Path) -> None:
    write(SMALL10, "binary", tmp_path, packed=False)
    write(SMALL10, "python", tmp_path, packed=False)
    (tmp_path / "cifar-10-batches-py" / "test_batch").write_bytes(b"not read")
    assert len(cifar.read(SMALL10, tmp_path, "test")) == 12
    (tmp_path / "cifar-10-batches-bin").rename(tmp_path / "elsewhere")
    with pytest.raises(ValueError, match=r"cifar-10-batches-py.test_batch: .*not a pickle"):
        cifar.read(SMALL10, tmp_path, "test")


def test_official_sizes_are_the_public_default(tmp_path: Path) -> None:
    place = write(SMALL10, "binary", tmp_path, packed=False)
    expected = r"data_batch_1\.bin: expected 30,730,000 bytes \(10,000 records of 3073\), found 61"
    with pytest.raises(ValueError, match=expected):
        cifar10(tmp_path)
    (place / "test_batch.bin").write_bytes(bytes(30_730_000))
    assert cifar10(tmp_path, "test").images.shape == (10_000, 3, 32, 32)
    write(SMALL100, "binary", tmp_path, packed=False)
    with pytest.raises(ValueError, match=r"train\.bin: expected 153,700,000 bytes \(50,000 rec"):
        cifar100(tmp_path)


def test_class_names() -> None:
    assert len(set(cifar.CIFAR100_CLASSES)) == 100
    assert list(cifar.CIFAR100_CLASSES) == sorted(cifar.CIFAR100_CLASSES)
    assert cifar.CIFAR10_CLASSES[3] == "cat"
    # Labels that the official fine_label_names give.
    assert [cifar.CIFAR100_CLASSES[k] for k in (0, 19, 49, 99)] == [
        "apple",
        "cattle",
        "mountain",
        "worm",
    ]


class TestDamage:
    def test_nothing_there(self, tmp_path: Path) -> None:
        for folder in (tmp_path, tmp_path / "absent"):
            with pytest.raises(FileNotFoundError, match=r"no cifar10 in .*download=True"):
                cifar10(folder)

    def test_a_missing_batch(self, tmp_path: Path) -> None:
        place = write(SMALL10, "binary", tmp_path, packed=False)
        (place / "data_batch_3.bin").unlink()
        with pytest.raises(FileNotFoundError, match=r"lacks data_batch_3\.bin"):
            cifar.read(SMALL10, tmp_path, "train")
        assert len(cifar.read(SMALL10, tmp_path, "test")) == 12

    @pytest.mark.parametrize("size", [0, 3073 * 19, 3073 * 20 - 1, 3073 * 21])
    def test_a_truncated_batch(self, tmp_path: Path, size: int) -> None:
        place = write(SMALL10, "binary", tmp_path, packed=False)
        (place / "data_batch_2.bin").write_bytes(bytes(size))
        expected = rf"data_batch_2\.bin: expected 61,460 bytes .*, found {size:,}:"
        with pytest.raises(ValueError, match=expected):
            cifar.read(SMALL10, tmp_path, "train")

    def test_a_label_over_nine(self, tmp_path: Path) -> None:
        place = write(SMALL10, "binary", tmp_path, packed=False)
        content = bytearray((place / "data_batch_4.bin").read_bytes())
        content[3073 * 7] = 200
        (place / "data_batch_4.bin").write_bytes(content)
        expected = r"data_batch_4\.bin: record 7 has label 200, but cifar10 has labels 0 to 9"
        with pytest.raises(ValueError, match=expected):
            cifar.read(SMALL10, tmp_path, "train")

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"labels": None}, "not a batch of cifar10: no labels"),
            ({"data": np.zeros((11, 3072), np.uint8)}, "expected 12 records: .*11x3072 and 12"),
            ({"data": np.zeros((12, 3072), np.int32)}, "found data int32"),
            ({"data": "pixels"}, "found data None"),
            ({"labels": [0] * 11}, "and 11 labels"),
            ({"labels": [0.5] * 12}, r"12 labels \(float64\)"),
            ({"labels": [10] + [0] * 11}, "record 0 has label 10"),
        ],
    )
    def test_a_wrong_pickle(self, tmp_path: Path, change: dict, message: str) -> None:
        place = write(SMALL10, "python", tmp_path, packed=False)
        batch = pickle.loads((place / "test_batch").read_bytes()) | change
        batch = {key: value for key, value in batch.items() if value is not None}
        (place / "test_batch").write_bytes(pickle.dumps(batch))
        with pytest.raises(ValueError, match=rf"test_batch: .*{message}"):
            cifar.read(SMALL10, tmp_path, "test")

    def test_bytes_keys_are_read(self, tmp_path: Path) -> None:
        place = write(SMALL10, "python", tmp_path, packed=False)
        batch = pickle.loads((place / "test_batch").read_bytes())
        (place / "test_batch").write_bytes(pickle.dumps({k.encode(): v for k, v in batch.items()}))
        data = cifar.read(SMALL10, tmp_path, "test")
        assert np.array_equal(data.images, make(SMALL10, "test")[0])

    def test_pickles_that_are_no_dict(self, tmp_path: Path) -> None:
        place = write(SMALL10, "python", tmp_path, packed=False)
        (place / "test_batch").write_bytes(pickle.dumps([1]))
        with pytest.raises(ValueError, match="no data, labels"):
            cifar.read(SMALL10, tmp_path, "test")

    def test_a_damaged_archive(self, tmp_path: Path) -> None:
        place = write(SMALL10, "binary", tmp_path, packed=True)
        whole = place.read_bytes()
        for content in (whole[: len(whole) // 2], b"no archive", b""):
            place.write_bytes(content)
            with pytest.raises(
                ValueError, match=r"binary\.tar\.gz .*is damaged or not a \.tar\.gz"
            ):
                cifar.read(SMALL10, tmp_path, "train")

    def test_an_archive_without_the_batches(self, tmp_path: Path) -> None:
        with tarfile.open(tmp_path / "cifar-10-binary.tar.gz", "w:gz") as archive:
            archive.addfile(tarfile.TarInfo("cifar-10-batches-bin/readme.html"))
        with pytest.raises(FileNotFoundError, match=r"binary\.tar\.gz lacks test_batch\.bin"):
            cifar.read(SMALL10, tmp_path, "test")

    def test_unknown_split(self, tmp_path: Path) -> None:
        with pytest.raises(ValueError, match=r"unknown split of cifar100 'val'.*val5k"):
            cifar100(tmp_path, "val")
