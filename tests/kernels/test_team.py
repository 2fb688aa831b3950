"""The threads that share a kernel's work: every share once, whoever is there to do it."""

import os
import subprocess
import sys
import threading
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("numba")

from numba import njit, types

from minires.kernels.cpu import team, words
from minires.kernels.cpu.team import TEAM, parallel

own_thread = types.ExternalFunction("pthread_self", types.intp())


@parallel
def count_shares(worker, counts, workers):
    counts[worker] += 1


@parallel
def linger(worker, owners, values, spins, workers):
    """Takes so long that others come in time; notes who did it."""
    x = 1.0
    for _ in range(spins):
        x = x * 1.0000001 + 1e-9
    values[worker] = x
    owners[worker] = own_thread()


@parallel
def nested(worker, counts, workers):
    count_shares(counts[worker], counts.shape[1])


@parallel
def fail_at(worker, place, counts, workers):
    counts[worker] += 1
    if worker == place:
        raise ValueError("no")


@njit
def many_regions(counts, workers, times):
    for _ in range(times):
        count_shares(counts, workers)


@pytest.fixture(params=[0, 1, 3], autouse=True)
def helpers(request):
    """So many threads besides the caller's, more than there are cores too."""
    before = len(TEAM.threads)
    TEAM.resize(request.param)
    yield request.param
    TEAM.resize(before)


@settings(deadline=None)
@given(workers=st.integers(0, 200))
def test_every_share_is_done_once(workers):
    counts = np.zeros(workers, np.int64)
    count_shares(counts, workers)
    assert (counts == 1).all()


def test_thousands_of_regions():
    # One after the other without a pause: whoever comes late holds an old ticket.
    counts = np.zeros(5, np.int64)
    many_regions(counts, 5, 20_000)
    assert (counts == 20_000).all()


def test_after_a_pause_the_threads_sleep_and_wake(helpers):
    counts = np.zeros(4, np.int64)
    for _ in range(5):
        deadline = time.monotonic() + 20
        while words.value(team.ASLEEP) < helpers:
            assert time.monotonic() < deadline, "the threads go on spinning"
            time.sleep(0.001)
        count_shares(counts, 4)
    assert (counts == 5).all()


def test_others_take_shares_too(helpers):
    owners, deadline = np.zeros(8, np.int64), time.monotonic() + 20
    while True:
        linger(owners, np.empty(8), 1_000_000, 8)
        if len(set(owners)) > 1 or helpers == 0 or time.monotonic() > deadline:
            break
    assert (len(set(owners)) > 1) == (helpers > 0)
    assert len(set(owners)) <= helpers + 1


def test_a_region_inside_another():
    counts = np.zeros((6, 7), np.int64)
    nested(counts, 6)
    assert (counts == 1).all()


def test_an_error_in_a_share_reaches_the_caller():
    for place in range(3):
        counts = np.zeros(3, np.int64)
        with pytest.raises(RuntimeError, match="fail_at failed"):
            fail_at(place, counts, 3)
        assert (counts == 1).all()
    count_shares(counts, 3)  # and the next region is none the worse
    assert (counts == 2).all()


def test_callers_on_several_threads():
    def call(mine):
        for _ in range(300):
            count_shares(mine, 4)

    counts = [np.zeros(4, np.int64) for _ in range(4)]
    callers = [threading.Thread(target=call, args=(mine,)) for mine in counts]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join()
    assert all((mine == 300).all() for mine in counts)


def test_a_function_without_workers():
    with pytest.raises(TypeError, match=r"forget\(worker, x\) must have .* and `workers`"):

        @parallel
        def forget(worker, x):
            x[worker] = 1


def test_a_signature_that_begins_otherwise():
    with pytest.raises(TypeError, match="first parameter"):

        @parallel
        def first(x, worker, workers):
            x[worker] = 1


PROGRAM = """
import os, sys
import numpy as np
import minires as mr
from minires.kernels.cpu.team import TEAM
from minires.kernels.cpu.elementwise import relu

TEAM.resize(2)
x = np.random.default_rng(0).standard_normal(100_000).astype(np.float32)
expected = np.maximum(x, 0)
assert (relu(x) == expected).all()
child = os.fork()
if child == 0:
    ok = len(TEAM.threads) == 2 and all(t.is_alive() for t in TEAM.threads)
    ok = ok and all((relu(x) == expected).all() for _ in range(100))
    sys.exit(0 if ok else 3)
assert all((relu(x) == expected).all() for _ in range(100))
status = os.waitpid(child, 0)[1]
assert os.waitstatus_to_exitcode(status) == 0, status
print("done")
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
def test_a_forked_process_has_its_own(helpers):
    if helpers:
        pytest.skip("once is enough")
    run = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", PROGRAM], capture_output=True, text=True, timeout=120
    )
    assert run.returncode == 0, run.stderr
    assert run.stdout == "done\n"
