"""Batches: what is in them, what they depend on, and the thread behind them."""

from __future__ import annotations

import subprocess
import sys
import threading
import time

import numpy as np
import pytest

from minires.data import Dataset, Loader
from minires.data import transforms as T

N = 23
# Image k is k all over and has label k, so that batches can be read off.
DATA = Dataset(
    np.broadcast_to(np.arange(N, dtype=np.uint8)[:, None, None, None], (N, 3, 4, 5)),
    np.arange(N),
    [str(k) for k in range(N)],
)
PREFETCH = pytest.mark.parametrize("prefetch", [0, 1, 2, 50])


def threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "minires-loader"]


@pytest.fixture(autouse=True)
def _no_thread_is_left():
    yield
    assert not threads()


def labels(loader: Loader) -> list[list[int]]:
    return [y.tolist() for _, y in loader]


def order(loader: Loader) -> list[int]:
    return np.concatenate([y for _, y in loader]).tolist()


class TestBatches:
    @PREFETCH
    def test_in_order(self, prefetch: int) -> None:
        loader = Loader(DATA, 10, prefetch=prefetch)
        assert len(loader) == 3
        assert labels(loader) == [[*range(10)], [*range(10, 20)], [20, 21, 22]]
        for x, y in loader:
            assert x.shape == (len(y), 3, 4, 5)
            assert x.dtype == np.float32
            assert y.dtype == np.int64
            assert x.transpose(0, 2, 3, 1).flags.c_contiguous
            expected = np.broadcast_to(y[:, None, None, None] / 255, x.shape)
            np.testing.assert_allclose(x, expected, rtol=1e-6)

    @pytest.mark.parametrize(
        ("size", "drop_last", "sizes"),
        [
            (10, True, [10, 10]),
            (23, True, [23]),
            (23, False, [23]),
            (100, False, [23]),
            (1, False, [1] * 23),
            (np.int64(12), False, [12, 11]),
        ],
    )
    def test_sizes(self, size: int, drop_last: bool, sizes: list[int]) -> None:
        loader = Loader(DATA, size, drop_last=drop_last)
        assert [len(y) for _, y in loader] == sizes
        assert len(loader) == len(sizes)

    @PREFETCH
    def test_shuffled(self, prefetch: int) -> None:
        loader = Loader(DATA, 10, shuffle=True, seed=3, prefetch=prefetch)
        assert sorted(order(loader)) == list(range(N))
        assert order(loader) != list(range(N))
        for x, y in loader:
            assert np.array_equal(np.rint(x[:, 0, 0, 0] * 255), y)

    def test_labels_are_copies(self) -> None:
        data = Dataset(DATA.images, np.arange(N), DATA.classes)
        for _, y in Loader(data, 10):
            y[:] = -1
        assert np.array_equal(data.labels, np.arange(N))


class TestDeterminism:
    recipe = T.Compose([T.RandomCrop((4, 5), padding=2), T.RandomHorizontalFlip(), T.ToFloat()])

    def run(self, epoch: int = 0, data: Dataset = DATA, **options) -> list[bytes]:
        options = {"shuffle": True, "transform": self.recipe, "seed": 5} | options
        loader = Loader(data, 10, **options)
        loader.set_epoch(epoch)
        return [x.tobytes() + y.tobytes() for x, y in loader]

    def test_only_seed_and_epoch_matter(self) -> None:
        expected = self.run(epoch=2)
        for prefetch in (0, 1, 3, 100):
            assert self.run(epoch=2, prefetch=prefetch) == expected
        runs = [self.run(), self.run(epoch=1), expected, self.run(seed=6), self.run(seed=2**40)]
        batches = [batch for run in runs for batch in run]
        assert len(set(batches)) == len(batches)

    def test_a_known_order(self) -> None:
        # The documented rule: another one would break the resuming of older runs.
        loader = Loader(DATA, 8, shuffle=True, seed=1)
        loader.set_epoch(4)
        rng = np.random.default_rng(np.random.SeedSequence(1, spawn_key=(4, 0)))
        assert order(loader) == rng.permutation(N).tolist()

    def test_iterating_keeps_the_epoch(self) -> None:
        loader = Loader(DATA, 10, shuffle=True)
        first = labels(loader)
        assert labels(loader) == first
        loader.set_epoch(1)
        assert labels(loader) != first
        loader.set_epoch(0)
        assert labels(loader) == first

    @PREFETCH
    def test_the_epoch_of_a_running_iterator_is_fixed(self, prefetch: int) -> None:
        loader = Loader(DATA, 5, shuffle=True, prefetch=prefetch)
        expected = labels(loader)
        iterator = iter(loader)
        loader.set_epoch(9)
        assert [y.tolist() for _, y in iterator] == expected

    @PREFETCH
    def test_leaving_early_does_not_change_what_follows(self, prefetch: int) -> None:
        loader = Loader(DATA, 5, shuffle=True, transform=self.recipe, prefetch=prefetch)
        expected = [x.tobytes() for x, _ in loader]
        for _ in loader:
            break
        assert [x.tobytes() for x, _ in loader] == expected

    def test_augmentation_does_not_follow_the_order(self) -> None:
        # One image repeated: batches differ only by their augmentation, drawn anew for each.
        noise = np.random.default_rng(0).integers(0, 256, (1, 1, 4, 5), dtype=np.uint8)
        same = Dataset(np.repeat(noise, 20, axis=0), np.zeros(20, int), ["a"])
        runs = [self.run(epoch, same, shuffle=False) for epoch in range(3)]
        batches = [batch for run in runs for batch in run]
        assert len(set(batches)) == len(batches)


class Slow:
    """Counts its calls; can wait, or fail at the given one."""

    def __init__(self, fail_at: int | None = None, delay: float = 0.0) -> None:
        self.calls, self.fail_at, self.delay = 0, fail_at, delay

    def __call__(self, images, rng=None):
        self.calls += 1
        if self.calls == self.fail_at:
            raise RuntimeError(f"call {self.calls}")
        time.sleep(self.delay)
        return T.ToFloat()(images)


class TestThread:
    def test_it_works_ahead_but_not_further_than_asked(self) -> None:
        slow = Slow()
        iterator = iter(Loader(DATA, 1, transform=slow, prefetch=3))
        assert slow.calls == 0  # nothing begins before the first batch is asked for
        next(iterator)
        deadline = time.monotonic() + 5
        # One taken, three waiting, one in the hands of the thread.
        while slow.calls < 5 and time.monotonic() < deadline:
            time.sleep(0.001)
        time.sleep(0.02)
        assert slow.calls == 5
        del iterator

    @PREFETCH
    @pytest.mark.parametrize("taken", [0, 1, 3, N - 1, N])
    def test_leaving_early_ends_the_thread(self, prefetch: int, taken: int) -> None:
        iterator = iter(Loader(DATA, 1, prefetch=prefetch))
        for _ in range(taken):
            next(iterator)
        del iterator
        assert not threads()

    def test_leaving_while_the_thread_is_busy(self) -> None:
        for taken in range(1, 6):
            for k, _ in enumerate(Loader(DATA, 1, transform=Slow(delay=0.002), prefetch=1), 1):
                if k == taken:
                    break
            assert not threads()

    @PREFETCH
    @pytest.mark.parametrize("fail_at", [1, 4, N])
    def test_an_error_in_the_transform_is_raised_in_the_loop(
        self, prefetch: int, fail_at: int
    ) -> None:
        iterator = iter(Loader(DATA, 1, transform=Slow(fail_at), prefetch=prefetch))
        for k in range(fail_at - 1):
            assert next(iterator)[1].tolist() == [k]
        with pytest.raises(RuntimeError, match=f"call {fail_at}"):
            next(iterator)
        assert not threads()

    @PREFETCH
    def test_an_error_in_the_loop_ends_the_thread(self, prefetch: int) -> None:
        def train() -> None:
            for _ in Loader(DATA, 1, prefetch=prefetch):
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            train()
        assert not threads()

    def test_leaving_when_an_error_waits_unseen(self) -> None:
        slow = Slow(fail_at=2)
        iterator = iter(Loader(DATA, 1, transform=slow, prefetch=1))
        next(iterator)
        while slow.calls < 2:
            time.sleep(0.001)
        del iterator
        assert not threads()

    def test_iterators_are_independent(self) -> None:
        loader = Loader(DATA, 4, shuffle=True)
        pairs = [(a[1].tolist(), b[1].tolist()) for a, b in zip(loader, loader, strict=True)]
        assert all(a == b for a, b in pairs)
        assert len(pairs) == len(loader)

    def test_a_half_read_iterator_does_not_hold_up_the_interpreter(self) -> None:
        code = (
            "from minires.data import Loader, digits\n"
            "iterator = iter(Loader(digits(), 1))\n"
            "next(iterator)\n"
        )
        command = [sys.executable, "-c", code]
        done = subprocess.run(command, capture_output=True, check=True, timeout=20)
        assert done.stderr == b""


class TestErrors:
    @pytest.mark.parametrize(
        ("options", "error", "message"),
        [
            ({"batch_size": 0}, ValueError, "batch_size must be at least 1, got 0"),
            ({"batch_size": 2.5}, TypeError, "batch_size must be an integer, got 2.5"),
            ({"prefetch": -1}, ValueError, "prefetch must be at least 0, got -1"),
            ({"seed": -1}, ValueError, "seed must be at least 0, got -1"),
            ({"batch_size": 24, "drop_last": True}, ValueError, "24 with drop_last leaves no bat"),
            ({"dataset": DATA.take(0)}, ValueError, "nothing to load: Dataset.*0 images"),
        ],
    )
    def test_arguments(self, options: dict, error: type[Exception], message: str) -> None:
        with pytest.raises(error, match=message):
            Loader(**({"dataset": DATA, "batch_size": 4} | options))

    def test_epoch(self) -> None:
        with pytest.raises(ValueError, match="epoch must be at least 0"):
            Loader(DATA, 4).set_epoch(-1)

    @PREFETCH
    def test_what_a_transform_must_give(self, prefetch: int) -> None:
        crop = T.CenterCrop(2)
        with pytest.raises(TypeError, match=r"CenterCrop\(2\) gives uint8, expected float32"):
            list(Loader(DATA, 4, transform=crop, prefetch=prefetch))

        def one(images, rng=None):
            return T.ToFloat()(images[:1])

        with pytest.raises(ValueError, match="gives 1 images for 4"):
            list(Loader(DATA, 4, transform=one, prefetch=prefetch))


def test_repr() -> None:
    assert repr(Loader(DATA, 4, seed=2)) == (
        "Loader(Dataset(dataset train: 23 images 3x4x5, 23 classes), batch_size=4, "
        "shuffle=False, drop_last=False, transform=ToFloat(), seed=2)"
    )
