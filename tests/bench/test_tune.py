"""Tuning: who is measured, with a clock of the test's own, and what the table then decides."""

import json

import numpy as np
import pytest

import minires as mr
from minires.bench.layers import conv_layers, shape_layer
from minires.bench.places import Processor, place_of
from minires.kernels import available, never, operation, register, registry, selection
from minires.testing.kernels import reference_kernel

LAYER = shape_layer((2, 3, 6, 5), (4, 3, 3, 3), padding=1)
G = LAYER.geometry


class Clock(Processor):
    """A place where every kernel takes as long as the test says."""

    name = "clock"

    def __init__(self, seconds):
        self.seconds, self.kernels, self.readings = seconds, {}, []

    def call(self, function, args):
        made = super().call(function, args)
        self.kernels[made] = getattr(function, "called", "im2col")
        return made

    def reading(self, call, calls):
        name = self.kernels[call]
        self.readings.append(name)
        return self.seconds[name]


@pytest.fixture(autouse=True)
def own_cache(monkeypatch, tmp_path):
    """Tables in a folder of the test's own, no pauses, and the registry given back as it was."""
    monkeypatch.delenv("MINIRES_TUNING")
    monkeypatch.setenv("MINIRES_CACHE", str(tmp_path))
    monkeypatch.setattr("minires.bench.timing.time.sleep", lambda seconds: None)
    before = {name: available(name) for name in ("conv2d", "conv2d_grad_weight")}
    registry.read_tables_again()
    yield tmp_path
    for name, kernels in before.items():
        operation(name).kernels = kernels
    monkeypatch.setenv("MINIRES_TUNING", "off")
    registry.read_tables_again()


def add(name, factor=1.0, worth=None, module="minires.kernels.toys"):
    """A kernel that is right if the factor is one."""
    reference = reference_kernel("conv2d").function

    def kernel(x, w, g):
        return reference(x, w, g) * np.float32(factor)

    kernel.called, kernel.__module__ = name, module
    register("conv2d", name=name, worth=worth)(kernel)


def tune(seconds, **options):
    clock = Clock({"im2col": 5.0} | seconds)
    with np.errstate(all="ignore"):
        found = mr.tune(layers=[LAYER], device=clock, rounds=2, **options)
    return {one.operation: one for one in found}, clock


def test_the_fastest_is_used_from_then_on(own_cache):
    add("quick")
    add("slow")
    assert operation("conv2d").select("cpu", G).name == "slow"
    found, _ = tune({"quick": 1.0, "slow": 1.5})
    one = found["conv2d"]
    assert (one.ruled, one.chosen, one.gain) == ("slow", "quick", 1.5)
    assert one.entry.seconds == {"im2col": 5.0, "quick": 1.0, "slow": 1.5}
    assert operation("conv2d").select("cpu", G).name == "quick"
    (path,) = (own_cache / "tuning").glob("*.json")
    registry.read_tables_again()  # as in another process
    assert operation("conv2d").select("cpu", G).name == "quick"
    assert len(json.loads(path.read_text())["entries"]) == 3
    assert set(found) == {"conv2d", "conv2d_grad_input", "conv2d_grad_weight"}


def test_a_wrong_kernel_is_neither_timed_nor_used():
    add("right")
    add("wrong", 1.01)
    found, clock = tune({"right": 2.0, "wrong": 0.1})
    assert found["conv2d"].ruled == "wrong"
    assert found["conv2d"].chosen == "right"
    assert "elements wrong" in found["conv2d"].entry.refused["wrong"]
    assert "wrong" not in clock.readings
    assert operation("conv2d").select("cpu", G).name == "right"


def test_a_hopeless_kernel_is_not_timed_for_long():
    add("quick")
    add("slow")
    _, clock = tune({"quick": 1.0, "slow": 2.1, "im2col": 1.9})
    assert clock.readings.count("slow") < clock.readings.count("quick")
    assert clock.readings.count("quick") <= clock.readings.count("im2col")


def test_only_kernels_that_may_be_chosen_unasked_are_measured():
    add("shown", worth=never)
    add("mine", module="my_kernels")
    found, clock = tune({"shown": 0.1, "mine": 0.1})
    assert set(found["conv2d"].entry.seconds) == {"im2col"}
    assert set(clock.readings) == {"im2col"}
    # A kernel of one's own is used because it was registered, as before.
    assert operation("conv2d").select("cpu", G).name == "mine"


def test_a_table_elsewhere(own_cache, tmp_path):
    add("quick")
    tune({"quick": 1.0}, path=tmp_path / "mine.json")
    assert not (own_cache / "tuning").exists()
    assert (tmp_path / "mine.json").exists()


def test_off_is_said_before_anything_is_measured(monkeypatch):
    monkeypatch.setenv("MINIRES_TUNING", "off")
    clock = Clock({})
    with pytest.raises(ValueError, match="MINIRES_TUNING=off"):
        mr.tune(layers=[LAYER], device=clock)
    assert clock.readings == []


def test_the_first_layer_of_a_net_has_no_input_gradient_to_measure():
    clock = Clock({"im2col": 1.0})
    found = mr.tune(layers=conv_layers("resnet20", 1, 8)[:1], device=clock, rounds=1)
    assert [one.operation for one in found] == ["conv2d", "conv2d_grad_weight"]


def test_an_old_table_is_replaced_without_a_warning():
    add("quick")
    tune({"quick": 1.0})
    path = selection.table_path("cpu")
    document = json.loads(path.read_text())
    document["facts"]["kernels"] = "0123"
    path.write_text(json.dumps(document))
    registry.read_tables_again()
    tune({"quick": 1.0})
    assert operation("conv2d").decide("cpu", G).why == "table"


@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        ({"dtype": "int8"}, ValueError, "tune: unknown dtype 'int8'. Known: float32, float64"),
        ({"dtype": "float16"}, ValueError, "unknown dtype 'float16'.* Known: float32, float64"),
        ({"batch": "8"}, TypeError, "layers: batch takes an integer, got '8'"),
        ({"size": (32, 32)}, TypeError, r"layers: size takes an integer, got \(32, 32\)"),
        ({"device": "gpu"}, ValueError, "unknown device 'gpu'"),
    ],
)
def test_refusals(given, error, message):
    with pytest.raises(error, match=message):
        mr.tune(**given)


def test_places_have_names():
    assert place_of("cpu").backend == "cpu"
    with pytest.raises(ValueError, match="unknown device 'gpu'"):
        place_of("gpu")
