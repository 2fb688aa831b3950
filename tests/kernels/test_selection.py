"""Choice by measurement: what a table decides, what goes before it, and tables that do not fit."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import minires as mr
from minires.kernels import (
    available,
    choices,
    conv_geometry,
    never,
    operation,
    register,
    registry,
    selection,
    use,
    when_measured,
)
from minires.kernels.registry import BY_NAME, BY_RULE, BY_TABLE, _operations, define
from minires.kernels.selection import Entry, Table, TuningWarning, key_of, store

X = np.zeros(1, np.float32)
G = conv_geometry((1, 1, 4, 4), (1, 1, 3, 3))
OTHER = conv_geometry((2, 1, 4, 4), (1, 1, 3, 3))


def named(text: str) -> Any:
    """A kernel that says its name, as if it had come with minires."""

    def kernel(x: Any, g: Any) -> str:
        return text

    kernel.__module__ = "minires.kernels.toys"
    return kernel


@pytest.fixture
def toy(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Any]:
    """An operation whose conditions choose "late", and tables in a folder of the test's own."""
    monkeypatch.delenv("MINIRES_TUNING")
    monkeypatch.setenv("MINIRES_CACHE", str(tmp_path))
    registry.read_tables_again()
    op = define("toy_op", "toy_op(x, g) -> text")
    register("toy_op", name="early")(named("early"))
    register("toy_op", name="rough", exact=False, worth=when_measured)(named("rough"))
    register("toy_op", name="shown", worth=never)(named("shown"))
    register("toy_op", name="late")(named("late"))
    yield op
    del _operations["toy_op"]
    monkeypatch.setenv("MINIRES_TUNING", "off")
    registry.read_tables_again()


def measured(seconds: dict[str, float], refused: dict[str, str] | None = None) -> Path:
    """This machine's table with one entry for G."""
    path = selection.table_path("cpu")
    store("cpu", {key_of("toy_op", "float32", G): Entry(seconds, refused or {})}, path)
    registry.read_tables_again()
    return path


def decided(op: Any, geometry: Any = G) -> tuple[str, str]:
    choice = op.decide("cpu", geometry)
    assert op(X, geometry) == choice.kernel.name
    return choice.kernel.name, choice.why


def test_without_a_table_the_conditions_decide(toy: Any) -> None:
    assert decided(toy) == ("late", BY_RULE)
    assert choices("cpu")["table"] is None


def test_the_fastest_of_the_table_is_used_for_its_geometry_alone(toy: Any) -> None:
    measured({"early": 1.0, "late": 2.0, "rough": 3.0})
    assert decided(toy) == ("early", BY_TABLE)
    assert decided(toy, OTHER) == ("late", BY_RULE)
    assert toy.decide("cpu", G).measured == {"early": 1.0, "late": 2.0, "rough": 3.0}
    assert toy.decide("cpu", G, "float64").kernel.name == "late"


def test_less_than_the_margin_may_be_chance(toy: Any) -> None:
    measured({"early": 1.0, "late": 1.04})
    assert decided(toy) == ("late", BY_TABLE)
    measured({"early": 1.0, "late": 1.06})
    assert decided(toy) == ("early", BY_TABLE)


def test_names_and_exactness_go_before_the_table(toy: Any, monkeypatch: Any) -> None:
    measured({"rough": 1.0, "early": 2.0, "late": 3.0, "shown": 0.1})
    assert decided(toy) == ("rough", BY_TABLE)
    with use(toy_op="late"):
        assert decided(toy) == ("late", BY_NAME)
    with use(algorithm="exact"):
        assert decided(toy) == ("early", BY_TABLE)
    monkeypatch.setenv("MINIRES_KERNELS", "toy_op=shown")
    toy.forget()
    assert decided(toy) == ("shown", BY_NAME)


def test_a_kernel_of_ones_own_goes_before_the_table(toy: Any) -> None:
    measured({"early": 1.0, "late": 2.0, "mine": 3.0})
    register("toy_op", name="mine")(lambda x, g: "mine")
    assert decided(toy) == ("mine", BY_RULE)


def test_ones_own_kernel_under_a_measured_name_is_not_taken_for_it(toy: Any) -> None:
    measured({"early": 1.0, "late": 2.0})
    register("toy_op", name="early", worth=when_measured)(lambda x, g: "early")
    assert decided(toy) == ("late", BY_TABLE)


def test_a_kernel_that_the_table_has_not_seen_is_used_by_rule(toy: Any) -> None:
    measured({"early": 1.0, "rough": 2.0})
    assert decided(toy) == ("late", BY_RULE)


def test_a_kernel_that_was_wrong_is_not_used(toy: Any) -> None:
    measured({"early": 1.0}, {"late": "3 elements wrong"})
    assert decided(toy) == ("early", BY_TABLE)


def test_off(toy: Any, monkeypatch: Any) -> None:
    measured({"early": 1.0, "late": 2.0})
    monkeypatch.setenv("MINIRES_TUNING", "off")
    registry.read_tables_again()
    assert decided(toy) == ("late", BY_RULE)
    with pytest.raises(ValueError, match="MINIRES_TUNING=off"):
        selection.table_path("cpu")


def test_another_table_by_its_path(toy: Any, monkeypatch: Any, tmp_path: Path) -> None:
    measured({"early": 1.0, "late": 2.0})
    path = tmp_path / "mine.json"
    monkeypatch.setenv("MINIRES_TUNING", str(path))
    assert measured({"late": 1.0, "early": 2.0}) == path
    assert decided(toy) == ("late", BY_TABLE)


def test_nothing_changes_in_the_middle_of_a_run(toy: Any) -> None:
    path = measured({"early": 1.0, "late": 2.0})
    before = choices("cpu")
    assert decided(toy) == ("early", BY_TABLE)
    store("cpu", {key_of("toy_op", "float32", g): Entry({"late": 1.0, "early": 2.0})
                  for g in (G, OTHER)}, path)  # fmt: skip
    toy.forget()
    assert decided(toy) == ("early", BY_TABLE)
    assert decided(toy, OTHER) == ("late", BY_RULE)
    assert choices("cpu") == before
    registry.read_tables_again()
    assert decided(toy, OTHER) == ("late", BY_TABLE)
    assert choices("cpu")["table"]["hash"] != before["table"]["hash"]


def test_what_decides_is_on_record(toy: Any, monkeypatch: Any) -> None:
    path = measured({"early": 1.0, "late": 2.0})
    monkeypatch.setenv("MINIRES_KERNELS", "relu=reference")
    with use(toy_op="late", algorithm="exact"):
        found = choices("cpu")
    assert found["algorithm"] == "exact"
    assert found["named"] == {"relu": "reference", "toy_op": "late"}
    assert found["table"]["path"] == str(path)
    assert json.loads(json.dumps(found)) == found
    measured({"early": 1.0, "late": 2.0})
    assert choices("cpu")["table"]["hash"] == found["table"]["hash"]


@pytest.mark.skipif(mr.kernels.threads.available_cores() < 2, reason="one core")
def test_a_table_is_of_one_number_of_threads(toy: Any) -> None:
    before = mr.kernels.threads.num_threads()
    try:
        mr.set_num_threads(1)
        one = measured({"early": 1.0, "late": 2.0})
        assert decided(toy) == ("early", BY_TABLE)
        mr.set_num_threads(2)
        assert selection.table_path("cpu") != one
        assert decided(toy) == ("late", BY_RULE)
        mr.set_num_threads(1)
        assert decided(toy) == ("early", BY_TABLE)
    finally:
        mr.set_num_threads(before)


# -- tables that do not fit ------------------------------------------------------------------------


def changed(path: Path, change: Any) -> None:
    document = json.loads(path.read_text())
    change(document)
    path.write_text(json.dumps(document))
    registry.read_tables_again()


WRONG = {
    "empty": (lambda path: path.write_text(""), "it is damaged"),
    "cut off": (lambda path: path.write_text(path.read_text()[:-20]), "it is damaged"),
    "not text": (lambda path: path.write_bytes(b"\xff\xfe\x00"), "it is damaged"),
    "a list": (lambda path: path.write_text("[]"), "not a table of `minires kernels tune`"),
    "a folder": (lambda path: (path.unlink(), path.mkdir()), "directory"),
    "another format": (lambda path: changed(path, lambda d: d.update(format=2)), "format 2"),
    "no entries": (lambda path: changed(path, lambda d: d.pop("entries")), "damaged.*entries"),
    "negative": (
        lambda path: changed(path, lambda d: entry_of(d)["seconds"].update(early=-1)),
        "seconds are positive numbers, got -1",
    ),
    "words": (
        lambda path: changed(path, lambda d: entry_of(d)["seconds"].update(early="fast")),
        "seconds are positive numbers, got 'fast'",
    ),
    "old kernels": (
        lambda path: changed(path, lambda d: d["facts"].update(kernels="0123")),
        "measured with kernels '0123', here it is",
    ),
    "another machine": (
        lambda path: changed(path, lambda d: d["facts"].update(processor="Abacus")),
        "measured with processor 'Abacus'",
    ),
    "narrower": (
        lambda path: changed(path, lambda d: d["facts"].update(vector_bytes=1)),
        "measured with vector_bytes 1",
    ),
}


def entry_of(document: Any) -> Any:
    (found,) = document["entries"].values()
    return found


@pytest.mark.parametrize("name", WRONG)
def test_a_table_that_does_not_fit_is_ignored_with_one_warning(toy: Any, name: str) -> None:
    path = measured({"early": 1.0, "late": 2.0})
    spoil, message = WRONG[name]
    spoil(path)
    registry.read_tables_again()
    with pytest.warns(TuningWarning, match=message) as caught:
        assert decided(toy) == ("late", BY_RULE)
    assert len(caught) == 1
    assert str(path) in str(caught[0].message)
    assert "minires kernels tune" in str(caught[0].message)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert decided(toy, OTHER) == ("late", BY_RULE)


def test_a_table_that_is_named_and_not_there(toy: Any, monkeypatch: Any, tmp_path: Path) -> None:
    monkeypatch.setenv("MINIRES_TUNING", str(tmp_path / "nowhere.json"))
    registry.read_tables_again()
    with pytest.warns(TuningWarning, match="there is no such file"):
        assert decided(toy) == ("late", BY_RULE)


def test_a_named_table_of_the_other_backend_says_nothing(toy: Any, monkeypatch: Any) -> None:
    path = measured({"early": 1.0, "late": 2.0})
    changed(path, lambda d: d["facts"].update(backend="cuda"))
    monkeypatch.setenv("MINIRES_TUNING", str(path))
    assert decided(toy) == ("late", BY_RULE)


# -- writing ---------------------------------------------------------------------------------------


def test_new_measurements_join_the_old_and_replace_their_own(toy: Any) -> None:
    path = measured({"early": 1.0, "late": 2.0})
    new = {key_of("toy_op", "float32", OTHER): Entry({"late": 1.0})}
    assert len(store("cpu", new, path).entries) == 2
    again = {key_of("toy_op", "float32", G): Entry({"late": 9.0})}
    entries = store("cpu", again, path).entries
    assert entries[key_of("toy_op", "float32", G)].seconds == {"late": 9.0}
    assert len(entries) == 2


def test_what_does_not_fit_any_more_is_replaced(toy: Any) -> None:
    path = measured({"early": 1.0, "late": 2.0})
    changed(path, lambda d: d["facts"].update(kernels="0123"))
    new = {key_of("toy_op", "float32", OTHER): Entry({"late": 1.0})}
    assert list(store("cpu", new, path).entries) == list(new)
    path.write_text("{")
    assert list(store("cpu", new, path).entries) == list(new)


def test_nothing_half_written_is_left(toy: Any, monkeypatch: Any) -> None:
    path = measured({"early": 1.0, "late": 2.0})
    before = path.read_text()

    def full(*args: Any) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr("os.replace", full)
    with pytest.raises(OSError, match="no space"):
        store("cpu", {"more": Entry({"late": 1.0})}, path)
    assert path.read_text() == before
    assert [p.name for p in path.parent.iterdir() if p.suffix == ".tmp"] == []


def test_processes_that_write_at_one_time_lose_nothing(toy: Any, tmp_path: Path) -> None:
    path = tmp_path / "table.json"
    code = (
        "import sys; from pathlib import Path\n"
        "from minires.kernels.selection import Entry, store\n"
        "for i in range(8):\n"
        "    store('cpu', {f'{sys.argv[1]} {i}': Entry({'late': 1.0})}, Path(sys.argv[2]))\n"
    )
    writers = [
        subprocess.Popen([sys.executable, "-c", code, name, str(path)], env=os.environ)
        for name in ("first", "second")
    ]
    assert [writer.wait(timeout=120) for writer in writers] == [0, 0]
    found = Table.of(json.loads(path.read_text()))
    assert set(found.entries) == {f"{name} {i}" for name in ("first", "second") for i in range(8)}


def test_the_emulator_has_a_table_of_its_own(monkeypatch: Any) -> None:
    monkeypatch.delitem(sys.modules, "cupy", raising=False)
    assert selection.facts_of("cuda")["gpu"] == "emulator"
    assert selection.facts_of("cuda")["kernels"] != selection.facts_of("cpu")["kernels"]


def test_a_device_is_told_by_name_driver_and_capability(monkeypatch: Any) -> None:
    class Runtime:
        CUDARuntimeError = RuntimeError

        @staticmethod
        def getDeviceCount() -> int:
            return devices

        @staticmethod
        def getDeviceProperties(number: int) -> dict[str, Any]:
            assert number == 3
            return {"name": b"Card", "major": 9, "minor": 0}

        @staticmethod
        def driverGetVersion() -> int:
            return 13000

    class Cuda:
        runtime = Runtime

        class Device:
            id = 3

    class Cupy:
        __version__ = "14"
        cuda = Cuda

    monkeypatch.setitem(sys.modules, "cupy", Cupy)
    devices = 4
    found = selection.facts_of("cuda")
    assert (found["gpu"], found["capability"], found["driver"]) == ("Card", "9.0", 13000)
    devices = 0  # CuPy without a GPU: what computes is the emulator
    assert selection.facts_of("cuda")["gpu"] == "emulator"
    assert found["cupy"] == "14"


def test_rounded_factors_and_teaching_kernels_are_never_chosen_by_a_table() -> None:
    """TF32 is never silent; winograd is chosen where it was measured to be faster."""
    g = conv_geometry((2, 16, 8, 8), (16, 16, 3, 3), 1, 1)
    eligible = {
        k.name for k in operation("conv2d").usable("cuda", g) if k.ours and k.worth is not never
    }
    assert {"implicit", "winograd2", "winograd4"} <= eligible
    assert not any("tf32" in name for name in eligible)
    late = {k.name for k in available("conv2d") if k.function.__module__.endswith("ladder")}
    assert not late & eligible
