"""`minires experiment`, as a user calls it: small runs on the digits."""

import pytest

from minires.cli.app import run
from minires.experiments import EXPERIMENTS, Settings

TINY = ["--quick", "--model", "resnet20", "--limit", "48", "--epochs", "1", "--seeds", "1"]


@pytest.fixture
def call(capsys):
    """Run the command; returns (exit status, standard output, standard error)."""

    def call(*arguments):
        capsys.readouterr()
        status = run(["experiment", *map(str, arguments)])
        captured = capsys.readouterr()
        return status, captured.out, captured.err

    return call


def test_list_names_every_experiment(call):
    status, out, _ = call("list")
    assert status == 0
    for name, experiment in EXPERIMENTS.items():
        assert name in out
        assert experiment.source.split(",")[0] in out
    assert call()[1] == out


def test_a_run_says_what_it_found_and_where_the_report_is(call, tmp_path):
    status, out, err = call("degradation", *TINY, "--out", tmp_path)
    assert (status, err) == (0, "")
    lines = out.splitlines()
    assert lines[0] == "run 1/1: resnet20, seed 0"
    assert lines[1].startswith("  epoch 1/1: training error")
    page = tmp_path / "degradation" / "report.md"
    assert lines[-1] == f"report: {page}"
    assert page.is_file()
    status, out, _ = call("degradation", *TINY, "--out", tmp_path)
    assert out.splitlines()[0] == "run 1/1: resnet20, seed 0: finished before"


def test_resume_takes_the_settings_from_the_folder(call, tmp_path, monkeypatch):
    import minires.experiments

    def interrupted(*arguments):
        raise KeyboardInterrupt

    settings = Settings.choose(tmp_path, quick=True, models=["resnet18"])
    (tmp_path / "bottleneck").mkdir()
    settings.save(tmp_path / "bottleneck")
    with monkeypatch.context() as patch:
        patch.setattr(minires.experiments, "carry_out", interrupted)
        status, _, err = call("--resume", tmp_path / "bottleneck")
    assert status == 130
    command = err.splitlines()[-1].removeprefix("Go on with: minires experiment ").split()
    status, out, _ = call(*command)
    assert status == 0
    assert "counting resnet18" in out
    assert Settings.load(tmp_path / "bottleneck") == settings


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["degradatoin"], "Did you mean 'degradation'"),
        (["lesion"], "needs data_dir"),
        (["lesion", "--quick", "--model", "resnet21"], "Did you mean 'resnet"),
        (["--resume", ".", "--seeds", "2", "--quick"], "leave out --seeds, --quick"),
        (["lesion", "--resume", "."], "leave out NAME"),
        (["--resume", "."], "no settings.json"),
    ],
)
def test_mistakes_are_explained(call, arguments, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    status, out, err = call(*arguments)
    assert status in (1, 2)
    assert out == ""
    assert message in " ".join(err.split())
    assert list(tmp_path.iterdir()) == []
