"""A recorded training: unchanged by being looked at, exact, and whole after an interruption."""

import numpy as np
import pytest

import minires as mr
from minires.anatomy.joins import joins
from minires.experiments.recording import (
    FILE,
    NUMBERS,
    load_recording,
    look_batch,
    record_training,
)
from minires.training import Run, recipes


@pytest.fixture(scope="module")
def sets():
    return mr.data.digits("train").take(96), mr.data.digits("test").take(40)


def begin(sets, out=None, epochs=2, net="resnet8"):
    recipe = recipes.choose(sets[0], "digits", net).replace(epochs=epochs, batch_size=32)
    return Run.new(net, *sets, recipe, out=out, seed=1)


def weights(run):
    return {name: tensor.numpy() for name, tensor in run.trained.model.state_dict().items()}


def test_looking_changes_no_bit_of_the_training(sets):
    watched, alone = begin(sets), begin(sets)
    record_training(watched)
    alone.train()
    assert [m.train_loss for m in watched.history] == [m.train_loss for m in alone.history]
    for name, array in weights(alone).items():
        np.testing.assert_array_equal(weights(watched)[name], array, err_msg=name)


def test_every_moment_is_what_joins_finds_in_that_net(sets):
    run = begin(sets, epochs=1)
    x, y = look_batch(sets[0], run.trained.normalization)
    run.trained.model.train()
    before = joins(run.trained.model, x, y)
    recording = record_training(run)
    run.trained.model.train()
    after = joins(run.trained.model, x, y)
    assert [moment.epoch for moment in recording.moments] == [0, 1]
    for moment, found in zip(recording.moments, (before, after), strict=True):
        assert moment.blocks == ("layer1.0", "layer2.0", "layer3.0")
        assert moment.shortcuts == ("identity", "padding", "padding")
        assert moment.loss == found.loss
        for name in NUMBERS:
            assert moment.numbers[name] == tuple(getattr(join, name) for join in found)
    assert recording.column("share").shape == (2, 3)


def stop_at(epoch, step):
    def on_step(progress):
        if (progress.epoch, progress.step) == (epoch, step):
            raise KeyboardInterrupt

    return on_step


@pytest.mark.parametrize("damage", ["none", "lost", "cut"])
def test_an_interrupted_record_goes_on_as_if_it_had_not_been(sets, tmp_path, damage):
    whole = record_training(begin(sets, tmp_path / "whole", epochs=3))
    run = begin(sets, tmp_path / "run", epochs=3)
    with pytest.raises(KeyboardInterrupt):
        record_training(run, on_step=stop_at(3, 2))
    path = tmp_path / "run" / FILE
    lines = path.read_text().splitlines(keepends=True)
    assert len(lines) == 3
    if damage == "lost":  # the checkpoint was written, the record of that epoch was not
        path.write_text("".join(lines[:-1]))
    if damage == "cut":
        path.write_text("".join(lines)[:-20])
    resumed = record_training(Run.resume(tmp_path / "run", *sets))
    assert resumed == whole
    assert load_recording(tmp_path / "run") == whole


def test_a_run_without_a_record_is_refused(sets, tmp_path):
    begin(sets, tmp_path / "run").train()
    with pytest.raises(ValueError, match="without a record"):
        record_training(Run.resume(tmp_path / "run", *sets))
    with pytest.raises(FileNotFoundError, match="no record of its joins"):
        load_recording(tmp_path / "run")


def test_a_plain_net_has_one_way(sets):
    recording = record_training(begin(sets, epochs=1, net="plain8"))
    assert recording.moments[0].shortcuts == ("none",) * 3
    np.testing.assert_array_equal(recording.column("share"), 0)
    np.testing.assert_array_equal(
        recording.column("branch_norm"), recording.column("whole_norm")
    )
