"""Learning-rate schedules: the shape of each curve, and what they refuse."""

import json
import math

import numpy as np
import pytest

from minires.optim import Constant, Cosine, MultiStep, OneCycle, Plateau


def test_constant():
    assert [Constant(0.3)(step) for step in (0, 1, 10**9)] == [0.3] * 3


def test_multistep_is_the_papers_staircase():
    schedule = MultiStep(0.1, [32_000, 48_000])
    expected = {0: 0.1, 31_999: 0.1, 32_000: 0.01, 47_999: 0.01, 48_000: 0.001, 64_000: 0.001}
    assert {step: pytest.approx(schedule(step), rel=1e-12) for step in expected} == expected


def test_multistep_with_the_warm_up_of_resnet_110():
    schedule = MultiStep(0.1, [32_000, 48_000], warmup_steps=400, warmup_lr=0.01)
    assert [schedule(step) for step in (0, 399, 400)] == [0.01, 0.01, 0.1]
    assert schedule(32_000) == pytest.approx(0.01)


def test_multistep_milestones_may_coincide_or_be_missing():
    assert MultiStep(1.0, [])(5) == 1.0
    assert MultiStep(1.0, [2, 2], gamma=0.5)(2) == 0.25
    assert MultiStep(1.0, (0, 3), gamma=0.5)(0) == 0.5
    assert MultiStep(1.0, np.arange(1, 3), gamma=0.5)(1) == 0.5


def test_one_cycle_is_a_tent():
    schedule = OneCycle(1.0, 101, warmup=0.2, start_div=10, end_div=100)
    assert schedule(0) == pytest.approx(0.1)
    assert schedule(10) == pytest.approx(0.55)
    assert schedule(20) == pytest.approx(1.0)
    assert schedule(60) == pytest.approx(0.505)
    assert schedule(100) == pytest.approx(0.01)
    assert schedule(100) == schedule(101) == schedule(10_000)
    rates = np.array([schedule(step) for step in range(101)])
    assert np.allclose(np.diff(rates[:21]), 0.045)
    assert np.allclose(np.diff(rates[20:]), -0.99 / 80)


def test_one_cycle_at_its_edges():
    assert OneCycle(0.4, 1)(0) == 0.4
    assert OneCycle(0.4, 11, warmup=0.0)(0) == 0.4
    assert OneCycle(0.4, 11, warmup=1.0)(10) == 0.4
    assert OneCycle(0.4, 11, warmup=1.0)(5) == pytest.approx(0.5 * (0.4 + 0.016))
    # The top need not fall on a step.
    rates = [OneCycle(1.0, 4, warmup=0.5, start_div=2, end_div=2)(s) for s in range(4)]
    assert rates == pytest.approx([0.5, 0.5 + 1 / 3, 0.5 + 1 / 3, 0.5])


def test_cosine():
    schedule = Cosine(1.0, 101, end=0.2)
    assert schedule(0) == 1.0
    assert schedule(25) == pytest.approx(0.2 + 0.4 * (1 + math.sqrt(0.5)))
    assert schedule(50) == pytest.approx(0.6)
    assert schedule(100) == pytest.approx(0.2)
    assert schedule(5000) == schedule(100)
    assert Cosine(0.5, 1)(0) == 0.5


def test_cosine_with_warm_up():
    schedule = Cosine(1.0, 105, warmup_steps=4)
    assert [schedule(step) for step in range(5)] == [0.25, 0.5, 0.75, 1.0, 1.0]
    assert schedule(54) == pytest.approx(0.5)
    assert schedule(104) == pytest.approx(0.0, abs=1e-15)


STATELESS = [
    Constant(0.1),
    MultiStep(0.1, [5, 8], warmup_steps=2, warmup_lr=0.01),
    OneCycle(0.1, 10),
    Cosine(0.1, 10, warmup_steps=3),
]


@pytest.mark.parametrize("schedule", STATELESS, ids=lambda s: type(s).__name__)
def test_a_rate_depends_on_the_step_alone(schedule):
    forwards = [schedule(step) for step in range(12)]
    assert [schedule(step) for step in reversed(range(12))] == forwards[::-1]
    assert [schedule(np.int64(step)) for step in range(12)] == forwards
    assert all(type(rate) is float and rate >= 0 for rate in forwards)
    assert schedule == type(schedule)(**vars(schedule))


@pytest.mark.parametrize("schedule", [*STATELESS, Plateau(0.1)], ids=lambda s: type(s).__name__)
def test_impossible_steps(schedule):
    with pytest.raises(ValueError, match="steps count from 0, got -1"):
        schedule(-1)
    with pytest.raises(TypeError, match=r"a step is an integer, got 1\.5"):
        schedule(1.5)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Constant(-0.1), "base must be a number from 0 up"),
        (lambda: MultiStep(0.1, [5, 3]), r"milestones must ascend, got \[5, 3\]"),
        (lambda: MultiStep(0.1, [-1]), "a milestone must be at least 0"),
        (lambda: MultiStep(0.1, [5], gamma=-1), "gamma must be a number from 0 up"),
        (lambda: MultiStep(0.1, [5], warmup_steps=3), "belong together"),
        (lambda: MultiStep(0.1, [5], warmup_lr=0.01), "belong together"),
        (lambda: MultiStep(0.1, [5], warmup_steps=3, warmup_lr=-1.0), "warmup_lr must be"),
        (lambda: OneCycle(-1.0, 10), "peak must be a number from 0 up"),
        (lambda: OneCycle(1.0, 0), "total_steps must be at least 1, got 0"),
        (lambda: OneCycle(1.0, 10, warmup=1.1), "a share of the steps, from 0 to 1, got 1.1"),
        (lambda: OneCycle(1.0, 10, warmup=-0.1), "warmup must be a number from 0 up"),
        (lambda: OneCycle(1.0, 10, start_div=0.5), "start_div must be at least 1, got 0.5"),
        (lambda: OneCycle(1.0, 10, end_div=0), "end_div must be at least 1, got 0"),
        (lambda: Cosine(1.0, 10, warmup_steps=10), "10 warm-up steps leave none of 10"),
        (lambda: Cosine(1.0, 10, warmup_steps=-1), "warmup_steps must be at least 0"),
        (lambda: Cosine(1.0, 10, end=-1), "end must be a number from 0 up"),
        (lambda: Plateau(0.1, factor=1.0), "factor must be below 1"),
        (lambda: Plateau(0.1, threshold=1.0), "threshold must be below 1"),
        (lambda: Plateau(0.1, patience=-1), "patience must be at least 0"),
        (lambda: Plateau(0.1, minimum=0.2), "minimum 0.2 lies above the base 0.1"),
    ],
)
def test_impossible_settings(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_settings_of_the_wrong_type():
    for make in (
        lambda: MultiStep(0.1, [0.5]),
        lambda: OneCycle(0.1, 10.0),
        lambda: Cosine(0.1, True),
        lambda: Constant("0.1"),
        lambda: Plateau(0.1, patience=1.5),
    ):
        with pytest.raises(TypeError, match="takes"):
            make()


def test_plateau_falls_when_the_error_stops_falling():
    schedule = Plateau(1.0, patience=2)
    assert [schedule.observe(e) for e in (9.0, 8.0, 8.0, 8.5)] == [1.0] * 4
    assert schedule.observe(8.0) == pytest.approx(0.1)  # the third without a better one
    assert schedule(0) == schedule(10**6) == schedule.lr
    assert [schedule.observe(e) for e in (8.0, 8.0, 7.0, 7.5, 7.5)] == pytest.approx([0.1] * 5)
    assert schedule.observe(7.5) == pytest.approx(0.01)


def test_plateau_counts_only_real_progress():
    schedule = Plateau(1.0, patience=0, threshold=0.1)
    schedule.observe(10.0)
    assert schedule.observe(9.1) == pytest.approx(0.1)  # less than a tenth better
    assert schedule.observe(8.9) == pytest.approx(0.1)
    assert schedule.observe(float("nan")) == pytest.approx(0.01)
    assert schedule.best == 8.9


def test_plateau_stops_at_its_minimum():
    schedule = Plateau(1.0, patience=0, minimum=0.05)
    assert [schedule.observe(1.0) for _ in range(4)] == pytest.approx([1.0, 0.1, 0.05, 0.05])


@pytest.mark.parametrize("seen", [0, 1, 4])
def test_plateau_goes_on_after_a_break(seen):
    errors = [5.0, 4.0, 4.0, 4.0, 3.0, 3.0, 3.0, 3.0]
    straight, broken = Plateau(1.0, patience=1), Plateau(1.0, patience=1)
    expected = [straight.observe(e) for e in errors]
    before = [broken.observe(e) for e in errors[:seen]]
    resumed = Plateau(1.0, patience=1)
    resumed.load_state_dict(json.loads(json.dumps(broken.state_dict(), allow_nan=False)))
    assert before + [resumed.observe(e) for e in errors[seen:]] == expected
    assert expected[-1] < 0.1
