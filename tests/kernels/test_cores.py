"""The cores that the team's threads may run on: all but the caller's until they wake."""

import os
import sys
import time

import numpy as np
import pytest

pytest.importorskip("numba")
if sys.platform != "linux" or len(os.sched_getaffinity(0)) < 2:
    pytest.skip("needs Linux and two cores", allow_module_level=True)

from numba import njit

from minires.kernels.cpu import cores, team, words
from minires.kernels.cpu.team import TEAM, parallel
from minires.kernels.cpu.words import LINE, address

HELPERS = 3


@parallel
def count_shares(worker, counts, workers):
    counts[worker] += 1


@njit
def leave_core():
    team._lock(address(team.LOCK))
    cores.leave_core()
    team._unlock(address(team.LOCK))


@pytest.fixture(autouse=True)
def here():
    """The caller's core: the only one it may run on, so that it stays there."""
    allowed, before = os.sched_getaffinity(0), len(TEAM.threads)
    TEAM.resize(0)
    TEAM.resize(HELPERS)
    os.sched_setaffinity(0, {min(allowed)})
    yield min(allowed)
    os.sched_setaffinity(0, allowed)
    TEAM.resize(before)


def when(condition):
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline, "it does not come about"
        time.sleep(0.001)


def all_sleep():
    return words.value(team.ASLEEP) == HELPERS


def sets():
    return [os.sched_getaffinity(thread.native_id) for thread in TEAM.threads]


def test_sleeping_threads_are_kept_off_the_callers_core_until_they_wake(here):
    before = sets()
    assert all(here in held for held in before)
    when(all_sleep)
    leave_core()
    assert sets() == [held - {here} for held in before]
    counts = np.zeros(HELPERS + 1, np.int64)
    count_shares(counts, HELPERS + 1)
    assert (counts == 1).all()
    when(lambda: sets() == before)


def test_a_caller_that_has_moved(here):
    before = sets()
    when(all_sleep)
    leave_core()
    there = max(before[0])
    os.sched_setaffinity(0, {there})
    leave_core()
    assert sets() == [held - {there} for held in before]
    count_shares(np.zeros(HELPERS + 1, np.int64), HELPERS + 1)
    when(lambda: sets() == before)


def test_threads_that_are_awake_may_run_everywhere(here):
    before = sets()
    when(all_sleep)
    for i in range(HELPERS):
        words.write(cores.FIRST + i * LINE + cores.SLEEPS, 0)
    leave_core()
    assert sets() == before


@pytest.mark.parametrize("choice", [min, max], ids=["the caller's core", "another"])
def test_a_set_that_the_user_has_narrowed_stays(here, choice):
    mine = {choice(os.sched_getaffinity(TEAM.threads[0].native_id))}
    when(all_sleep)
    os.sched_setaffinity(TEAM.threads[0].native_id, mine)
    before = sets()
    for _ in range(5):
        when(all_sleep)
        leave_core()
        assert sets()[0] == mine
        counts = np.zeros(HELPERS + 1, np.int64)
        count_shares(counts, HELPERS + 1)
        assert (counts == 1).all()
    when(lambda: sets() == before)
