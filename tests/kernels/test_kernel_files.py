"""Loading kernels from a file of the user's."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from lab import restored_kernels

import minires as mr

GOOD = '''
import numpy as np
import minires as mr

@mr.kernels.register("relu", name="mine")
def relu(x):
    """By multiplication."""
    return x * (x > 0)

@mr.kernels.register("relu_grad", name="mine", worth=mr.kernels.never)
def relu_grad(gy, y):
    return gy * (y > 0)
'''


@pytest.fixture(autouse=True)
def restored() -> Iterator[None]:
    with restored_kernels():
        yield


def write(tmp_path: Path, text: str, name: str = "mine.py") -> Path:
    (tmp_path / name).write_text(text)
    return tmp_path / name


def test_a_file_registers_kernels(tmp_path: Path) -> None:
    kernels = mr.kernels.load(write(tmp_path, GOOD))
    assert [(k.operation, k.name) for k in kernels] == [("relu", "mine"), ("relu_grad", "mine")]
    assert kernels[0].summary == "By multiplication."
    shape = (4,)
    assert mr.kernels.operation("relu").select("cpu", shape).name == "mine"
    assert mr.kernels.operation("relu_grad").select("cpu", shape).name == "numpy"
    np.testing.assert_array_equal(mr.functional.relu(mr.Tensor([-1.0, 2.0])).numpy(), [0, 2])


def test_a_file_loaded_again_replaces_its_kernels(tmp_path: Path) -> None:
    mr.kernels.load(write(tmp_path, GOOD))
    again = mr.kernels.load(write(tmp_path, GOOD.replace("By multiplication", "Otherwise")))
    assert again[0].summary == "Otherwise."
    assert [k.name for k in mr.kernels.available("relu")].count("mine") == 1


def test_a_file_may_replace_a_kernel_of_ours(tmp_path: Path) -> None:
    (kernel,) = mr.kernels.load(write(tmp_path, """
import minires as mr
mr.kernels.register("relu", name="simd")(lambda x: abs(x))
"""))  # fmt: skip
    assert kernel.name == "simd"


def test_a_file_may_import_its_neighbours(tmp_path: Path) -> None:
    write(tmp_path, "def relu(x):\n    return x * (x > 0)\n", "neighbour_of_mine.py")
    before = list(sys.path)
    try:
        kernels = mr.kernels.load(write(tmp_path, """
import minires as mr
import neighbour_of_mine
mr.kernels.register("relu", name="mine")(neighbour_of_mine.relu)
"""))  # fmt: skip
        assert len(kernels) == 1
        assert sys.path == before
    finally:
        sys.modules.pop("neighbour_of_mine", None)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("1 +", r"mine\.py:1: SyntaxError: invalid syntax"),
        (GOOD + "1 / 0\n", r"mine\.py:13: ZeroDivisionError: division by zero"),
        (GOOD.replace('"relu_grad"', '"rellu_grad"'), r"mine\.py:10: ValueError: unknown operation "
         "'rellu_grad'. Did you mean 'relu_grad'"),
    ],
)  # fmt: skip
def test_a_file_that_fails_registers_nothing(tmp_path: Path, text: str, message: str) -> None:
    known = mr.kernels.available()
    with pytest.raises(ImportError, match=message):
        mr.kernels.load(write(tmp_path, text))
    assert mr.kernels.available() == known
    assert "minires_kernels_mine" not in sys.modules


def test_a_file_that_registers_nothing(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"mine\.py registers no kernel; put @minires\.kernels"):
        mr.kernels.load(write(tmp_path, "x = 1"))


def test_what_is_no_python_file(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"none\.py: no such file of kernels"):
        mr.kernels.load(tmp_path / "none.py")
    with pytest.raises(ValueError, match="a CUDA source needs Python that launches it"):
        mr.kernels.load(write(tmp_path, "", "mine.cu"))
    with pytest.raises(ValueError, match="expected a Python file"):
        mr.kernels.load(write(tmp_path, "", "mine.txt"))
