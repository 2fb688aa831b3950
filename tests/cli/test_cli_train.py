"""`minires train` and `minires eval`, as a user calls them: tiny runs on the digits."""

import json
import os
import re
import signal
import subprocess
import sys
from contextlib import contextmanager

import numpy as np
import pytest
from PIL import Image

from minires.cli.app import run
from minires.files import load_file

TINY = ["--limit", "60", "--epochs", "2", "--batch-size", "32"]


@pytest.fixture
def call(capsys):
    """Run a command; returns (exit status, standard output, standard error)."""

    def call(*arguments):
        capsys.readouterr()
        status = run([str(a) for a in arguments])
        captured = capsys.readouterr()
        return status, captured.out, captured.err

    return call


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cli") / "run"
    assert run(["train", *TINY, "--seed", "3", "--out", str(folder)]) == 0
    return folder


def test_plain_output_is_one_line_per_epoch_and_a_table(call, tmp_path):
    status, out, err = call("train", *TINY, "--out", tmp_path / "run")
    assert (status, err) == (0, "")
    assert "\r" not in out
    assert "\x1b" not in out
    lines = out.splitlines()
    assert lines[0] == (
        "resnet20 (269,434 parameters) on digits: 60 training and 60 test images of 1x8x8, "
        "10 classes"
    )
    assert "recipe digits: 2 epochs, 4 steps, batch 32" in lines[1]
    epochs = [line.split() for line in lines if re.match(r" +\d/2 ", line)]
    assert [words[0] for words in epochs] == ["1/2", "2/2"]
    records = [json.loads(r) for r in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    for words, record in zip(epochs, records, strict=True):
        assert words[1] == f"{record['train_loss']:.4f}"
        assert words[2] == f"{100 * record['train_accuracy']:.2f}"
        assert words[4] == f"{record['test_loss']:.4f}"
    best = max(record["test_accuracy"] for record in records)
    assert f"best            {100 * best:.2f} %" in out
    for words in ("parameters", "train accuracy", "test accuracy", "images/s"):
        assert words in out
    assert f"minires eval {tmp_path}/run" in out


def test_compiling_is_told_once_where_no_line_can_move(call, tmp_path, monkeypatch):
    @contextmanager
    def announced(report):
        report(1, 1.5)
        report(2, 2.5)
        yield

    monkeypatch.setattr("minires.cli.progress.announced", announced)
    status, _, err = call("train", *TINY, "--out", tmp_path / "run")
    assert (status, err) == (0, "compiling kernels for this machine, once: about a minute\n")


def test_the_run_folder(trained):
    config = json.loads((trained / "config.json").read_text())
    assert config["recipe"]["epochs"] == 2
    assert config["seed"] == 3
    assert config["threads"] == int(os.environ.get("MINIRES_THREADS") or 1)
    assert config["source"] == {
        "data": "digits", "data_dir": None, "size": None, "limit": 60, "validate": False,
    }  # fmt: skip
    with Image.open(trained / "curve.png") as image:
        assert image.size == (1500, 840)


def test_the_default_folder_is_new_each_time(call, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for _ in range(2):
        assert call("train", "--limit", 20, "--epochs", 1)[0] == 0
    first, second = sorted(p.name for p in (tmp_path / "runs").iterdir())
    assert re.fullmatch(r"\d{4}-\d\d-\d\d-digits-resnet20", first)
    assert second == f"{first}-2"


def test_settings_reach_the_run(call, tmp_path):
    status, *_ = call(
        "train", *TINY, "--model", "resnet20", "--shortcut", "B", "--lr", 0.03, "--weight-decay",
        0.01, "--recipe", "fast", "--threads", 1, "--out", tmp_path / "run",
    )  # fmt: skip
    assert status == 0
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    assert config["options"]["shortcut"] == "B"
    recipe = config["recipe"]
    assert (recipe["name"], recipe["lr"], recipe["weight_decay"]) == ("fast", 0.03, 0.01)
    assert (recipe["epochs"], recipe["batch_size"]) == (2, 32)
    assert config["threads"] == 1
    assert "layer2.0.downsample.0.weight" in load_file(tmp_path / "run" / "model.safetensors")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["train", "--epocs", "3"], "no option --epocs. Did you mean --epochs?"),
        (["trian"], "Did you mean 'train'?"),
        (["train", "--model", "resnt20"], "unknown model 'resnt20'. Did you mean 'resnet20'?"),
        (["train", "--data", "cifar"], "unknown data set 'cifar'. Did you mean 'cifar10'?"),
        (["train", "--recipe", "papr"], "unknown recipe 'papr'. Did you mean 'paper'?"),
        (["train", "--shortcut", "D"], "unknown shortcut 'D'"),
        (["train", "--data", "cifar10"], "cifar10 needs --data-dir"),
        (["train", "--size", "32"], "--size is for folders of images; digits has its own"),
        (["train", "--validate"], "--validate is for cifar10 and cifar100"),
        (["train", "--epochs", "0"], "--epochs"),
        (["train", "--lr", "fast"], "--lr"),
        (["train", "--resume", "nowhere"], "'nowhere' does not exist"),
        (["eval"], "RUN_OR_FILE"),
        (["eval", "nowhere"], "'nowhere' does not exist"),
        (["eval", ".", "--split", "tset"], "--split is test or train, got 'tset'"),
        (["gradcheck", "--op", "conv3d"], "unknown operation 'conv3d'. Did you mean 'conv2d'?"),
        (["gradcheck", "--op", "relu", "--model", "resnet20"], "not both"),
        (["gradcheck", "--size", "8"], "--size goes with --model"),
        (["models", "vgg*"], "no model matches 'vgg*'"),
        (["kernels", "list", "conv2"], "unknown operation 'conv2'. Did you mean 'conv2d'?"),
    ],
)
def test_wrong_calls_end_with_status_2_and_a_hint(call, arguments, words):
    status, out, err = call(*arguments)
    assert (status, out) == (2, "")
    assert err.startswith("error: ")
    assert words in err
    assert "Traceback" not in err
    assert "Try: minires" in err


def test_failures_end_with_status_1_and_one_message(call, tmp_path, trained):
    file = tmp_path / "file"
    file.touch()
    for out in (file, file / "run", trained, tmp_path):
        status, printed, err = call("train", *TINY, "--out", out)
        assert (status, printed) == (1, "")
        assert err.startswith("error: ")
        assert str(out) in err
        assert len(err.splitlines()) == 1
    status, _, err = call("train", "--data", "cifar10", "--data-dir", tmp_path)
    assert status == 1
    assert "no cifar10 in" in err
    status, _, err = call("train", "--resume", tmp_path)
    assert (status, "is not the folder of a run" in err) == (1, True)


def test_a_loss_that_is_not_finite(call, tmp_path):
    settings = ["--limit", 60, "--epochs", 9, "--lr", 1e20]
    status, _, err = call("train", *settings, "--out", tmp_path / "run")
    assert status == 1
    place = r"error: training stopped at epoch \d, step \d, learning rate \d\.\d*e\+19: "
    assert re.match(place, err)
    assert re.search(r"holds [\d,]+ (NaN|infinite)|the loss is (inf|nan)", err)
    assert "smaller learning rate" in err


def test_debug_shows_where(monkeypatch, tmp_path):
    monkeypatch.setenv("MINIRES_DEBUG", "1")
    with pytest.raises(FileNotFoundError, match="is not the folder of a run"):
        run(["train", "--resume", str(tmp_path)])


def test_an_error_of_our_own_is_told_as_such(call, monkeypatch):
    monkeypatch.setattr("minires.models.list_models", lambda pattern: {}["x"])
    status, _, err = call("models")
    assert status == 1
    assert err == "error: KeyError: 'x' (MINIRES_DEBUG=1 shows where)\n"


def test_resume_takes_no_settings(call, trained):
    status, _, err = call("train", "--resume", trained, "--lr", 0.1, "--batch-size", 4)
    assert status == 2
    assert "leave out --lr, --batch-size" in err


def test_resuming_a_finished_run(call, trained):
    before = (trained / "metrics.jsonl").read_bytes()
    status, out, _ = call("train", "--resume", trained)
    assert (status, "all 2 epochs are finished" in out) == (0, True)
    assert (trained / "metrics.jsonl").read_bytes() == before


def test_resuming_from_a_truncated_checkpoint(call, tmp_path):
    call("train", "--limit", 20, "--epochs", 1, "--out", tmp_path / "run")
    path = tmp_path / "run" / "checkpoint" / "last.safetensors"
    path.write_bytes(path.read_bytes()[:1000])
    status, _, err = call("train", "--resume", tmp_path / "run")
    assert status == 1
    assert "last.safetensors (1,000 bytes) is not a whole safetensors" in err


def test_ctrl_c_and_resume_end_with_the_same_bits(call, tmp_path):
    settings = ["--limit", "200", "--epochs", "16", "--threads", "1"]
    environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
    command = [sys.executable, "-m", "minires", "train", *settings, "--out", "stopped"]
    with subprocess.Popen(
        command, cwd=tmp_path, env=environment, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        # A shell's background jobs, and what they start, ignore Ctrl-C.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    ) as process:  # fmt: skip
        for line in process.stdout:
            if line.lstrip().startswith("2/16"):
                process.send_signal(signal.SIGINT)
                break
        _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    finished = len((tmp_path / "stopped" / "metrics.jsonl").read_text().splitlines())
    assert 2 <= finished < 16
    assert err.splitlines() == [
        f"interrupted in epoch {finished + 1}; {finished} finished epochs are kept in stopped",
        "Go on with: minires train --resume stopped",
    ]
    status, out, _ = call("train", "--resume", tmp_path / "stopped")
    assert status == 0
    assert f"going on after epoch {finished}" in out
    assert call("train", *settings, "--out", tmp_path / "whole")[0] == 0
    for name in ("model.safetensors", "checkpoint/last.safetensors"):
        stopped, whole = tmp_path / "stopped" / name, tmp_path / "whole" / name
        assert stopped.read_bytes() == whole.read_bytes()


def accuracy_in(out):
    return re.search(r"^accuracy +([\d.]+ %)", out, re.MULTILINE)[1]


def test_eval_of_a_run_and_of_its_file(call, trained, tmp_path):
    record = json.loads((trained / "metrics.jsonl").read_text().splitlines()[-1])
    expected = f"{100 * record['test_accuracy']:.2f} %"
    status, out, err = call("eval", trained, "--limit", 60)
    assert (status, err) == (0, "")
    assert accuracy_in(out) == expected
    assert f"loss      {record['test_loss']:.4f}" in out
    rows = [line.split() for line in out.splitlines() if re.match(r" \d +\d+ ", line)]
    assert [row[0] for row in rows] == list("0123456789")
    assert sum(int(row[1]) for row in rows) == 60
    copy = tmp_path / "copy.safetensors"
    copy.write_bytes((trained / "model.safetensors").read_bytes())
    assert accuracy_in(call("eval", copy, "--limit", 60, "--batch-size", 7)[1]) == expected
    assert "digits train, 1,437 images" in call("eval", copy, "--split", "train")[1]


def test_eval_of_a_truncated_file(call, trained, tmp_path):
    short = tmp_path / "short.safetensors"
    short.write_bytes((trained / "model.safetensors").read_bytes()[:4000])
    status, _, err = call("eval", short)
    assert (status, "may be truncated" in err) == (1, True)


def test_eval_of_weights_from_elsewhere(call, trained, tmp_path):
    from minires.files import save_file
    from minires.training import load_model

    own = load_model(trained)
    foreign = tmp_path / "foreign.safetensors"
    state = load_file(trained / "model.safetensors")
    save_file(foreign, {k.replace("fc.", "linear."): v for k, v in state.items()
                        if not k.endswith("num_batches_tracked")})  # fmt: skip
    status, _, err = call("eval", foreign)
    assert (status, "does not say which data it is for: give --data" in err) == (2, True)
    status, _, err = call("eval", foreign, "--data", "digits")
    assert (status, "does not say which model it belongs to" in err) == (1, True)
    named = ["eval", foreign, "--data", "digits", "--limit", "60", "--model", "resnet20"]
    status, _, err = call(*named)
    assert (status, "give --mean and --std" in err) == (2, True)
    numbers = [f"--mean={own.normalization.mean[0]}", f"--std={own.normalization.std[0]}"]
    expected = accuracy_in(call("eval", trained, "--limit", 60)[1])
    assert accuracy_in(call(*named, *numbers)[1]) == expected
    status, _, err = call(*named[:-1], "resnet32", *numbers)
    assert status == 1
    assert "does not hold the weights of resnet32: 60 tensors are missing (layer1.3" in err
    status, _, err = call(*named, "--mean", "0.1,x", "--std", "1")
    assert (status, "expected numbers with commas" in err) == (2, True)
    status, _, err = call(*named, "--mean", "0.1,0.2,0.3", "--std", "1")
    assert (status, "take 1 numbers for digits" in err) == (2, True)


def photographs(folder, n, seed=0):
    rng = np.random.default_rng(seed)
    for name, colour in (("night", 30), ("noon", 220)):
        (folder / name).mkdir(parents=True)
        for i in range(n):
            pixels = np.clip(rng.normal(colour, 10, (14, 20, 3)), 0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(folder / name / f"{i}.png")


def test_a_folder_of_images(call, tmp_path):
    photographs(tmp_path / "photos", 10)
    out = tmp_path / "run"
    arguments = ["--size", 12, "--epochs", 6, "--batch-size", 8, "--model", "resnet20"]
    status, printed, _ = call("train", "--data", tmp_path / "photos", *arguments, "--out", out)
    assert status == 0
    assert "on photos: 16 training and 4 test images of 3x12x12, 2 classes" in printed
    status, printed, _ = call("eval", out)
    assert status == 0
    assert re.search(r"^ night +2 ", printed, re.MULTILINE)
    _, printed, _ = call("eval", out, "--limit", 2)  # images from all over the set
    assert re.search(r"^ night +1 .*\n noon +1 ", printed, re.MULTILINE)
    status, _, err = call("eval", out, "--data", "digits")
    assert status == 1
    assert "tells 2 classes apart (night, noon); digits has 10 (0, 1, 2, 3, ...)" in err


def test_a_folder_with_a_split_of_its_own(call, tmp_path):
    photographs(tmp_path / "photos" / "train", 6)
    arguments = ["train", "--data", tmp_path / "photos", "--size", 8, "--epochs", 1,
                 "--model", "resnet20", "--out", tmp_path / "run"]  # fmt: skip
    status, _, err = call(*arguments)
    assert (status, "none of test, val" in err) == (1, True)
    photographs(tmp_path / "photos" / "val", 3)
    status, out, _ = call(*arguments)
    assert status == 0
    assert "12 training and 6 test images" in out
