import numpy as np
import pytest
from PIL import Image

from minires.training import plot_curve


def record(epoch, **changes):
    return {
        "epoch": epoch, "lr": 0.1 / epoch, "images_per_second": 100.0, "train_loss": 2 / epoch,
        "train_accuracy": 1 - 0.5 / epoch, "test_loss": 2.1 / epoch,
        "test_accuracy": 1 - 0.6 / epoch, **changes,
    }  # fmt: skip


def pixels(path):
    with Image.open(path) as image:
        assert image.format == "PNG"
        return np.asarray(image.convert("RGB")).astype(int)


HISTORIES = {
    "one epoch": [record(1)],
    "many epochs": [record(e) for e in range(1, 201)],
    "no test set": [record(e, test_loss=None, test_accuracy=None) for e in (1, 2, 3)],
    "perfect": [record(e, train_accuracy=1.0, test_accuracy=1.0) for e in (1, 2, 3)],
    "all alike": [record(e, train_loss=1.0, test_loss=1.0, lr=0.0) for e in (1, 2, 3)],
    "a loss that was not finite": [record(1), record(2, test_loss=None), record(3)],
    "losses of all sizes": [record(e, train_loss=10.0 ** (6 - e)) for e in range(1, 12)],
}


@pytest.mark.parametrize("history", HISTORIES.values(), ids=HISTORIES.keys())
def test_a_picture_of_every_history(tmp_path, history):
    path = tmp_path / "curve.png"
    plot_curve(path, history, "resnet20 on digits", "recipe digits")
    image = pixels(path)
    assert image.shape == (840, 1500, 3)
    assert (image == 255).all(axis=2).mean() > 0.7  # a white ground
    red = (image[:, :, 0] > 150) & (image[:, :, 1] < 100) & (image[:, :, 2] < 100)
    assert red.any() == (history[0]["test_accuracy"] is not None)
    # Nothing is cut off at the edges.
    for edge in (image[:4], image[-4:], image[:, :4], image[:, -4:]):
        assert (edge == 255).all()


def test_the_lines_show_the_numbers(tmp_path):
    plot_curve(tmp_path / "a.png", [record(1), record(2)])
    plot_curve(tmp_path / "b.png", [record(1), record(2, test_loss=0.5)])
    a, b = pixels(tmp_path / "a.png"), pixels(tmp_path / "b.png")
    changed = (a != b).any(axis=(0, 2)).nonzero()[0]
    assert changed.size
    assert changed.max() < 760  # only the left panel, which has the loss


def test_no_epoch_no_picture(tmp_path):
    with pytest.raises(ValueError, match="no epoch is finished yet"):
        plot_curve(tmp_path / "curve.png", [])
    assert not list(tmp_path.iterdir())


def test_an_old_picture_stays_if_drawing_fails(tmp_path):
    path = tmp_path / "curve.png"
    path.write_bytes(b"old")
    with pytest.raises(KeyError):
        plot_curve(path, [{"epoch": 1}])
    assert path.read_bytes() == b"old"
    assert [p.name for p in tmp_path.iterdir()] == ["curve.png"]
