"""The gradient by path length: against every single path, and against the whole."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from nets import (
    KINDS,
    NETS,
    PreActivation,
    StochasticDepth,
    assert_untouched,
    backward,
    batch,
    lived,
    made,
    made_of,
    net_id,
    state,
)

import minires as mr
from minires import functional as F
from minires.models import BasicBlock, Bottleneck
from minires.testing.compare import assert_close


@pytest.mark.parametrize("case", NETS, ids=net_id)
@pytest.mark.parametrize("training", [True, False])
def test_the_lengths_add_up_to_what_backward_gives(case, training, rng):
    name, options, size = case
    model = made(name, options).train(training)
    x, y = batch(rng, size)
    expected = backward(model, x, y)
    names = [name for name, _ in model.named_blocks()]
    before = state(model)
    found = mr.anatomy.paths(model, x, y, at=["image", *names])
    assert_untouched(model, before)
    assert found.names == ("image", *names, "head")
    assert found.max_relative_difference < 1e-10
    for name, whole in expected.items():
        total = sum(g for g in found.gradients[name] if g is not None)
        assert_close(total, whole, rtol=0, atol=1e-10 * np.abs(whole).max(), name=name)
        assert_close(found.whole[name], whole, rtol=0, atol=1e-10 * np.abs(whole).max(), name=name)
        assert found.depth(name).whole_norm == pytest.approx(np.linalg.norm(whole))
        for g, size in zip(found.gradients[name], found.depth(name).norms, strict=True):
            assert size == pytest.approx(0.0 if g is None else np.linalg.norm(g))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("training", [True, False])
def test_blocks_of_other_kinds(kind, training, rng):
    model = made_of(kind, (3, 2)).train(training)
    x, y = batch(rng, 8)
    expected = backward(model, x, y)
    before = state(model)
    found = mr.anatomy.paths(model, x, y, at=list(expected))
    assert_untouched(model, before)
    assert found.max_relative_difference < 1e-10
    for name, whole in expected.items():
        total = sum(g for g in found.gradients[name] if g is not None)
        assert_close(total, whole, rtol=0, atol=1e-10 * np.abs(whole).max(), name=name)


def test_a_dropped_branch_is_on_no_path(rng):
    """Stochastic depth in training: only the blocks that survived count."""
    class Dropped(StochasticDepth):
        survival = 0.0

    model = made_of(Dropped, (2, 2))
    found = mr.anatomy.paths(model, *batch(rng, 8))
    assert found.depth().counts == (1, 0, 0, 0, 0)
    assert found.depth().norms[0] == pytest.approx(found.depth().whole_norm)
    assert found.depth().norms[1:].tolist() == [0.0] * 4


def one_path(model, x, y, branches):
    """The gradient behind the stem if it may pass each block one way only; forward is as ever."""
    h = at = model.stem(mr.Tensor(x)).detach().requires_grad_()
    for i, block in enumerate(model.blocks()):
        stopped = h.detach()
        branch = block.branch(h if i in branches else stopped)
        shortcut = block.shortcut(stopped if i in branches else h)
        h = block.join(branch, shortcut)
    return mr.grad(F.cross_entropy(model.head(h), y), at)[0].numpy()


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize(("kind", "options"), [
    (BasicBlock, {"shortcut": "A"}),
    (BasicBlock, {"shortcut": "B"}),
    (Bottleneck, {"shortcut": "C", "stride_on": "1x1"}),
    (PreActivation, {}),
])  # fmt: skip
def test_a_length_is_the_sum_over_its_single_paths(kind, options, training, rng):
    model = lived(made_of(kind, (2, 2), **options), rng).train(training)
    x, y = batch(rng, 8)
    found = mr.anatomy.paths(model, x, y)
    for k, gradient in enumerate(found.gradients["layer1.0"]):
        single = [one_path(model, x, y, set(s)) for s in itertools.combinations(range(4), k)]
        assert len(single) == found.depth("layer1.0").counts[k]
        assert_close(gradient, sum(single), rtol=1e-9, atol=1e-12, name=f"length {k}")
        assert found.depth("layer1.0").norm_per_path[k] == pytest.approx(
            np.linalg.norm(np.mean(single, axis=0))
        )


def test_counts_are_binomial_at_every_depth(rng):
    model = made_of(BasicBlock, (3, 3))
    found = mr.anatomy.paths(model, *batch(rng, 8))
    n = 6
    for depth, behind in zip(found.depths, range(n, -1, -1), strict=True):
        assert depth.counts == tuple(math.comb(behind, k) for k in range(n + 1))
    assert found.lengths == n + 1


def test_a_plain_net_has_one_path_of_full_length(rng):
    model = made("plain20", {"width": 2})
    found = mr.anatomy.paths(model, *batch(rng, 8))
    assert found.depth().counts == (0,) * 9 + (1,)
    assert found.depth().norms[:9].tolist() == [0.0] * 9
    assert found.depth().norms[9] == found.depth().whole_norm
    assert found.gradients["layer1.0"][:9] == (None,) * 9


def test_silent_branches_leave_the_shortest_path(rng):
    model = made("resnet20", {"width": 2, "zero_gamma": True})
    found = mr.anatomy.paths(model, *batch(rng, 8))
    assert found.depth().counts[1] == 9
    for depth in found.depths:
        assert depth.norms[0] == pytest.approx(depth.whole_norm, rel=1e-12)
        assert not depth.norms[1:].any()


def test_deleted_blocks_are_on_no_path(rng):
    model = made_of(BasicBlock, (3, 2)).eval()
    lesioned = mr.anatomy.delete_blocks(model, ["layer1.1", "layer2.0"])
    found = mr.anatomy.paths(lesioned, *batch(rng, 8))
    assert found.depth().counts == (1, 3, 3, 1, 0, 0)
    assert found.max_relative_difference < 1e-12


def test_short_paths_alone_are_the_same_short_paths(rng):
    model = made_of(BasicBlock, (3, 2))
    x, y = batch(rng, 8)
    everything = mr.anatomy.paths(model, x, y)
    for most in (0, 2, 9):
        short = mr.anatomy.paths(model, x, y, max_length=most)
        assert short.max_relative_difference is None
        assert short.lengths == min(most, 5) + 1
        for name in everything.names:
            expected = everything.depth(name).norms[: most + 1]
            np.testing.assert_array_equal(short.depth(name).norms, expected)
            assert short.depth(name).counts == everything.depth(name).counts


def test_dtypes_and_places(rng):
    model = made("resnet20", {"width": 2}, np.float32)
    x, y = batch(rng, 8, dtype=np.float32)
    single, double = mr.anatomy.paths(model, x, y), mr.anatomy.paths(model, x, y, dtype=np.float64)
    assert (single.dtype, double.dtype) == ("float32", "float64")
    assert single.gradients["layer1.0"][0].dtype == np.float32
    assert double.max_relative_difference < 1e-11
    assert 1e-11 < single.max_relative_difference < 1e-4
    np.testing.assert_allclose(single.depth().norms, double.depth().norms, rtol=1e-3)
    assert set(single.gradients) == set(single.whole) == {"layer1.0"}
    last = mr.anatomy.paths(model, x, y, at=("head", "layer3.2"))
    assert len(last.gradients["head"]) == 10
    assert [g is None for g in last.gradients["layer3.2"]] == [False] * 2 + [True] * 8
    with pytest.raises(ValueError, match=r"unknown depth 'layer3.3'. Did you mean 'layer3\.\d'"):
        mr.anatomy.paths(model, x, y, at="layer3.3")
    with pytest.raises(ValueError, match="max_length is 0 or more, got -1"):
        mr.anatomy.paths(model, x, y, max_length=-1)
    with pytest.raises(KeyError, match="image"):
        single.depth("image")


def test_single_paths_are_drawn_evenly_and_have_their_own_norms(rng):
    model = lived(made_of(BasicBlock, (2, 2)), rng).eval()
    x, y = batch(rng, 8)
    known = {
        k: [np.linalg.norm(one_path(model, x, y, set(s)))
            for s in itertools.combinations(range(4), k)]
        for k in range(5)
    }  # fmt: skip
    before = state(model)
    found = mr.anatomy.single_paths(model, x, y, samples=40, seed=3)
    assert_untouched(model, before)
    assert found.lengths.tolist() == [0, 1, 2, 3, 4]
    for k, norms in enumerate(found.norms):
        distances = np.abs(norms[:, None] - np.array(known[k])) / known[k]
        assert distances.min(axis=1).max() < 1e-9
        assert set(distances.argmin(axis=1)) == set(range(len(known[k])))
    some = mr.anatomy.single_paths(model, x, y, lengths=[2], samples=2, seed=3)
    assert some.mean.tolist() == [pytest.approx(some.norms.mean())]
    with pytest.raises(ValueError, match="paths have 0 to 4 branches, got 5"):
        mr.anatomy.single_paths(model, x, y, lengths=[5])
    plain = mr.anatomy.single_paths(made("plain20", {"width": 2}), x, y, samples=1)
    assert plain.lengths.tolist() == [9]


def test_table_and_picture(rng, tmp_path):
    model = made("resnet20", {"width": 2})
    x, y = batch(rng, 8)
    found = mr.anatomy.paths(model, x, y, at="image")
    lines = found.table("image").splitlines()
    assert len(lines) == 12
    assert lines[6].split()[:3] == ["4", "126", f"{found.depth('image').norms[4]:.3e}"]
    singles = mr.anatomy.single_paths(model, x, y, samples=1)
    figure = found.plot(tmp_path / "paths.png", singles=singles)
    assert (tmp_path / "paths.png").read_bytes()[:4] == b"\x89PNG"
    heights = [bar.get_height() for bar in figure.axes[2].patches]
    np.testing.assert_allclose(heights, found.depth("image").norms)
    shares = [bar.get_height() for bar in figure.axes[0].patches]
    np.testing.assert_allclose(shares, [100 * math.comb(9, k) / 2**9 for k in range(10)])
