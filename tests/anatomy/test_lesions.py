"""Blocks deleted and exchanged, and the study of what that does to the error."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from nets import (
    PreActivation,
    StochasticDepth,
    assert_untouched,
    batch,
    lived,
    made,
    made_of,
    state,
)

import minires as mr
from minires.models import BasicBlock
from minires.testing.compare import assert_close


def logits(model, x):
    with mr.no_grad():
        return model(mr.Tensor(x)).numpy()


def by_hand(model, x, blocks):
    """The net with other functions in place of its blocks."""
    with mr.no_grad():
        h = model.stem(mr.Tensor(x))
        for block in blocks:
            h = block(h)
        return model.head(h).numpy()


@pytest.mark.parametrize("option", ["A", "B", "C"])
def test_a_deleted_block_is_relu_of_its_shortcut(option, rng):
    model = lived(made_of(BasicBlock, (2, 2), shortcut=option), rng).eval()
    x, _ = batch(rng, 8)
    blocks = dict(model.named_blocks())
    before = state(model)
    for names in (["layer2.0"], ["layer1.0", "layer2.1"], list(blocks), []):
        lesioned = mr.anatomy.delete_blocks(model, names)
        assert_untouched(model, before)
        assert mr.anatomy.deleted_blocks(lesioned) == names
        expected = by_hand(model, x, [
            (lambda h, b=block: mr.functional.relu(b.shortcut(h))) if name in names else block
            for name, block in blocks.items()
        ])  # fmt: skip
        assert_close(logits(lesioned, x), expected, rtol=1e-12)
    twice = mr.anatomy.delete_blocks(mr.anatomy.delete_blocks(model, ["layer1.1"]), ["layer1.1"])
    once = mr.anatomy.delete_blocks(model, "layer1.1")
    assert_close(logits(twice, x), logits(once, x), rtol=0, atol=0)


@pytest.mark.parametrize("kind", [PreActivation, StochasticDepth])
def test_other_blocks_keep_their_own_shortcut_and_join(kind, rng):
    model = made_of(kind, (2, 2)).eval()
    x, _ = batch(rng, 8)
    blocks = dict(model.named_blocks())
    lesioned = mr.anatomy.delete_blocks(model, ["layer1.1", "layer2.0"])
    expected = by_hand(model, x, [
        (lambda h, b=b: b.join(0.0 * b.branch(h), b.shortcut(h)))
        if name in ("layer1.1", "layer2.0") else b
        for name, b in blocks.items()
    ])  # fmt: skip
    assert_close(logits(lesioned, x), expected, rtol=1e-12)


def test_a_plain_block_is_deleted_only_where_the_shape_stays(rng):
    model = made("plain20", {"width": 3}).eval()
    x, _ = batch(rng, 8)
    names = [name for name, _ in model.named_blocks()]
    assert mr.anatomy.deletable_blocks(model) == [
        name for name in names if name not in ("layer2.0", "layer3.0")
    ]
    lesioned = mr.anatomy.delete_blocks(model, ["layer2.1"])
    rest = [b for name, b in model.named_blocks() if name != "layer2.1"]
    assert_close(logits(lesioned, x), by_hand(model, x, rest), rtol=0, atol=0)
    with pytest.raises(ValueError, match=r"layer2\.0 has no shortcut and changes the shape"):
        mr.anatomy.delete_blocks(model, ["layer2.0"])
    assert mr.anatomy.deletable_blocks(made("resnet20", {"width": 2})) == names


def test_exchanged_blocks_run_in_the_other_order(rng):
    model = made_of(BasicBlock, (3, 3)).eval()
    x, _ = batch(rng, 8)
    blocks = list(model.blocks())
    before = state(model)
    swapped = mr.anatomy.swap_blocks(model, ("layer1.0", "layer1.2"), ("layer1.0", "layer1.1"))
    assert_untouched(model, before)
    order = [1, 2, 0, 3, 4, 5]
    assert_close(logits(swapped, x), by_hand(model, x, [blocks[i] for i in order]), rtol=0, atol=0)
    with pytest.raises(ValueError, match="one of them changes the shape"):
        mr.anatomy.swap_blocks(model, ("layer2.0", "layer2.1"))
    with pytest.raises(ValueError, match="one works on 3 channels, the other on 6"):
        mr.anatomy.swap_blocks(model, ("layer1.0", "layer2.1"))
    with pytest.raises(ValueError, match=r"unknown block 'layer1\.3'"):
        mr.anatomy.swap_blocks(model, ("layer1.0", "layer1.3"))


def test_draws_depend_on_the_seed_only():
    model = made("resnet20", {"width": 2})
    names = mr.anatomy.deletable_blocks(model)
    drawn = [mr.anatomy.random_blocks(model, 4, seed) for seed in range(30)]
    assert drawn[:5] == [mr.anatomy.random_blocks(model, 4, seed) for seed in range(5)]
    assert all(len(set(d)) == 4 and d == sorted(d, key=names.index) for d in drawn)
    assert set(itertools.chain(*drawn)) == set(names)
    lesioned = mr.anatomy.delete_random(model, 4, 7)
    assert mr.anatomy.deleted_blocks(lesioned) == drawn[7]
    with pytest.raises(ValueError, match="9 blocks can be deleted, got k=10"):
        mr.anatomy.random_blocks(model, 10, 0)
    pairs = mr.anatomy.random_swaps(model, 50, 0)
    assert pairs[:9] == mr.anatomy.random_swaps(model, 9, 0)
    assert {(a.split(".")[0], b.split(".")[0]) for a, b in pairs} == {
        ("layer1", "layer1"), ("layer2", "layer2"), ("layer3", "layer3")
    }  # fmt: skip
    assert {a for pair in pairs for a in pair}.isdisjoint({"layer2.0", "layer3.0"})
    with pytest.raises(ValueError, match="0 pairs of blocks can change places, got k=1"):
        mr.anatomy.random_swaps(made_of(BasicBlock, (1, 1)), 1, 0)


def test_kendall_tau_by_definition(rng):
    assert mr.anatomy.kendall_tau([0, 1, 2, 3]) == 1.0
    assert mr.anatomy.kendall_tau([3, 2, 1, 0]) == -1.0
    assert mr.anatomy.kendall_tau([1, 0, 2]) == pytest.approx(1 / 3)
    assert mr.anatomy.kendall_tau([0]) == 1.0
    for _ in range(10):
        order = rng.permutation(7).tolist()
        signs = [1 if a < b else -1 for a, b in itertools.combinations(order, 2)]
        assert mr.anatomy.kendall_tau(order) == pytest.approx(np.mean(signs))
    with pytest.raises(ValueError, match="each of 0 to 1 once"):
        mr.anatomy.kendall_tau([0, 2])


@pytest.mark.parametrize("name", ["resnet20", "plain20"])
def test_the_study_measures_what_the_lesioned_copies_do(name, rng):
    model = lived(made(name, {"width": 3}), rng)  # in training mode: the study evaluates a copy
    x, y = batch(rng, 8, N=23)
    before = state(model)
    seen = []
    study = mr.anatomy.lesion_study(
        model, (x, y), random=(3, 99), swaps=(1, 3), seeds=2, batch_size=10,
        on_batch=lambda done, total: seen.append((done, total)),
    )  # fmt: skip
    assert_untouched(model, before)
    assert seen == [(1, 3), (2, 3), (3, 3)]
    assert study.images == 23
    model.eval()

    def error(net):
        return (logits(net, x).argmax(axis=1) != y).mean()

    assert study.intact == pytest.approx(error(model))
    singles = study.of("single")
    assert [lesion.blocks[0] for lesion in singles] == mr.anatomy.deletable_blocks(model)
    errors = set()
    for lesion in study.lesions:
        if lesion.kind == "swap":
            net = mr.anatomy.swap_blocks(model, *lesion.blocks)
            order = list(study.blocks)
            for a, b in lesion.blocks:
                i, j = study.blocks.index(a), study.blocks.index(b)
                order[i], order[j] = order[j], order[i]
            places = [study.blocks.index(name) for name in order]
            signs = [1 if a < b else -1 for a, b in itertools.combinations(places, 2)]
            assert lesion.tau == pytest.approx(np.mean(signs))
        else:
            net = mr.anatomy.delete_blocks(model, lesion.blocks)
            assert lesion.tau == 1.0
        assert lesion.error == pytest.approx(error(net)), lesion
        errors.add(lesion.error)
    assert len(errors) > 1
    assert {k: len(e) for k, e in study.by_count("random").items()} == {3: 2}
    assert {k: len(e) for k, e in study.by_count("swap").items()} == {1: 2, 3: 2}


def test_data_may_be_a_loader(rng):
    digits = mr.data.digits("test").take(40)
    model = mr.models.resnet20(width=2, in_channels=1)
    loader = mr.data.Loader(digits, batch_size=16)
    by_loader = mr.anatomy.lesion_study(model, loader, random=(), swaps=())
    arrays = [np.concatenate(parts) for parts in zip(*loader, strict=True)]
    by_arrays = mr.anatomy.lesion_study(model, tuple(arrays), random=(), swaps=())
    assert by_loader == by_arrays
    with pytest.raises(ValueError, match="no images"):
        mr.anatomy.lesion_study(model, (arrays[0][:0], arrays[1][:0]))
    with pytest.raises(TypeError, match="x holds uint8"):
        mr.anatomy.lesion_study(model, (digits.images, digits.labels))


def test_table_and_picture(rng, tmp_path):
    x, y = batch(rng, 8, N=8)
    study, twin = (
        mr.anatomy.lesion_study(made(name, {"width": 2}), (x, y), random=(2,), swaps=(1,), seeds=2)
        for name in ("resnet20", "plain20")
    )
    lines = study.table().splitlines()
    assert len(lines) == 2 + 1 + 9 + 1 + 1
    assert lines[3].startswith("without layer1.0")
    figure = study.plot(tmp_path / "lesions.png", twin)
    assert (tmp_path / "lesions.png").read_bytes()[:4] == b"\x89PNG"
    bars = [bar.get_height() for bar in figure.axes[0].patches]
    drawn = [100 * lesion.error for s in (study, twin) for lesion in s.of("single")]
    np.testing.assert_allclose(bars, drawn)
