"""Runs of experiments: shared, found again, resumed, and never mixed up."""

import numpy as np
import pytest

from minires.experiments import Lab, Plan
from minires.training import evaluate


def quiet(line):
    """A log that says nothing."""


def stopped(epoch, step):
    def on_step(place, progress):
        if (progress.epoch, progress.step) == (epoch, step):
            raise KeyboardInterrupt

    return on_step


def test_finished_runs_are_used_again(small):
    lines = []
    first = Lab(small(), lines.append).train([Plan("resnet8")])
    times = {run.folder: (run.folder / "model.safetensors").stat().st_mtime_ns
             for run in first[Plan("resnet8")]}  # fmt: skip
    second = Lab(small(), lines.append).train([Plan("resnet8")])
    assert first == second
    assert lines[-2:] == ["run 1/2: resnet8, seed 0: finished before",
                          "run 2/2: resnet8, seed 1: finished before"]  # fmt: skip
    assert len({run.folder for run in first[Plan("resnet8")]}) == 2
    for folder, time in times.items():
        assert (folder / "model.safetensors").stat().st_mtime_ns == time


def test_an_interrupted_experiment_goes_on_to_the_same_end(small, tmp_path):
    whole = Lab(small(), quiet).train([Plan("resnet8")])[Plan("resnet8")]
    again = small()
    again = again.__class__(**{**again.__dict__, "out": str(tmp_path / "other")})
    with pytest.raises(KeyboardInterrupt):
        Lab(again, quiet, stopped(2, 1)).train([Plan("resnet8")])
    lines = []
    resumed = Lab(again, lines.append).train([Plan("resnet8")])[Plan("resnet8")]
    assert lines[0] == "run 1/2: resnet8, seed 0, going on after epoch 1"
    for one, other in zip(whole, resumed, strict=True):
        assert [m.test_loss for m in one.history] == [m.test_loss for m in other.history]
        assert one.recording() == other.recording()


def test_a_run_stopped_before_its_first_checkpoint_is_begun_again(small):
    lab = Lab(small(seeds=1), quiet)
    (run,) = lab.train([Plan("resnet8")])[Plan("resnet8")]
    (run.folder / "checkpoint" / "last.safetensors").unlink()
    (again,) = Lab(small(seeds=1), quiet).train([Plan("resnet8")])[Plan("resnet8")]
    assert [m.test_loss for m in again.history] == [m.test_loss for m in run.history]


def test_what_decides_the_outcome_decides_the_folder(small):
    base = Lab(small(seeds=1), quiet).train([Plan("resnet8")])[Plan("resnet8")][0].folder
    for changes in ({"epochs": 1}, {"limit": 63}):
        other = Lab(small(seeds=1, **changes), quiet).train([Plan("resnet8")])
        assert other[Plan("resnet8")][0].folder != base
    for plan, same in (
        (Plan("resnet8", "A"), True),  # its own option
        (Plan("resnet8", "B"), False),
        (Plan("resnet8", "none"), False),
    ):
        found = Lab(small(seeds=1), quiet).train([plan])[plan][0].folder
        assert (found == base) == same
    twin = Lab(small(seeds=1), quiet).train([Plan("plain8")])[Plan("plain8")][0].folder
    assert twin.name.startswith("resnet8-none-seed0-")  # the same net under another name


def test_errors_are_those_of_the_kept_net(small):
    lab = Lab(small(seeds=1), quiet)
    (run,) = lab.train([Plan("resnet8")])[Plan("resnet8")]
    trained = run.load()
    result = evaluate(trained.model, lab.sets.test, trained.normalization.transform())
    np.testing.assert_allclose(run.test_error, 100 - 100 * result.accuracy, atol=1e-9)


def test_a_net_for_other_data_is_refused(small, tmp_path):
    lab = Lab(small(seeds=1), quiet)
    (run,) = lab.train([Plan("resnet8")])[Plan("resnet8")]
    known = Lab(small(runs=[run.folder]), quiet)
    assert [name for name, _ in known.trained_nets(["x"], ["y"])] == ["resnet8"]
    assert known.how()[0].startswith("resnet8 was trained before, on 64 images.")
    known.sets.test.classes = ("other",)
    with pytest.raises(ValueError, match="choose the same --data"):
        list(known.trained_nets(["x"], ["y"]))
