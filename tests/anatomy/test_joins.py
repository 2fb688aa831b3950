"""The gradient at each join: both ways, against backward with one of them cut."""

from __future__ import annotations

import numpy as np
import pytest
from nets import (
    KINDS,
    NETS,
    PreActivation,
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
from minires.models import BasicBlock
from minires.testing.compare import assert_close


def cut(model, x, y, name, way):
    """The gradient at one block's input if it can pass that block one way only."""
    random = mr.functional.random.get_rng_state()
    h = model.stem(mr.Tensor(x))
    for other, block in model.named_blocks():
        if other == name:
            h = at = h.detach().requires_grad_()
            ways = {"branch": h.detach(), "shortcut": h.detach(), way: h}
            h = block.join(block.branch(ways["branch"]), block.shortcut(ways["shortcut"]))
        else:
            h = block(h)
    gradient = mr.grad(F.cross_entropy(model.head(h), y), at)[0]
    mr.functional.random.set_rng_state(random)
    return gradient.numpy()


@pytest.mark.parametrize("case", [NETS[i] for i in (0, 4, 7, 9)], ids=net_id)
@pytest.mark.parametrize("training", [True, False])
def test_the_two_ways_add_up_to_what_backward_gives(case, training, rng):
    name, options, size = case
    model = made(name, options).train(training)
    x, y = batch(rng, size)
    expected = backward(model, x, y)
    before = state(model)
    found = mr.anatomy.joins(model, x, y)
    assert_untouched(model, before)
    assert [join.name for join in found] == [name for name, _ in model.named_blocks()]
    assert found.max_relative_difference < 1e-12
    for join in found:
        ways = [g for g in (join.by_shortcut, join.by_branch) if g is not None]
        scale = np.abs(expected[join.name]).max()
        assert_close(sum(ways), expected[join.name], atol=1e-11 * scale, name=join.name)
        assert join.whole_norm == pytest.approx(np.linalg.norm(expected[join.name]), rel=1e-10)
    assert found.loss == pytest.approx(
        float(F.cross_entropy(mr.anatomy.delete_blocks(model, [])(mr.Tensor(x)), y)), rel=1e-12
    )


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("make", [lambda: made("resnet20", {"width": 2, "shortcut": "B"}),
                                  lambda: made_of(PreActivation)])  # fmt: skip
def test_each_way_is_what_backward_gives_with_the_other_cut(make, training, rng):
    model = lived(make(), rng).train(training)
    x, y = batch(rng, 8)
    for join in mr.anatomy.joins(model, x, y):
        by_shortcut, by_branch = (cut(model, x, y, join.name, w) for w in ("shortcut", "branch"))
        assert_close(join.by_shortcut, by_shortcut, rtol=1e-9)
        assert_close(join.by_branch, by_branch, rtol=1e-9)
        norms = np.linalg.norm(by_shortcut), np.linalg.norm(by_branch)
        assert join.shortcut_norm == pytest.approx(norms[0])
        assert join.branch_norm == pytest.approx(norms[1])
        assert join.share == pytest.approx(norms[0] / sum(norms))
        cosine = (by_shortcut * by_branch).sum() / (norms[0] * norms[1])
        assert join.cosine == pytest.approx(cosine, abs=1e-9)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("training", [True, False])
def test_blocks_of_other_kinds(kind, training, rng):
    model = made_of(kind).train(training)
    x, y = batch(rng, 8)
    expected = backward(model, x, y)
    before = state(model)
    found = mr.anatomy.joins(model, x, y)
    assert_untouched(model, before)
    for join in found:
        total = join.by_shortcut if join.by_branch is None else join.by_shortcut + join.by_branch
        assert_close(total, expected[join.name], rtol=1e-9)


def test_forward_magnitudes_and_kinds_of_shortcut(rng):
    x, y = batch(rng, 8)
    for option, kinds in (
        ("A", {"identity", "padding"}),
        ("B", {"identity", "projection"}),
        ("C", {"projection"}),
        ("none", {"none"}),
    ):
        model = made_of(BasicBlock, shortcut=option).eval()
        found = mr.anatomy.joins(model, x, y)
        assert {join.shortcut for join in found} == kinds
        h = model.stem(mr.Tensor(x))
        for join, block in zip(found, model.blocks(), strict=True):
            f, s = block.branch(h), block.shortcut(h)
            assert join.f_rms == pytest.approx(np.sqrt((f.numpy() ** 2).mean()))
            assert join.x_rms == pytest.approx(
                0.0 if s is None else np.sqrt((s.numpy() ** 2).mean())
            )
            h = block(h)


def test_a_silent_branch_leaves_everything_to_the_shortcut(rng):
    model = made("resnet20", {"width": 2, "shortcut": "A", "zero_gamma": True})
    x, y = batch(rng, 8)
    for join in mr.anatomy.joins(model, x, y):
        assert join.share == 1.0
        assert join.cosine == 0.0
        assert join.f_rms == 0.0
        assert not join.by_branch.any()
        if join.shortcut == "identity":
            # The next block's gradient through the last ReLU's mask: all of it, where x is not 0.
            assert join.whole_norm <= join.arriving_norm


def test_float32_and_tensors_and_other_losses(rng):
    model = made("resnet20", {"width": 2}, np.float32)
    x, y = batch(rng, 8, dtype=np.float32)
    found = mr.anatomy.joins(model, mr.Tensor(x), mr.Tensor(y))
    assert found[0].by_branch.dtype == np.float32
    assert found.max_relative_difference < 1e-5
    double = mr.anatomy.joins(model, x, y, loss=lambda logits, y: 2 * F.cross_entropy(logits, y))
    assert double.loss == pytest.approx(2 * found.loss, rel=1e-6)
    assert double[3].whole_norm == pytest.approx(2 * found[3].whole_norm, rel=1e-4)
    light = mr.anatomy.joins(model, x, y, arrays=False)
    assert light["layer2.0"].by_shortcut is None
    assert light["layer2.0"].by_branch is None
    assert light["layer2.0"].branch_norm == found["layer2.0"].branch_norm
    with pytest.raises(KeyError, match=r"layer9"):
        light["layer9"]


class Fused(BasicBlock):
    """A forward that is not what its parts make it."""

    def forward(self, x):
        return F.relu(self.branch(x) + 2 * x)


class Reaching(BasicBlock):
    """A branch that also depends on what an earlier block was given."""

    earlier: tuple[Reaching, ...] = ()

    def branch(self, x):
        self.given = x
        return sum((block.given for block in self.earlier), super().branch(x))


def test_blocks_that_are_not_their_parts_are_found_out(rng):
    x, y = batch(rng, 8)
    with pytest.raises(ValueError, match=r"layer1\.0: this block's forward is not join"):
        mr.anatomy.joins(made_of(Fused, (2,)), x, y)
    model = made_of(Reaching, (3,))
    first, _, third = model.blocks()
    third.earlier = (first,)
    with pytest.raises(ArithmeticError, match=r"layer1\.0: .* depend on more than its input"):
        mr.anatomy.joins(model, x, y)
    with pytest.raises(ArithmeticError, match=r"layer1\.0: .* depend on more than its input"):
        mr.anatomy.paths(model, x, y)


def test_errors_say_what_is_expected(rng):
    model = made_of(BasicBlock, (1,))
    x, y = batch(rng, 8)
    with pytest.raises(ArithmeticError, match="the loss is nan: there is no gradient to follow"):
        mr.anatomy.joins(model, x, y, loss=lambda logits, y: logits.sum() * np.nan)
    with pytest.raises(TypeError, match="Sequential has no stem and no named_blocks and no head"):
        mr.anatomy.joins(mr.nn.Sequential(mr.nn.ReLU()), x, y)
    with pytest.raises(TypeError, match="x holds uint8"):
        mr.anatomy.joins(model, np.zeros((2, 3, 8, 8), np.uint8), y)
    with pytest.raises(ValueError, match=r"\(N, C, H, W\), got shape \(3, 8, 8\)"):
        mr.anatomy.joins(model, x[0], y)
    with pytest.raises(ValueError, match="expected one number as a Tensor"):
        mr.anatomy.joins(model, x, y, loss=lambda logits, y: logits)


def test_table_and_picture(rng, tmp_path):
    found = mr.anatomy.joins(made("resnet20", {"width": 2}), *batch(rng, 8))
    lines = found.table().splitlines()
    assert len(lines) == 2 + len(found) == 11
    assert f"{found[4].branch_norm:.3e}" in lines[6]
    figure = found.plot(tmp_path / "joins.png")
    assert (tmp_path / "joins.png").read_bytes()[:4] == b"\x89PNG"
    drawn = figure.axes[0].lines[1].get_ydata()
    np.testing.assert_allclose(drawn, [join.branch_norm for join in found])
