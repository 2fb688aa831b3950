"""A residual net without shortcuts, and back: the same logits, by convolutions alone."""

from __future__ import annotations

import numpy as np
import pytest
from nets import (
    NETS,
    PreActivation,
    assert_untouched,
    batch,
    lived,
    made,
    made_of,
    net_id,
    state,
)

import minires as mr
from minires import nn
from minires.models import BasicBlock, count_parameters
from minires.testing.compare import assert_close

LAYERS = (nn.Conv2d, nn.ReLU, nn.MaxPool2d, nn.AdaptiveAvgPool2d, nn.Flatten, nn.Linear)


def logits(model, x):
    with mr.no_grad():
        return model(mr.Tensor(x)).numpy()


@pytest.mark.parametrize("case", NETS, ids=net_id)
def test_the_plain_net_gives_the_same_logits_and_back(case, rng):
    name, options, size = case
    model = lived(made(name, options), rng).eval()
    x, _ = batch(rng, size)
    before = state(model)
    plain = mr.anatomy.to_plain(model)
    assert_untouched(model, before)
    assert all(type(layer) in LAYERS for layer in plain)
    expected = logits(model, x)
    scale = np.abs(expected).max()
    assert scale > 1e-3
    assert_close(logits(plain, x), expected, rtol=0, atol=1e-10 * scale)

    single = np.abs(logits(plain.float(), x.astype(np.float32)) - expected).max()
    assert single < 1e-4 * scale

    written = mr.anatomy.shortcuts_from_identity(mr.anatomy.to_plain(model))
    assert_close(logits(written, x), expected, rtol=0, atol=1e-10 * scale)
    residual = 0 if name.startswith("plain") else len(list(model.blocks()))
    assert written.shortcuts == residual
    assert count_parameters(written) <= count_parameters(nn.fold_batch_norms(model))


def test_inputs_of_any_sign_and_odd_sizes(rng):
    model = lived(made("resnet20", {"width": 3, "shortcut": "A"}), rng).eval()
    plain = mr.anatomy.to_plain(model)
    for size in (5, 11, 16):
        x = 10 * rng.standard_normal((2, 3, size, size)) - 3
        expected = logits(model, x)
        assert_close(logits(plain, x), expected, rtol=1e-9, atol=1e-9 * np.abs(expected).max())


def test_what_it_costs():
    """By hand: a basic block of C channels has 2 * 9C^2 weights, written plain 2C * 9C twice; a
    bottleneck of w inner and 4w outer channels has 17w^2, written plain 20w^2 + 225w^2 + 20w^2."""
    basic = mr.anatomy.plain_report(mr.models.resnet20().eval(), (3, 32, 32))
    by_name = {cost.name: cost for cost in basic.blocks}
    C = 16
    assert by_name["layer1.1"].carried == C
    assert by_name["layer1.1"].parameters == 2 * (9 * C**2 + C)
    assert by_name["layer1.1"].plain_parameters == 2 * 9 * 2 * C**2 + 2 * C + C
    net = mr.models.resnet50(width=8, num_classes=10).eval()
    deep = {c.name: c for c in mr.anatomy.plain_report(net, (3, 32, 32)).blocks}["layer1.1"]
    w = 8
    assert deep.parameters == 17 * w**2 + w + w + 4 * w
    assert deep.plain_parameters == 265 * w**2 + 5 * w + 5 * w + 4 * w

    assert basic.plain_parameters == count_parameters(
        mr.anatomy.to_plain(mr.models.resnet20().eval())
    )
    assert basic.multiply_adds == mr.models.multiply_adds(mr.models.resnet20(), (3, 32, 32))
    assert basic.plain_nonzero < basic.plain_parameters
    lines = basic.table().splitlines()
    assert len(lines) == 2 + 9 + 3
    assert lines[-1].split()[1:3] == ["40,551,040", f"{basic.plain_multiply_adds:,}"]
    none = mr.anatomy.plain_report(mr.models.plain20().eval(), (3, 32, 32))
    assert none.plain_parameters == none.parameters
    assert {cost.carried for cost in none.blocks} == {0}


def test_paths_are_a_property_of_the_writing(rng):
    """The net that came back has the same paths as the one that was rewritten."""
    model = lived(made("resnet20", {"width": 2, "shortcut": "B"}), rng).eval()
    x, y = batch(rng, 8)
    written = mr.anatomy.shortcuts_from_identity(mr.anatomy.to_plain(model))
    first, second = (mr.anatomy.paths(m, x, y).depths[0] for m in (model, written))
    assert second.counts == first.counts
    np.testing.assert_allclose(second.norms, first.norms, rtol=1e-9)


def test_a_net_trained_plain_has_no_identity_to_find(rng):
    model = lived(made("plain20", {"width": 3}), rng).eval()
    written = mr.anatomy.shortcuts_from_identity(mr.anatomy.to_plain(model))
    assert written.shortcuts == 0
    assert [block.plain for _, block in written.named_blocks()] == [True] * 18


def plain_of(*convs):
    layers = [nn.Conv2d(2, 3, 3, padding=1), nn.ReLU()]
    for conv in convs:
        layers += [conv, nn.ReLU()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 2)).double()


def carrying(rng):
    """Two convolutions: the first computes two channels and copies 2 and 0 of three, the second
    computes two and copies on, the third adds both with weights of its own."""
    first, second, third = (nn.Conv2d(a, b, 3, padding=1) for a, b in ((3, 4), (4, 4), (4, 3)))
    for conv in (first, second, third):
        conv.weight.data = rng.standard_normal(conv.weight.shape).astype(np.float32)
        conv.bias.data = rng.standard_normal(conv.bias.shape).astype(np.float32)
    for conv, copies in ((first, {1: 2, 3: 0}), (second, {0: 3, 2: 1})):
        for o, c in copies.items():
            conv.weight[o] = 0.0
            conv.weight[o, c, 1, 1] = 1.0
            conv.bias[o] = 0.0
    second.weight[1, [1, 3]] = second.weight[3, [1, 3]] = 0.0
    centre = third.weight.numpy()[:, [0, 2], 1, 1].copy()
    third.weight[:, [0, 2]] = 0.0
    third.weight[:, [0, 2], 1, 1] = centre
    return first, second, third


def test_identities_in_any_channels_are_found(rng):
    with mr.no_grad():
        plain = plain_of(*carrying(rng)).eval()
    written = mr.anatomy.shortcuts_from_identity(plain)
    assert written.shortcuts == 1
    (_, block), = written.named_blocks()
    assert [conv.weight.shape[:2] for conv in block.body if isinstance(conv, nn.Conv2d)] == [
        (2, 3), (2, 2), (3, 2)
    ]  # fmt: skip
    x = rng.standard_normal((2, 2, 5, 4))
    assert_close(logits(written, x), logits(plain, x), rtol=1e-12)


@pytest.mark.parametrize("spoilt", ["read on the way", "off the centre", "biased", "scaled"])
def test_what_is_not_quite_an_identity_stays_plain(spoilt, rng):
    with mr.no_grad():
        first, second, third = carrying(rng)
        if spoilt == "read on the way":
            second.weight[1, 1, 0, 0] = 0.5
        elif spoilt == "off the centre":
            third.weight[0, 0, 0, 1] = 0.5
        elif spoilt == "biased":
            first.bias[1] = first.bias[3] = 0.1
        else:
            first.weight[[1, 3]] = 2 * first.weight[[1, 3]]
        plain = plain_of(first, second, third).eval()
    written = mr.anatomy.shortcuts_from_identity(plain)
    x = rng.standard_normal((2, 2, 5, 4))
    assert_close(logits(written, x), logits(plain, x), rtol=1e-12)
    first_block = next(block for _, block in written.named_blocks())
    assert first_block.plain


def test_errors_say_what_is_expected():
    with pytest.raises(ValueError, match=r"call model\.eval\(\) first"):
        mr.anatomy.to_plain(mr.models.resnet20(width=2))
    with pytest.raises(TypeError, match=r"needs a ResNet of minires\.models, got Sequential"):
        mr.anatomy.to_plain(nn.Sequential())
    with pytest.raises(TypeError, match=r"layer1\.0 is a PreActivation"):
        mr.anatomy.to_plain(made_of(PreActivation).eval())
    with pytest.raises(ValueError, match="expected a Conv2d and a ReLU first, got Flatten"):
        mr.anatomy.shortcuts_from_identity(nn.Sequential(nn.Flatten()))
    with pytest.raises(ValueError, match="expected a ReLU behind the convolution at 2"):
        mr.anatomy.shortcuts_from_identity(nn.Sequential(
            nn.Conv2d(1, 1, 1), nn.ReLU(), nn.Conv2d(1, 1, 1), nn.Flatten()
        ))  # fmt: skip


def test_silent_blocks_come_back_too(rng):
    model = made_of(BasicBlock, shortcut="A", zero_gamma=True).eval()
    written = mr.anatomy.shortcuts_from_identity(mr.anatomy.to_plain(model))
    assert written.shortcuts == 4
    x, _ = batch(rng, 8)
    assert_close(logits(written, x), logits(model, x), rtol=1e-10)
