"""Batch normalisation against PyTorch: training, evaluation, running statistics."""

import numpy as np
import pytest
from against_torch import channels_last, close, compare, to_torch, torch

import minires as mr
from minires import functional as F
from minires import nn

T = torch.nn.functional
SHAPES = [(4, 3), (2, 5, 3, 4), (1, 2, 7, 1), (2, 1, 1, 1), (8, 16, 6, 6)]


def inputs(shape, affine, dtype):
    rng = np.random.default_rng(1)
    x = 3 * rng.standard_normal(shape) + rng.standard_normal(shape[1]).reshape(
        (-1,) + (1,) * (len(shape) - 2)
    )
    if len(shape) == 4 and shape[1] > 2:
        x = channels_last(x)
    weights = [rng.standard_normal(shape[1]) for _ in range(2)] if affine else [None, None]
    made = dict(zip(("x", "weight", "bias"), [x, *weights], strict=True))
    return {k: None if v is None else v.astype(dtype) for k, v in made.items()}


def statistics(C, dtype):
    rng = np.random.default_rng(2)
    return rng.standard_normal(C).astype(dtype), rng.random(C).astype(dtype) + 0.5


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize("running", [True, False])
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("shape", SHAPES)
def test_batch_norm(shape, training, running, affine, dtype):
    mean, var = statistics(shape[1], dtype)
    ours = [mr.Tensor(s.copy()) if running else None for s in (mean, var)]
    theirs = [to_torch(s) if running else None for s in (mean, var)]
    settings = {"training": training or not running, "momentum": 0.3, "eps": 1e-3}
    compare(
        lambda x, w, b: F.batch_norm(x, *ours, w, b, **settings),
        lambda x, w, b: T.batch_norm(x, *theirs, w, b, **settings),
        inputs(shape, affine, dtype),
        # Two values that differ little leave a gradient that is nearly nothing: compare loosely.
        tolerance=(1e-9 if dtype == np.float64 else 1e-3) if shape == (2, 1, 1, 1) else None,
    )
    if running:
        for name, a, b in zip(("running_mean", "running_var"), ours, theirs, strict=True):
            close(a, b, name)
        assert np.array_equal(ours[0].numpy(), mean) == (not training)


@pytest.mark.parametrize("momentum", [0.0, 0.1, 0.9, 1.0])
@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize("tracked", [True, False])
def test_the_layer_over_three_steps_and_evaluation(tracked, affine, momentum):
    arguments = (3, 1e-4, momentum, affine, tracked)
    ours, theirs = nn.BatchNorm2d(*arguments).double(), torch.nn.BatchNorm2d(*arguments).double()
    assert list(ours.state_dict()) == list(theirs.state_dict())
    rng = np.random.default_rng(0)
    for step, training in enumerate((True, True, True, False)):
        ours.train(training)
        theirs.train(training)
        x = rng.standard_normal((4, 3, 5, 2)) * (1 + step) + step
        compare(ours, theirs, {"x": x})
        for name, tensor in ours.state_dict().items():
            close(tensor, theirs.state_dict()[name], name)
    assert not tracked or ours.num_batches_tracked.item() == 3
    for name, parameter in ours.named_parameters():
        close(parameter.grad, theirs.get_parameter(name).grad, name)


def test_a_large_mean_does_not_drown_the_variance():
    """In float32 with mean 1e4 and deviation 1: the reference is PyTorch in float64."""
    rng = np.random.default_rng(0)
    x = (rng.standard_normal((8, 4, 9, 9)) + 1e4).astype(np.float32)
    y = F.batch_norm(mr.Tensor(x), None, None, training=True)
    expected = T.batch_norm(to_torch(x.astype(np.float64)), None, None, training=True)
    assert np.abs(y.numpy() - expected.numpy()).max() < 1e-4
