"""The facts that go with a record."""

import json
import platform
import subprocess
import sys

import numpy as np
import pytest

import minires
from minires.bench import machine
from minires.kernels.threads import available_cores, num_threads

module = sys.modules["minires.bench.machine"]


def test_facts_are_plain_values_and_true():
    found = machine()
    assert json.loads(json.dumps(found)) == found
    assert found["threads"] == num_threads()
    assert found["cores"] == available_cores()
    assert found["cpu"]
    assert found["versions"]["python"] == platform.python_version()
    assert found["versions"]["numpy"] == np.__version__
    assert found["versions"]["minires"] == minires.__version__


def test_frameworks_are_not_imported_for_their_version():
    code = (
        "import sys, minires.bench; minires.bench.machine(); "
        "assert 'torch' not in sys.modules and 'numba' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_package_that_is_absent_has_no_version():
    assert module.package_version("surely-not-installed") is None


@pytest.fixture
def repository(tmp_path, monkeypatch):
    """A repository with a package in it, as seen by `commit`."""
    package = tmp_path / "minires"
    (package / "bench").mkdir(parents=True)
    (package / "__init__.py").write_text("")
    monkeypatch.setattr(module, "__file__", str(package / "bench" / "machine.py"))
    module.commit.cache_clear()
    git(tmp_path, "init", "-q")
    yield tmp_path
    module.commit.cache_clear()


def git(folder, *arguments):
    who = ("-c", "user.name=a", "-c", "user.email=a@b")
    done = subprocess.run(
        ["git", *who, *arguments], cwd=folder, check=True, capture_output=True, text=True
    )
    return done.stdout.strip()


def test_the_commit_and_whether_files_were_changed_since(repository):
    git(repository, "add", ".")
    git(repository, "commit", "-qm", "one")
    head = git(repository, "rev-parse", "--short", "HEAD")
    assert module.commit() == head
    module.commit.cache_clear()
    (repository / "minires" / "__init__.py").write_text("changed = True")
    assert module.commit() == f"{head}+changes"


def test_an_installed_package_in_somebodys_repository_has_no_commit(repository):
    (repository / "notes.txt").write_text("theirs")
    git(repository, "add", "notes.txt")
    git(repository, "commit", "-qm", "one")
    assert module.commit() is None
