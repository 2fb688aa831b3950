"""`--device`, `--precision` and `--no-graph`, on an emulated device and without any."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from typing import Any

import pytest

from minires.cli.app import run
from minires.kernels.cuda import emulate

TINY = ["--limit", "12", "--epochs", "2", "--batch-size", "6", "--model", "resnet20"]


@pytest.fixture
def emulated() -> Iterator[None]:
    if not sys.platform.startswith("linux") or emulate.compiler() is None:
        pytest.skip("the emulator needs Linux and a C++ compiler")
    with emulate.device():
        yield


@pytest.fixture
def call(capsys: pytest.CaptureFixture[str]) -> Any:
    """Run a command; returns (exit status, standard output, standard error)."""

    def call(*arguments: Any) -> tuple[int, str, str]:
        capsys.readouterr()
        status = run([str(a) for a in arguments])
        captured = capsys.readouterr()
        return status, captured.out, captured.err

    return call


def test_train_eval_and_resume_on_a_device(emulated: None, call: Any, tmp_path: Any) -> None:
    pytest.importorskip("ml_dtypes", reason="NumPy has no bfloat16: install ml_dtypes")
    folder = tmp_path / "run"
    begin = ["train", *TINY, "--out", folder, "--device", "cuda", "--precision", "bf16"]
    status, out, err = call(*begin)
    assert (status, err) == (0, "")
    assert "on cuda:0, bf16, batches made on the device" in out
    assert "2 as CUDA graphs, captured 1 times" in out or "as CUDA graphs" in out
    config = json.loads((folder / "config.json").read_text())
    assert (config["device"], config["precision"], config["graph"]) == ("cuda", "bf16", True)
    accuracies = []
    for options in ([], ["--device", "cuda"], ["--device", "cuda", "--precision", "tf32"]):
        status, out, err = call("eval", folder, "--limit", "12", *options)
        assert (status, err) == (0, "")
        accuracies.append(next(line for line in out.splitlines() if line.startswith("accuracy")))
    assert len(set(accuracies)) == 1
    status, out, err = call("train", "--resume", folder)
    assert status == 0
    assert "all 2 epochs are finished" in out


def test_without_graphs(emulated: None, call: Any, tmp_path: Any) -> None:
    status, out, err = call(
        "train", *TINY, "--epochs", "1", "--out", tmp_path / "run", "--device", "cuda:1",
        "--no-graph",
    )  # fmt: skip
    assert (status, err) == (0, "")
    assert "on cuda:1, fp32" in out
    assert "launch by launch" in out
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    assert (config["device"], config["graph"]) == ("cuda:1", False)


def test_what_does_not_go(emulated: None, call: Any, tmp_path: Any) -> None:
    for arguments, message in (
        (["train", "--device", "gpu"], "unknown device 'gpu'; known are 'cpu', 'cuda'"),
        (["train", "--precision", "fp8"], "unknown precision 'fp8'"),
        (["train", "--precision", "bf16"], "precision 'bf16' is for CUDA devices"),
        (["train", *TINY, "--device", "cuda:7"], "this machine has 2 CUDA devices"),
        (["train", *TINY, "--device", "cuda", "--profile"], "--profile watches the processor"),
    ):
        status, _, err = call(*arguments, "--out", tmp_path / "none")
        assert status != 0, arguments
        assert message in err, arguments
        assert not (tmp_path / "none").exists(), arguments


def test_without_cupy_the_error_says_what_to_install(
    call: Any, tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "cupy", None)
    status, _, err = call("train", *TINY, "--device", "cuda", "--out", tmp_path / "run")
    assert status == 1
    assert "CUDA needs CuPy: install minires[cuda12] (cupy-cuda12x)" in err
    assert not (tmp_path / "run").exists()
    import minires as mr

    assert not mr.cuda.is_available()
    assert mr.cuda.device_count() == 0
    with pytest.raises(ImportError, match="CUDA needs CuPy"):
        mr.cuda.synchronize()
