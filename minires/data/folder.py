"""Your own images: one sub-folder for each class."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from minires.data._layout import to_nchw
from minires.data.dataset import Dataset

if TYPE_CHECKING:
    from PIL import Image

SUFFIXES = frozenset(
    (".jpg", ".jpeg", ".png", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm")
)


def image_folder(
    path: str | os.PathLike[str],
    size: int = 224,
    split: str | None = None,
    grayscale: bool = False,
) -> Dataset:
    """Images in `path/<class>/*`, or `path/<split>/<class>/*` if a split is given.

    size: side of the square that every image becomes: the shorter side is resized to `size`
        (bilinear, antialiased), and the centre is cut out.
    grayscale: one channel instead of RGB.

    Classes are the sub-folders, sorted by name; images are sorted by name within a class; names
    that begin with a dot and files without an image suffix (.jpg, .jpeg, .png, .bmp, .gif, .webp,
    .tif, .tiff, .ppm, .pgm) are passed over. Photographs are turned upright as their EXIF
    orientation says. All images are kept in memory: uint8, N x C x size x size bytes (1,000 RGB
    images of 224x224 are 144 MiB).

    Raises FileNotFoundError for a missing folder, ValueError if there are no classes, a class has
    no images, or an image cannot be read (the message names it).
    """
    if size < 1:
        raise ValueError(f"image_folder: size must be at least 1, got {size}")
    root = Path(path) if split is None else Path(path) / split
    if not root.is_dir():
        raise FileNotFoundError(
            f"no folder {root.absolute()}. Expected one sub-folder of images for each class in it"
        )
    folders = _by_name(p for p in root.iterdir() if p.is_dir())
    if not folders:
        raise ValueError(f"{root}: no sub-folders. Put the images of each class into its own one")
    files: list[Path] = []
    labels: list[int] = []
    for label, folder in enumerate(folders):
        found = _by_name(
            p for p in folder.iterdir() if p.suffix.lower() in SUFFIXES and p.is_file()
        )
        if not found:
            raise ValueError(f"{folder}: no images. Expected files {', '.join(sorted(SUFFIXES))}")
        files += found
        labels += [label] * len(found)
    images = np.empty((len(files), size, size, 1 if grayscale else 3), np.uint8)
    for image, file in zip(images, files, strict=True):
        image[:] = _read_square(file, size, grayscale)
    classes = [folder.name for folder in folders]
    name = Path(path).absolute().name
    return Dataset(to_nchw(images), np.array(labels), classes, name, split or "all")


def _by_name(paths: Iterable[Path]) -> list[Path]:
    """Sorted alike on every system, without hidden ones."""
    return sorted((p for p in paths if not p.name.startswith(".")), key=lambda p: p.name)


def _read_square(path: Path, size: int, grayscale: bool) -> NDArray[np.uint8]:
    """The image as (size, size, C): the largest centred square of it, resized."""
    from PIL import Image, ImageOps

    try:
        with Image.open(path) as file:
            image: Image.Image = ImageOps.exif_transpose(file)
            image.load()
    except Exception as error:  # on a broken file, decoders fail in many ways
        raise ValueError(
            f"{path}: cannot be read as an image ({error}). Repair or remove it"
        ) from error
    if image.mode[0] in "IF":
        raise ValueError(
            f"{path}: more than 8 bits per channel (mode {image.mode}). Convert it to 8 bits, with "
            "the range of brightness that matters"
        )
    if image.mode in ("P", "PA"):
        image = image.convert("RGBA")  # transparency is then a channel, which is dropped
    image = image.convert("L" if grayscale else "RGB")
    side = min(image.size)
    left, top = ((length - side) / 2 for length in image.size)
    box = (left, top, left + side, top + side)
    square = image.resize((size, size), Image.Resampling.BILINEAR, box)
    return np.asarray(square).reshape(size, size, -1)
