import datetime
import json
import re

import numpy as np
import pytest

from minires.training import RunFolder, default_folder
from minires.training.runs import Checkpoint


@pytest.fixture
def run(tmp_path):
    return RunFolder.create(tmp_path / "a" / "run", {"seed": 3})


def test_a_new_folder(run):
    assert run.config() == {"format": "minires-run-1", "seed": 3}
    assert run.metrics() == []
    assert RunFolder.open(run.path).config() == run.config()


def test_an_empty_folder_will_do(tmp_path):
    assert RunFolder.create(tmp_path, {}).config()


def test_a_run_is_never_overwritten(run):
    with pytest.raises(FileExistsError, match="holds a run already: resume that, or choose"):
        RunFolder.create(run.path, {"seed": 4})
    assert run.config()["seed"] == 3


def test_nor_is_anything_else(tmp_path):
    (tmp_path / "thesis.txt").write_text("dear to me")
    with pytest.raises(FileExistsError, match="is not empty"):
        RunFolder.create(tmp_path, {})
    assert [p.name for p in tmp_path.iterdir()] == ["thesis.txt"]


def test_a_file_in_place_of_a_folder(tmp_path):
    file = tmp_path / "file"
    file.touch()
    with pytest.raises(NotADirectoryError, match=re.escape(f"{file} is a file")):
        RunFolder.create(file, {})
    with pytest.raises(NotADirectoryError, match=r"cannot write the run to .*: Not a directory"):
        RunFolder.create(file / "run", {})


@pytest.mark.parametrize(
    ("prepare", "words"),
    [(lambda p: None, "no such folder"), (lambda p: p.mkdir(), "it has no config.json")],
)
def test_no_run_there(tmp_path, prepare, words):
    path = tmp_path / "x"
    prepare(path)
    with pytest.raises(FileNotFoundError, match=f"is not the folder of a run: {words}"):
        RunFolder.open(path)


@pytest.mark.parametrize(
    ("text", "words"),
    [("{", "is not whole JSON"), ("{}", "expected the format"), ("[]", "expected the format")],
)
def test_a_config_that_is_none(run, text, words):
    (run.path / "config.json").write_text(text)
    with pytest.raises(ValueError, match=words):
        run.config()


def test_metrics_are_lines_and_a_torn_one_is_left_out(run):
    for epoch in (1, 2, 3):
        run.append_metrics({"epoch": epoch, "loss": 1 / epoch})
    assert [json.loads(line) for line in run.metrics_path.read_text().splitlines()] == [
        {"epoch": 1, "loss": 1.0}, {"epoch": 2, "loss": 0.5}, {"epoch": 3, "loss": 1 / 3},
    ]  # fmt: skip
    with open(run.metrics_path, "a") as file:
        file.write('{"epoch": 4, "lo')
    assert [r["epoch"] for r in run.metrics()] == [1, 2, 3]
    assert [r["epoch"] for r in run.keep_metrics(2)] == [1, 2]
    run.append_metrics({"epoch": 3, "loss": 0.25})
    assert [r["loss"] for r in run.metrics()] == [1.0, 0.5, 0.25]


def test_metrics_are_strict_json(run):
    with pytest.raises(ValueError, match="JSON"):
        run.append_metrics({"loss": float("nan")})
    assert run.metrics_path.read_text() == ""


def test_checkpoint_round_trip(run):
    state = {"epoch": 2, "random": {"state": 2**127 + 1}, "rate": 0.1}
    run.save_checkpoint(Checkpoint({"w": np.arange(4.0)}, state))
    arrays, back = run.load_checkpoint()
    assert back == state
    np.testing.assert_array_equal(arrays["w"], np.arange(4.0))


def test_a_truncated_checkpoint_is_told(run):
    run.save_checkpoint(Checkpoint({"w": np.arange(400.0)}, {}))
    whole = run.checkpoint_path.read_bytes()
    for length in (0, 5, 100, len(whole) - 8):
        run.checkpoint_path.write_bytes(whole[:length])
        with pytest.raises(ValueError, match=r"last\.safetensors .* may be truncated"):
            run.load_checkpoint()


def test_a_foreign_checkpoint_and_none(run):
    with pytest.raises(FileNotFoundError, match="no file"):
        run.load_checkpoint()
    from minires.files import save_file

    save_file(run.checkpoint_path, {"w": np.zeros(1)})
    with pytest.raises(ValueError, match="is not a checkpoint"):
        run.load_checkpoint()


def test_default_folders_are_new(tmp_path):
    day = f"{datetime.date.today():%Y-%m-%d}"
    names = []
    for _ in range(3):
        folder = default_folder("digits-resnet20", tmp_path / "runs")
        RunFolder.create(folder, {})
        names.append(folder.name)
    expected = f"{day}-digits-resnet20"
    assert names == [expected, f"{expected}-2", f"{expected}-3"]
