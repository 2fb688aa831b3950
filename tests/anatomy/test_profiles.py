"""Responses, gradient norms and histograms by depth, and the recorder that takes them."""

from __future__ import annotations

import numpy as np
import pytest
from nets import (
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
from minires import nn
from minires.models import BasicBlock, Bottleneck


def frozen(bn, x):
    """A batch norm's output by its formula."""
    axes, shape = (0, 2, 3), (1, -1, 1, 1)
    mean, var = (x.mean(axes), x.var(axes)) if bn.training else (
        bn.running_mean.numpy(), bn.running_var.numpy())  # fmt: skip
    xhat = (x - mean.reshape(shape)) / np.sqrt(var.reshape(shape) + bn.eps)
    return xhat * bn.weight.numpy().reshape(shape) + bn.bias.numpy().reshape(shape)


@pytest.mark.parametrize("training", [True, False])
def test_responses_are_taken_between_batch_norm_and_relu(training, rng):
    model = lived(made("resnet20", {"width": 2, "shortcut": "C"}), rng).train(training)
    x, _ = batch(rng, 8)
    before = state(model)
    found = mr.anatomy.responses(model, x)
    assert_untouched(model, before)
    blocks = [name for name, _ in model.named_blocks()]
    assert found.layers == ("conv1", *(f"{b}.conv{i}" for b in blocks for i in (1, 2)))
    expected = [frozen(model.bn1, model.conv1(mr.Tensor(x)).numpy())]
    h = model.stem(mr.Tensor(x))
    for block in model.blocks():
        expected.append(frozen(block.bn1, block.conv1(h).numpy()))
        inner = mr.Tensor(np.maximum(expected[-1], 0))
        expected.append(frozen(block.bn2, block.conv2(inner).numpy()))
        h = block(h)
    np.testing.assert_allclose(found.std, [r.std() for r in expected], rtol=1e-9)
    np.testing.assert_allclose(found.mean, [r.mean() for r in expected], rtol=1e-7, atol=1e-12)


def test_only_the_3x3_layers_count_unless_asked(rng):
    model = made_of(Bottleneck, (2, 1)).eval()
    x, _ = batch(rng, 8)
    three = mr.anatomy.responses(model, x).layers
    assert three == ("conv1", *(f"{name}.conv2" for name, _ in model.named_blocks()))
    everything = mr.anatomy.responses(model, x, kernel_size=None).layers
    assert len(everything) == sum(isinstance(m, nn.Conv2d) for m in model.modules())
    with pytest.raises(ValueError, match="Sequential has no 3x3 convolution"):
        mr.anatomy.responses(nn.Sequential(nn.Conv2d(3, 2, 1)), x.astype(np.float32))
    with pytest.raises(TypeError, match="responses: x holds int64"):
        mr.anatomy.responses(model, np.zeros((1, 3, 8, 8), np.int64))


def test_a_layer_that_no_batch_norm_follows_responds_itself(rng):
    model = made_of(PreActivation, (1,)).eval()
    x, _ = batch(rng, 8)
    found = mr.anatomy.responses(model, x)
    assert found.layers == ("conv1", "layer1.0.conv1", "layer1.0.conv2")
    block = next(iter(model.blocks()))
    h = model.stem(mr.Tensor(x))
    assert found.std[1] == pytest.approx(
        block.bn2(block.conv1(block.bn1.relu(h))).numpy().std(), rel=1e-9
    )
    assert found.std[2] == pytest.approx(block.branch(h).numpy().std(), rel=1e-9)


@pytest.mark.parametrize("case", NETS[:5], ids=net_id)
@pytest.mark.parametrize("training", [True, False])
def test_gradient_norms_are_those_of_backward(case, training, rng):
    name, options, size = case
    model = made(name, options).train(training)
    x, y = batch(rng, size)
    expected = backward(model, x, y)
    before = state(model)
    found = mr.anatomy.gradient_norms(model, x, y)
    assert_untouched(model, before)
    assert found.places == (*expected, "head")
    for place, norm in zip(found.places, found.activations, strict=True):
        if place != "head":
            assert norm == pytest.approx(np.linalg.norm(expected[place]), rel=1e-9)
    F.cross_entropy(model(mr.Tensor(x)), y).backward()
    for name, gradient, value in zip(found.layers, found.weights, found.values, strict=True):
        weight = model.get_submodule(name).weight
        assert gradient == pytest.approx(np.linalg.norm(weight.grad.numpy()), rel=1e-9)
        assert value == pytest.approx(np.linalg.norm(weight.numpy()), rel=1e-12)
    assert len(found.layers) == sum(isinstance(m, nn.Conv2d | nn.Linear) for m in model.modules())


def test_histograms_count_every_value(rng):
    model = lived(made("resnet20", {"width": 2}), rng)
    x, _ = batch(rng, 8)
    before = state(model)
    found = mr.anatomy.histograms(model, x, bins=13)
    assert_untouched(model, before)
    model.train()
    h = model.stem(mr.Tensor(x))
    values = {"stem": h.numpy()}
    for name, block in model.named_blocks():
        h = block(h)
        values[name] = h.numpy()
    weights = {name: m.weight.numpy() for name, m in model.named_modules()
               if isinstance(m, nn.Conv2d | nn.Linear)}  # fmt: skip
    for part, arrays in ((found.activations, values), (found.weights, weights)):
        assert part.names == tuple(arrays)
        low, high = part.edges[0], part.edges[-1]
        for row, zeros, beyond, array in zip(
            part.counts, part.zeros, part.beyond, arrays.values(), strict=True
        ):
            inside = array[(array != 0) & (array >= low) & (array <= high)]
            np.testing.assert_array_equal(row, np.histogram(inside, part.edges)[0])
            assert zeros == (array == 0).mean()
            assert beyond == ((array < low) | (array > high)).mean()
            assert row.sum() + round(array.size * (zeros + beyond)) == array.size
        assert part.edges.shape == (14,)
        assert part.beyond.max() < 0.1
    assert found.activations.zeros.min() > 0.1
    with pytest.raises(ValueError, match="bins is at least 1, got 0"):
        mr.anatomy.histograms(model, x, bins=0)


def test_constant_values_still_have_a_histogram(rng):
    model = made("resnet20", {"width": 2}, np.float32)
    for parameter in model.parameters():
        parameter.data = np.zeros_like(parameter.numpy())
    found = mr.anatomy.histograms(model, batch(rng, 8)[0])
    assert not found.weights.counts.any()
    assert (found.weights.zeros == 1).all()
    assert found.weights.edges[0] < found.weights.edges[-1]


def trained(recorder_for):
    """A short run on the digits, watched by what `recorder_for(model, x, y)` gives."""
    data = mr.data.digits("train").take(96)
    recipe = mr.training.Recipe(**{
        **mr.training.recipes.choose(data, None, "resnet20").as_dict(), "epochs": 2,
        "batch_size": 16,
    })  # fmt: skip
    run = mr.training.Run.new("resnet20", data, None, recipe, options={"width": 2})
    x = run.trained.normalization.transform()(data.images[:8])
    recorder = recorder_for(run.trained.model, x, data.labels[:8])
    run.train(on_step=recorder)
    return run, recorder


def test_a_recorder_sees_training_and_does_not_disturb_it():
    run, recorder = trained(lambda *args: mr.anatomy.Recorder(*args, every=5))
    alone, _ = trained(lambda *args: None)
    assert [moment.step for moment in recorder.moments] == [5, 10]
    for (name, a), (_, b) in zip(
        run.trained.model.state_dict().items(), alone.trained.model.state_dict().items(),
        strict=True,
    ):  # fmt: skip
        np.testing.assert_array_equal(a.numpy(), b.numpy(), err_msg=name)
    first, second = recorder.moments
    assert not np.array_equal(first.gradients.activations, second.gradients.activations)
    assert not np.array_equal(first.responses.std, second.responses.std)


def test_a_recorder_counts_on_its_own(rng, tmp_path):
    model = made_of(BasicBlock, (1,))
    recorder = mr.anatomy.Recorder(model, *batch(rng, 8), every=2)
    with pytest.raises(ValueError, match="nothing recorded yet, after 0 steps"):
        recorder.plot()
    for _ in range(5):
        recorder()
    last = recorder.look()
    assert [moment.step for moment in recorder.moments] == [2, 4, 5]
    figure = recorder.plot(tmp_path / "recording.png")
    assert (tmp_path / "recording.png").stat().st_size > 0
    np.testing.assert_array_equal(figure.axes[0].lines[2].get_ydata(), last.responses.std)
    with pytest.raises(ValueError, match="every is at least 1 step, got 0"):
        mr.anatomy.Recorder(model, None, None, every=0)


def test_tables_and_pictures(rng, tmp_path):
    model, twin = made("resnet20", {"width": 2}), made("plain20", {"width": 2})
    x, y = batch(rng, 8)
    responses, norms = mr.anatomy.responses(model, x), mr.anatomy.gradient_norms(model, x, y)
    assert len(responses.table().splitlines()) == 2 + 19
    assert len(norms.table().splitlines()) == 2 + 11 + 20
    figure = responses.plot(tmp_path / "a.png", plain=mr.anatomy.responses(twin, x))
    np.testing.assert_array_equal(figure.axes[1].lines[0].get_ydata(), np.sort(responses.std)[::-1])
    figure = norms.plot(tmp_path / "b.png", plain=mr.anatomy.gradient_norms(twin, x, y))
    np.testing.assert_array_equal(figure.axes[0].lines[0].get_ydata(), norms.activations)
    mr.anatomy.histograms(model, x).plot(tmp_path / "c.png")
    for name in "abc":
        assert (tmp_path / f"{name}.png").read_bytes()[:4] == b"\x89PNG"
