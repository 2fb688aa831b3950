"""Starting up: compiled kernels are kept, wherever that can be, and compiling is told of; and the
code for processors without wide vectors computes the same."""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import minires
from minires.kernels import threads
from minires.kernels.cpu.compiling import announced

PACKAGE = Path(minires.__file__).parent

RELU = """
import numpy as np
from minires.kernels import operations, use
from minires.kernels.cpu.compiling import announced
heard = []
with announced(lambda count, seconds: heard.append(count), after=0.0), use(relu="simd"):
    y = operations.relu(np.arange(-40.0, 40.0, dtype=np.float32).reshape(1, 16, 1, 5))
assert (y == np.maximum(np.arange(-40.0, 40.0).reshape(1, 16, 1, 5), 0)).all()
from minires.kernels.cpu import elementwise
from minires.cli.info import _compiled
from pathlib import Path
import minires
print(minires.__file__, heard[-1] if heard else 0, sum(elementwise._relu.stats.cache_hits.values()),
      _compiled(Path(minires.__file__).parent))
"""


def run(code: str, limited: bool = False, **variables: str) -> list[str]:
    """Words printed by a fresh interpreter, on one thread.

    limited: without root's right to write what is read-only, where the tests run as root.
    """
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("NUMBA_", "XDG_"))}
    environment |= {"MINIRES_THREADS": "1", **variables}
    done = subprocess.run(
        [sys.executable, "-P", "-c", code], capture_output=True, text=True, check=False,
        env=environment, preexec_fn=_drop_override if limited else None,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


def _drop_override() -> None:
    set_option, capability_dac_override = 24, 1  # PR_CAPBSET_DROP, CAP_DAC_OVERRIDE of Linux
    ctypes.CDLL(None).prctl(set_option, capability_dac_override, 0, 0, 0)


@pytest.mark.skipif(sys.platform != "linux", reason="takes a right away as Linux does")
def test_kernels_are_kept_where_the_package_cannot_be_written(tmp_path: Path) -> None:
    library, home = tmp_path / "library", tmp_path / "home"
    shutil.copytree(PACKAGE, library / "minires", ignore=shutil.ignore_patterns("__pycache__"))
    home.mkdir()
    folders = [library, *(path for path in library.rglob("*") if path.is_dir())]
    for folder in folders:
        folder.chmod(0o555)
    variables = {"PYTHONPATH": str(library), "HOME": str(home), "PYTHONDONTWRITEBYTECODE": "1"}
    try:
        where, compiled, hits, folder = run(RELU, limited=True, **variables)
        assert where.startswith(str(library))
        assert int(compiled) > 0
        assert int(hits) == 0
        assert not list(library.rglob("*.nbc"))
        assert home in Path(folder).parents  # as `minires info` says
        assert list(Path(folder).rglob("elementwise._relu_by_workers-*.nbc"))
        _, compiled, hits, _ = run(RELU, limited=True, **variables)
        assert (int(compiled), int(hits)) == (0, 1)
    finally:
        for folder in folders:
            folder.chmod(0o755)


PLAIN = """
import numpy as np
from minires.kernels import available, conv_geometry, host, operations as ops, use
from minires.kernels.cpu import simd

rng = np.random.default_rng(0)
x, weight = (rng.standard_normal(shape).astype(np.float32) for shape in
             ((2, 16, 5, 7), (16, 16, 3, 3)))
g = conv_geometry(x.shape, weight.shape, 1, 1)
one = np.ones(16, np.float32)
for name, args in {
    "relu": (x,), "conv2d": (x, weight, g), "batch_norm_relu_train": (x, one, one, 1e-5),
}.items():
    found = {}
    place = g if name == "conv2d" else x.shape
    for kernel in available(name):
        where = kernel.function.__module__
        if kernel.backend == "cpu" and kernel.supports(place, "float32"):
            found.setdefault(where.split(".")[2], kernel)
    expected, computed = (found[part].function(*args) for part in ("reference", "cpu"))
    if not isinstance(expected, tuple):
        expected, computed = (expected,), (computed,)
    for e, c in zip(expected, computed, strict=True):
        np.testing.assert_allclose(c, e, rtol=1e-4, atol=1e-4, err_msg=name)
print(simd.VECTOR_BYTES, host.vector_bytes())
"""


@pytest.mark.slow
def test_without_avx_and_fma() -> None:
    """The code that an old processor would get: vectors of four floats, no fused multiply-add."""
    assert run(PLAIN, NUMBA_CPU_NAME="generic") == ["16", "16"]


@pytest.mark.parametrize(
    ("features", "width"),
    [("", 16), ("+neon,+fp-armv8", 16), ("+sse4.2", 16), ("+avx,+sse2", 32), ("+avx2,+avx", 32),
     ("+avx,+avx512f", 64), ("-avx512f,+avx", 32)],
)  # fmt: skip
def test_the_width_of_vectors_follows_the_processor(features: str, width: int) -> None:
    simd = pytest.importorskip("minires.kernels.cpu.simd")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(simd.config, "CPU_FEATURES", features)
        assert simd._vector_bytes() == width


# -- telling of compilations ----------------------------------------------------------------------


def compile_one() -> None:
    numba = pytest.importorskip("numba")
    numba.njit(lambda x: x + 1)(1)


def test_compilations_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(threads, "_shared", True)
    heard: list[int] = []
    with announced(lambda count, seconds: heard.append(count), after=0.0):
        compile_one()
        compile_one()
    compile_one()
    assert heard == [1, 2]


def test_short_compilations_say_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(threads, "_shared", True)
    heard: list[int] = []
    with announced(lambda count, seconds: heard.append(count), after=600.0):
        compile_one()
    assert heard == []


def test_numba_is_not_imported_to_listen() -> None:
    code = (
        "import sys\n"
        "from minires.kernels.cpu.compiling import announced\n"
        "with announced(print): pass\n"
        "print('numba' in sys.modules)"
    )
    assert run(code) == ["False"]


def test_what_waits_for_the_first_kernel_can_be_called_off(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(threads, "_shared", False)
    called: list[str] = []
    forget = threads.at_first_kernel(lambda: called.append("off"))
    threads.at_first_kernel(lambda: called.append("on"))
    forget()
    forget()
    threads.use_own_threads()
    threads.use_own_threads()
    assert called == ["on"]
    threads.at_first_kernel(lambda: called.append("at once"))
    assert called == ["on", "at once"]
