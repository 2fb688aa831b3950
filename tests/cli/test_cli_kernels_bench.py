"""`minires kernels bench`, as its users type it."""

import importlib
import json

import pytest
import typer
from typer.testing import CliRunner

import minires as mr
from minires.bench import Limits
from minires.cli.kernels_bench import bench
from minires.kernels.registry import operation

app = typer.Typer()
app.command()(bench)

SMALL = ["--shape", "2x3x6x5", "--weight", "4x3x3x3", "--padding", "1", "--rounds", "1"]

MINE = """
import numpy as np
import minires as mr
from minires.testing.kernels import reference_kernel

@mr.kernels.register("conv2d", name="mine", workspace=lambda g, dtype: 1200)
def mine(x, w, g):
    return reference_kernel("conv2d").function(x, w, g) * np.float32(SCALE)
"""


@pytest.fixture(autouse=True)
def known_machine(monkeypatch):
    """Limits that need no measuring, and a registry that is given back as it was."""
    made_up = Limits({"float32": 100.0, "float64": 50.0}, 10.0, 1, "made up", measured="2000-01-01")
    # The package exports the function under the module's name.
    module = importlib.import_module("minires.bench.limits")
    monkeypatch.setattr(module, "limits", lambda refresh=False, device="cpu": made_up)
    monkeypatch.setenv("COLUMNS", "120")
    known = operation("conv2d")
    before = mr.kernels.available("conv2d")  # loads those that are loaded late
    yield
    known.kernels = before
    known.forget()


def run(*arguments, status=0):
    result = CliRunner().invoke(app, [*SMALL, *map(str, arguments)])
    assert result.exit_code == status, result.output + repr(result.exception)
    return result.output


def lines_of(kernel, output):
    return [line.split() for line in output.splitlines() if line.split()[:1] == [kernel]]


def test_three_passes_beside_each_other():
    output = run("--against", "im2col")
    assert "100 GFLOP/s in float32, copying 10.0 GB/s" in output
    assert "by memory" in output
    assert len(lines_of("im2col", output)) == 3
    for name in ("forward", "grad-input", "grad-weight", "of limit", "workspace"):
        assert name in output
    assert "* what minires chooses" in output


@pytest.mark.parametrize("picked", ["forward", "conv2d", "forward,conv2d"])
def test_pick_by_pass_or_operation(picked):
    output = run("--against", "im2col", "--pick", picked)
    assert len(lines_of("im2col", output)) == 1 + (picked == "forward,conv2d")


def test_ones_own_kernel_is_timed_in_the_passes_it_has(tmp_path):
    file = tmp_path / "my_kernel.py"
    file.write_text(MINE.replace("SCALE", "1"))
    output = run(file, "--against", "im2col")
    assert len(lines_of("mine", output)) == 1
    assert len(lines_of("im2col", output)) == 1
    assert "1.2 kB" in output


def test_a_wrong_kernel_is_refused_with_exit_status_1(tmp_path):
    file = tmp_path / "my_kernel.py"
    file.write_text(MINE.replace("SCALE", "1.01"))
    output = run(file, "--against", "im2col", status=1)
    assert lines_of("mine", output) == [["mine", "refused"]]
    assert "refused: mine, conv2d of 2x3x6x5 * 4x3x3x3 padding 1x1: " in output
    assert len(lines_of("im2col", output)) == 1


def test_record_picture_and_comparison(tmp_path):
    first, second, picture = (tmp_path / name for name in ("a.json", "b.json", "c.png"))
    run("--against", "im2col", "--pick", "forward", "--json", first, "--picture", picture)
    assert picture.read_bytes().startswith(b"\x89PNG")
    record = json.loads(first.read_text())
    (row,) = record["rows"]
    assert row["kernel"] == "im2col"
    # Ten times slower then, on two other processors.
    row["times"]["median_ms"] *= 10
    row["times"]["quartiles_ms"] = 2 * [row["times"]["median_ms"]]
    record["machine"]["cpu"] = "another"
    second.write_text(json.dumps(record))
    output = run("--against", "im2col", "--pick", "forward", "--compare", second)
    assert "not the same as then: cpu: another then" in output
    assert "1 of 1 changed beyond noise" in output
    assert [line[-1] for line in map(str.split, output.splitlines()) if "forward" in line] == [
        "forward", "faster",
    ]  # fmt: skip


def test_what_was_timed_once_only_is_counted(tmp_path):
    path = tmp_path / "a.json"
    run("--against", "im2col", "--pick", "forward", "--json", path)
    output = run("--against", "im2col-whole", "--pick", "forward", "--compare", path)
    assert "0 of 0 changed beyond noise" in output
    assert "timed now and not then: im2col-whole (1)" in output
    assert "timed then and not now: im2col (1)" in output


def test_every_convolution_of_a_net(monkeypatch):
    result = CliRunner().invoke(app, ["--layers", "resnet20", "--batch", "1", "--size", "8",
                                      "--against", "im2col", "--rounds", "1"])  # fmt: skip
    assert result.exit_code == 0, result.output
    assert "layer1.0.conv1 (x6): 1x16x8x8 * 16x16x3x3 padding 1x1" in result.output
    assert len(lines_of("im2col", result.output)) == 6 * 3 - 1  # none back through the stem


def test_what_is_not_taken_is_said():
    output = run("--against", "im2col,winograd", "--pick", "forward")
    assert "winograd does not take 2x3x6x5 * 4x3x3x3 padding 1x1 conv2d" in output


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--against", "winogard"], "'winograd'"),
        (["--pick", "sideways"], "sideways"),
        (["--layers", "resnet20"], "not both"),
        (["--batch", "2"], "go with --layers"),
        (["--dtype", "float16"], "float32 or float64"),
        (["--shape", "2x3x6"], "takes 4 numbers such as 16x64x56x56"),
        (["--shape", "2x3x6xfive"], "takes whole numbers"),
        (["--stride", "1x1x1"], "takes 2 numbers"),
        (["--weight", "4x5x3x3"], "weight expects 5 input channels"),
        (["--compare", "nowhere.json"], "nowhere.json"),
    ],
)
def test_errors_teach(arguments, message):
    result = CliRunner().invoke(app, [*SMALL, *arguments])
    assert result.exit_code != 0
    assert message in " ".join((result.output + str(result.exception)).replace("│", "").split())


def test_torch_that_is_not_installed_is_said_to_be(monkeypatch):
    monkeypatch.setattr("minires.bench.peers.package_version", lambda name: None)
    result = CliRunner().invoke(app, [*SMALL, "--against", "torch"])
    assert result.exit_code == 1
    assert "torch is asked for and not installed" in str(result.exception)


def test_a_file_of_other_kernels(tmp_path):
    file = tmp_path / "relu.py"
    file.write_text("import minires as mr\n@mr.kernels.register('relu', name='r', worth="
                    "mr.kernels.never)\ndef r(x): return abs(x)\n")  # fmt: skip
    known = operation("relu")
    before = list(known.kernels)
    try:
        result = CliRunner().invoke(app, [*SMALL, str(file)])
    finally:
        known.kernels = before
        known.forget()
    assert result.exit_code == 2
    assert "cpu/relu" in result.output
    assert mr.kernels.available("relu") == before
