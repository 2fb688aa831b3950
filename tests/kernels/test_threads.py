import subprocess
import sys

import pytest
import threadpoolctl

import minires as mr
from minires.kernels import threads


def blas_threads():
    return max(p["num_threads"] for p in threadpoolctl.threadpool_info() if p["user_api"] == "blas")


@pytest.fixture(autouse=True)
def restored(monkeypatch):
    monkeypatch.delenv("MINIRES_THREADS", raising=False)
    monkeypatch.setattr(threads, "_shared", False)
    before = threads.num_threads()
    yield
    monkeypatch.undo()
    threads.set_num_threads(before)


def test_one_thread_for_blas():
    assert mr.set_num_threads(1) == 1
    assert (threads.num_threads(), blas_threads()) == (1, 1)


def test_the_variable(monkeypatch):
    monkeypatch.setenv("MINIRES_THREADS", "1")
    assert mr.set_num_threads() == 1
    monkeypatch.setenv("MINIRES_THREADS", "two")
    with pytest.raises(ValueError, match="MINIRES_THREADS must be a whole number, got 'two'"):
        mr.set_num_threads()


def test_without_a_choice_one_thread_per_core():
    assert mr.set_num_threads() == threads.available_cores() == blas_threads()


def test_more_than_there_are():
    many = threads.available_cores() + 1
    with pytest.raises(ValueError, match=f"from 1 to {many - 1}, the available cores; got {many}"):
        mr.set_num_threads(many)


@pytest.mark.parametrize("count", ["2", 1.0, True])
def test_what_is_no_number_of_threads(count):
    before = threads.num_threads()
    with pytest.raises(TypeError, match=f"threads must be a whole number, got {count!r}"):
        mr.set_num_threads(count)
    assert threads.num_threads() == before


def test_blas_steps_aside_for_our_own_threads():
    mr.set_num_threads()
    threads.use_own_threads()
    assert blas_threads() == 1
    assert threads.num_threads() == threads.available_cores()


@pytest.mark.parametrize("order", ["before", "after"])
def test_numba_follows(order):
    program = {
        "before": "import numba, minires as mr; mr.set_num_threads(1)",
        "after": "import minires as mr; mr.set_num_threads(1); import numba",
    }[order]
    done = subprocess.run(
        [sys.executable, "-c", f"{program}; print(numba.get_num_threads())"],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert done.stdout.strip() == "1"
