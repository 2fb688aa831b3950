"""Images from folders."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from minires.data import image_folder

RED, GREEN, BLUE = (255, 0, 0), (0, 255, 0), (0, 0, 255)


def paint(path: Path, colour: object, size: tuple[int, int] = (8, 8), mode: str = "RGB") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, size, colour).save(path)


def test_classes_and_images_are_sorted_by_name(tmp_path: Path) -> None:
    paint(tmp_path / "zebra" / "b.png", RED)
    paint(tmp_path / "zebra" / "a.PNG", GREEN)
    paint(tmp_path / "ant" / "10.bmp", BLUE)
    paint(tmp_path / "Bee" / "x.png", RED)
    (tmp_path / "ant" / "notes.txt").write_text("not an image")
    (tmp_path / "ant" / ".hidden.png").write_bytes(b"not an image")
    (tmp_path / "readme.txt").write_text("not a class")
    (tmp_path / ".git").mkdir()
    data = image_folder(tmp_path, size=4)
    assert data.classes == ("Bee", "ant", "zebra")
    assert data.labels.tolist() == [0, 1, 2, 2]
    assert data.images.shape == (4, 3, 4, 4)
    assert data.images.dtype == np.uint8
    assert [tuple(pixel) for pixel in data.images[:, :, 0, 0].tolist()] == [RED, BLUE, GREEN, RED]
    assert (data.name, data.split) == (tmp_path.name, "all")


def test_split_and_grayscale(tmp_path: Path) -> None:
    paint(tmp_path / "train" / "a" / "1.png", (10, 200, 30))
    paint(tmp_path / "val" / "a" / "1.png", BLUE)
    data = image_folder(tmp_path, 8, split="train", grayscale=True)
    assert data.images.shape == (1, 1, 8, 8)
    luma = 0.299 * 10 + 0.587 * 200 + 0.114 * 30  # ITU-R 601
    assert np.abs(data.images.astype(float) - luma).max() <= 0.5
    assert data.split == "train"
    assert data.name == tmp_path.name


@pytest.mark.parametrize("size", [(12, 6), (6, 12), (13, 6)])
def test_the_centre_square_is_taken_upright(tmp_path: Path, size: tuple[int, int]) -> None:
    # Rows differ in red, columns in green: position and orientation can be read from the colours.
    width, height = size
    y, x = np.mgrid[:height, :width]
    pixels = np.stack([y * 20, x * 20, 0 * x], axis=2).astype(np.uint8)
    (tmp_path / "a").mkdir()
    Image.fromarray(pixels).save(tmp_path / "a" / "1.png")
    image = image_folder(tmp_path, size=6).images[0].astype(float)
    top, left = (height - 6) / 2, (width - 6) / 2
    rows, columns = np.mgrid[:6, :6]
    # Half a pixel off centre, the two neighbours are mixed; PIL rounds to whole levels.
    assert np.abs(image[0] - (rows + top) * 20).max() <= 1
    assert np.abs(image[1] - (columns + left) * 20).max() <= 1


def test_shrinking_averages(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    checks = (np.indices((64, 64)).sum(axis=0) % 2 * 255).astype(np.uint8)
    Image.fromarray(checks).save(tmp_path / "a" / "1.png")
    image = image_folder(tmp_path, size=4, grayscale=True).images
    assert np.abs(image.astype(float) - 127.5).max() < 2


def test_exif_orientation(tmp_path: Path) -> None:
    pixels = np.zeros((16, 16, 3), np.uint8)
    pixels[:8] = 255  # the sensor's upper half; the camera was turned, so it is the right half
    exif = Image.Exif()
    exif[0x0112] = 6
    (tmp_path / "a").mkdir()
    Image.fromarray(pixels).save(tmp_path / "a" / "1.png", exif=exif)
    image = image_folder(tmp_path, size=16).images[0, 0]
    assert (image[:, 8:] == 255).all()
    assert (image[:, :8] == 0).all()


def test_other_modes(tmp_path: Path) -> None:
    paint(tmp_path / "a" / "1.png", 100, mode="L")
    paint(tmp_path / "a" / "2.png", (*GREEN, 128), mode="RGBA")
    paint(tmp_path / "a" / "3.png", 1, mode="1")
    palette = Image.new("P", (8, 8), 1)
    palette.putpalette([0, 0, 0, *BLUE])
    palette.save(tmp_path / "a" / "4.png", transparency=b"\x00\x80")
    data = image_folder(tmp_path, size=8)
    colours = [tuple(pixel) for pixel in data.images[:, :, 3, 3].tolist()]
    assert colours == [(100, 100, 100), GREEN, (255, 255, 255), BLUE]


class TestErrors:
    @pytest.mark.parametrize("content", [b"", b"garbage", "truncated"])
    def test_a_bad_image_is_named(self, tmp_path: Path, content: object) -> None:
        paint(tmp_path / "a" / "1.png", RED)
        noise = np.random.default_rng(0).integers(0, 256, (50, 50, 3), dtype=np.uint8)
        Image.fromarray(noise).save(tmp_path / "a" / "2.png")
        if content == "truncated":
            content = (tmp_path / "a" / "2.png").read_bytes()[:2000]
        (tmp_path / "a" / "2.png").write_bytes(content)
        with pytest.raises(ValueError, match=r"a.2\.png: cannot be read as an image"):
            image_folder(tmp_path, size=8)

    def test_sixteen_bits_are_refused_not_clipped(self, tmp_path: Path) -> None:
        (tmp_path / "a").mkdir()
        deep = np.full((8, 8), 30_000, np.uint16)
        Image.fromarray(deep).save(tmp_path / "a" / "1.png")
        with pytest.raises(ValueError, match=r"1\.png: more than 8 bits per channel"):
            image_folder(tmp_path, size=8)

    def test_folders(self, tmp_path: Path) -> None:
        with pytest.raises(FileNotFoundError, match=r"no folder .*train"):
            image_folder(tmp_path, split="train")
        with pytest.raises(ValueError, match="no sub-folders"):
            image_folder(tmp_path)
        (tmp_path / "empty").mkdir()
        with pytest.raises(ValueError, match=r"empty: no images\. Expected files \.bmp"):
            image_folder(tmp_path)
        with pytest.raises(ValueError, match="size must be at least 1"):
            image_folder(tmp_path, size=0)
