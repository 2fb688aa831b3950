"""Small truths: every number against another way to get it."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

import minires as mr
from minires.anatomy import truths, truths_trained
from minires.models.blocks import BasicBlock, Bottleneck
from minires.testing.compare import assert_close


def engine(name):
    return {"sigmoid": mr.sigmoid, "tanh": mr.tanh, "relu": mr.functional.relu,
            "linear": lambda z: z}[name]  # fmt: skip


@given(
    st.sampled_from(list(truths.ACTIVATIONS)),
    st.booleans(),
    st.integers(1, 12),
    st.integers(0, 2**32 - 1),
)
def test_a_chain_has_the_engines_gradients(activation, shortcut, depth, seed):
    rng = np.random.default_rng(seed)
    values = rng.normal(size=depth), rng.normal(size=depth), rng.normal(size=())
    w, b, x = (mr.Tensor(v, requires_grad=True) for v in values)
    h = x
    for k in range(depth):
        y = engine(activation)(w[k] * h + b[k])
        h = y + h if shortcut else y
    chain = truths.neuron_chain(values[0], values[2], values[1], activation, shortcut)
    gx, gw = mr.grad(h, [x, w], allow_unused=True)
    assert_close(chain.x[-1], h.numpy())
    assert_close(chain.gradient[0], gx.numpy())
    assert_close(chain.weight_gradient, gw.numpy())
    assert chain.gradient[-1] == 1


def test_the_chain_of_the_textbook_by_hand():
    """Three neurons: dErr/dw_1 = w_3 σ'(z_3) w_2 σ'(z_2) σ'(z_1) x_0."""

    def slope(z):
        return math.exp(-z) / (1 + math.exp(-z)) ** 2

    w, x = (0.5, -1.5, 2.0), [0.7]
    for weight in w:
        x.append(1 / (1 + math.exp(-weight * x[-1])))
    z1, z2, z3 = (weight * value for weight, value in zip(w, x[:-1], strict=True))
    by_hand = w[2] * slope(z3) * w[1] * slope(z2) * slope(z1) * x[0]
    chain = truths.neuron_chain(w, x[0])
    assert chain.weight_gradient[0] == pytest.approx(by_hand, rel=1e-12)
    assert chain.factors[1] == pytest.approx(-1.5 * slope(z2), rel=1e-12)


def test_many_chains_at_once_are_each_alone(rng):
    w = rng.normal(size=(5, 3))
    together = truths.neuron_chain(w, 0.3, 0.1, "tanh", True)
    for k in range(3):
        alone = truths.neuron_chain(w[:, k], 0.3, 0.1, "tanh", True)
        np.testing.assert_allclose(together.gradient[:, k], alone.gradient, rtol=1e-14)


def test_sigmoid_chains_vanish_and_shortcuts_keep_the_gradient():
    found = truths.vanishing(depth=30, draws=400)
    for name, std in found.initialisations.items():
        median = found.plain[name][1]
        assert median[-1] < (std / 4) ** 30 * 10 or median[-1] < 1e-10
        assert 0.1 < found.residual[name][1, -1] < 10
    # A quarter of |w| at most for every layer: not one of the draws is above the bound.
    tame = truths.vanishing(depth=20, draws=300, initialisations={"small": 0.2})
    low, middle, high = tame.plain["small"]
    assert (low <= middle).all()
    assert (middle <= high).all()
    assert (high <= 0.25 ** tame.depths).all()


def test_linear_chains_of_weight_one_keep_the_gradient_and_double_it_with_shortcuts():
    chain = truths.neuron_chain(np.ones(10), 1.0, 0.0, "linear")
    assert chain.gradient[0] == 1
    assert truths.neuron_chain(np.ones(10), 1.0, 0.0, "linear", True).gradient[0] == 2**10


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (([],), "expected weights"),
        ((1.0,), "expected weights"),
        (([1.0], 1, 0, "sine"), "sigmoid"),
    ],
)
def test_what_is_no_chain(arguments, message):
    with pytest.raises(ValueError, match=message):
        truths.neuron_chain(*arguments)


def test_no_depth_no_study():
    with pytest.raises(ValueError, match="at least 1"):
        truths.vanishing(depth=0)


# -- the bottleneck -------------------------------------------------------------------------------


def test_the_64_256_example_of_the_paper():
    cost = truths.bottleneck_cost(widths=(16, 64), size=56)
    basic, bottleneck, projected, wide = cost.examples
    assert basic.weights == (9 * 64 * 64,) * 2
    assert bottleneck.weights == (256 * 64, 9 * 64 * 64, 64 * 256)
    assert bottleneck.total_weights == 17 * 64**2 == 69_632
    assert wide.total_weights == 288 * 64**2 == 1_179_648
    # "The time complexity and model size are doubled" by a projection (section 4.1), nearly.
    assert projected.total_weights == 69_632 + 256 * 256
    assert bottleneck.total_multiply_adds == 69_632 * 56 * 56
    np.testing.assert_array_equal(cost.basic, [18 * 16**2, 18 * 64**2])
    np.testing.assert_array_equal(cost.bottleneck, [17 * 16**2, 17 * 64**2])
    np.testing.assert_array_equal(cost.wide, [288 * 16**2, 288 * 64**2])
    assert "69,632" in cost.table()


@pytest.mark.parametrize(
    ("block", "channels"), [(BasicBlock(8, 8), 8), (Bottleneck(16, 4, shortcut="C"), 16)]
)
def test_costs_count_the_parameters_that_are_there(block, channels):
    cost = truths.block_cost(block, "a block", channels, 5)
    there = [p.size for name, p in block.named_parameters() if p.ndim == 4]
    assert sorted(cost.weights) == sorted(there)
    assert cost.multiply_adds == tuple(25 * w for w in cost.weights)
    assert [k * k * C * O for _, k, C, O in cost.layers] == list(cost.weights)


def test_no_width_no_cost():
    with pytest.raises(ValueError, match="at least one width"):
        truths.bottleneck_cost(widths=())


# -- trained truths -------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def identity():
    mr.manual_seed(0)
    return truths_trained.learn_identity(blocks=(1, 3), scales=(0.1, 0.5), steps=80, seeds=1)


def test_the_identity_is_learned_with_shortcuts_and_not_without(identity):
    plain, residual = identity.final
    assert identity.errors.shape == (2, 2, 2, 1, 80)
    assert (residual < 0.02).all()
    assert (plain > 0.1).all()
    _, answer = identity.responses
    assert np.abs(answer - np.eye(8)).max() < 0.3


def test_the_errors_are_those_of_the_nets():
    """The first error, before any step, by a forward pass of our own."""
    found = truths_trained.learn_identity((2,), (0.7,), width=4, batch=6, steps=1, seeds=1)
    for kind in (0, 1):
        rng = np.random.default_rng((0, 0, 0))
        weights = [
            (0.7 * np.sqrt(2 / 4) * rng.standard_normal((4, 4))).astype(np.float32)
            for _ in range(4)
        ]
        x = np.abs(rng.standard_normal((6, 4))).astype(np.float32)
        y = x.T
        for W1, W2 in (weights[:2], weights[2:]):
            y = np.maximum(W2 @ np.maximum(W1 @ y, 0) + kind * y, 0)
        error = ((y.T - x) ** 2).mean() / (x**2).mean()
        assert found.errors[kind, 0, 0, 0, 0] == pytest.approx(error, rel=1e-4)


def test_a_net_that_overflows_is_left_at_infinity():
    found = truths_trained.learn_identity((40,), (30.0,), steps=3, seeds=1)
    assert np.isinf(found.errors[1]).all()


@pytest.fixture(scope="module")
def responses():
    return truths_trained.small_responses(blocks=(1, 4), steps=120)


def test_responses_shrink_with_the_number_of_blocks(responses):
    assert [len(responses.residual[n]) for n in (1, 4)] == [1, 4]
    assert responses.residual[4].mean() < 0.5 * responses.residual[1].mean()
    assert responses.plain[4].mean() > 2 * responses.residual[4].mean()
    assert (responses.errors[1] < 0.05).all()
    # A vector turned by 1 rad has moved by 2 sin(1/2) of its length, and the sum of the F's is
    # that way: the triangle inequality.
    np.testing.assert_allclose(responses.distance, 2 * np.sin(0.5), rtol=0.1)
    for n, distance in zip(responses.blocks, responses.distance, strict=True):
        assert responses.residual[n].sum() >= distance * (1 - 1e-6)
    assert responses.residual[1][0] == pytest.approx(responses.distance[0], rel=1e-5)


def test_settings_that_make_no_sense():
    with pytest.raises(ValueError, match="learn_identity: needs"):
        truths_trained.learn_identity(blocks=())
    with pytest.raises(ValueError, match="even width"):
        truths_trained.small_responses(width=3)


def test_pictures(tmp_path, identity, responses):
    chains = truths.vanishing(5, 20), truths.vanishing(5, 20, "relu")
    found = (*chains, truths.bottleneck_cost((16,)), identity, responses)
    for k, numbers in enumerate(found):
        figure = numbers.plot(tmp_path / f"{k}.png")
        with Image.open(tmp_path / f"{k}.png") as image:
            pixels = np.asarray(image.convert("RGB"))
        width, height = (int(v * 120) for v in figure.get_size_inches())
        assert abs(pixels.shape[0] - height) <= 1
        assert abs(pixels.shape[1] - width) <= 1
        for edge in (pixels[:3], pixels[-3:], pixels[:, :3], pixels[:, -3:]):
            assert (edge == 255).all()  # nothing is cut off
        assert (pixels < 200).any(axis=2).mean() > 0.01
