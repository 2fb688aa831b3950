"""The scripts in benchmarks/: nets that agree, costs that add up, tables from records."""

import ast
import importlib
import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from minires.bench.limits import Limits

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture(autouse=True)
def importable(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))


def load(name):
    return importlib.import_module(f"versus.{name}")


def times(milliseconds):
    return {"median_ms": milliseconds, "quartiles_ms": [milliseconds, milliseconds],
            "best_ms": milliseconds / 2, "first_call_ms": 1.0}  # fmt: skip


def step(ours, theirs):
    return {
        "batch": 100, "size": 32, "peer": "torch eager NCHW", "ratio": theirs / ours,
        "times": {"minires": times(ours), "torch eager NCHW": times(theirs),
                  "torch compiled NCHW": times(theirs + 1) | {"best_ms": theirs / 5}},
        "images_per_second": {"minires": 1e5 / ours, "torch eager NCHW": 1e5 / theirs,
                              "torch compiled NCHW": 1e5 / (theirs + 1)},
    }  # fmt: skip


def layer(kernel, ratio, refused=""):
    mine = {"kernel": kernel, "chosen": True, "refused": refused, "share": 0.5,
            "times": None if refused else times(2.0)}  # fmt: skip
    peer = {"kernel": "torch NCHW", "chosen": False, "times": times(2.0 * (ratio or 1)),
            "refused": "", "share": 0.5}  # fmt: skip
    return {"kernel": kernel, "peer": "torch NCHW", "ratio": ratio, "rows": [mine, peer]}


FACTS = {"cpu": "a", "threads": 2, "commit": "abc", "versions": {"minires": "1"}}

RECORD = {
    "machine": {"cpu": "made up", "threads": 2, "allocator": "stock", "commit": "abc",
                "versions": {"minires": "1", "torch": "2"}, "date": "2000-01-01T00:00:00Z"},
    "train": {"resnet20": step(10.0, 25.0) | {"integers": times(20.0) | {"best_ms": 16.0}},
              "resnet18": step(10.0, 25.0) | {"integers": times(25.0) | {"best_ms": 15.0}}},
    "inference": {"resnet20": step(2.0, 5.0)},
    "share": {"resnet20": {"flops": 1e10, "gflops": 150.0, "limit_gflops": 100.0, "share": 1.5}},
    "layers": {
        "layers": {"resnet20 conv1, conv2d": layer("direct", 2.0),
                   "resnet20 conv2, conv2d": layer("winograd", 3.0),
                   "resnet20 conv3, conv2d": layer("winograd", None, "3 elements wrong")},
        "geometric_mean": 2.449, "least": 2.0,
    },
    "memory": {"resnet50": {"minires": {"added": 6e8}, "torch NCHW": {"added": 1e9},
                            "torch channels_last": {"skipped": "no such thing"}}},
    "threads": {"resnet20": {"images_per_second": {"minires, 1 thread": 100.0,
                                                   "minires, 2 threads": 180.0}}},
    "bandwidth": {"resnet20": {"batch": 100, "size": 32, "copy_gbs": 20.0, "operations": {
        "relu (simd)": {"sizes": 3, "bytes": 10**9, "ms": 80.0, "gbs": 12.5, "share": 0.625}}}},
    "imports": {"minires": 0.2},
    "startup": {"resnet20": {
        "minires cold": {"imported": 0.3, "first": 20.0, "second": 0.1}}},
    "frameworks": {
        "jax": {"name": "JAX", "version": "0", "batch": 128, "first": 9.0,
                "images_per_second": 116.0, "losses_differ": 2e-6},
        "dezero": {"skipped": "ModuleNotFoundError: No module named 'dezero'"},
    },
}  # fmt: skip


def test_text_has_every_section():
    text = load("tables").text(json.loads(json.dumps(RECORD)))
    for expected in (
        "10000.0 images/s", "2.50 times as fast as torch eager NCHW, 1.00 by the best",
        "150 GFLOP/s of 100: 150 %",
        "WRONG: 3 elements wrong", "geometric mean of the ratios: 2.45, least 2.00",
        "600 MB", "no such thing", "minires: 0.60 of PyTorch's better", "1.80 times one",
        "import minires: 0.20 s", "first step done after 20.0 s", "116.0 images/s",
        "skipped: ModuleNotFoundError: No module named 'dezero'", "losses differ by 2e-06",
        "12.5 GB/s    62 %", "integers ran at 75 % of their best", "integers ran at 60 %",
    ):  # fmt: skip
        assert expected in text


def test_markdown_is_made_of_whole_tables():
    markdown = load("tables").markdown(RECORD)
    *tables, caption = markdown.split("\n\n")
    assert len(tables) == 6
    for table in tables:
        heading, line, *rows = table.split("\n")
        assert set(line) <= set("|- ")
        assert rows
        assert {row.count("|") for row in (heading, line, *rows)} == {heading.count("|")}
    row = "| ResNet-20, 32x32, batch 100 | 10,000 images/s | 4,000 images/s (eager NCHW) | "
    assert f"{row}**2.50** | 1.00 |" in markdown
    assert "| relu (simd) | 62 % |" in markdown
    assert "| winograd | 1 | 3.00 | 3.00 | 3.00 |" in markdown
    assert "dezero" not in markdown
    assert caption.startswith("made up, 2 threads; minires 1 (abc), PyTorch 2; allocator: stock")


def test_a_section_that_was_not_measured_has_no_table():
    some = {key: RECORD[key] for key in ("machine", "train")}
    assert "memory" not in load("tables").markdown(some).lower()
    assert load("tables").text(some).startswith("Training steps\n")


def test_processes_report_json_or_why_not():
    run = load("processes").run
    found = run(["-c", "import json; print('noise'); print(json.dumps({'a': 1}))"])
    assert found["a"] == 1
    assert found["process_seconds"] > 0
    assert run(["-c", "import surely_not_installed"]) == {
        "skipped": "ModuleNotFoundError: No module named 'surely_not_installed'"
    }
    threads = "import os, json; print(json.dumps({'n': os.environ['OPENBLAS_NUM_THREADS']}))"
    assert run(["-c", threads], threads=3)["n"] == "3"


@pytest.mark.parametrize(("allocator", "limit"), [("no-trim", "0"), ("stock", None)])
def test_the_script_starts_itself_again_with_the_allocator(allocator, limit):
    """With a record to print it ends early; with nothing named it would measure."""
    code = f"""
import os, sys
sys.argv = ["cpu_vs_torch.py"]
sys.path.insert(0, {str(BENCHMARKS)!r})
import cpu_vs_torch
os.environ["MALLOC_TOP_PAD_"] = "1"
def execve(path, arguments, environment):
    print({{k: v for k, v in environment.items() if k in cpu_vs_torch.MALLOC}})
    raise SystemExit
os.execve = execve
cpu_vs_torch._restart_with({allocator!r})
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    found = ast.literal_eval(done.stdout)
    assert found.get("MALLOC_MMAP_MAX_") == limit
    assert "MALLOC_TOP_PAD_" not in found


def test_convolutions_of_a_step_count_three_passes_but_for_the_first_layer():
    pytest.importorskip("torch")
    work = load("work").Work("resnet20", 2, 32)
    total = load("steps").convolution_cost(work)
    stem = 3 * 16 * 9 * 32**2
    convolutions = stem + 6 * 16 * 16 * 9 * 32**2
    for width, size in ((32, 16), (64, 8)):
        convolutions += (width // 2 * width + 5 * width * width) * 9 * size**2
    assert convolutions == 40_550_400
    assert total.flops == 2 * 2 * (3 * convolutions - stem)


def test_what_the_cores_did_is_timed_beside_the_contenders_and_is_none_of_them(monkeypatch):
    pytest.importorskip("torch")
    monkeypatch.setattr(load("cores"), "STEPS", 1000)
    calls = {"minires": lambda: None, "other": lambda: sum(range(1000))}
    found = load("steps").timed(load("work").Work("resnet20", 2, 32), calls, rounds=2)
    assert set(found["times"]) == {"minires", "other"}
    assert found["peer"] == "other"
    assert 0 < found["integers"]["best_ms"] <= found["integers"]["median_ms"]


def test_integers_are_what_the_generators_make():
    pytest.importorskip("numba")
    state = load("cores").np.arange(1, 13, dtype="uint64").reshape(2, 6)
    expected = [int(value) for value in state.ravel()]
    for _ in range(5):
        for left, shift in ((True, 13), (False, 7), (True, 17)):
            expected = [
                (v ^ (v << shift if left else v >> shift)) % 2**64 for v in expected
            ]  # fmt: skip
    load("cores")._integers(state, 5, 2)
    assert [int(value) for value in state.ravel()] == expected


@pytest.mark.parametrize("name", ["resnet20", "resnet50"])
def test_both_nets_give_the_same_answers(name):
    pytest.importorskip("torch")
    ours, theirs = load("steps").same_nets(name)
    assert ours.training
    assert sum(p.numel() for p in ours.parameters()) == sum(p.numel() for p in theirs.parameters())


def test_a_record_is_gone_on_with_by_what_began_it(tmp_path):
    script = importlib.import_module("cpu_vs_torch")
    script._check_same({**FACTS, "date": "1"}, {**FACTS, "date": "2"}, tmp_path)
    for name, other in (("cpu", "b"), ("threads", 1), ("commit", "def"), ("versions", {})):
        with pytest.raises(SystemExit, match=f"measured with {name}"):
            script._check_same(FACTS, {**FACTS, name: other}, tmp_path)


def test_parts_that_are_there_are_not_measured_again(tmp_path, monkeypatch):
    pytest.importorskip("torch")
    script = importlib.import_module("cpu_vs_torch")
    measured = []

    def parts(options, record, threads):
        for section, part in (("imports", None), ("train", "a"), ("train", "b"), ("memory", "a")):
            yield section, part, lambda s=section, p=part: measured.append((s, p)) or {"ms": 1}

    path = tmp_path / "record.json"
    monkeypatch.setattr(script, "_parts", parts)
    for name, made in (("limits", lambda refresh: Limits({}, 1.0, 1, "")),
                       ("machine", lambda: dict(FACTS))):  # fmt: skip
        monkeypatch.setattr(importlib.import_module(f"minires.bench.{name}"), name, made)
    options = SimpleNamespace(resume=True, allocator="stock", rounds=1)
    script.measure(options, path)
    assert measured == [("imports", None), ("train", "a"), ("train", "b"), ("memory", "a")]
    record = json.loads(path.read_text())
    del record["train"]["b"]
    record["memory"]["a"] = {"skipped": "not installed"}
    path.write_text(json.dumps(record))
    measured.clear()
    assert script.measure(options, path)["train"] == {"a": {"ms": 1}, "b": {"ms": 1}}
    assert measured == [("train", "b"), ("memory", "a")]
