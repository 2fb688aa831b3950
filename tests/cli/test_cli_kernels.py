"""`minires kernels`: the list, and the check of a file; `--kernels` of the other commands."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from lab import restored_kernels

import minires as mr
from minires.cli.app import run

MINE = '''
import numpy as np
import minires as mr

def small(g):
    """Kernels of at most 3x3, in one group."""
    return max(g.kernel) <= 3 and g.groups == 1

@mr.kernels.register("conv2d", name="mine", only=small, dtypes=("float32", "float64"),
                     workspace=lambda g, dtype: g.N * g.C * np.dtype(dtype).itemsize)
def conv2d(x, weight, g):
    """One product per kernel tap."""
    (KH, KW), (sh, sw), (ph, pw), (dh, dw), (OH, OW) = (
        g.kernel, g.stride, g.padding, g.dilation, g.out)
    padded = np.pad(x, [(0, 0), (0, 0), (ph, ph), (pw, pw)])
    y = np.zeros(g.y_shape, x.dtype)
    for u in range(KH):
        for v in range(KW):
            rows = slice(u * dh, u * dh + sh * (OH - 1) + 1, sh)
            cols = slice(v * dw, v * dw + sw * (OW - 1) + 1, sw)
            y += np.einsum("nchw,oc->nohw", padded[:, :, rows, cols], weight[:, :, u, v])
    return y
'''


@pytest.fixture
def mine(tmp_path: Path) -> Iterator[Path]:
    """A file with a right kernel; what it registers is gone after the test."""
    file = tmp_path / "mine.py"
    file.write_text(MINE)
    with restored_kernels():
        yield file


Call = Callable[..., tuple[int, str, str]]


@pytest.fixture
def call(capsys: pytest.CaptureFixture[str]) -> Call:
    """Run a command; returns (exit status, standard output, standard error)."""

    def call(*arguments: object) -> tuple[int, str, str]:
        capsys.readouterr()
        status = run([str(a) for a in arguments])
        captured = capsys.readouterr()
        return status, captured.out, captured.err

    return call


def rows(out: str) -> dict[str, list[str]]:
    return {words[0]: words[1:] for line in out.splitlines() if (words := line.split())}


def test_without_a_command_everything_is_listed(call: Call) -> None:
    status, out, _ = call("kernels")
    assert status == 0
    for kernel in mr.kernels.available():
        assert kernel.operation in rows(out)
        assert kernel.name in rows(out)
    assert call("kernels", "list")[1] == out


def test_the_list_of_one_operation(call: Call) -> None:
    _, out, _ = call("kernels", "list", "relu")
    found = rows(out)
    assert found["numpy"][:3] == ["cpu", "any", "yes"]
    assert found["simd"][:4] == ["cpu", "f32", "f64", "yes"]
    assert "im2col" not in found
    status, _, err = call("kernels", "list", "rellu")
    assert status == 2
    assert "Did you mean 'relu'?" in err


def test_the_list_shows_a_file_of_ones_own(call: Call, mine: Path) -> None:
    status, out, _ = call("kernels", "list", "conv2d", "--kernels", mine)
    assert status == 0
    assert rows(out)["mine"][:6] == ["cpu", "f32", "f64", "yes", "4.096", "kB"]
    assert "Kernels of at most 3x3, in one group" in " ".join(out.split())
    assert "16x64x56x56 * 64x64x3x3 padding 1x1 in float32" in " ".join(out.split())
    assert rows(out)["winograd"][3] == "no"


def test_training_with_a_file(call: Call, mine: Path, tmp_path: Path) -> None:
    tiny = ["--limit", 40, "--epochs", 1, "--batch-size", 20]
    status, out, err = call("train", *tiny, "--kernels", mine, "--out", tmp_path / "run")
    assert (status, err) == (0, "")
    assert out.splitlines()[0] == f"kernels of {mine}: conv2d mine"
    g = mr.kernels.conv_geometry((20, 16, 8, 8), (16, 16, 3, 3), 1, 1)
    assert mr.kernels.operation("conv2d").select("cpu", g).name == "mine"
    status, out, _ = call("eval", tmp_path / "run", "--limit", 20, "--kernels", mine)
    assert status == 0
    assert out.splitlines()[0] == f"kernels of {mine}: conv2d mine"


def test_a_run_goes_on_with_a_file(call: Call, mine: Path, tmp_path: Path) -> None:
    tiny = ["--limit", 40, "--epochs", 1, "--batch-size", 20]
    assert call("train", *tiny, "--out", tmp_path / "run")[0] == 0
    status, out, _ = call("train", "--resume", tmp_path / "run", "--kernels", mine)
    assert status == 0
    assert "all 1 epochs are finished" in out


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("1 +", r"file\.py:1: SyntaxError: invalid syntax"),
        ("import numpy\nimport no_such_module", r"file\.py:2: ModuleNotFoundError: No module"),
        ("x = 1", "registers no kernel"),
    ],
)
def test_a_file_that_does_not_load(call: Call, tmp_path: Path, text: str, message: str) -> None:
    file = tmp_path / "file.py"
    file.write_text(text)
    for command in (["train"], ["kernels", "list"], ["gradcheck"]):
        status, _, err = call(*command, "--kernels", file)
        assert status == 1
        assert re.search(message, "".join(err.split("\n"))), err


def test_gradcheck_with_a_file(call: Call, mine: Path) -> None:
    mine.write_text(MINE.replace("weight[:, :, u, v]", "2 * weight[:, :, u, v]"))
    status, out, _ = call("gradcheck", "--op", "conv2d", "--no-second-order", "--kernels", mine)
    assert status == 1
    assert re.search(r"conv2d .* WRONG", out)


def test_a_right_file_passes(call: Call, mine: Path) -> None:
    status, out, err = call("kernels", "check", mine)
    assert (status, err) == (0, "")
    assert rows(out)["conv2d"][0] == "mine"
    assert rows(out)["conv2d"][-1] == "right"
    assert re.search(r"^mine: <conv\(x,w\), y> = .*: right; \d layers, float64", out, re.MULTILINE)
    assert re.search(r"^mine: finite differences of conv2d: right; 4 geometries", out, re.MULTILINE)


def test_a_wrong_file_is_explained(call: Call, mine: Path) -> None:
    mine.write_text(MINE.replace("weight[:, :, u, v]", "weight[:, :, KH - 1 - u, KW - 1 - v]"))
    status, out, _ = call("kernels", "check", mine)
    assert status == 1
    assert rows(out)["conv2d"][-1] == "WRONG"
    assert "likely cause: the kernel is flipped in both axes" in out
    line = re.search(r"^  repeat: (.*)$", out, re.MULTILINE)
    assert line is not None
    assert f"mr.kernels.load({str(mine)!r})" in line[1]
    exec(line[1], {})


def test_passes_that_do_not_belong_together(call: Call, mine: Path) -> None:
    """What single kernels do not show: the other passes, which are not checked here."""
    from minires.kernels.reference import conv

    gradient = mr.kernels.operation("conv2d_grad_input")
    double = mr.kernels.register("conv2d_grad_input", name="double")
    double(lambda gy, weight, g: 2 * conv.conv2d_grad_input(gy, weight, g))
    status, out, _ = call("kernels", "check", mine)
    assert gradient.kernels[-1].name == "double"
    assert status == 1
    assert re.search(r"^mine: <conv.*: WRONG; not adjoint", out, re.MULTILINE)
    assert re.search(r"^mine: finite differences of conv2d: WRONG", out, re.MULTILINE)


def test_every_operation_of_a_file_is_checked(call: Call, mine: Path) -> None:
    mine.write_text("""
import minires as mr
mr.kernels.register("relu", name="times")(lambda x: x * (x > 0))
mr.kernels.register("relu_grad", name="times")(lambda gy, y: gy * (y > 0))
""")
    status, out, _ = call("kernels", "check", mine)
    assert status == 0, out
    assert {"relu", "relu_grad"} <= rows(out).keys()
    assert re.search(r"^times: finite differences of relu: right", out, re.MULTILINE)


def test_the_walk_through_of_the_lab(call: Call, mine: Path) -> None:
    """The kernel in docs/kernel_lab.md is wrong as it says, and right with the line it gives."""
    text = (Path(__file__).parents[2] / "docs" / "kernel_lab.md").read_text()
    program, correction = re.findall(r"```python\n(.*?)```", text, re.DOTALL)[:2]
    program = program.replace("parallel=True, ", "")  # which takes long to compile
    mine.write_text(program)
    status, out, _ = call("kernels", "check", mine)
    assert status == 1
    told = re.search(r"likely cause: .*", text)
    assert told is not None
    assert told[0] in out
    wrong = " " * 24 + "h, w = i * sh + u, j * sw + v\n"
    assert wrong in program
    mine.write_text(program.replace(wrong, correction))
    status, out, _ = call("kernels", "check", mine)
    assert status == 0, out


def test_the_shell_names_a_kernel_of_a_file(
    call: Call, mine: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tiny = ["train", "--limit", 40, "--epochs", 1, "--batch-size", 20, "--kernels", mine]
    monkeypatch.setenv("MINIRES_KERNELS", "conv2d=mien")
    mr.kernels.operation("conv2d").forget()
    status, _, err = call(*tiny, "--out", tmp_path / "run")
    assert status == 1
    assert "MINIRES_KERNELS: unknown conv2d kernel 'mien'. Did you mean 'mine'?" in err
    monkeypatch.setenv("MINIRES_KERNELS", "conv2d=mine")
    assert call(*tiny, "--out", tmp_path / "other")[0] == 0
