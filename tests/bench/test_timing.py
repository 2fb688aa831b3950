"""The timing of calls, with a clock that only moves when a call or a pause moves it."""

from itertools import pairwise

import pytest

from minires.bench.timing import Times, interleave, rotated


class World:
    """A clock, and what happened on it: calls, and pauses as None."""

    def __init__(self):
        self.now, self.events = 0.0, []

    def clock(self):
        return self.now

    def sleep(self, seconds):
        self.now += seconds
        self.events.append(None)

    def call(self, name, seconds, first=None):
        """A call that takes so long, and the first time `first`."""
        taken = iter([first or seconds])

        def run():
            self.now += next(taken, seconds)
            self.events.append(name)

        return run

    def time(self, contenders, rounds, **options):
        return interleave(contenders, rounds, clock=self.clock, sleep=self.sleep, **options)


@pytest.fixture
def world():
    return World()


def test_each_contender_gets_its_own_time(world):
    found = world.time({"a": world.call("a", 0.004), "b": world.call("b", 0.010)}, 3)
    assert list(found) == ["a", "b"]
    assert found["a"].median == pytest.approx(0.004)
    assert found["b"].median == pytest.approx(0.010)
    assert found["a"].spread == pytest.approx(0.0)


def test_the_first_call_is_reported_apart(world):
    found = world.time({"a": world.call("a", 0.002, first=7.0)}, 2)["a"]
    assert found.first_call == pytest.approx(7.0)
    assert max(found.readings) == pytest.approx(0.002)


def test_a_first_call_made_before_is_not_made_again(world):
    found = world.time({"a": world.call("a", 0.002)}, 1, first_calls={"a": 5.0})["a"]
    assert found.first_call == 5.0
    # One to see how long it takes, one untimed, then the timed ones.
    assert world.events.count("a") == 2 + len(found.readings)


def test_every_visit_begins_with_a_pause_and_an_untimed_call(world):
    lengths = iter([1e-3, 1e-3] + 3 * ([0.5] + 5 * [1e-3]))

    def call():
        world.now += next(lengths)
        world.events.append("a")

    found = world.time({"a": call}, 3, visit=5e-3)["a"]
    assert found.readings == pytest.approx(15 * [1e-3])  # the half second was not timed
    assert world.events == [None, "a", "a"] + 3 * [None, *6 * "a"]


def test_contenders_take_turns_in_rotating_order(world):
    world.time({n: world.call(n, 0.2) for n in "abc"}, 4)
    visits = "".join("|" if e is None else e for e in world.events)
    first = "|aa|bb|cc"  # first call, and one to see how long it takes
    rounds = ["|aa|bb|cc", "|cc|bb|aa", "|bb|cc|aa", "|aa|cc|bb"]  # untimed, timed
    assert visits == first + "".join(rounds)


def test_rotation_lets_everybody_begin_and_follow_others():
    orders = [rotated("abcd", turn) for turn in range(8)]
    assert all(sorted(order) == list("abcd") for order in orders)
    assert {order[0] for order in orders} == set("abcd")
    followers = {(a, b) for order in orders for a, b in pairwise(order)}
    assert {("a", "b"), ("b", "a"), ("c", "d"), ("d", "c")} <= followers


def test_short_calls_are_timed_together_and_long_ones_once(world):
    found = world.time({"short": world.call("s", 1e-5), "long": world.call("l", 0.9)}, 2)
    # A reading spans at least half a millisecond: 50 calls.
    assert found["short"].median == pytest.approx(1e-5)
    assert world.events.count("s") >= 2 * 50
    assert len(found["long"].readings) == 2


def test_very_long_calls_are_not_made_for_nothing(world):
    world.time({"a": world.call("a", 2.0)}, 3)
    assert world.events.count("a") == 2 + 3


def test_a_call_that_takes_no_time_at_all_is_no_error(world):
    assert world.time({"a": world.call("a", 0.0)}, 1, visit=0.0)["a"].median == 0.0


def test_progress_is_told_who_is_visited(world):
    told = []
    world.time({n: world.call(n, 0.2) for n in "ab"}, 2, progress=told.append)
    assert told == ["a", "b", "b", "a"]


@pytest.mark.parametrize("rounds", [0, -1])
def test_rounds_must_be_positive(world, rounds):
    with pytest.raises(ValueError, match=f"at least 1, got {rounds}"):
        world.time({"a": world.call("a", 1)}, rounds)


def test_nothing_to_time_is_an_error(world):
    with pytest.raises(ValueError, match="nothing to time"):
        world.time({}, 1)


def test_median_quartiles_and_spread():
    times = Times(((1.0, 2.0, 3.0), (4.0, 5.0)), first_call=9.0)
    assert times.median == 3.0
    assert times.quartiles == (2.0, 4.0)
    assert times.spread == pytest.approx(1 / 3)
    assert times.best == 1.0
    assert times.record() == {
        "median_ms": 3000.0, "quartiles_ms": [2000.0, 4000.0], "best_ms": 1000.0, "readings": 5,
        "first_call_ms": 9000.0,
    }  # fmt: skip


def test_one_reading_has_no_spread():
    assert Times(((2.0,),), 2.0).quartiles == (2.0, 2.0)
    assert Times(((2.0,),), 2.0).spread == 0.0
