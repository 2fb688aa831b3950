"""Kernels side by side: who is timed, who is refused, and what a report says."""

import importlib.util
import json

import numpy as np
import pytest

import minires as mr
from minires.bench import Limits
from minires.bench.conv import DEFAULT, bench_conv, checked_kernels, default_kernels
from minires.bench.layers import conv_layers, shape_layer
from minires.bench.record import KIND, read_record, write_record
from minires.kernels.registry import operation
from minires.testing.kernels import reference_kernel

MACHINE = Limits({"float32": 100.0, "float64": 50.0}, 10.0, 1, "made up")
SMALL = [shape_layer((2, 3, 6, 5), (4, 3, 3, 3), padding=1)]

TORCH = importlib.util.find_spec("torch") is not None


def bench(kernels=("im2col",), passes=("forward",), layers=SMALL, **options):
    return bench_conv(layers, kernels, passes, rounds=1, limit=MACHINE, **options)


@pytest.fixture
def registry():
    """The registry as it is, given back as it was."""
    names = ("conv2d", "conv2d_grad_input", "conv2d_grad_weight")
    # Listing them loads those that are loaded late.
    before = {name: mr.kernels.available(name) for name in names}
    yield mr.kernels.register
    for name, kernels in before.items():
        operation(name).kernels = kernels
        operation(name).forget()


def reference(x, w, g):
    return reference_kernel("conv2d").function(x, w, g)


def test_each_pass_is_timed_and_held_to_the_limit():
    report = bench(passes=("forward", "grad-input", "grad-weight"))
    assert [row.operation for row in report.rows] == [
        "conv2d", "conv2d_grad_input", "conv2d_grad_weight",
    ]  # fmt: skip
    for row in report.rows:
        assert (row.kernel, row.chosen, row.refused) == ("im2col", True, "")
        flops = 2 * (2 * 4 * 6 * 5) * (3 * 9)
        moved = 4 * (2 * 3 * 6 * 5 + 4 * 3 * 9 + 2 * 4 * 6 * 5)
        assert (row.cost.flops, row.cost.bytes) == (flops, moved)
        assert row.limit == pytest.approx(max(flops / 100e9, moved / 10e9))
        assert row.gflops == pytest.approx(flops / row.times.median / 1e9)
        assert row.gbs == pytest.approx(moved / row.times.median / 1e9)
        assert row.share == pytest.approx(row.limit / row.times.median)
        assert 0 <= row.error < 1e-5


def test_a_wrong_kernel_is_refused_and_not_timed(registry):
    calls = []

    @registry("conv2d", name="wrong", worth=mr.kernels.never)
    def wrong(x, w, g):
        calls.append(x.shape)
        return reference(x, w, g) * np.float32(1.001)

    report = bench(["im2col", "wrong"])
    (row,) = report.refused
    assert row.kernel == "wrong"
    assert row.times is None
    assert row.gflops is None
    assert "elements wrong" in row.refused
    assert [r.kernel for r in report.timed] == ["im2col"]
    assert len(calls) == 1


def test_a_kernel_wrong_on_the_timed_shape_alone_is_refused(registry):
    @registry("conv2d", name="wrong", worth=mr.kernels.never)
    def wrong(x, w, g):
        return reference(x, w, g) * np.float32(1.001 if g == SMALL[0].geometry else 1)

    (row,) = bench(["wrong"]).rows
    assert "elements wrong" in row.refused
    assert row.times is None


def test_a_kernel_that_would_take_forever_is_not_called_on_the_timed_shape(registry, monkeypatch):
    shapes = []

    @registry("conv2d", name="slow", worth=mr.kernels.never)
    def slow(x, w, g):
        shapes.append(g)
        return reference(x, w, g)

    monkeypatch.setattr("minires.bench.conv.PATIENCE", 1e-9)
    (row,) = bench(["slow"]).rows
    assert "would take about" in row.refused
    assert row.times is None
    assert SMALL[0].geometry not in shapes


def test_a_kernel_wrong_on_ragged_shapes_alone_is_refused(registry):
    @registry("conv2d", name="even", worth=mr.kernels.never)
    def even(x, w, g):
        y = reference(x, w, g)
        if g.out[0] % 2:
            y[:, :, -1] = 0  # the tail that no tile of two covers
        return y

    (row,) = bench(["even"]).rows
    assert row.refused.startswith("on 3x5x13x11 * 7x5x3x3 padding 1x1: ")
    assert row.ragged == "3x5x13x11 * 7x5x3x3 padding 1x1"
    assert row.times is None


def test_ones_own_kernels_come_first_and_do_not_count_as_default(registry):
    registry("conv2d", name="mine")(reference)
    own = [k for k in mr.kernels.available("conv2d") if k.name == "mine"]
    assert operation("conv2d").select("cpu", SMALL[0].geometry).name == "mine"
    rows = bench([DEFAULT], own=own).rows
    assert [(row.kernel, row.chosen) for row in rows] == [("mine", False), ("im2col", True)]


def test_nobody_is_timed_twice():
    assert [row.kernel for row in bench([DEFAULT, "im2col", "im2col"]).rows] == ["im2col"]


def test_what_a_kernel_does_not_take_is_listed(registry):
    report = bench(["winograd", "im2col"])
    assert [row.kernel for row in report.rows] == ["im2col"]
    assert report.unsupported == [(SMALL[0].label, "conv2d", "winograd")]


def test_the_workspace_is_what_the_kernel_says(registry):
    registry("conv2d", name="roomy", workspace=lambda g, dtype: 1000 * g.N)(reference)
    found = {row.kernel: row.workspace for row in bench(["roomy", "im2col"]).rows}
    assert found["roomy"] == 2000


def test_small_arrays_count_as_workspace_too(registry):
    """The pool knows arrays from 256 KiB on; the others are added up."""
    from minires.kernels import memory

    def hungry(x, w, g):
        memory.empty(1000, np.float32)
        memory.zeros((10, 10), np.float64)
        large = memory.empty(1 << 20, np.uint8)
        y = reference(x, w, g)
        result = memory.empty(y.shape, y.dtype)
        result[...] = y + 0 * large[0]
        return result

    hungry.__module__ = "minires.kernels.cpu.toys"
    registry("conv2d", name="hungry", worth=mr.kernels.never)(hungry)
    (row,) = bench(["hungry"]).rows
    assert row.workspace == pytest.approx(4000 + 800 + (1 << 20), abs=8192)
    assert row.workspace >= 4800 + (1 << 20)


def test_the_first_layer_of_a_net_has_no_input_gradient():
    layers = conv_layers("resnet20", batch=1, size=8)[:2]
    rows = bench(passes=("grad-input", "grad-weight"), layers=layers).rows
    assert [(row.layer, row.operation, row.count) for row in rows] == [
        ("conv1", "conv2d_grad_weight", 1),
        ("layer1.0.conv1 (x6)", "conv2d_grad_input", 6),
        ("layer1.0.conv1 (x6)", "conv2d_grad_weight", 6),
    ]


def test_float64():
    (row,) = bench(dtype="float64").rows
    assert row.dtype == "float64"
    assert row.error < 1e-14
    assert row.limit == pytest.approx(max(row.cost.flops / 50e9, row.cost.bytes / 10e9))


def test_progress_names_layer_pass_and_kernel():
    told = []
    bench(progress=told.append)
    assert told[0] == f"{SMALL[0].label}, conv2d: checking im2col"
    assert told[-1] == f"{SMALL[0].label}, conv2d: timing im2col"


@pytest.mark.parametrize(
    ("kernels", "passes", "text"),
    [(["winogard"], ["forward"], "'winograd'"), (["im2col"], ["forwards"], "'forward'"),
     (["direct"], ["grad-input"], "'direct'")],
)  # fmt: skip
def test_unknown_names(kernels, passes, text):
    with pytest.raises(ValueError, match=text):
        checked_kernels(kernels, passes)


def test_a_library_that_is_not_installed_is_said_to_be(monkeypatch):
    monkeypatch.setattr("minires.bench.peers.package_version", lambda name: None)
    assert "torch" not in default_kernels()
    with pytest.raises(ImportError, match=r"torch is asked for.*pip install"):
        bench(["torch"])


@pytest.mark.skipif(not TORCH, reason="PyTorch is not installed")
@pytest.mark.parametrize(
    "layer",
    [SMALL[0], shape_layer((2, 4, 9, 8), (6, 2, 3, 3), stride=(2, 1), padding=(1, 0),
                           dilation=(1, 2), groups=2)],
    ids=lambda layer: layer.label,
)  # fmt: skip
def test_pytorch_in_both_layouts_agrees_in_every_pass(layer):
    report = bench(["torch"], ("forward", "grad-input", "grad-weight"), [layer])
    assert len(report.rows) == 6
    assert {row.kernel for row in report.rows} == {"torch NCHW", "torch channels_last"}
    assert not report.refused


def test_the_record_is_json_and_complete(tmp_path):
    path = tmp_path / "record.json"
    report = bench(["im2col"], ("forward", "grad-weight"))
    write_record(path, report.record())
    found = read_record(path)
    assert found == json.loads(json.dumps(report.record()))
    assert set(found) == {"kind", "format", "machine", "limits", "rounds", "rows"}
    assert found["kind"] == KIND
    assert found["limits"]["gflops"] == {"float32": 100.0, "float64": 50.0}
    assert {"cpu", "threads", "versions", "commit", "date"} <= set(found["machine"])
    row = found["rows"][0]
    assert set(row) == {
        "layer", "shape", "count", "operation", "kernel", "dtype", "chosen", "refused", "error",
        "ragged", "workspace", "flops", "bytes", "intensity", "limit_ms", "times", "gflops",
        "gbs", "share",
    }  # fmt: skip
    assert set(row["times"]) == {
        "median_ms", "quartiles_ms", "best_ms", "readings", "first_call_ms",
    }  # fmt: skip


def test_a_record_of_a_refused_kernel_has_no_nan(registry, tmp_path):
    @registry("conv2d", name="broken", worth=mr.kernels.never)
    def broken(x, w, g):
        return np.full(g.y_shape, np.nan, np.float32)

    write_record(tmp_path / "r.json", bench(["broken"]).record())
    (row,) = read_record(tmp_path / "r.json")["rows"]
    assert row["error"] is None
    assert row["times"] is None
    assert row["refused"]
