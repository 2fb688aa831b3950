"""`minires paths`, as a user calls it."""

import json
import re

import numpy as np
import pytest

from minires.anatomy.joins import joins
from minires.cli.app import run
from minires.data import digits
from minires.training import load_model

TINY = ["--limit", "40", "--batch-size", "8"]


@pytest.fixture
def call(capsys):
    """Run the command; returns (exit status, standard output, standard error)."""

    def call(*arguments):
        capsys.readouterr()
        status = run(["paths", *map(str, arguments)])
        captured = capsys.readouterr()
        return status, captured.out, captured.err

    return call


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("paths") / "run"
    assert run(["train", "--limit", "40", "--epochs", "1", "--out", str(folder)]) == 0
    return folder


def embedded(path):
    text = path.read_text(encoding="utf-8")
    return json.loads(re.search(r'id="data">(.*?)</script>', text, re.S).group(1))


def test_tables_of_a_new_net(call):
    status, out, err = call("--model", "resnet20", "--shortcut", "B", *TINY)
    assert (status, err) == (0, "")
    assert out.startswith("resnet20 on 8 images of digits, loss ")
    rows = [line.split() for line in out.splitlines()]
    assert [row[0] for row in rows if row and row[0].startswith("layer")] == [
        f"layer{stage}.{block}" for stage in (1, 2, 3) for block in range(3)
    ]
    assert ["4", "126"] in [row[:2] for row in rows]  # C(9, 4) paths through four branches
    assert "projection" in out
    difference = float(re.search(r"relative difference ([\d.e-]+)\.\n", out).group(1))
    assert difference < 1e-4


def test_tables_of_a_trained_net_are_about_that_net(call, trained):
    status, out, _ = call("--run", trained, "--batch-size", 8)
    assert status == 0
    known = load_model(trained)
    known.model.train()
    images = digits("train")
    picked = np.arange(40) * len(images) // 40  # as --limit spreads them
    first = images.subset(picked).take(8)
    x = known.normalization.transform()(first.images)
    found = joins(known.model, x, first.labels)
    assert found.table() in out


def test_page_of_a_short_training(call, tmp_path):
    page = tmp_path / "out.html"
    status, out, err = call("--model", "resnet20", "--html", page, "--epochs", 1, *TINY)
    assert (status, err) == (0, "")
    assert f"{page}: " in out
    data = embedded(page)
    assert [moment["epoch"] for moment in data["moments"]] == [0, 1]
    assert data["facts"][-2:] == ["1 epoch of training", "gradient of a batch of 8 images"]
    before = data["moments"][0]["share"]
    assert len(before) == 9
    assert before != data["moments"][1]["share"]


def test_page_of_a_run_without_a_record_shows_the_net_as_it_is(call, trained, tmp_path):
    page = tmp_path / "out.html"
    status, _, _ = call("--run", trained, "--html", page, "--batch-size", 8)
    assert status == 0
    data = embedded(page)
    assert [moment["epoch"] for moment in data["moments"]] == [1]
    assert data["moments"][0]["text"].startswith("1: training error ")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--run", "RUN", "--model", "resnet20"], "leave out --model"),
        (["--epochs", "3"], "--epochs goes with --html"),
        (["--html", "nowhere/out.html"], "does not exist"),
        (["--model", "resnet2"], "Did you mean"),
        (["--run", "RUN", "--data", "cifar10"], "needs --data-dir"),
    ],
)
def test_mistakes_are_explained(call, trained, arguments, message):
    status, out, err = call(*[trained if word == "RUN" else word for word in arguments])
    assert status == 2
    assert out == ""
    assert message in " ".join(err.split())
