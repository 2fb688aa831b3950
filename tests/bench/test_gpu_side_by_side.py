"""The scripts for a machine with a GPU: rehearsed here, so that nothing fails there for nothing."""

import importlib
import json
import os
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from minires.kernels.cuda import emulate

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"



@pytest.fixture(autouse=True)
def importable(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    monkeypatch.setattr("minires.bench.timing.time.sleep", lambda seconds: None)


@pytest.fixture
def script():
    pytest.importorskip("torch")
    pytest.importorskip("ml_dtypes")
    if not sys.platform.startswith("linux") or emulate.compiler() is None:
        pytest.skip("the emulator needs Linux and a C++ compiler")
    return importlib.import_module("gpu_vs_torch")


@pytest.fixture
def day():
    return importlib.import_module("gpu_day")


def rehearse(script, *arguments):
    return script.main([*arguments, "--rehearse", "--rounds", "1"])


# -- gpu_vs_torch ----------------------------------------------------------------------------------


def test_kernels_are_rehearsed(script, tmp_path, capsys):
    parts = ("limits", "layers", "memory-bound")
    assert rehearse(script, *parts, "--precisions", "fp32", "bf16", "--out", str(tmp_path)) == 0
    record = json.loads((tmp_path / script.NAME).read_text())
    assert record["rehearsal"] is True
    assert set(parts) < set(record)
    assert set(record["layers"]) == {"fp32", "bf16"}
    for rows in record["layers"].values():
        assert len(rows) == 5  # two layers, and none back through the stem
        for row in rows.values():
            assert all(not one["refused"] and one["times"] for one in row["rows"])
            assert row["ratio"] > 0
    assert all(row["share"] > 0 for row in record["memory-bound"].values())
    assert len(record["memory-bound"]) == 30
    printed = capsys.readouterr().out
    assert printed.startswith("A rehearsal: the times mean nothing.")
    assert "geometric mean, bf16" in printed


def test_networks_are_rehearsed(script, tmp_path):
    """A training step, an inference and a whole training, each held to PyTorch's."""
    parts = ("train", "inference", "recipe")
    only = ("--precisions", "fp32", "--recipe-precision", "fp32", "--no-compile")
    status = rehearse(script, *parts, *only, "--out", str(tmp_path))
    record = json.loads((tmp_path / script.NAME).read_text())
    assert script.failures(record) == []
    assert status == 0
    for part in ("train", "inference"):
        (row,) = record[part].values()
        assert set(row["times"]) == {"minires", "torch eager", "torch CUDA graph"}
        assert row["skipped"] == {}
    assert row["ratio"] > 0
    assert record["train"]["resnet8 fp32"]["distance"] < 1e-3
    assert set(record["recipe"]["runs"]) == {"minires 0", "torch 0"}
    assert len(record["recipe"]["runs"]["minires 0"]["curve"]) == 2


@pytest.mark.parametrize("who", ["minires", "torch"])
def test_memory_is_measured_in_a_process_of_its_own(script, who):
    run = importlib.import_module("versus.processes").run
    program = ["-m", "versus.programs.gpu_peak_memory", "resnet8", "1", "8", who, "fp32"]
    found = run([*program, "rehearse"], timeout=120)
    assert found["peak"] + (1 << 20) >= found["taken"] > 0  # Linux counts both a little late


def test_weights_that_went_elsewhere_are_noticed():
    pytest.importorskip("torch")
    compared = importlib.import_module("versus.gpu.steps").compared_updates
    before = {"conv.weight": np.zeros(4), "bn.running_mean": np.zeros(1)}
    theirs = {"conv.weight": np.full(4, 1.0), "bn.running_mean": np.ones(1)}
    near = {"conv.weight": np.full(4, 1.01), "bn.running_mean": np.full(1, 9.0)}
    assert compared(before, near, theirs, 0.02) == pytest.approx(0.01)
    far = {"conv.weight": np.full(4, -1.0), "bn.running_mean": np.ones(1)}
    for wrong in (far, before, {**near, "conv.weight": np.full(4, np.nan)}):
        with pytest.raises(RuntimeError, match="of their way from PyTorch's"):
            compared(before, wrong, theirs, 0.02)
    with pytest.raises(RuntimeError, match="inf of their way"):
        compared(before, before, before, 0.02)


def test_the_same_accuracy_is_within_a_deviation_of_the_seeds():
    pytest.importorskip("torch")
    summary = importlib.import_module("versus.gpu.recipe").summary

    def runs(mine, theirs):
        both = (("minires", mine), ("torch", theirs))
        return {f"{side} {i}": {"test_accuracy": a, "seconds": 1.0 + i}
                for side, accuracies in both for i, a in enumerate(accuracies)}  # fmt: skip

    close = summary(runs([0.910, 0.914, 0.918], [0.912, 0.913, 0.914]))
    assert close["within_a_deviation"] is True
    assert (close["minires"]["runs"], close["minires"]["seconds"]) == (3, 2.0)
    assert summary(runs([0.90, 0.901], [0.92, 0.921]))["within_a_deviation"] is False
    assert summary(runs([0.9], [0.9]))["within_a_deviation"] is None
    assert summary({"torch 0": {"failed": "no memory"}}) == {}


def test_a_rehearsal_writes_no_record(script, tmp_path, monkeypatch):
    monkeypatch.setattr(script, "RESULTS", tmp_path)
    assert rehearse(script, "limits") == 0
    assert list(tmp_path.iterdir()) == []


def test_an_interruption_loses_one_row(script, tmp_path, monkeypatch):
    rehearse(script, "limits", "--out", str(tmp_path))

    def interrupted(found, options, save):
        save("first", {"gbs": 1.0, "share": 0.5})
        raise KeyboardInterrupt

    monkeypatch.setitem(script.MEASURES, "memory-bound", interrupted)
    with pytest.raises(KeyboardInterrupt):
        rehearse(script, "memory-bound", "--out", str(tmp_path))
    record = json.loads((tmp_path / script.NAME).read_text())
    assert record["memory-bound"] == {"first": {"gbs": 1.0, "share": 0.5}}
    assert "gflops" in record["limits"]


def test_rows_of_one_commit_and_machine_are_kept_together(script, tmp_path, monkeypatch):
    def measures(*names):
        return lambda found, options, save: [save(n, {"gbs": 1.0, "share": 0.5}) for n in names]

    monkeypatch.setitem(script.MEASURES, "memory-bound", measures("first", "second"))
    rehearse(script, "memory-bound", "--out", str(tmp_path))
    monkeypatch.setitem(script.MEASURES, "memory-bound", measures("third"))
    rehearse(script, "memory-bound", "--out", str(tmp_path))
    path = tmp_path / script.NAME
    record = json.loads(path.read_text())
    assert set(record["memory-bound"]) == {"first", "second", "third"}
    record["machine"]["commit"] = "another"
    path.write_text(json.dumps(record))
    rehearse(script, "memory-bound", "--out", str(tmp_path))
    assert set(json.loads(path.read_text())["memory-bound"]) == {"third"}
    (aside,) = (p for p in tmp_path.iterdir() if p != path)
    assert json.loads(aside.read_text()) == record


def test_a_part_that_fails_is_noted_and_the_others_go_on(script, tmp_path, monkeypatch, capsys):
    def broken(found, options, save):
        raise OSError("no such library")

    monkeypatch.setitem(script.MEASURES, "layers", broken)
    assert rehearse(script, "layers", "limits", "--out", str(tmp_path)) == 1
    record = json.loads((tmp_path / script.NAME).read_text())
    assert script.failures(record) == ["OSError: no such library"]
    assert "gflops" in record["limits"]
    assert "FAILED: OSError: no such library" in capsys.readouterr().out


def test_without_a_gpu_the_script_says_what_is_missing(script, monkeypatch):
    monkeypatch.setitem(sys.modules, "cupy", None)
    with pytest.raises(ImportError, match="CUDA needs CuPy"):
        script.main(["limits"])


def test_unknown_parts(script, capsys):
    with pytest.raises(SystemExit):
        script.main(["lawyers"])
    assert "no part lawyers; there are limits, layers" in capsys.readouterr().err


def test_a_wrong_operation_is_not_timed(script, monkeypatch):
    memory_bound = importlib.import_module("versus.gpu.memory_bound")
    machine = importlib.import_module("versus.gpu.machine")
    rows = {}
    monkeypatch.setattr(memory_bound, "_kernel", lambda *args: lambda x: x * np.float32(1.001))
    with machine.machine(True) as found:
        assert "is wrong by" in memory_bound.check(found, "relu", "float32")
        relu = {"relu": memory_bound.arguments(memory_bound.SMALL)["relu"]}
        monkeypatch.setattr(memory_bound, "arguments", lambda shapes: relu)
        memory_bound.memory_bound(found, ("fp32",), 1, rows.__setitem__)
    assert list(rows) == ["relu float32"]
    assert "is wrong by" in rows["relu float32"]["failed"]


TIMES = {"median_ms": 10.0, "quartiles_ms": [9.0, 11.0], "first_call_ms": 1.0}
STEP = {
    "batch": 100, "size": 32, "peer": "torch compiled", "ratio": 1.6,
    "times": {"minires": TIMES, "torch compiled": TIMES}, "skipped": {"torch eager": "no memory"},
    "images_per_second": {"minires": 1e4, "torch compiled": 1e4 / 1.6},
}  # fmt: skip
RUNS = {"minires": {"peak": 6e8}, "torch": {"peak": 1e9}}
RECORD = {
    "train": {"resnet20 fp32": STEP, "resnet18 fp32": STEP | {"ratio": 1.1},
              "resnet50 bf16": {"failed": "RuntimeError: out of memory"}},
    "memory-bound": {"relu float32": {"gbs": 2000.0, "share": 0.84}},
    "peak-memory": {"fp32": {"runs": RUNS, "share": 0.6},
                    "bf16": {"runs": {"minires": {"failed": "crash"}}, "share": None}},
    "recipe": {"runs": {"minires 0": {"test_accuracy": 0.91, "seconds": 100.0}},
               "summary": {"minires": {"accuracy": 0.91, "deviation": None, "seconds": 100.0}}},
}  # fmt: skip


def test_tables_say_which_goals_were_reached():
    text = importlib.import_module("versus.gpu.tables").text(json.loads(json.dumps(RECORD)))
    for expected in (
        "1.60 times as fast as torch compiled, goal 1.5: reached",
        "1.10 times as fast as torch compiled, goal 1.2: missed",
        "torch eager          skipped: no memory", "resnet50 bf16: FAILED: RuntimeError",
        "84 % of copying, goal 0.85: missed", "0.60, goal 0.8: reached", "FAILED: crash",
        "minires: 91.00 %, 100.0 s, goal 120: reached",
    ):  # fmt: skip
        assert expected in text
    assert "rehearsal" not in text


def test_every_row_of_the_goals_has_one():
    goals = importlib.import_module("versus.gpu.tables").GOALS
    assert len(goals) == 9 + 9
    assert {goals[f"train resnet20 {p}"] for p in ("fp32", "tf32", "bf16")} == {1.5}


# -- gpu_day ---------------------------------------------------------------------------------------


def step(day, name, code, limit=60.0, **options):
    return day.Step(name, [sys.executable, "-c", code], limit, **options)


def states(folder):
    return json.loads((folder / "steps.json").read_text())


def test_steps_end_as_they_end_and_leave_logs(day, tmp_path):
    chosen = [
        step(day, "good", "print('fine')"),
        step(day, "bad", "import sys; print('worse'); sys.exit(3)"),
        step(day, "absent", "print('never')", needs="surely-not-installed"),
    ]
    chosen[2].command[0] = "surely-not-installed"
    day.day(chosen, tmp_path, 1000.0, False, {})
    found = states(tmp_path)
    assert [found[name]["ended"] for name in ("good", "bad", "absent")] == [
        "ok", "failed", "skipped",
    ]  # fmt: skip
    assert (found["good"]["last"], found["bad"]["last"]) == ("fine", "worse")
    assert (tmp_path / "good.log").read_text().splitlines()[1:] == ["fine"]


def test_later_steps_go_by_the_table_of_an_earlier_one(day, tmp_path, monkeypatch):
    monkeypatch.delenv("MINIRES_TUNING")
    show = "import os; print(os.environ.get('MINIRES_TUNING', 'none'))"
    write = "import os; open(os.environ['MINIRES_TUNING'], 'w').close()"
    chosen = [step(day, "before", show), step(day, "tune-net", write), step(day, "after", show)]
    day.day(chosen, tmp_path, 1000.0, False, {})
    found = states(tmp_path)
    assert found["before"]["last"] == "none"
    assert found["after"]["last"] == str(tmp_path / "tuning.json")


def test_what_takes_too_long_is_ended_with_all_it_started(day, tmp_path):
    code = (
        "import subprocess, sys, time\n"
        "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)'])\n"
        "print(child.pid, flush=True); time.sleep(600)"
    )
    day.day([step(day, "slow", code, limit=3.0)], tmp_path, 1000.0, False, {})
    assert states(tmp_path)["slow"]["ended"] == "out of time"
    child = int(states(tmp_path)["slow"]["last"])
    for _ in range(200):
        if not alive(child):
            break
        time.sleep(0.05)
    assert not alive(child)


def alive(pid):
    """Whether a process runs; one that has ended and was not waited for does not."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    status = Path(f"/proc/{pid}/stat")
    return not status.exists() or status.read_text().rpartition(")")[2].split()[0] != "Z"


def test_a_second_call_goes_on_where_the_first_ended(day, tmp_path, capsys):
    first, second = step(day, "first", "print(1)"), step(day, "second", "print(2)", limit=400.0)
    day.day([first, second], tmp_path, 50.0, False, {})
    assert set(states(tmp_path)) == {"first"}  # too little was left for the second
    day.day([first, second], tmp_path, 1000.0, False, states(tmp_path))
    assert states(tmp_path)["second"]["ended"] == "ok"
    assert "first                  done before" in capsys.readouterr().out


def test_the_steps_are_the_promised_ones(day, tmp_path):
    names = [s.name for s in day.steps(tmp_path, tmp_path, rehearse=False)]
    assert names.index("kernel-tests") < names.index("train") < names.index("racecheck")
    assert {"memcheck", "racecheck", "initcheck", "resources", "recipe", "all-tests"} < set(names)
    for one in day.steps(tmp_path, None, rehearse=True):
        if "gpu_vs_torch.py" in str(one.command):
            assert "--rehearse" in one.command
    with pytest.raises(SystemExit):
        day.main(["--out", str(tmp_path), "trian"])


def test_the_day_is_one_command(day, tmp_path, capsys):
    assert day.main(["--out", str(tmp_path), "--rehearse", "machine"]) == 0
    assert "Processor" in (tmp_path / "machine.log").read_text()
    assert day.main(["--list"]) == 0
