"""Limits: measured once, kept by machine, threads and version, and never a reason to fail."""

import importlib
import json
import os
import stat
from threading import Barrier

import numpy as np
import pytest

from minires.bench import Limits, limits
from minires.kernels.threads import available_cores

# The package exports the function under the module's name.
module = importlib.import_module("minires.bench.limits")


@pytest.fixture
def measured(monkeypatch, tmp_path):
    """A cache folder of the test's own and a machine that is measured at once, and counts it."""
    calls = []

    def measure(threads):
        calls.append(threads)
        rate = 100.0 + len(calls)
        return Limits({"float32": rate, "float64": rate / 2}, 10.0, threads, "made up")

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(module, "_measure", measure)
    monkeypatch.setattr(module, "_known", {})
    return calls


def forget(monkeypatch):
    """As in a new process."""
    monkeypatch.setattr(module, "_known", {})


def test_measured_once_and_kept_on_disk(measured, monkeypatch, tmp_path):
    first = limits(1)
    assert limits(1) is first
    forget(monkeypatch)
    assert limits(1) == first
    assert measured == [1]
    (path,) = (tmp_path / "cache" / "minires").iterdir()
    assert json.loads(path.read_text())["gflops"] == {"float32": 101.0, "float64": 50.5}


def test_refresh_measures_again_and_keeps_that(measured, monkeypatch):
    limits(1)
    assert limits(1, refresh=True).gflops["float32"] == 102.0
    forget(monkeypatch)
    assert limits(1).gflops["float32"] == 102.0


def test_kept_by_threads_version_and_machine(measured, monkeypatch):
    paths = set()
    monkeypatch.setattr(module, "available_cores", lambda: 4)
    for threads in (1, 2):
        limits(threads)
    paths.update(module._known)
    monkeypatch.setattr("minires.__version__", "99")
    limits(1)
    paths.update(module._known)
    monkeypatch.setattr(module, "processor_name", lambda: "another")
    limits(1)
    paths.update(module._known)
    assert len(paths) == 4
    assert measured == [1, 2, 1, 1]


@pytest.mark.parametrize(
    "text", ["", "{", "[]", '{"gflops": {}}', '{"gflops": {"float32": 1}, "copy_gbs": 1, '
             '"threads": 1, "machine": ""}', '{"gflops": {"float32": 0, "float64": 1}, '
             '"copy_gbs": 1, "threads": 1, "machine": ""}'],
)  # fmt: skip
def test_a_damaged_file_is_measured_again(measured, monkeypatch, tmp_path, text):
    limits(1)
    (path,) = (tmp_path / "cache" / "minires").iterdir()
    path.write_text(text)
    forget(monkeypatch)
    assert limits(1).gflops["float32"] == 102.0


def test_a_folder_that_cannot_be_written_is_no_error(measured, monkeypatch, tmp_path):
    blocked = tmp_path / "cache"
    blocked.write_text("a file where the folder should be")
    found = limits(1)
    assert limits(1) is found
    assert blocked.read_text().startswith("a file")


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write")
def test_a_read_only_folder_is_no_error(measured, tmp_path):
    folder = tmp_path / "cache" / "minires"
    folder.mkdir(parents=True)
    folder.chmod(stat.S_IREAD | stat.S_IEXEC)
    assert limits(1).threads == 1
    assert list(folder.iterdir()) == []


def test_nothing_half_written_is_left(measured, monkeypatch, tmp_path):
    def full(*args):
        raise OSError("no space left on device")

    monkeypatch.setattr("os.replace", full)
    limits(1)
    assert list((tmp_path / "cache" / "minires").iterdir()) == []


def test_relative_cache_home_is_ignored(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert module.cache_folder() == tmp_path / ".cache" / "minires"


@pytest.mark.parametrize("threads", [0, -1, available_cores() + 1])
def test_threads_must_exist(threads):
    with pytest.raises(ValueError, match=f"from 1 to {available_cores()}"):
        limits(threads)


def test_a_real_measurement_is_of_the_right_size(monkeypatch):
    """Every machine multiplies faster than 0.1 and slower than 100,000 GFLOP/s."""
    monkeypatch.setattr(module, "SIZE", 128)
    monkeypatch.setattr(module, "TRY_SECONDS", 0.002)
    monkeypatch.setattr(module, "memory", lambda: 64 << 20)
    found = module._measure(1)
    for dtype in ("float32", "float64"):
        assert 0.1 < found.blas[dtype] < 1e5
        assert 0.1 < found.tile[dtype] < 1e5
        assert found.gflops[dtype] == max(found.blas[dtype], found.tile[dtype])
        assert found.rate(np.dtype(dtype)) == found.gflops[dtype]
    assert 0.1 < found.copy_gbs < 1e4


def test_threads_work_at_the_same_time(monkeypatch):
    """Each waits for the other in the middle of its work: one after the other, both would fail."""
    monkeypatch.setattr(module, "TRY_SECONDS", 0.0)  # one repeat a try
    meeting = Barrier(2)
    alone = {"first": 2}  # the calls that compile and that find the number of repeats

    def make(i):
        def work(repeats):
            if alone["first"]:
                alone["first"] -= 1
                return
            assert repeats == 1
            meeting.wait(timeout=60)

        return work

    assert module._rate(make, 2) > 0
