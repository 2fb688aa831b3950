"""`minires kernels compile`: what it hands on and what it says."""

from __future__ import annotations

from typing import Any

import pytest

from minires.bench import ahead
from minires.cli.app import run


def test_every_model_is_compiled(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    called: list[Any] = []

    def compile_kernels(model: str, *sizes: Any, processes: Any, progress: Any) -> int:
        called.append((model, *sizes, processes))
        progress(3, 18)
        return 18

    monkeypatch.setattr(ahead, "compile_kernels", compile_kernels)
    options = ["--batch", "4", "--size", "64", "--processes", "3"]
    assert run(["kernels", "compile", "resnet18", "resnet50", *options]) == 0
    assert called == [("resnet18", 4, 64, 3), ("resnet50", 4, 64, 3)]
    out = capsys.readouterr().out
    assert "resnet18: 18 kernels ready after 0 s" in out
    assert "resnet50: 18 kernels ready after 0 s" in out


def test_an_unknown_model(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["kernels", "compile", "resnet21"]) == 1
    assert "resnet21" in capsys.readouterr().err
