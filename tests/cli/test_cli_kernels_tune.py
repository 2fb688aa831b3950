"""`minires kernels tune` and what `minires info --kernels` says of its table."""

import json

import pytest
from typer.testing import CliRunner

from minires.bench.layers import conv_layers
from minires.cli.app import app
from minires.kernels import registry

SMALL = ["--model", "resnet20", "--batch", "1", "--size", "8"]


@pytest.fixture
def table(monkeypatch, tmp_path):
    """Where the table is written, and read."""
    path = tmp_path / "table.json"
    monkeypatch.setenv("MINIRES_TUNING", str(path))
    monkeypatch.setenv("COLUMNS", "200")
    registry.read_tables_again()
    yield path
    monkeypatch.setenv("MINIRES_TUNING", "off")
    registry.read_tables_again()


def run(*arguments, status=0):
    result = CliRunner().invoke(app, list(arguments))
    assert result.exit_code == status, result.output + repr(result.exception)
    return result.output


def test_tune_writes_a_table_and_info_says_what_it_decides(table):
    output = run("kernels", "tune", *SMALL, "--rounds", "1")
    assert "all convolutions of a step:" in output
    assert str(table) in output
    entries = json.loads(table.read_text())["entries"]
    layers = conv_layers("resnet20", 1, 8)
    assert len(entries) == 3 * len(layers) - 1  # none back through the stem
    assert all(set(e["seconds"]) >= {"im2col"} for e in entries.values())
    shown = run("info", "--kernels", *SMALL)
    assert shown.count(", measured") == len(entries)
    assert f"measured: {table}, {len(entries)} entries" in shown
    other = run("info", "--kernels", "--model", "resnet20", "--batch", "2", "--size", "8")
    assert ", measured" not in other


def test_info_without_a_table(monkeypatch):
    monkeypatch.setenv("MINIRES_KERNELS", "conv2d=im2col")
    monkeypatch.setenv("COLUMNS", "200")
    for name in ("conv2d", "conv2d_grad_weight"):
        registry.operation(name).forget()
    output = run("info", "--kernels", *SMALL)
    assert output.count("im2col, by name") == len(conv_layers("resnet20", 1, 8))
    assert "no table of measurements" in output


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--dtype", "float16"], "float32, float64 on cpu"),
        (["--model", "resnet21"], "resnet20"),
        (["--device", "gpu"], "unknown device 'gpu'"),
    ],
)
def test_errors_teach(arguments, message):
    result = CliRunner().invoke(app, ["kernels", "tune", *arguments])
    assert result.exit_code != 0
    assert message in " ".join((result.output + str(result.exception)).replace("│", "").split())
