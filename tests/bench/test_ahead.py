"""Which kernels a training step calls, and the processes that compile them beforehand."""

from __future__ import annotations

from collections.abc import Callable
from itertools import islice
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

import minires as mr
from minires.bench import ahead, dry_run
from minires.bench.dry_run import RESULTS, training_calls
from minires.functional import cross_entropy
from minires.kernels import available, pool_geometry, registry
from minires.optim import SGD
from minires.testing.kernel_inputs import arguments

# -- the dry run ---------------------------------------------------------------------------------


@pytest.mark.parametrize("operation", RESULTS)
def test_results_have_the_shapes_of_the_reference(operation: str) -> None:
    compared = 0
    for drawn in islice(arguments(operation, np.random.default_rng(0)), 8):
        args = [a.astype(np.float32) if _floats(a) else a for a in drawn.values]
        if args[0].ndim != 4:
            continue
        expected, found = plain(operation)(*args), RESULTS[operation](*args)
        assert isinstance(expected, tuple) == isinstance(found, tuple)
        if not isinstance(expected, tuple):
            expected, found = (expected,), (found,)
        assert [e.shape for e in expected] == [f.shape for f in found]
        assert found[0].dtype == np.float32
        compared += 1
    assert compared


def plain(operation: str) -> Callable[..., Any]:
    """The reference."""
    return next(
        k.function for k in available(operation)
        if k.function.__module__.startswith("minires.kernels.reference") and k.only is None
    )  # fmt: skip


def _floats(value: Any) -> bool:
    return isinstance(value, np.ndarray) and value.dtype.kind == "f"


def test_the_calls_are_those_of_a_real_step() -> None:
    real: set[tuple[str, str, tuple[Any, ...]]] = set()

    def watch(operation: Any, kernel: Any, args: tuple[Any, ...]) -> Any:
        function = getattr(kernel.function, "func", kernel.function)  # of what is fused, the kernel
        if not function.__module__.startswith("minires.kernels.cpu"):
            return kernel.function(*args)
        real.add((operation.name, kernel.name, _shapes(args)))
        return (plain(operation.name) if function is kernel.function else kernel.function)(*args)

    model = mr.models.create("resnet20")
    x, labels = mr.Tensor(np.zeros((8, 3, 32, 32), np.float32)), np.zeros(8, np.int64)
    optimizer = SGD(model.parameters(), lr=0.1, momentum=0.9)
    registry.observer = watch
    try:
        cross_entropy(model(x), labels).backward()
        optimizer.step()
        with mr.no_grad():
            model.eval()(x)
    finally:
        registry.observer = None
    calls = training_calls(mr.models.create("resnet20"), (8, 3, 32, 32))
    assert {(c.operation, c.kernel.name, _shapes(c.arguments)) for c in calls} == real
    assert len(real) > 10
    assert registry.observer is None


def _shapes(args: tuple[Any, ...]) -> tuple[Any, ...]:
    return tuple(getattr(a, "shape", None) for a in args)


def test_maxima_lie_inside_the_image() -> None:
    g = pool_geometry("max_pool2d", (2, 16, 9, 9), 3, 2, 1)
    indices = dry_run._Array((2, 16, *g.out), "int32")
    call = dry_run.Call("max_pool2d_grad", available("max_pool2d_grad")[0], (indices, g))
    assert (call.values()[0] == 4).all()
    assert call.values()[1] is g


# -- helpers -------------------------------------------------------------------------------------

JOB = {"model": "resnet20", "options": {}, "x_shape": [2, 3, 8, 8]}


@pytest.fixture
def ran(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Three kernels to compile, one of them for two geometries; and what was called."""
    called: list[str] = []

    def call(operation: str, kernel: str, shape: str) -> Any:
        return SimpleNamespace(
            operation=operation, values=lambda: (f"{operation} {shape}",),
            kernel=SimpleNamespace(name=kernel, function=called.append),
        )  # fmt: skip

    calls = [call("conv2d", "a", "8"), call("relu", "a", "8"), call("conv2d", "a", "4"),
             call("conv2d", "b", "2")]  # fmt: skip
    monkeypatch.setattr(dry_run, "training_calls", lambda *_: calls)
    return called


def test_a_helper_begins_at_the_end(ran: list[str], tmp_path: Path) -> None:
    ahead._help(tmp_path, JOB)
    assert ran == ["conv2d 2", "relu 8", "conv2d 8", "conv2d 4"]
    assert ahead._total(tmp_path) == len(list(tmp_path.glob("*.ready"))) == 3


def test_a_kernel_is_claimed_once(ran: list[str], tmp_path: Path) -> None:
    (tmp_path / "2.claimed").touch()
    ahead._help(tmp_path, JOB)
    ahead._help(tmp_path, JOB)
    assert ran == ["relu 8", "conv2d 8", "conv2d 4"]


def test_a_helper_stops_when_nobody_waits(
    ran: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    parents = iter([5, 5, 1])
    monkeypatch.setattr(ahead.os, "getppid", lambda: next(parents))
    ahead._help(tmp_path, JOB)
    assert ran == ["conv2d 2"]


def test_processes_compile_and_leave_nothing_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    seen: list[tuple[int, int]] = []
    count = mr.compile_kernels(
        "resnet20", 2, 8, processes=2, progress=lambda *now: seen.append(now)
    )
    assert count == 0  # so small that nothing is compiled for it
    assert list(tmp_path.iterdir()) == []


def test_what_a_process_says_at_its_end(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(RuntimeError, match=r"compiling resnet20: TypeError: .*no_such_option"):
        mr.compile_kernels("resnet20", 2, 8, processes=1, no_such_option=1)


def test_wrong_sizes() -> None:
    with pytest.raises(ValueError, match="at least 1, got 0, None and None"):
        mr.compile_kernels("resnet20", 0)
    with pytest.raises(ValueError, match="resnet20"):
        mr.compile_kernels("resnet21")


def test_help_comes_with_the_first_compilation(monkeypatch: pytest.MonkeyPatch) -> None:
    numba = pytest.importorskip("numba")
    started: list[int] = []
    monkeypatch.setattr(ahead._Helpers, "start", lambda self, count: started.append(count))
    monkeypatch.setattr(ahead, "available_cores", lambda: 8)
    monkeypatch.setattr("minires.kernels.threads._shared", True)
    with ahead.helped("resnet20", {}, (3, 32, 32), 128):
        assert started == []
        numba.njit(lambda x: x + 1)(1)
        numba.njit(lambda x: x + 2)(1)
    numba.njit(lambda x: x + 3)(1)
    assert started == [ahead.MOST_HELPERS]


def test_helpers_are_ended_with_the_block() -> None:
    with ahead._Helpers("resnet20", {}, (3, 8, 8), 2) as helpers:
        helpers.start(1)
        folder, (process,) = helpers.folder, helpers.processes
        assert folder.exists()
    assert process.returncode is not None
    assert not folder.exists()


def test_large_batches_are_not_needed_to_compile() -> None:
    def images(batch: int, *shape: int) -> int:
        return ahead._Helpers("resnet20", {}, shape, batch).job["x_shape"][0]

    assert images(128, 3, 32, 32) == 128
    assert images(4096, 3, 224, 224) == ahead.LARGEST // (3 * 224 * 224)
    assert images(4, 3, 4096, 4096) == 1
