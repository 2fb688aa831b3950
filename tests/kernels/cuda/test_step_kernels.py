"""The kernels of whole training steps: batches on the device, accounts, casts, guarded updates."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from minires.data import Dataset, transforms
from minires.kernels.cuda import batch, chunks, sgd, steps
from minires.kernels.cuda.launch import device_of
from minires.kernels.cuda.steps import BROKEN, BROKEN_AT, CURSOR, IMAGES, RIGHT, SKIPPED, STEPS
from minires.testing.kernels import laid_out

N, C, H, W = 5, 3, 7, 6


@pytest.fixture
def dataset(rng: Any) -> Dataset:
    images = rng.integers(0, 256, (N, H, W, C), dtype=np.uint8).transpose(0, 3, 1, 2)
    return Dataset(images, rng.integers(0, 10, N), [str(k) for k in range(10)])


@pytest.mark.parametrize("kind", ["pixel_mean", "channels"])
@pytest.mark.parametrize("padding", [0, 2])
def test_batches_are_those_of_the_transforms(
    device: Any, rng: Any, dataset: Dataset, kind: str, padding: int
) -> None:
    """Bit for bit: the same arithmetic in the same order."""
    from minires.training import Normalization

    normalization = Normalization.fit(kind, dataset)
    picked = np.array([3, 0, 3, 1])
    crop, flip = transforms.RandomCrop((H, W), padding), transforms.RandomHorizontalFlip()
    seed = int(rng.integers(1 << 30))
    on_cpu = transforms.Compose([normalization.transform(), crop, flip])
    expected = on_cpu(dataset.images[picked], np.random.default_rng(seed))
    draws = np.full((9, 4), 99, np.int32)
    again = np.random.default_rng(seed)
    draws[5:, 0] = picked
    draws[5:, 1], draws[5:, 2] = crop.draw(4, (H, W), again)
    draws[5:, 3] = flip.draw(4, again)
    assert 0 < draws[5:, 3].sum() < 4 or padding  # some of each, in most of the cases

    mean, std = normalization.mean, normalization.std
    mean = mean if mean.ndim == 1 else np.ascontiguousarray(mean.transpose(1, 2, 0))

    def made(draws: Any, cursor: Any) -> Any:
        images = np.ascontiguousarray(dataset.images.transpose(0, 2, 3, 1))
        resident = batch.ResidentSet(
            device_of(draws), images, dataset.labels, mean, std, padding
        )
        return resident.batch(draws, cursor, 4, np.dtype(np.float32))

    x, y = device(made, draws, np.array([5]))
    np.testing.assert_array_equal(x, expected)
    np.testing.assert_array_equal(y, dataset.labels[picked])


@pytest.mark.parametrize("shape", [(5, 10), (1, 1), (70, 3), (33, 70)])
def test_tally(device: Any, rng: Any, shape: tuple[int, int]) -> None:
    x = 5 * rng.standard_normal(shape)
    x[0] = x[0, 0]  # all are the largest: the first one counts
    labels = rng.integers(0, shape[1], shape[0])
    labels[0] = 0

    def twice(x: Any, labels: Any) -> Any:
        account = steps.Account(device_of(x))
        account.tally(x, labels)
        account.tally(x, labels)
        return account.sums, account.counts

    sums, counts = device(twice, x, labels)
    shifted = x - x.max(axis=1, keepdims=True)
    losses = np.log(np.exp(shifted).sum(axis=1)) - shifted[np.arange(len(x)), labels]
    assert sums[0] == pytest.approx(2 * losses.sum(), rel=1e-12)
    assert counts[RIGHT] == 2 * (x.argmax(axis=1) == labels).sum()
    assert counts[IMAGES] == counts[CURSOR] == 2 * len(x)
    assert counts[BROKEN] == 0


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("label", [0, 3])
def test_a_loss_that_is_not_finite_breaks_the_account(device: Any, bad: float, label: int) -> None:
    x = np.zeros((3, 4), np.float32)
    x[1, 2] = bad

    def tally(x: Any, labels: Any) -> Any:
        account = steps.Account(device_of(x))
        account.tally(x, labels)
        account.check([account.scale])
        return account.counts, account.control

    with np.errstate(invalid="ignore"):
        counts, control = device(tally, x, np.array([0, label, 1]))
    assert counts[BROKEN] == 1
    assert control[1] == 1


def scripted(
    device: Any, bad_steps: set[int], count: int, loss_scale: steps.LossScale | None
) -> tuple[Any, list[tuple[float, ...]]]:
    """The counts at the end, and (scale, factor, skip) after each step."""
    seen: list[tuple[float, ...]] = []

    def run(good: Any, bad: Any) -> Any:
        account = steps.Account(device_of(good), loss_scale)
        for step in range(count):
            control = account.check([good, bad if step in bad_steps else good])
            seen.append(tuple(map(float, (account.scale[0], control[0], control[1]))))
        return account.counts

    good = np.ones(chunks.CHUNK + 3, np.float32)
    bad = good.copy()
    bad[-2] = -np.inf
    return device(run, good, bad), seen


def test_without_a_scale_the_first_bad_gradient_stops_all_updates(device: Any) -> None:
    counts, seen = scripted(device, {2}, 5, None)
    assert [s[2] for s in seen] == [0, 0, 1, 1, 1]
    assert {s[0] for s in seen} == {s[1] for s in seen} == {1.0}
    assert (counts[BROKEN], counts[BROKEN_AT], counts[STEPS]) == (2, 3, 5)


def test_an_overflow_skips_the_step_and_halves_the_scale_which_grows_back(device: Any) -> None:
    rule = steps.LossScale(initial=8.0, interval=2)
    counts, seen = scripted(device, {1, 4}, 9, rule)
    #                 good bad good good bad good good good good
    assert [s[2] for s in seen] == [0, 1, 0, 0, 1, 0, 0, 0, 0]
    assert [s[0] for s in seen] == [8, 4, 4, 8, 4, 4, 8, 8, 16]
    # What gradients are multiplied by is one over the scale that they were computed with.
    assert [1 / s[1] for s in seen] == [8, 8, 4, 4, 8, 4, 4, 8, 8]
    assert (counts[BROKEN], counts[SKIPPED]) == (0, 2)


def test_a_scale_that_falls_too_low_is_no_cure(device: Any) -> None:
    counts, seen = scripted(device, set(range(5)), 5, steps.LossScale(4.0, 100, smallest=1.0))
    assert [s[0] for s in seen] == [2, 1, 0.5, 0.5, 0.5]
    assert (counts[BROKEN], counts[BROKEN_AT]) == (2, 3)


@pytest.mark.parametrize("narrow", ["float16", "bfloat16"])
def test_many_casts_in_one_launch(device: Any, rng: Any, narrow: str) -> None:
    ml = pytest.importorskip("ml_dtypes", reason="NumPy has no bfloat16: install ml_dtypes")
    dtype = np.dtype(narrow if narrow == "float16" else ml.bfloat16)
    shapes = [(7,), (4, 3, 3, 3), (chunks.CHUNK + 5,), (1,)]
    given = [rng.standard_normal(s).astype(np.float32) for s in shapes]
    given[1] = laid_out(given[1], "channels last")

    def cast(*arrays: Any) -> Any:
        return tuple(chunks.cast_many(chunks.cast_many(arrays, dtype), np.float32))

    results = device(cast, *given)
    for a, result in zip(given, results, strict=True):
        np.testing.assert_array_equal(result, a.astype(dtype).astype(np.float32))


@pytest.mark.parametrize("nesterov", [False, True])
def test_guarded_updates(device: Any, rng: Any, nesterov: bool) -> None:
    """A factor of the gradients is the same as scaled gradients; a skipped step changes nothing."""
    p, g = rng.standard_normal(37), rng.standard_normal(37)

    def update(p: Any, g: Any, half: Any, stop: Any) -> Any:
        guarded, plain = p.copy(), p.copy()
        settings = (0.1, 0.9, 0.0, 1e-2, nesterov)
        one, other = sgd.FusedSGD([guarded], *settings), sgd.FusedSGD([plain], *settings)
        for control in (half, stop, half):
            one.step([4 * g if control is half else g * np.nan], control)
        for _ in range(2):
            other.step([2 * g])
        return guarded, plain, one.buffers[0], other.buffers[0]

    half, stop = np.array([0.5, 0], np.float32), np.array([0.5, 1], np.float32)
    one, other, v, w = device(update, p, g, half, stop)
    np.testing.assert_array_equal(one, other)
    np.testing.assert_array_equal(v, w)
    assert (one != p).all()
