"""The profile: what is watched, to whom it belongs, that it adds up, and that it ends."""

from __future__ import annotations

import json
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import minires as mr
from minires import functional as F
from minires import nn
from minires.autograd import Function
from minires.bench.costs import Cost
from minires.bench.limits import Limits
from minires.bench.profile import Span, _least
from minires.kernels import conv_geometry, layout, operations, register, registry
from minires.kernels.registry import _operations, define
from minires.models.blocks import BasicBlock
from minires.models.resnet import ResNet
from minires.optim import SGD

LIMITS = Limits({"float32": 100.0, "float64": 50.0}, 10.0, 1, "made")


def network() -> ResNet:
    return ResNet(BasicBlock, [1, 1], width=4, stem="cifar", num_classes=3)


def step(model: nn.Module, optimizer: SGD, x: np.ndarray) -> float:
    model.zero_grad()
    loss = F.cross_entropy(model(mr.Tensor(x)), np.arange(len(x)) % 3)
    loss.backward()
    optimizer.step()
    return float(loss.item())


@pytest.fixture(scope="module")
def profiled() -> Any:
    model = network()
    optimizer = SGD(model.parameters(), lr=0.1, momentum=0.9)
    x = np.random.default_rng(0).standard_normal((4, 3, 8, 8)).astype(np.float32)
    with mr.profile() as profile:
        step(model, optimizer, x)
    return model, profile


def rows(profile: Any, by: str = "call") -> dict[tuple[str, ...], Any]:
    return {
        (r.layer, r.phase, r.operation): r for r in profile.rows(by, LIMITS)
    }


def test_rows_and_the_rest_sum_to_the_wall_time(profiled: Any) -> None:
    _, profile = profiled
    for by in ("operation", "layer", "call"):
        total = sum(r.seconds for r in profile.rows(by, LIMITS)) + profile.engine + profile.other
        assert total == pytest.approx(profile.wall)
    assert all(span.own >= 0 for span in profile.spans)
    assert profile.engine > 0
    assert profile.other > 0
    assert all(r.seconds > 0 for r in profile.rows("call", LIMITS))


def test_forward_and_backward_belong_to_the_layer(profiled: Any) -> None:
    model, profile = profiled
    found = rows(profile)
    convolutions = [n for n, m in model.named_modules() if isinstance(m, nn.Conv2d)]
    assert "layer2.0.downsample.0" in convolutions
    for name in convolutions:
        assert found[name, "forward", "conv2d"].calls == 1
        assert found[name, "backward", "conv2d_grad_weight"].calls == 1
        first = name == "conv1"  # the images want no gradient
        assert ((name, "backward", "conv2d_grad_input") in found) == (not first)


def test_a_fused_operation_belongs_to_the_module_of_its_parameters(profiled: Any) -> None:
    found = rows(profiled[1])
    assert found["layer1.0.bn1", "forward", "batch_norm_relu_train"].calls == 1
    assert found["layer1.0.bn1", "backward", "batch_norm_relu_grad"].calls == 1
    assert found["layer1.0.bn2", "forward", "batch_norm_add_relu_train"].calls == 1
    assert found["layer1.0.bn2", "backward", "batch_norm_add_relu_grad"].calls == 1
    assert found["fc", "forward", "linear"].calls == 1
    assert found["", "update", "SGD step"].calls == 1


def test_layers_are_the_names_of_the_state_dict(profiled: Any) -> None:
    model, profile = profiled
    names = {name for name, _ in model.named_modules()} | {"", "ResNet"}
    assert {span.layer for span in profile.spans} <= names


def test_gradients_that_meet_are_a_row(profiled: Any) -> None:
    sums = [r for r in profiled[1].rows("call", LIMITS) if r.operation == "sum of gradients"]
    assert sum(r.calls for r in sums) == 2  # one at each shortcut


def test_rates_follow_from_the_cost_and_the_time(profiled: Any) -> None:
    row = rows(profiled[1])["layer1.0.conv1", "forward", "conv2d"]
    g = conv_geometry((4, 4, 8, 8), (4, 4, 3, 3), 1, 1)
    assert row.flops == 2 * g.multiply_adds
    assert row.bytes == 4 * (2 * 4 * 4 * 64 + 4 * 4 * 9)
    assert row.gflops == pytest.approx(row.flops / row.seconds / 1e9)
    assert row.gbs == pytest.approx(row.bytes / row.seconds / 1e9)
    least = max(row.flops / 100e9, row.bytes / 10e9)
    assert row.share == pytest.approx(least / row.seconds)
    assert row.algorithm == "im2col"


def test_a_table(profiled: Any) -> None:
    text = profiled[1].table("layer", limit=LIMITS)
    lines = text.splitlines()
    assert lines[0].startswith("time by layer; limits on 1 thread: 100 GFLOP/s float32, 50 GFLOP/s")
    assert lines[2].split()[:5] == ["layer", "calls", "ms", "forward", "backward"]
    assert lines[-1].startswith("wall time")
    assert "100.0 %" in lines[-1]
    assert any(line.startswith("layer2.0.conv1 ") and "im2col" in line for line in lines)
    shares = [float(line.split(" %")[0].split()[-1]) for line in lines[4:-2] if " %" in line]
    assert sum(shares) == pytest.approx(100, abs=1)
    short = profiled[1].table("call", rows=3, limit=LIMITS).splitlines()
    assert len(short) == 2 + 2 + 3 + 1 + 3 + 2
    assert any(" others" in line for line in short)
    with pytest.raises(ValueError, match="by is one of operation, layer, call, got 'kernel'"):
        profiled[1].table("kernel")


def test_times_are_given_per_step() -> None:
    with mr.profile(steps=4) as profile:
        for _ in range(4):
            F.relu(mr.Tensor(np.ones(8, np.float32)))
    (row,) = profile.rows("operation", LIMITS)
    assert (row.operation, row.calls) == ("relu", 4)
    line = profile.table(limit=LIMITS).splitlines()[4].split()
    assert line[:4] == ["relu", "forward", "numpy", "1"]
    assert "per step of 4" in profile.table(limit=LIMITS)
    with pytest.raises(ValueError, match="steps must be at least 1"):
        mr.profile(steps=0)


# -- the trace -----------------------------------------------------------------------------------


@pytest.fixture
def trace(profiled: Any, tmp_path: Path) -> Any:
    path = tmp_path / "trace.json"
    profiled[1].save_trace(path)
    return json.loads(path.read_text())["traceEvents"]


def test_slices_nest(trace: Any) -> None:
    slices = [e for e in trace if e["ph"] == "X"]
    assert slices == sorted(slices, key=lambda e: e["ts"])
    open_until: list[float] = []
    for e in slices:
        while open_until and e["ts"] >= open_until[-1] - 1e-3:
            open_until.pop()
        end = e["ts"] + e["dur"]
        assert not open_until or end <= open_until[-1] + 1e-3
        open_until.append(end)
    assert {"module", "function", "kernel", "backward", "update"} <= {e["cat"] for e in slices}
    modules = [e["name"] for e in slices if e["cat"] == "module"]
    assert modules[:2] == ["ResNet", "conv1"]
    kernels = {e["name"] for e in slices if e["cat"] == "kernel"}
    assert {"conv2d (im2col)", "conv2d_grad_weight (im2col)", "linear (blas)"} <= kernels


def test_arrows_lead_from_forward_to_its_backward(trace: Any) -> None:
    slices = [e for e in trace if e["ph"] == "X"]
    starts = {e["id"]: e for e in trace if e["ph"] == "s"}
    ends = {e["id"]: e for e in trace if e["ph"] == "f"}
    assert starts.keys() == ends.keys()
    assert len(starts) == sum(e["cat"] == "backward" for e in slices)
    for number, start in starts.items():
        (forward,) = (e for e in slices if e["ts"] == start["ts"] and e["cat"] in
                      ("function", "operation"))  # fmt: skip
        (back,) = (e for e in slices if e["ts"] == ends[number]["ts"] and e["cat"] == "backward")
        assert back["name"] == f"{forward['name']} backward"
        assert back["args"]["layer"] == forward["args"]["layer"]
        assert back["ts"] > forward["ts"]


# -- what is watched, and what is not ------------------------------------------------------------


def test_nothing_is_watched_afterwards_or_before() -> None:
    watched = (
        lambda: Function.__call__, lambda: Function.differentiate, lambda: nn.Module.__call__,
        lambda: SGD.step, lambda: registry.observer, lambda: layout.observer,
    )  # fmt: skip
    before = [get() for get in watched]
    profile = mr.profile()
    with profile:
        assert all(get() is not was for get, was in zip(watched, before, strict=True))
    with pytest.raises(KeyError), profile:  # also after an error
        raise KeyError
    assert [get() for get in watched] == before
    count = len(profile.spans)
    F.relu(mr.Tensor(np.ones(3)))
    assert len(profile.spans) == count
    assert registry.observer is layout.observer is None


def test_results_are_the_same_bits() -> None:
    x = np.random.default_rng(1).standard_normal((4, 3, 8, 8)).astype(np.float32)
    losses = []
    for watch in (False, True):
        mr.manual_seed(0)
        model = network()
        optimizer = SGD(model.parameters(), lr=0.1, momentum=0.9)
        if watch:
            with mr.profile():
                losses.append([step(model, optimizer, x) for _ in range(2)])
        else:
            losses.append([step(model, optimizer, x) for _ in range(2)])
    assert losses[0] == losses[1]


def test_one_profile_at_a_time() -> None:
    with mr.profile():
        with pytest.raises(RuntimeError, match="another profile is running"), mr.profile():
            pass
        assert registry.observer is not None
    assert registry.observer is None


def test_other_threads_are_left_alone() -> None:
    def elsewhere() -> None:
        nn.ReLU()(mr.Tensor(np.ones(3, np.float32), requires_grad=True)).sum().backward()
        layout.to_nhwc(np.ones((2, 2, 2, 2)))

    with mr.profile() as profile:
        thread = threading.Thread(target=elsewhere)
        thread.start()
        thread.join()
    assert profile.spans == []


def test_conversions_of_layout_are_rows() -> None:
    nchw = np.ones((2, 3, 4, 5), np.float32)
    with mr.profile() as profile:
        layout.to_nhwc(layout.to_nchw(layout.to_nhwc(nchw)))
    (row,) = profile.rows("call", LIMITS)
    assert (row.operation, row.algorithm, row.calls) == ("to channels-last", "copy", 1)
    assert row.bytes == 2 * nchw.nbytes


@pytest.fixture
def toy() -> Iterator[Any]:
    op = define("toy_op", "toy_op(x) -> y")
    register("toy_op", name="converting")(lambda x: layout.to_nhwc(x))
    yield op
    del _operations["toy_op"]


def test_a_conversion_inside_a_kernel_is_not_the_kernels(toy: Any) -> None:
    with mr.profile() as profile:
        toy(np.ones((2, 8, 64, 64), np.float32))
    kernel, conversion = profile.spans
    assert (kernel.kind, conversion.kind) == ("kernel", "layout")
    whole = (kernel.end - kernel.start) * 1e-9
    assert kernel.own == pytest.approx(whole - (conversion.end - conversion.start) * 1e-9)
    found = rows(profile)
    assert found["", "forward", "toy_op"].gflops is None  # nobody told what it costs
    assert found["", "forward", "toy_op"].share is None


def test_gradients_of_gradients_and_plain_functions() -> None:
    x = mr.Tensor(np.ones(3), requires_grad=True)
    with mr.profile() as profile:
        (g,) = mr.grad((x * x * x).sum(), [x], create_graph=True)
        g.sum().backward()
    assert x.grad.tolist() == [6, 6, 6]
    steps = [s for s in profile.spans if s.kind == "backward"]
    assert len(steps) > 6
    assert all(s.forward is not None for s in steps)
    total = sum(r.seconds for r in profile.rows("call", LIMITS)) + profile.engine + profile.other
    assert total == pytest.approx(profile.wall)


def test_a_kernel_called_alone() -> None:
    x = np.ones((1, 2, 4, 4), np.float32)
    with mr.profile() as profile:
        operations.relu(x)
    (span,) = profile.spans
    assert (span.kind, span.name, span.layer, span.shapes) == ("kernel", "relu", "", "1x2x4x4")


# -- on a device, with a CuPy of the test's own ----------------------------------------------------


class Timeline:
    """A device that takes 2 ms for every kernel, and events that say where it is."""

    def __init__(self) -> None:
        self.ms = 0.0
        self.waited = 0

    @property
    def cupy(self) -> Any:
        timeline = self

        class Event:
            def record(self) -> None:
                self.at = timeline.ms

        class Device:
            def synchronize(self) -> None:
                timeline.waited += 1

        class cuda:  # noqa: N801
            class runtime:  # noqa: N801
                CUDARuntimeError = RuntimeError
                getDeviceCount = staticmethod(lambda: 1)  # noqa: N815

        module: Any = type("cupy", (), {"cuda": cuda})
        cuda.Event, cuda.Device = Event, Device  # type: ignore[attr-defined]
        cuda.get_elapsed_time = staticmethod(lambda a, b: b.at - a.at)  # type: ignore[attr-defined]
        return module


def test_a_device_is_watched_by_its_own_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    timeline = Timeline()
    monkeypatch.setitem(sys.modules, "cupy", timeline.cupy)
    op = define("toy_op", "toy_op(x) -> x")

    @register("toy_op", name="slow")
    def slow(x: Any) -> Any:
        timeline.ms += 2.0
        return x

    class Layer(nn.Module):
        def forward(self, x: Any) -> Any:
            timeline.ms += 1.0  # the device waits for Python
            return mr.Tensor(op(x.numpy()))

    layer, x = Layer(), mr.Tensor(np.zeros(3, np.float32))
    try:
        with mr.profile() as profile:
            layer(x)
            layer(x)
            timeline.ms += 4.0
            assert timeline.waited == 0  # it is waited for at the end alone
    finally:
        del _operations["toy_op"]
    assert timeline.waited == 1
    assert profile.device == "cuda"
    assert profile.wall == pytest.approx(10e-3)
    (row,) = profile.rows("operation", LIMITS)
    assert (row.operation, row.calls) == ("toy_op", 2)
    assert row.seconds == pytest.approx(4e-3)
    assert profile.engine == pytest.approx(2e-3)
    assert profile.other == pytest.approx(4e-3)


def test_the_processor_may_be_watched_beside_a_device(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cupy", Timeline().cupy)
    with mr.profile(device="cpu") as profile:
        mr.functional.relu(mr.Tensor(np.zeros((1, 2, 3, 3), np.float32)))
    assert profile.wall > 0
    with pytest.raises(ValueError, match="unknown device 'gpu'"):
        mr.profile(device="gpu")


def test_a_kernel_that_rounds_to_tf32_is_held_to_that_rate() -> None:
    limit = Limits({"float32": 1.0, "tf32": 4.0}, 1e9, 1, "made", device="cuda")
    span = Span("kernel", "conv2d", "", "forward", 0, cost=Cost(8 * 10**9, 1), dtype="float32")
    assert _least(span, limit) == pytest.approx(8.0)
    span.algorithm = "tf32_mma"
    assert _least(span, limit) == pytest.approx(2.0)
