"""Every experiment from end to end on small nets: its numbers against other ways to get them."""

import dataclasses
import json
import math
import re
from functools import partial

import numpy as np
import pytest
from PIL import Image

from minires import models
from minires.anatomy.profiles import gradient_norms, responses
from minires.experiments import EXPERIMENTS, Lab, Plan, Settings, carry_out, identity
from minires.experiments.depth import Depth
from minires.experiments.depth import Row as DepthRow
from minires.experiments.paths import Paths
from minires.experiments.recording import look_batch
from minires.experiments.statistics import Spread
from minires.training import evaluate


def quiet(line):
    """A log that says nothing."""


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    """Each experiment, carried out once with small nets in one folder of runs."""
    folder = tmp_path_factory.mktemp("experiments")
    nets = {
        "lesion": ["resnet8", "plain8"],
        "bottleneck": ["resnet18", "resnet34", "resnet50"],
        "options": ["resnet8"],
        "paths": ["resnet8"],
        "depth": ["resnet8", "resnet20"],
    }
    found = {}

    def get(name):
        if name not in found:
            chosen = nets.get(name, ["plain8", "resnet8"])
            settings = Settings.choose(
                folder, quick=True, models=chosen, epochs=1, limit=64, seeds=2
            )
            found[name] = carry_out(name, settings, quiet), settings
        return found[name]

    return get


@pytest.fixture(scope="module", autouse=True)
def short_truths():
    """The small trainings of "identity", smaller still."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(identity, "QUICK_BLOCKS", (1, 2, 3))
        patch.setattr(identity, "QUICK_STEPS", 10)
        turn = partial(identity.small_responses, blocks=(1, 2), steps=10)
        patch.setattr(identity, "small_responses", turn)
        yield


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_a_report_is_whole(done, name):
    folder, _ = done(name)
    page = (folder / "report.md").read_text()
    for heading in ("What the paper found", "What this run found", "What this run cannot show",
                    "How it was run"):  # fmt: skip
        body = page.split(f"## {heading}\n\n")[1].split("\n\n")[0]
        assert body.startswith("- "), heading
    assert f"minires experiment {name} --quick" in page
    assert "nan" not in page
    for link in re.findall(r"\]\(([^)]+)\)", page):
        path = folder / link
        assert path.stat().st_size > 0
        if path.suffix == ".png":
            with Image.open(path) as image:
                assert image.width > 600
                assert len(image.convert("RGB").getcolors(1 << 24)) > 20  # not blank
        elif path.suffix == ".csv":
            assert len(path.read_text().splitlines()) > 1
    json.loads((folder / "results.json").read_text())


def results(done, name):
    folder, settings = done(name)
    return json.loads((folder / "results.json").read_text()), Lab(settings, quiet)


def test_degradation_reports_the_errors_of_the_nets_it_kept(done):
    found, lab = results(done, "degradation")
    for row in (*found["plain"], *found["residual"]):
        plan = Plan(row["net"])
        runs = lab.train([plan])[plan]
        for run, error in zip(runs, row["test"]["values"], strict=True):
            trained = run.load()
            test = evaluate(trained.model, lab.sets.test, trained.normalization.transform())
            assert error == pytest.approx(100 - 100 * test.accuracy)


def test_options_are_those_of_the_net(done):
    found, _ = results(done, "options")
    assert [row["option"] for row in found["rows"]] == ["none", "A", "B", "C"]
    for row in found["rows"]:
        net = models.create("resnet8", shortcut=row["option"])
        assert row["parameters"] == models.count_parameters(net)


def test_a_plain_net_has_no_options(small):
    with pytest.raises(ValueError, match="give a residual net"):
        carry_out("options", small(models=["plain20"]), quiet)


def test_responses_are_those_of_the_nets_it_kept(done):
    found, lab = results(done, "responses")
    for row in found["rows"]:
        run = lab.train([Plan(row["net"])])[Plan(row["net"])][1]
        trained = run.load()
        x, _ = look_batch(lab.sets.test, trained.normalization, found["images"])
        trained.model.train()
        np.testing.assert_allclose(row["std"][1], responses(trained.model, x).std, rtol=1e-6)


def test_vanishing_measures_the_gradient_of_the_fresh_and_the_trained_net(done):
    found, lab = results(done, "vanishing")
    for row in found["rows"]:
        run = lab.train([Plan(row["net"])])[Plan(row["net"])][0]
        trained = run.load()
        x, y = look_batch(lab.sets.train, trained.normalization)
        trained.model.train()
        norms = gradient_norms(trained.model, x, y)
        blocks = [norms.activations[norms.places.index(f"layer{i}.0")] for i in (1, 2, 3)]
        np.testing.assert_allclose(row["norms"][0][-1], blocks, rtol=1e-4)
        assert row["end"]["values"][0] == pytest.approx(blocks[0] / blocks[-1], rel=1e-4)


def test_lesion_starts_from_the_intact_error(done):
    found, lab = results(done, "lesion")
    assert found["chance"] == 90
    for name, study in found["nets"].items():
        run = lab.train([Plan(name)])[Plan(name)][0]
        assert 100 * study["intact"] == pytest.approx(run.test_error)  # 360 images, all of them


def test_paths_add_up_and_are_counted(done):
    found, _ = results(done, "paths")
    assert found["blocks"] == 3
    assert found["counts"] == [math.comb(3, k) for k in range(4)]
    assert sum(found["shares"]) == pytest.approx(1, abs=1e-5)


def test_the_range_of_lengths_is_the_shortest_that_holds_enough():
    rng = np.random.default_rng(0)
    for _ in range(50):
        shares = rng.dirichlet(np.full(9, 0.3))
        low, high = Paths("net", 0, 8, 1, [], shares, shares, 0, None).range(shares)
        holding = [
            (j - i, i) for i in range(9) for j in range(i, 9)
            if shares[i : j + 1].sum() >= 0.95 * shares.sum() - 1e-12
        ]  # fmt: skip
        assert (high - low, low) == min(holding)


def test_a_depth_is_chosen_by_the_held_out_images_alone():
    def row(net, layers, train, held_out, test):
        return DepthRow(net, layers, 1, 1, *(Spread.of([e]) for e in (train, held_out, test)))

    result = Depth([row("a", 20, 5, 9, 7), row("b", 56, 4, 8, 9), row("c", 110, 1, 8.5, 6)])
    assert result.chosen.net == "b"
    found = EXPERIMENTS["depth"].describe(result).found
    assert "b is best, with 8.0 %" in found[0]
    assert "c's, 6.0 %" in found[1]
    assert "the choice cost 3.0 points" in found[1]


def test_depth_measures_held_out_images(done):
    found, lab = results(done, "depth")
    row = found["rows"][0]
    run = lab.train([Plan(row["net"])], held_out=True)[Plan(row["net"])][0]
    trained = run.load()
    result = evaluate(trained.model, lab.sets.validation, trained.normalization.transform())
    assert row["validation"]["values"][0] == pytest.approx(100 - 100 * result.accuracy)


def test_sentences_follow_the_numbers():
    """The same experiment with the opposite outcome says the opposite."""
    from minires.experiments.degradation import Degradation, Row

    def rows(kind, first, last):
        errors = {20: Spread.of(first), 56: Spread.of(last)}
        return [Row(f"{kind}{n}", n, error, error) for n, error in errors.items()]

    names = [f"{kind}{n}" for kind in ("plain", "resnet") for n in (20, 56)]
    worse = Degradation(
        rows("plain", [10, 10.2], [20, 20.2]),
        rows("resnet", [9, 9.2], [5, 5.2]),
        {name: [] for name in names},
    )
    plain, residual, gap = EXPERIMENTS["degradation"].describe(worse).found
    assert "10.0 points higher" in plain
    assert "the degradation that the paper describes" in plain
    assert "no degradation, as in the paper" in residual
    assert "15.0 points lower" in gap
    better = dataclasses.replace(worse, plain=worse.residual, residual=worse.plain)
    plain, residual, gap = EXPERIMENTS["degradation"].describe(better).found
    assert "no degradation in this run" in plain
    assert "unlike in the paper" in residual
    assert "15.0 points higher" in gap
    unsure = dataclasses.replace(worse, plain=rows("plain", [10, 20], [11, 21]))
    assert "does not decide" in EXPERIMENTS["degradation"].describe(unsure).found[0]


def test_an_unknown_experiment_is_named(small):
    with pytest.raises(ValueError, match="Did you mean 'lesion'"):
        carry_out("lesions", small(), quiet)
