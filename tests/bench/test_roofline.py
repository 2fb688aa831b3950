"""The roofline picture: drawn from any report, labels apart."""

import random
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from minires.bench import Cost, Limits, bound
from minires.bench.conv import ConvReport, Row
from minires.bench.roofline import clear, plot_roofline, spread
from minires.bench.timing import Times

MACHINE = Limits({"float32": 200.0}, 20.0, 2, "made up")


def report(layers, kernels, operations=("conv2d", "conv2d_grad_weight")):
    draw = random.Random(0)
    rows = []
    for i in range(layers):
        total = Cost(draw.randrange(10**8, 10**10), draw.randrange(10**6, 10**8))
        limit = bound(total, MACHINE, "float32")
        for operation in operations:
            for k in range(kernels):
                times = Times(((limit * draw.uniform(0.3, 5),),), 0.1)
                rows.append(Row(f"layer{i}", f"shape {i}", 1, operation, f"kernel{k}", "float32",
                                False, total, limit, times=times))  # fmt: skip
    return ConvReport(MACHINE, 7, rows)


@pytest.mark.parametrize(("layers", "kernels"), [(1, 5), (12, 12)])
def test_a_picture_is_written(tmp_path, layers, kernels):
    path = tmp_path / "roofline.png"
    plot_roofline(report(layers, kernels), path)
    assert path.read_bytes().startswith(b"\x89PNG")


def test_a_report_without_times_has_no_picture(tmp_path):
    with pytest.raises(ValueError, match="nothing was timed"):
        plot_roofline(ConvReport(MACHINE, 7), tmp_path / "roofline.png")
    assert list(tmp_path.iterdir()) == []


@given(st.lists(st.floats(-100, 100), min_size=1, max_size=12), st.floats(0.5, 20))
def test_labels_are_moved_apart_and_keep_their_order(places, apart):
    moved = spread(sorted(places), apart)
    assert len(moved) == len(places)
    assert all(b - a >= apart * (1 - 1e-9) - 1e-9 for a, b in pairwise(moved))
    # Moved as a whole not at all.
    assert sum(moved) == pytest.approx(sum(places), abs=1e-6)


def test_labels_that_are_apart_stay_where_they_are():
    assert spread([0.0, 5.0, 20.0], 5.0) == [0.0, 5.0, 20.0]
    assert spread([0.0, 0.0, 20.0], 4.0) == [-2.0, 2.0, 20.0]


@given(st.lists(st.floats(-100, 100), min_size=1, max_size=12), st.floats(0.5, 20))
def test_labels_do_not_touch_the_line(places, apart):
    before = spread(sorted(places), apart)
    moved = clear(before, 0.0, apart)
    assert all(b - a >= apart * (1 - 1e-9) - 1e-9 for a, b in pairwise(moved))
    assert all(abs(place) > apart / 2 for place in moved)
    assert [place >= 0 for place in moved] == [place >= 0 for place in before]


def test_labels_that_are_clear_of_the_line_stay():
    assert clear([-20.0, 30.0], 0.0, 10.0) == [-20.0, 30.0]
    assert clear([-16.0, -6.0, 2.0], 0.0, 10.0) == [-17.0, -7.0, 7.0]
