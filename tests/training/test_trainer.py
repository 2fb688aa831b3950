import contextlib
import math
import threading

import numpy as np
import pytest

import minires as mr
from minires import nn
from minires.autograd import Function
from minires.data import Dataset
from minires.training import NotFiniteError, Trainer, evaluate
from minires.training.recipes import RECIPES

PLAIN = RECIPES["fast"].replace(
    epochs=1, batch_size=8, lr=0.0, momentum=0.0, nesterov=False, weight_decay=0.0,
    schedule="constant", label_smoothing=0.0, crop_padding=0, flip=False,
)  # fmt: skip


def dataset(n=20, classes=3, seed=0):
    rng = np.random.default_rng(seed)
    labels = np.arange(n) % classes
    images = rng.integers(0, 120, (n, 2, 4, 4), dtype=np.uint8)
    images[np.arange(n), 0, labels, labels] += 130  # something to learn
    return Dataset(images, labels, [f"c{i}" for i in range(classes)])


def linear(classes=3):
    mr.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(32, classes))


def convolutional():
    mr.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(2, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(64, 3)
    )


def only(trainer, **kwargs):
    (metrics,) = trainer.run(**kwargs)
    return metrics


@pytest.mark.parametrize("smoothing", [0.0, 0.3])
def test_training_metrics_are_means_over_images(smoothing):
    # With a learning rate of zero the net stays as it is, so evaluation must find the same. The
    # last batch has 4 images instead of 8.
    data, model = dataset(), linear()
    trainer = Trainer(model, data, data, PLAIN.replace(label_smoothing=smoothing))
    metrics = only(trainer)
    result = evaluate(model, data, trainer.normalization.transform())
    assert metrics.train_loss == pytest.approx(result.loss, rel=1e-6)
    assert metrics.train_accuracy == pytest.approx(result.accuracy)
    assert metrics.test_loss == result.loss
    assert metrics.test_accuracy == result.accuracy


def test_one_step_is_gradient_descent():
    data, model = dataset(8), linear()
    weight = model[1].weight.numpy().copy()
    trainer = Trainer(model, data, None, PLAIN.replace(lr=0.5, label_smoothing=0.2))
    x = trainer.normalization.transform()(data.images).reshape(8, -1).astype(np.float64)
    logits = x @ weight.T + model[1].bias.numpy()
    p = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    target = 0.8 * np.eye(3)[data.labels] + 0.2 / 3
    expected = weight - 0.5 * (p - target).T @ x / 8
    metrics = only(trainer)
    np.testing.assert_allclose(model[1].weight.numpy(), expected, rtol=1e-5, atol=1e-6)
    assert metrics.test_loss is None
    assert metrics.test_accuracy is None


def test_it_learns():
    data = dataset(60)
    trainer = Trainer(linear(), data, data, PLAIN.replace(lr=0.2, momentum=0.9, epochs=20))
    history = list(trainer.run())
    assert [m.epoch for m in history] == list(range(1, 21))
    assert history[-1].train_loss < 0.1 * history[0].train_loss
    assert history[-1].test_accuracy == 1.0


def test_iterations_cut_the_last_epoch_short():
    trainer = Trainer(linear(), dataset(), None, PLAIN.replace(iterations=5))
    seen = []
    history = list(trainer.run(lambda p: seen.append((p.epoch, p.step, p.steps, p.done))))
    assert trainer.epochs == 2
    assert [m.step for m in history] == [3, 5]
    assert seen == [(1, 1, 3, 1), (1, 2, 3, 2), (1, 3, 3, 3), (2, 1, 2, 4), (2, 2, 2, 5)]


def test_every_step_has_the_scheduled_rate():
    recipe = PLAIN.replace(epochs=2, lr=0.3, schedule="multistep", milestones=(0.5,))
    trainer = Trainer(linear(), dataset(), None, recipe)
    rates = []
    list(trainer.run(lambda p: rates.append((p.lr, trainer.optimizer.lr))))
    expected = [0.3, 0.3, 0.3, 0.03, 0.03, 0.03]
    np.testing.assert_allclose(rates, np.stack([expected, expected], axis=1))


def test_careful_start_ends_when_the_error_has_fallen():
    recipe = PLAIN.replace(epochs=30, lr=0.5, careful_lr=0.125, careful_error=0.8)
    trainer = Trainer(linear(), dataset(60), None, recipe)
    rates, errors = [], [1.0]

    def note(p):
        rates.append(p.lr)
        errors.append(trainer.running_error)

    list(trainer.run(note))
    change = rates.index(0.5)
    assert rates == [0.125] * change + [0.5] * (len(rates) - change)
    assert change > 5
    assert errors[change] < 0.8 <= errors[change - 1]


def test_same_seed_same_bits_and_another_seed_another_order():
    def weights(seed):
        model = convolutional()
        recipe = PLAIN.replace(epochs=2, lr=0.1, flip=True, crop_padding=1)
        list(Trainer(model, dataset(), None, recipe, seed=seed).run())
        return np.concatenate([p.numpy().ravel() for p in model.parameters()])

    np.testing.assert_array_equal(weights(3), weights(3))
    assert (weights(3) != weights(4)).any()


def test_an_early_stop_leaves_no_thread_behind():
    class Stop(Exception):  # noqa: N818
        pass

    def stop(progress):
        raise Stop

    before = threading.active_count()
    trainer = Trainer(linear(), dataset(), None, PLAIN)
    with contextlib.suppress(Stop):
        trainer.train_epoch(stop)
    assert threading.active_count() == before


def test_too_large_a_rate_is_told_with_its_place():
    trainer = Trainer(convolutional(), dataset(40), None, PLAIN.replace(lr=1e30, epochs=9))
    with pytest.raises(NotFiniteError) as caught:
        list(trainer.run())
    error = caught.value
    assert error.lr == 1e30
    assert error.epoch == (error.step - 1) // 5 + 1
    assert f"epoch {error.epoch}, step {error.step}, learning rate 1e+30" in str(error)
    # Batch norm makes any weight of the convolution harmless; those of the classifier are not.
    assert "the output of 4 (Linear) holds 24 NaN of 24 values" in str(error)


class Spoil(nn.Module):
    """Passes x on; from call `at` on, the output or the gradient has a NaN."""

    def __init__(self, at, forward):
        super().__init__()
        self.at, self.calls, self.spoil_forward = at, 0, forward

    def forward(self, x):
        self.calls += 1
        if self.calls < self.at:
            return x
        return (SpoilForward if self.spoil_forward else SpoilBackward)()(x)


class SpoilForward(Function):
    def forward(self, x):
        y = x.copy()
        y.flat[5] = np.nan
        return y

    def backward(self, gy):
        return gy


class SpoilBackward(Function):
    def forward(self, x):
        return x.copy()

    def backward(self, gy):
        return gy * np.inf


@pytest.mark.parametrize(
    ("forward", "place"),
    [
        (True, "the output of 2 (Spoil) holds 1 NaN of 512 values"),
        (False, "the gradient that reaches the output of 1 (ReLU) holds"),
    ],
)
def test_the_first_module_at_fault_is_named(forward, place):
    mr.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(2, 4, 3, padding=1), nn.ReLU(), Spoil(5, forward), nn.Conv2d(4, 4, 3, padding=1),
        nn.ReLU(), nn.Flatten(), nn.Linear(64, 3),
    )  # fmt: skip
    trainer = Trainer(model, dataset(24), None, PLAIN.replace(lr=0.01, epochs=4))
    before = []

    def remember(progress):
        before[:] = [p.numpy().copy() for p in model.parameters()]

    with pytest.raises(NotFiniteError) as caught:
        list(trainer.run(remember))
    assert (caught.value.epoch, caught.value.step) == (2, 5)
    assert place in str(caught.value)
    # The step that failed did not touch the weights.
    for parameter, values in zip(model.parameters(), before, strict=True):
        np.testing.assert_array_equal(parameter.numpy(), values)


def test_a_parameter_that_is_not_finite_is_named():
    model = convolutional()
    model[0].weight.data[1, 0, 0, 0] = math.inf
    with pytest.raises(NotFiniteError, match=r": 0\.weight holds 1 infinite of 72 values"):
        list(Trainer(model, dataset(), None, PLAIN).run())


def test_a_last_step_that_breaks_the_weights():
    trainer = Trainer(linear(), dataset(8), None, PLAIN.replace(lr=1e300))
    with pytest.raises(NotFiniteError, match=r"epoch 1, step 1, .*: after it, 1\.weight holds \d+"):
        list(trainer.run())


def test_an_empty_set():
    with pytest.raises(ValueError, match="has no images"):
        Trainer(linear(), dataset().take(0), None, PLAIN)


def test_every_epoch_has_all_images_in_an_order_of_its_own():
    model, data = linear(), dataset(20)
    seen = []
    model[1].register_forward_pre_hook(lambda module, args: seen.append(args[0].numpy().copy()))
    list(Trainer(model, data, None, PLAIN.replace(epochs=3)).run())
    epochs = [np.concatenate(seen[i : i + 3]) for i in (0, 3, 6)]
    expected = np.sort(epochs[0], axis=0)
    for epoch in epochs[1:]:
        assert epoch.shape == (20, 32)
        assert (epoch != epochs[0]).any()
        np.testing.assert_array_equal(np.sort(epoch, axis=0), expected)
