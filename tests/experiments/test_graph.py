"""The page of a recorded training, without a browser: what it holds and what it does not."""

import json
import re

import numpy as np
import pytest

import minires as mr
from minires import models
from minires.anatomy.page import net_parts, render
from minires.experiments.graph import write_page
from minires.experiments.recording import NUMBERS, JoinMoment, Recording
from minires.training import Run, recipes


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    """(text of the page, the recording that it shows)."""
    train_set = mr.data.digits("train").take(48)
    recipe = recipes.choose(train_set, "digits", "resnet20").replace(epochs=1)
    run = Run.new("resnet8", train_set, None, recipe)
    run.trained.model.train()
    x = run.trained.normalization.transform()(train_set.images[:8])
    moments = tuple(JoinMoment.of(run.trained.model, x, train_set.labels[:8], e) for e in (0, 1))
    path = tmp_path_factory.mktemp("page") / "out.html"
    write_page(path, run.trained, Recording(moments), facts=["a </script> in a fact"])
    return path.read_text(encoding="utf-8"), Recording(moments)


def embedded(text):
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', text, re.S)
    return json.loads(found.group(1))


def test_page_asks_no_network_for_anything(page):
    text, _ = page
    assert "default-src 'none'" in text
    assert not re.search(r"https?:|//[a-z]+\.|@import|url\(|<link|<img|src=|href=\"(?!#)", text)


def test_page_holds_the_numbers(page):
    text, recording = page
    data = embedded(text)
    assert data["facts"][-1] == "a </script> in a fact"
    assert data["title"] == "How the gradient divides in resnet8"
    assert data["shortcuts"] == ["identity", "padding", "padding"]
    assert set(data["shortcuts"]) <= set(data["names"])
    assert [m["epoch"] for m in data["moments"]] == [0, 1]
    for moment, shown in zip(recording.moments, data["moments"], strict=True):
        for name in NUMBERS:
            np.testing.assert_allclose(shown[name], moment.numbers[name], rtol=1e-5)


def test_parts_of_a_net_are_its_stages_and_layers():
    stages = net_parts(models.create("resnet50"), (3, 224, 224))
    assert [stage["name"] for stage in stages] == ["layer1", "layer2", "layer3", "layer4"]
    assert [len(stage["blocks"]) for stage in stages] == [3, 4, 6, 3]
    first = stages[1]["blocks"][0]
    assert first["layers"] == ["1x1, 128", "3x3, 128, stride 2", "1x1, 512"]
    assert (first["input"], first["output"]) == (256, [512, 28, 28])
    assert (first["kind"], first["stride"]) == ("Bottleneck", 2)


def test_a_number_that_is_not_finite_is_refused():
    with pytest.raises(ValueError, match="Out of range"):
        render({"moments": [{"epoch": 0, "share": [float("nan")]}]})
