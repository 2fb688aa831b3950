"""CIFAR-10 and CIFAR-100 (A. Krizhevsky, 2009): 60,000 colour images of 32x32.

Reads the official binary version, the official python version (a pickle, through a reader that
runs nothing) and the .tar.gz of either. Only the structure is checked when reading, so files that
someone made in the same layout are fine; a download is checked against the official MD5.
"""

from __future__ import annotations

import io
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from numpy.typing import NDArray

from minires._names import unknown
from minires.data._layout import to_nchw
from minires.data.dataset import Dataset
from minires.data.download import fetch
from minires.files import load_pickle_restricted

URL = "https://www.cs.toronto.edu/~kriz/"
PIXELS = 3 * 32 * 32
SPLITS = ("train", "test", "train45k", "val5k")

CIFAR10_CLASSES = (
    "airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck",
)  # fmt: skip
CIFAR100_CLASSES = (
    "apple", "aquarium_fish", "baby", "bear", "beaver", "bed", "bee", "beetle", "bicycle",
    "bottle", "bowl", "boy", "bridge", "bus", "butterfly", "camel", "can", "castle",
    "caterpillar", "cattle", "chair", "chimpanzee", "clock", "cloud", "cockroach", "couch", "crab",
    "crocodile", "cup", "dinosaur", "dolphin", "elephant", "flatfish", "forest", "fox", "girl",
    "hamster", "house", "kangaroo", "keyboard", "lamp", "lawn_mower", "leopard", "lion", "lizard",
    "lobster", "man", "maple_tree", "motorcycle", "mountain", "mouse", "mushroom", "oak_tree",
    "orange", "orchid", "otter", "palm_tree", "pear", "pickup_truck", "pine_tree", "plain",
    "plate", "poppy", "porcupine", "possum", "rabbit", "raccoon", "ray", "road", "rocket", "rose",
    "sea", "seal", "shark", "shrew", "skunk", "skyscraper", "snail", "snake", "spider", "squirrel",
    "streetcar", "sunflower", "sweet_pepper", "table", "tank", "telephone", "television", "tiger",
    "tractor", "train", "trout", "tulip", "turtle", "wardrobe", "whale", "willow_tree", "wolf",
    "woman", "worm",
)  # fmt: skip


@dataclass(frozen=True)
class Version:
    """One official form of a set: its folder, its archive and the files of each split."""

    folder: str
    archive: str
    md5: str
    train: tuple[str, ...]
    test: tuple[str, ...]

    @property
    def files(self) -> tuple[str, ...]:
        return self.train + self.test


@dataclass(frozen=True)
class Layout:
    """What is fixed about one of the two sets.

    train_records, test_records: records in each training file and each test file.
    label_bytes: labels at the head of a binary record; the last one counts.
    label_key: the labels' name in the python version.
    """

    name: str
    classes: tuple[str, ...]
    train_records: int
    test_records: int
    label_bytes: int
    label_key: str
    binary: Version
    python: Version


CIFAR10 = Layout(
    name="cifar10",
    classes=CIFAR10_CLASSES,
    train_records=10_000,
    test_records=10_000,
    label_bytes=1,
    label_key="labels",
    binary=Version(
        "cifar-10-batches-bin",
        "cifar-10-binary.tar.gz",
        "c32a1d4ab5d03f1284b67883e8d87530",
        tuple(f"data_batch_{k}.bin" for k in range(1, 6)),
        ("test_batch.bin",),
    ),
    python=Version(
        "cifar-10-batches-py",
        "cifar-10-python.tar.gz",
        "c58f30108f718f92721af3b95e74349a",
        tuple(f"data_batch_{k}" for k in range(1, 6)),
        ("test_batch",),
    ),
)
CIFAR100 = Layout(
    name="cifar100",
    classes=CIFAR100_CLASSES,
    train_records=50_000,
    test_records=10_000,
    label_bytes=2,  # coarse, fine
    label_key="fine_labels",
    binary=Version(
        "cifar-100-binary",
        "cifar-100-binary.tar.gz",
        "03b5dce01913d631647c71ecec9e9cb8",
        ("train.bin",),
        ("test.bin",),
    ),
    python=Version(
        "cifar-100-python",
        "cifar-100-python.tar.gz",
        "eb9058c3a382ffc7106e4002c42a8d85",
        ("train",),
        ("test",),
    ),
)


def cifar10(
    data_dir: str | os.PathLike[str], split: str = "train", download: bool = False
) -> Dataset:
    """CIFAR-10: images (N, 3, 32, 32) RGB in 10 classes.

    data_dir: the folder that holds `cifar-10-batches-bin`, `cifar-10-batches-py`,
        `cifar-10-binary.tar.gz` or `cifar-10-python.tar.gz` (the first of them is read), or one of
        the two batches folders itself.
    split: "train" (50,000), "test" (10,000), or the development split of "Deep Residual Learning"
        (section 4.2), "train45k" and "val5k". The paper does not say which images it held out;
        here they are every tenth one (9, 19, ...) of the training set.
    download: if nothing is there, fetch the binary archive (162 MiB) into data_dir; an interrupted
        download is resumed by the next call.

    Raises FileNotFoundError if a file is missing; ValueError for a damaged one, with its name and
    the size expected, or for an unknown split.
    """
    return read(CIFAR10, data_dir, split, download)


def cifar100(
    data_dir: str | os.PathLike[str], split: str = "train", download: bool = False
) -> Dataset:
    """CIFAR-100: images (N, 3, 32, 32) RGB in 100 (fine) classes.

    data_dir: the folder that holds `cifar-100-binary`, `cifar-100-python`,
        `cifar-100-binary.tar.gz` or `cifar-100-python.tar.gz`, or one of the first two itself.

    split, download and errors are as in `cifar10`.
    """
    return read(CIFAR100, data_dir, split, download)


def read(
    layout: Layout, data_dir: str | os.PathLike[str], split: str, download: bool = False
) -> Dataset:
    """`split` of the set that `layout` describes; see `cifar10`."""
    if split not in SPLITS:
        raise ValueError(unknown(f"split of {layout.name}", split, SPLITS))
    folder = Path(data_dir)
    found = _find(layout, folder)
    if found is None and download:
        archive = folder / layout.binary.archive
        fetch(URL + archive.name, archive, f"md5:{layout.binary.md5}")
        found = layout.binary, archive
    if found is None:
        raise FileNotFoundError(
            f"no {layout.name} in {folder.absolute()}: expected {layout.binary.folder}/, "
            f"{layout.python.folder}/, {layout.binary.archive} or {layout.python.archive}. "
            f"Fetch {URL}{layout.binary.archive} into it, or pass download=True (--download)"
        )
    version, place = found
    names = version.test if split == "test" else version.train
    records = layout.test_records if split == "test" else layout.train_records
    contents = _read_folder(place, names) if place.is_dir() else _read_archive(place, names)

    images = np.empty((len(names) * records, 32, 32, 3), np.uint8)
    labels = np.empty(len(images), np.int64)
    parse = _parse_binary if version is layout.binary else _parse_python
    for k, name in enumerate(names):
        rows = slice(k * records, (k + 1) * records)
        pixels, labels[rows] = parse(layout, contents.pop(name), records, f"{place / name}")
        # A record is 1024 red, 1024 green and 1024 blue bytes, row by row.
        images[rows] = pixels.reshape(records, 3, 32, 32).transpose(0, 2, 3, 1)
    dataset = Dataset(to_nchw(images), labels, layout.classes, layout.name, split)
    if split in ("train45k", "val5k"):
        held_out = np.arange(len(dataset)) % 10 == 9
        return dataset.subset(held_out if split == "val5k" else ~held_out)
    return dataset


def _find(layout: Layout, folder: Path) -> tuple[Version, Path] | None:
    """The version that is there, and its folder or archive."""
    versions = (layout.binary, layout.python)
    for version in versions:
        for place in (folder / version.folder, folder):
            if any((place / name).is_file() for name in version.files):
                return version, place
    for version in versions:
        if (folder / version.archive).is_file():
            return version, folder / version.archive
    return None


def _read_folder(folder: Path, names: Sequence[str]) -> dict[str, bytes]:
    for name in names:
        if not (folder / name).is_file():
            raise FileNotFoundError(
                f"{folder} lacks {name} (expected {', '.join(names)}). Unpack the archive again"
            )
    return {name: (folder / name).read_bytes() for name in names}


def _read_archive(path: Path, names: Sequence[str]) -> dict[str, bytes]:
    import tarfile
    import zlib

    contents: dict[str, bytes] = {}
    try:
        with tarfile.open(path, "r:gz") as archive:
            for member in archive:
                name = PurePosixPath(member.name).name
                file = archive.extractfile(member) if name in names else None
                if file is not None:
                    contents[name] = file.read()
                if len(contents) == len(names):
                    return contents
    except (tarfile.TarError, zlib.error, EOFError, OSError) as error:
        raise ValueError(
            f"{path} ({path.stat().st_size:,} bytes) is damaged or not a .tar.gz: {error}. "
            "Remove it and fetch it again"
        ) from error
    missing = ", ".join(sorted(set(names) - set(contents)))
    raise FileNotFoundError(f"{path} lacks {missing}. Remove it and fetch it again")


def _parse_binary(
    layout: Layout, content: bytes, records: int, where: str
) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """(pixels (records, 3072), labels) of a binary file, whose records are labels, then pixels."""
    size = layout.label_bytes + PIXELS
    if len(content) != records * size:
        raise ValueError(
            f"{where}: expected {records * size:,} bytes ({records:,} records of {size}), found "
            f"{len(content):,}: the file is truncated or not {layout.name}'s. Fetch it again"
        )
    table = np.frombuffer(content, np.uint8).reshape(records, size)
    labels = table[:, layout.label_bytes - 1].astype(np.int64)
    return table[:, layout.label_bytes :], _checked(layout, labels, where)


def _parse_python(
    layout: Layout, content: bytes, records: int, where: str
) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """(pixels (records, 3072), labels) of a pickled file: a dict with "data" and the labels."""
    try:
        batch: Any = load_pickle_restricted(io.BytesIO(content))
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from error
    # Python 3 code that copied Python 2's dict may have kept its keys as bytes.
    entries = (
        {key.decode("latin1") if isinstance(key, bytes) else key: batch[key] for key in batch}
        if isinstance(batch, dict)
        else {}
    )
    missing = {"data", layout.label_key} - set(entries)
    if missing:
        raise ValueError(f"{where}: not a batch of {layout.name}: no {', '.join(sorted(missing))}")
    pixels, labels = entries["data"], np.asarray(entries[layout.label_key])
    found = (getattr(pixels, "dtype", None), np.shape(pixels), labels.shape)
    if found != (np.uint8, (records, PIXELS), (records,)) or labels.dtype.kind not in "iu":
        raise ValueError(
            f"{where}: expected {records:,} records: data uint8 {records}x{PIXELS} and {records} "
            f"{layout.label_key}; found data {found[0]} {'x'.join(map(str, found[1]))} and "
            f"{labels.size} {layout.label_key} ({labels.dtype})"
        )
    return pixels, _checked(layout, labels.astype(np.int64), where)


def _checked(layout: Layout, labels: NDArray[np.int64], where: str) -> NDArray[np.int64]:
    wrong = np.flatnonzero((labels < 0) | (labels >= len(layout.classes)))
    if wrong.size:
        raise ValueError(
            f"{where}: record {wrong[0]} has label {labels[wrong[0]]}, but {layout.name} has "
            f"labels 0 to {len(layout.classes) - 1}: the file is damaged. Fetch it again"
        )
    return labels
