"""What counts as a change, and what is noise."""

import copy

import pytest

from minires.bench.record import compare, read_record, write_record


def row(kernel, median, spread=0.0, operation="conv2d", refused=""):
    times = None if refused else {
        "median_ms": median, "quartiles_ms": [median * (1 - spread), median * (1 + spread)],
        "best_ms": median, "readings": 9, "first_call_ms": 1.0,
    }  # fmt: skip
    return {
        "layer": "conv1", "shape": "s", "operation": operation, "kernel": kernel,
        "dtype": "float32", "times": times, "refused": refused,
    }  # fmt: skip


def record(*rows, cpu="a", threads=2, **versions):
    return {
        "kind": "minires kernels bench", "format": 1, "rows": list(rows),
        "machine": {"cpu": cpu, "threads": threads, "versions": {"torch": "2.0", **versions}},
    }  # fmt: skip


def verdict(old, new, *others):
    found = compare(record(old, *others), record(new, *others))
    return next(c for c in found.changes if c.kernel == old["kernel"])


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [(10.0, 10.0, "same"), (10.0, 10.49, "same"), (10.0, 10.51, "slower"),
     (10.0, 9.53, "same"), (10.0, 9.51, "faster"), (10.0, 1.0, "faster")],
)  # fmt: skip
def test_five_percent_is_noise_even_without_spread(old, new, expected):
    assert verdict(row("mine", old), row("mine", new)).verdict == expected


def test_noise_is_twice_the_two_spreads_added_in_squares():
    # 2 sqrt(0.06^2 + 0.08^2) = 0.2
    for factor, expected in ((1.19, "same"), (1.21, "slower"), (1 / 1.19, "same"),
                             (1 / 1.21, "faster")):  # fmt: skip
        change = verdict(row("mine", 10.0, 0.06), row("mine", 10.0 * factor, 0.08))
        assert change.verdict == expected
        assert change.noise == pytest.approx(0.2)
        assert change.ratio == pytest.approx(factor)


def test_the_machines_drift_is_what_pytorch_shows():
    old = record(row("mine", 10.0), row("torch NCHW", 20.0), row("torch channels_last", 8.0))
    new = record(row("mine", 13.0), row("torch NCHW", 26.0), row("torch channels_last", 10.4))
    found = compare(old, new)
    assert found.drift == pytest.approx(1.3)
    assert [c.verdict for c in found.changes] == 3 * ["same"]
    assert found.changed == []


def test_another_version_of_pytorch_tells_nothing_of_the_machine():
    old = record(row("mine", 10.0), row("torch NCHW", 20.0))
    new = record(row("mine", 13.0), row("torch NCHW", 26.0), torch="2.1")
    found = compare(old, new)
    assert found.drift == 1.0
    assert {c.kernel: c.verdict for c in found.changes} == {
        "mine": "slower", "torch NCHW": "slower",
    }  # fmt: skip
    assert found.differences == ("torch: 2.0 then, 2.1 now",)


def test_rows_are_told_apart_by_shape_pass_kernel_and_dtype():
    others = [row("mine", 1.0, operation="conv2d_grad_input")]
    for name in ("shape", "dtype"):
        other = row("mine", 5.0)
        other[name] = "other"
        others.append(other)
    found = compare(record(row("mine", 10.0), *others), record(row("mine", 20.0), *others))
    assert [c.verdict for c in found.changes] == ["slower", "same", "same", "same"]


def test_new_gone_and_refused_kernels():
    old = record(row("a", 1.0), row("b", 1.0), row("never", 1.0, refused="wrong"))
    new = record(row("c", 1.0), row("b", 1.0, refused="3 elements wrong"))
    found = {c.kernel: (c.verdict, c.why) for c in compare(old, new).changes}
    assert found == {"a": ("gone", ""), "b": ("gone", "3 elements wrong"), "c": ("new", "")}


def test_other_machines_are_pointed_out():
    found = compare(
        record(cpu="a", threads=1, numpy="1"), record(cpu="b", threads=2, numba="2", numpy="1")
    )
    assert found.differences == (
        "cpu: a then, b now", "threads: 1 then, 2 now", "numba: not installed then, 2 now",
    )  # fmt: skip


def test_versions_of_minires_are_what_is_compared():
    assert compare(record(minires="1"), record(minires="2")).differences == ()


def test_comparing_changes_neither_record():
    old, new = record(row("a", 1.0)), record(row("a", 2.0))
    before = copy.deepcopy((old, new))
    compare(old, new)
    assert (old, new) == before


@pytest.mark.parametrize(
    ("text", "message"),
    [("{", "not even JSON"), ("[]", "expected a record"), ('{"kind": "x"}', "expected a record"),
     ('{"kind": "minires kernels bench", "format": 9}', "format 9")],
)  # fmt: skip
def test_other_files_are_refused(tmp_path, text, message):
    path = tmp_path / "record.json"
    path.write_text(text)
    with pytest.raises(ValueError, match=message):
        read_record(path)


def test_nan_is_not_written(tmp_path):
    with pytest.raises(ValueError, match="JSON"):
        write_record(tmp_path / "r.json", {"a": float("nan")})
    assert list(tmp_path.iterdir()) == []
