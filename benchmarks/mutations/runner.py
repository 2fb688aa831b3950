"""Runs tests against a private copy of the project with one planted bug at a time."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from table import Mutation, OutOfDateError

SKIPPED = (".git", ".ruff_cache", ".mypy_cache", ".pytest_cache", "__pycache__", "*.egg-info")
OWN_TEST = "tests/test_mutations.py"
"""The test that the table fits the sources: it would catch every bug, and prove nothing."""

COMPILED = "minires/kernels/cpu"
"""Sources whose compiled functions Numba caches, and inlines into each other."""


@dataclass(frozen=True)
class Outcome:
    """What one run of pytest said. by: the first test that failed, or what happened instead."""

    passed: bool
    by: str
    seconds: float


class Copy:
    """A copy of the project in `home`, with Numba caches of its own.

    Its files keep their times, so that what Numba compiled for them stays valid.
    """

    def __init__(self, source: Path, home: Path) -> None:
        self.root, self.cache, self.scratch = home / "project", home / "numba", home / "scratch"
        shutil.rmtree(self.root, ignore_errors=True)
        shutil.copytree(source, self.root, ignore=shutil.ignore_patterns(*SKIPPED))
        self.broken: list[str] = []  # tests that fail without any bug

    def check(self, mutation: Mutation) -> None:
        """Raise OutOfDateError where an entry does not fit."""
        mutation.apply(self._text(mutation))

    def baseline(self, tests: tuple[str, ...], timeout: float) -> None:
        """Raise RuntimeError unless these tests pass without any bug."""
        outcome = self._pytest(tests, timeout, self.cache)
        if not outcome.passed:
            raise RuntimeError(f"{' '.join(tests)}: fails without any bug, at {outcome.by}")

    def everything(self, timeout: float) -> None:
        """Run the whole suite once without any bug, and leave out from now on what fails."""
        report = self._run(["tests"], timeout, self.cache, stop=False).stdout
        self.broken = re.findall(r"^(?:FAILED|ERROR) (\S+)", report, flags=re.MULTILINE)

    def run(self, mutation: Mutation, tests: tuple[str, ...], timeout: float) -> Outcome:
        """The outcome of some tests with the bug planted."""
        file = self.root / mutation.path
        times = file.stat()
        source = self._text(mutation)
        try:
            file.write_text(mutation.apply(source), encoding="utf-8")
            _forget_bytecode(file)
            return self._pytest(tests, timeout, self._cache_for(mutation))
        finally:
            file.write_text(source, encoding="utf-8")
            os.utime(file, ns=(times.st_atime_ns, times.st_mtime_ns))
            _forget_bytecode(file)

    def _text(self, mutation: Mutation) -> str:
        file = self.root / mutation.path
        if not file.is_file():
            raise OutOfDateError(f"{mutation}: there is no such file")
        return file.read_text(encoding="utf-8")

    def _cache_for(self, mutation: Mutation) -> Path:
        """The warm cache, or for a compiled source a copy of it without what depends on it."""
        if not mutation.path.startswith(COMPILED):
            return self.cache
        shutil.rmtree(self.scratch, ignore_errors=True)
        shutil.copytree(self.cache, self.scratch)
        stale = self._dependents(Path(mutation.path).stem)
        for entry in self.scratch.rglob("*.nb?"):
            if entry.name.partition(".")[0] in stale:
                entry.unlink()
        return self.scratch

    def _dependents(self, module: str) -> set[str]:
        """A compiled module and all that import it, directly or not."""
        texts = {f.stem: f.read_text(encoding="utf-8") for f in (self.root / COMPILED).glob("*.py")}
        found = {module}
        while True:
            more = {
                name
                for name, text in texts.items()
                if any(re.search(rf"kernels\.cpu\.{known}\b", text) for known in found)
            }
            if more <= found:
                return found
            found |= more

    def _pytest(self, tests: tuple[str, ...], timeout: float, cache: Path) -> Outcome:
        start = time.perf_counter()
        try:
            process = self._run(list(tests), timeout, cache, stop=True)
        except subprocess.TimeoutExpired:
            return Outcome(False, f"no end within {timeout:.0f} s", timeout)
        seconds = time.perf_counter() - start
        if process.returncode == 0:
            return Outcome(True, "", seconds)
        if process.returncode < 0:
            return Outcome(False, f"crash ({signal.Signals(-process.returncode).name})", seconds)
        named = re.search(r"^(?:FAILED|ERROR) (\S+)", process.stdout, flags=re.MULTILINE)
        if named is None:
            raise RuntimeError(f"pytest ended with {process.returncode}:\n{process.stdout[-2000:]}")
        return Outcome(False, named[1], seconds)

    def _run(
        self, tests: list[str], timeout: float, cache: Path, *, stop: bool
    ) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "pytest", "-q", "--tb=no", "-rfE", "-p",
                   "no:cacheprovider", f"--ignore={OWN_TEST}"]  # fmt: skip
        command += ["-x"] if stop else []
        command += [option for test in self.broken for option in ("--deselect", test)]
        environment = os.environ | {
            "PYTHONPATH": str(self.root),
            "NUMBA_CACHE_DIR": str(cache),
            "HYPOTHESIS_PROFILE": "ci",
            "OPENBLAS_NUM_THREADS": "1",
        }
        with subprocess.Popen(
            [*command, *tests], cwd=self.root, env=environment, text=True, start_new_session=True,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        ) as process:  # fmt: skip
            try:
                output, _ = process.communicate(timeout=timeout)
            except BaseException:
                os.killpg(process.pid, signal.SIGKILL)
                raise
        return subprocess.CompletedProcess(command, process.returncode, output, "")


def _forget_bytecode(file: Path) -> None:
    for entry in (file.parent / "__pycache__").glob(f"{file.stem}.*.pyc"):
        entry.unlink(missing_ok=True)
