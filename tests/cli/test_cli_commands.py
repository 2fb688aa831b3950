"""Help, and the commands that show things."""

import re
import subprocess
import sys
import time

import pytest

from minires import __version__
from minires.cli.app import run
from minires.cli.console import clock, duration, short
from minires.kernels import threads

COMMANDS = ("train", "eval", "models", "gradcheck", "kernels", "info")


def printed(capsys, *arguments, status=0):
    capsys.readouterr()
    assert run(list(arguments)) == status
    return capsys.readouterr().out


@pytest.mark.parametrize("arguments", [[], ["--help"], ["-h"]])
def test_help_names_every_command(capsys, arguments):
    out = printed(capsys, *arguments)
    for command in COMMANDS:
        assert re.search(rf"\b{command}\b", out)


@pytest.mark.parametrize("command", COMMANDS)
def test_help_of_every_command_has_an_example(capsys, command):
    out = printed(capsys, command, "--help")
    assert f"Usage: minires {command}" in out
    assert re.search(rf"Example: minires {command}\b", out)


def test_help_of_train_names_every_option(capsys):
    out = printed(capsys, "train", "--help")
    options = "data data-dir model recipe epochs batch-size lr seed out resume shortcut threads"
    for option in [*options.split(), "download", "weight-decay", "limit"]:
        assert f"--{option} " in out


def test_version(capsys):
    assert printed(capsys, "--version") == f"minires {__version__}\n"


def test_the_module_is_the_command():
    done = subprocess.run(
        [sys.executable, "-m", "minires", "--version"], capture_output=True, text=True, check=True
    )
    assert done.stdout == f"minires {__version__}\n"
    wrong = [sys.executable, "-m", "minires", "modles"]
    done = subprocess.run(wrong, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (2, "")
    assert "Did you mean 'models'?" in done.stderr


def test_help_loads_nothing_heavy():
    program = (
        "import sys; from minires.cli.app import run; run(['--help']); "
        "heavy = {'matplotlib', 'numba', 'PIL', 'safetensors', 'minires.training', "
        "'minires.models', 'minires.data'} & set(sys.modules); sys.exit(str(heavy) if heavy else 0)"
    )
    start = time.perf_counter()
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert time.perf_counter() - start < 10


def test_models(capsys):
    rows = [line.split() for line in printed(capsys, "models", "resnet[25]*").splitlines()]
    assert ["resnet20", "20", "269,722", "40.55", "M", "3x32x32", "10"] in rows
    assert ["resnet50", "50", "25,557,032", "4.089", "G", "3x224x224", "1000"] in rows
    assert not any("plain20" in row for row in rows)


def test_info_on_kernels(capsys):
    """Each layer's kernels, pass by pass; the first layer's input gradient is nobody's business."""
    out = printed(capsys, "info", "--kernels", "--model", "resnet18", "--batch", "8")
    assert "8x64x56x56" in out
    for name in ("winograd", "columns", "outer", "winograd-stem", "not needed"):
        assert name in out
    assert "no table of measurements: MINIRES_TUNING=off" in out
    assert "8x64x56x56" not in printed(capsys, "info", "--kernels", "--batch", "8")


def test_info(capsys):
    import numpy

    out = printed(capsys, "info")
    assert re.search(rf"^minires +{re.escape(__version__)}", out, re.MULTILINE)
    assert re.search(rf"^numpy +{re.escape(numpy.__version__)}", out, re.MULTILINE)
    assert re.search(r"^cores +\d+ available of \d+", out, re.MULTILINE)
    assert re.search(r"^BLAS +\S+ .*\d+ threads", out, re.MULTILINE)
    assert re.search(r"^device +\S+", out, re.MULTILINE)


def test_info_tells_the_vectors_and_threads_of_the_kernels(capsys, monkeypatch):
    """As many as are in force, whatever BLAS and Numba would use."""
    simd = pytest.importorskip("minires.kernels.cpu.simd")
    monkeypatch.setattr(simd, "VECTOR_BYTES", 32)
    monkeypatch.setattr(threads, "_count", 1)
    out = " ".join(printed(capsys, "info").split())
    assert "kernels compute on vectors of 8 floats, 1 threads" in out
    monkeypatch.setattr(threads, "_count", None)
    monkeypatch.setenv("MINIRES_THREADS", "0")
    out = " ".join(printed(capsys, "info").split())
    assert "vectors of 8 floats, no threads: MINIRES_THREADS must be from 1 to" in out


def test_info_on_a_device_that_is_none(capsys):
    assert run(["info", "--kernels", "--device", "gpu"]) == 1
    assert "unknown device 'gpu'. Did you mean 'cpu'? Known: cpu, cuda" in capsys.readouterr().err


def test_gradcheck_of_operations(capsys):
    out = printed(capsys, "gradcheck", "--op", "relu", "--op", "tanh", "--no-second-order")
    rows = {line.split()[0]: line.split() for line in out.splitlines() if line.split()}
    for name in ("relu", "tanh"):
        assert rows[name][-1] == "right"
        assert rows[name][3] == "-"
        assert float(rows[name][2]) < 1e-6
    assert "every gradient right: operations 2" in out


def test_gradcheck_of_a_network(capsys):
    out = printed(capsys, "gradcheck", "--model", "plain20", "--size", "4")
    assert "images 2x3x4x4" in out
    assert re.search(r"^verdict +right", out, re.MULTILINE)


def test_a_wrong_gradient_ends_with_status_1(capsys, monkeypatch):
    from minires.functional.activation import ReLU
    from minires.functional.norm_training import BatchNormReLUTrain

    right = ReLU.backward
    monkeypatch.setattr(ReLU, "backward", lambda self, gy: 2.0 * right(self, gy))
    out = printed(capsys, "gradcheck", "--op", "relu", status=1)
    assert re.search(r"^ relu .* WRONG", out, re.MULTILINE)
    assert "operations with a wrong gradient: 1 of 1" in out
    right_norm = BatchNormReLUTrain.backward
    monkeypatch.setattr(BatchNormReLUTrain, "backward", lambda self, gy: right_norm(self, 2.0 * gy))
    out = printed(capsys, "gradcheck", "--model", "plain20", "--size", "4", status=1)
    assert "plain20: gradient wrong" in out


@pytest.mark.parametrize(
    ("seconds", "expected"),
    [(0, "0.0 s"), (4.24, "4.2 s"), (59.96, "1:00 min"), (65, "1:05 min"), (3599.6, "1:00:00 h"),
     (7509, "2:05:09 h")],
)  # fmt: skip
def test_durations(seconds, expected):
    assert duration(seconds) == expected


def test_clock():
    assert [clock(s) for s in (4.4, 65, 3600)] == ["0:04", "1:05", "1:00:00"]


@pytest.mark.parametrize(
    ("number", "expected"),
    [(7, "7"), (999.94, "999.9"), (999.96, "1 k"), (40_551_808, "40.55 M"), (1.1e10, "11 G"),
     (1e13, "1e+04 G")],
)  # fmt: skip
def test_short_numbers(number, expected):
    assert short(number) == expected
