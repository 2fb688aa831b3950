import json
import math

import numpy as np
import pytest
from PIL import Image

import minires as mr
from minires import nn
from minires.data import digits
from minires.files import read_metadata
from minires.training import NotFiniteError, Run, evaluate, fit, load_model
from minires.training.recipes import RECIPES

OPTIONS = {"width": 4}
RECIPE = RECIPES["digits"].replace(epochs=3, batch_size=16)
TIMES = ("seconds", "images_per_second")


@pytest.fixture(scope="module")
def sets():
    return digits("train").take(40), digits("test").take(30)


def train(sets, out=None, seed=0, recipe=RECIPE):
    return fit("resnet20", *sets, recipe, options=OPTIONS, out=out, seed=seed, log=None)


def without_times(folder):
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    records = [json.loads(line) for line in lines]
    return [{k: v for k, v in r.items() if k not in TIMES} for r in records]


@pytest.fixture(scope="module")
def whole(sets, tmp_path_factory):
    """A run from start to end."""
    return train(sets, tmp_path_factory.mktemp("whole") / "run")


def files(folder):
    return sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file())


def test_the_folder(whole):
    expected = ["checkpoint/last.safetensors", "config.json", "curve.png", "metrics.jsonl"]
    assert files(whole.folder.path) == [*expected, "model.safetensors"]
    config = whole.folder.config()
    assert config["model"] == "resnet20"
    assert config["options"] == {"num_classes": 10, "in_channels": 1, "width": 4}
    assert config["recipe"]["epochs"] == 3
    assert config["seed"] == 0
    assert config["sets"]["training_images"] == 40


def test_metrics_have_one_line_per_epoch(whole):
    lines = whole.folder.metrics_path.read_text().splitlines()
    records = [json.loads(line) for line in lines]
    assert records == [m.as_dict() for m in whole.history]
    assert [(r["epoch"], r["step"]) for r in records] == [(1, 3), (2, 6), (3, 9)]
    for r in records:
        assert all(isinstance(value, int | float) for value in r.values())
        assert 0 <= r["train_accuracy"] <= 1
        assert 0 <= r["test_accuracy"] <= 1
        assert r["train_loss"] > 0
        assert r["seconds"] > 0
        assert r["images_per_second"] > 0
    assert records[-1]["lr"] == pytest.approx(RECIPE.lr / 1e4)


def test_the_curve_is_a_picture(whole):
    with Image.open(whole.folder.curve_path) as image:
        assert (image.format, image.size) == ("PNG", (1500, 840))


def test_the_model_is_rebuilt_from_its_file_alone(whole, sets, tmp_path):
    copy = tmp_path / "elsewhere.safetensors"
    copy.write_bytes(whole.folder.model_path.read_bytes())
    loaded = load_model(copy)
    assert (loaded.name, loaded.data, loaded.image_shape) == ("resnet20", "digits", (1, 8, 8))
    assert loaded.classes == sets[0].classes
    result = evaluate(loaded.model, sets[1], loaded.normalization.transform())
    assert result.loss == whole.last.test_loss
    assert result.accuracy == whole.last.test_accuracy
    probabilities = loaded.predict(sets[1].images)
    assert probabilities.shape == (30, 10)
    np.testing.assert_allclose(probabilities.sum(axis=1), 1, rtol=1e-5)
    right = (probabilities.argmax(axis=1) == sets[1].labels).mean()
    assert right == whole.last.test_accuracy
    assert load_model(whole.folder.path).options == loaded.options


def test_the_best_epoch_is_the_first_of_equals(whole):
    accuracies = [m.test_accuracy for m in whole.history]
    assert whole.best.epoch == accuracies.index(max(accuracies)) + 1
    assert whole.seconds == pytest.approx(sum(m.seconds for m in whole.history))


def test_same_seed_same_bits(whole, sets, tmp_path):
    again = train(sets, tmp_path / "again").folder
    for name in ("model.safetensors", "checkpoint/last.safetensors", "config.json"):
        assert (again.path / name).read_bytes() == (whole.folder.path / name).read_bytes(), name
    assert without_times(again.path) == without_times(whole.folder.path)


def test_another_seed_other_weights(whole, sets):
    other = train(sets, seed=1)
    ours, theirs = whole.trained.model.state_dict(), other.trained.model.state_dict()
    assert (ours["conv1.weight"].numpy() != theirs["conv1.weight"].numpy()).any()
    assert other.folder is None


class Stop(Exception):  # noqa: N818
    pass


@pytest.mark.parametrize("batches", [0, 2, 3, 4, 6, 8])
def test_resumed_runs_end_with_the_same_bits(whole, sets, tmp_path, batches):
    run = Run.new("resnet20", *sets, RECIPE, options=OPTIONS, out=tmp_path / "run")

    def stop(progress):
        if progress.done > batches:
            raise Stop

    with pytest.raises(Stop):
        run.train(on_step=stop)
    mr.manual_seed(12345)  # whatever else the process did in between
    resumed = Run.resume(tmp_path / "run", *sets)
    assert resumed.trainer.epoch == batches // 3
    resumed.train()
    assert files(tmp_path / "run") == files(whole.folder.path)
    for name in ("model.safetensors", "checkpoint/last.safetensors"):
        assert (tmp_path / "run" / name).read_bytes() == (whole.folder.path / name).read_bytes()
    assert without_times(tmp_path / "run") == without_times(whole.folder.path)
    assert [m.epoch for m in resumed.history] == [1, 2, 3]


def test_metrics_beyond_the_checkpoint_are_dropped(sets, tmp_path):
    # As if the process had died between writing the line and writing the checkpoint.
    run = Run.new("resnet20", *sets, RECIPE, options=OPTIONS, out=tmp_path / "run")
    run.folder.append_metrics({**dict.fromkeys(TIMES, 0.0), "epoch": 1, "step": 99})
    with open(run.folder.metrics_path, "a") as file:
        file.write('{"epoch": 2')
    assert Run.resume(tmp_path / "run", *sets).history == []
    assert run.folder.metrics_path.read_text() == ""


def test_what_chose_the_kernels_is_on_record(whole, sets, tmp_path):
    chosen = {"algorithm": "any", "named": {}, "table": None}
    assert whole.folder.config()["kernels"] == chosen
    Run.new("resnet20", *sets, RECIPE, options=OPTIONS, out=tmp_path / "run")
    with mr.kernels.use(conv2d="im2col"):
        with pytest.warns(UserWarning, match=r"was begun with kernels chosen by .*'im2col'"):
            Run.resume(tmp_path / "run", *sets)
        named = Run.new("resnet20", *sets, RECIPE, options=OPTIONS)
    assert named.config["kernels"] == chosen | {"named": {"conv2d": "im2col"}}


def test_a_careful_start_is_resumed(sets, tmp_path):
    recipe = RECIPE.replace(careful_lr=0.004, careful_error=0.98, epochs=5)

    def rates(run):
        seen = []
        return seen, lambda progress: seen.append(progress.lr)

    seen, note = rates(Run)
    whole = Run.new("resnet20", *sets, recipe, options=OPTIONS)
    whole.train(on_step=note)
    assert 3 < seen.count(0.004) < 15
    Run.new("resnet20", *sets, recipe, options=OPTIONS, out=tmp_path / "run")
    halves, note = rates(Run)

    def stop(progress):
        note(progress)
        if progress.done == 6:
            raise Stop

    with pytest.raises(Stop):
        Run.resume(tmp_path / "run", *sets).train(on_step=stop)
    del halves[3:]  # the second epoch was not finished
    Run.resume(tmp_path / "run", *sets).train(on_step=note)
    assert halves == seen


def test_resuming_with_other_data(whole, sets):
    with pytest.raises(ValueError, match="begun with other data: training images were 40, now 39"):
        Run.resume(whole.folder.path, sets[0].take(39), sets[1])
    with pytest.raises(ValueError, match="test images were 30, now 0"):
        Run.resume(whole.folder.path, sets[0])


def test_resuming_from_a_truncated_checkpoint(sets, tmp_path):
    run = Run.new("resnet20", *sets, RECIPE, options=OPTIONS, out=tmp_path / "run")
    path = run.folder.checkpoint_path
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(ValueError, match=r"last\.safetensors .* may be truncated"):
        Run.resume(tmp_path / "run", *sets)


def test_an_existing_folder_stays_as_it_is(whole, sets):
    before = {name: (whole.folder.path / name).read_bytes() for name in files(whole.folder.path)}
    with pytest.raises(FileExistsError, match="holds a run already"):
        train(sets, whole.folder.path)
    after = {name: (whole.folder.path / name).read_bytes() for name in files(whole.folder.path)}
    assert after == before


def test_an_unwritable_folder_is_told_before_training(sets, tmp_path):
    (tmp_path / "file").touch()
    steps: list[object] = []
    with pytest.raises(NotADirectoryError):
        fit("resnet20", *sets, RECIPE, out=tmp_path / "file" / "run", on_step=steps.append)
    assert steps == []


def test_a_loss_that_is_not_finite_leaves_the_checkpoint(sets, tmp_path):
    recipe = RECIPE.replace(lr=1e30, schedule="constant")
    with pytest.raises(NotFiniteError, match=r"epoch 1, step \d, learning rate 1e\+30"):
        train(sets, tmp_path / "run", recipe=recipe)
    assert Run.resume(tmp_path / "run", *sets).trainer.epoch == 0


def small_net():
    mr.manual_seed(5)
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 10))


def test_a_model_of_ones_own(sets, tmp_path):
    lines = []
    run = fit(small_net(), *sets, RECIPE, out=tmp_path / "run", log=lines.append)
    assert len(lines) == 4
    assert lines[0].split()[:3] == ["epoch", "train", "loss"]
    assert lines[3].split()[0] == "3/3"
    assert f"{100 * run.last.test_accuracy:.2f} %" in lines[3]
    path = run.folder.model_path
    with pytest.raises(ValueError, match="build it again and pass it as model="):
        load_model(path)
    loaded = load_model(path, small_net())
    result = evaluate(loaded.model, sets[1], loaded.normalization.transform())
    assert result.loss == run.last.test_loss
    with pytest.raises(ValueError, match="build it again and pass it as model="):
        Run.resume(run.folder.path, *sets)
    assert Run.resume(run.folder.path, *sets, model=small_net()).finished
    with pytest.raises(TypeError, match="options go with the name of a model"):
        fit(small_net(), *sets, RECIPE, options=OPTIONS)


def test_without_a_test_set(sets, tmp_path):
    run = fit(small_net(), sets[0], None, RECIPE, out=tmp_path / "run", log=None)
    assert [m.test_accuracy for m in run.history] == [None] * 3
    assert run.best.train_accuracy == max(m.train_accuracy for m in run.history)
    assert Run.resume(run.folder.path, sets[0], model=small_net()).finished


def test_a_test_loss_that_is_not_finite_is_null(sets, tmp_path):
    model = small_net()

    class Explode(nn.Module):
        def forward(self, x):
            return x if self.training else x * math.inf

    recipe = RECIPE.replace(epochs=1)
    run = fit(nn.Sequential(model, Explode()), *sets, recipe, out=tmp_path / "run", log=None)
    assert json.loads(run.folder.metrics_path.read_text())["test_loss"] is None


def test_sets_that_do_not_match(sets):
    wrong = digits("test").take(5)
    wrong.classes = tuple("abcdefghij")
    with pytest.raises(ValueError, match="does not match the training set"):
        fit("resnet20", sets[0], wrong, log=None)


def test_the_file_of_somebody_else(tmp_path, whole):
    path = tmp_path / "weights.safetensors"
    mr.save_file(path, {"w": np.zeros(3)})
    with pytest.raises(ValueError, match="does not say which model it belongs to"):
        load_model(path)
    path.write_bytes(whole.folder.model_path.read_bytes()[:5000])
    with pytest.raises(ValueError, match="may be truncated"):
        load_model(path)
    with pytest.raises(FileNotFoundError, match="no file"):
        load_model(tmp_path / "nothing")


def test_metadata_is_readable_by_others(whole):
    metadata = read_metadata(whole.folder.model_path)
    assert json.loads(metadata["model"]) == "resnet20"
    assert json.loads(metadata["classes"]) == list("0123456789")
    assert set(json.loads(metadata["normalization"])) == {"mean", "std"}


@pytest.mark.slow
def test_digits_are_learnt():
    run = fit("resnet20", digits("train"), digits("test"), log=None)
    assert run.last.test_accuracy >= 0.97
