"""Steps captured as graphs: they do what single launches do, or say why they are none."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import pytest
from device_nets import assert_same, small_net, state_of

from minires import functional as F
from minires import kernels, nn
from minires.autograd import Tensor
from minires.kernels.cuda.graph import Capture, CaptureError, Workplace
from minires.optim import SGD, Adam
from minires.training.graphs import MOST, GraphedStep


class Training:
    """A step by hand: forward, loss, backward, update; `extra` runs in the middle."""

    def __init__(self, cuda: str, graph: bool, model: nn.Module | None = None) -> None:
        self.place = Workplace(cuda)
        self.model = (model or small_net()).to(cuda)
        self.optimizer: Any = SGD(self.model.parameters(), lr=0.1, momentum=0.9, weight_decay=1e-3)
        self.extra: Any = lambda logits: None
        self.graphed = GraphedStep(self.step, self.model, self.place) if graph else None

    def step(self, x: Any, y: Any) -> Any:
        logits = self.model(Tensor._wrap(x))
        loss = F.cross_entropy(logits, Tensor._wrap(y))
        self.extra(logits)
        loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad()
        return loss._data

    def __call__(self, x: np.ndarray, y: np.ndarray, lr: float = 0.1) -> float:
        with self.place:
            self.optimizer.lr = lr
            run = self.graphed or self.step
            return float(run(self.place.xp.asarray(x), self.place.xp.asarray(y)))


@pytest.fixture
def batches(rng: Any) -> list[tuple[np.ndarray, np.ndarray]]:
    """Eight batches; the fourth and the eighth are smaller."""
    return [
        (rng.standard_normal((n, 1, 6, 6)).astype(np.float32), rng.integers(0, 10, n))
        for n in (4, 4, 4, 3) * 2
    ]


def both(cuda: str, batches: Any, prepare: Any = lambda training: None) -> tuple[Any, Any]:
    """The same steps in both ways: the training with graphs and the one without, after them."""
    made = Training(cuda, True), Training(cuda, False)
    for training in made:
        prepare(training)
    for i, (x, y) in enumerate(batches):
        losses = [training(x, y, lr=0.1 / (i + 1)) for training in made]
        assert losses[0] == losses[1], i
    assert_same(state_of(made[0].model), state_of(made[1].model))
    return made


def test_replayed_steps_give_the_same_bits(cuda: str, batches: Any) -> None:
    """With another learning rate at each, running statistics, momentum, and smaller batches."""
    training, _ = both(cuda, batches)
    assert training.graphed.reason is None
    assert training.graphed.captures == 2  # one for each size
    assert training.graphed.replays == len(batches) - 2  # all but the first of each size
    assert int(state_of(training.model)["1.num_batches_tracked"]) == len(batches)


def test_another_mode_is_another_graph(cuda: str, batches: Any) -> None:
    training = Training(cuda, True)
    x, y = batches[0]
    for mode, captures in ((True, 1), (False, 2), (True, 2)):
        training.model.train(mode)
        for _ in range(3):
            training(x, y)
        assert training.graphed.captures == captures
    assert int(state_of(training.model)["1.num_batches_tracked"]) == 6


def test_other_kernels_are_another_graph(cuda: str, batches: Any) -> None:
    def prepare(training: Training) -> None:
        for i, (x, y) in enumerate(batches[:3] * 2):
            with kernels.use(conv2d="direct" if i > 2 else "implicit"):
                training(x, y)

    training, _ = both(cuda, batches[:1], prepare)
    assert training.graphed.captures == 2


def test_other_parameters_are_another_graph(cuda: str, batches: Any) -> None:
    def prepare(training: Training) -> None:
        for _ in range(3):
            training(*batches[0])
        weight = training.model[0].weight
        weight.data = weight.detach().clone() * 0.5
        training.optimizer.state.clear()

    training, _ = both(cuda, batches[:3], prepare)
    assert training.graphed.captures == 2


def test_inputs_are_copied_in_and_read_anew(cuda: str, batches: Any) -> None:
    training = Training(cuda, True)
    (x, _), (other, _) = batches[:2]
    place = training.place
    doubled = GraphedStep(lambda a: a * 2, training.model, place)
    with place:
        given = place.xp.asarray(x)
        for values in (x, x, other, x):
            given[...] = place.xp.asarray(values)
            result = doubled(given)
            given[...] = 0  # as a loader uses its memory again
            np.testing.assert_array_equal(result.get(), values * 2)
    assert doubled.captures == 1


def refused(cuda: str, batches: Any, prepare: Any, reason: str) -> Any:
    """Train in both ways; with graphs there is one warning, and no graph."""
    with pytest.warns(RuntimeWarning, match=reason) as caught:
        training, _ = both(cuda, batches, prepare)
    assert len(caught) <= 2  # one for each size of batch
    assert reason in training.graphed.reason
    assert training.graphed.captures == training.graphed.replays == 0
    return training


def test_a_value_read_back_is_no_graph(cuda: str, batches: Any) -> None:
    seen: list[float] = []

    def prepare(training: Training) -> None:
        training.extra = lambda logits: seen.append(float(logits._data[0, 0]))

    refused(cuda, batches[:3], prepare, "the device refuses")
    assert len(seen) == 6
    assert seen[::2] == seen[1::2]


def test_an_array_sent_is_no_graph(cuda: str, batches: Any) -> None:
    def prepare(training: Training) -> None:
        training.extra = lambda logits: training.place.xp.asarray(np.ones(3))

    refused(cuda, batches[:3], prepare, "an array of the host is sent")


def test_an_optimiser_that_counts_on_the_host_is_no_graph(cuda: str, batches: Any) -> None:
    """A replay would take Adam's corrections for the step that was captured, at every step."""

    def prepare(training: Training) -> None:
        training.optimizer = Adam(training.model.parameters(), lr=0.1)

    refused(cuda, batches[:3], prepare, "Adam keeps numbers of its steps on the host")


def test_random_numbers_of_the_host_are_no_graph(cuda: str, batches: Any) -> None:
    import minires as mr

    made = [Training(cuda, graph, small_net(dropout=0.5)) for graph in (True, False)]

    def train() -> None:
        for training in made:
            mr.manual_seed(5)
            for x, y in batches[:3]:
                training(x, y)

    with pytest.warns(RuntimeWarning, match="draws random numbers"):
        train()
    assert_same(state_of(made[0].model), state_of(made[1].model))
    assert made[0].graphed is not None
    assert made[0].graphed.captures == 0


def test_hooks_are_called_and_graphs_come_back_without_them(cuda: str, batches: Any) -> None:
    training = Training(cuda, True)
    x, y = batches[0]
    for _ in range(2):
        training(x, y)
    calls: list[int] = []
    for register in (
        lambda: training.model[0].register_forward_hook(lambda *_: calls.append(1)),
        lambda: training.model[0].register_forward_pre_hook(lambda *_: calls.append(1)),
        lambda: training.model[0].weight.register_hook(lambda gradient: calls.append(1)),
    ):
        handle = register()
        with pytest.warns(RuntimeWarning, match="has a hook"):
            training(x, y)
        handle.remove()
        before = training.graphed.replays
        training(x, y)
        assert training.graphed.replays == before + 1
    assert len(calls) == 3


def test_an_error_inside_leaves_everything_as_it_was(cuda: str, batches: Any) -> None:
    """Also gradients, which the recording left behind without computing them."""
    made = Training(cuda, True), Training(cuda, False)
    x, y = batches[0]
    for training in made:
        training(x, y)

    def fail(logits: Any) -> None:
        logits.sum().backward(retain_graph=True)
        raise ValueError("a mistake of the user's")

    before = state_of(made[0].model)
    made[0].extra = fail
    with pytest.raises(ValueError, match="a mistake of the user's"):
        made[0](x, y)
    assert_same(before, state_of(made[0].model))
    assert all(p.grad is None for p in made[0].model.parameters())
    made[0].extra = lambda logits: None
    for _ in range(3):
        assert made[0](x, y) == made[1](x, y)
    assert made[0].graphed.captures == 1
    assert_same(state_of(made[0].model), state_of(made[1].model))


def test_many_kinds_of_steps_push_out_the_oldest(cuda: str, rng: Any) -> None:
    training = Training(cuda, True)
    made = [
        (rng.standard_normal((n, 1, 4, 4)).astype(np.float32), rng.integers(0, 10, n))
        for n in range(2, MOST + 3)
    ]
    for x, y in made:
        training(x, y)
        training(x, y)
    assert training.graphed.captures == MOST + 1
    training(*made[0])  # the first was pushed out
    assert training.graphed.captures == MOST + 2
    training(*made[-1])
    assert training.graphed.captures == MOST + 2


def test_a_released_step_begins_again(cuda: str, batches: Any) -> None:
    training = Training(cuda, True)
    for _ in range(3):
        training(*batches[0])
    training.graphed.release()
    for _ in range(2):
        training(*batches[0])
    assert training.graphed.captures == 2


def test_no_capture_inside_a_capture(cuda: str) -> None:
    place = Workplace(cuda)
    pool = place.cuda.MemoryPool()
    inner = Capture(place, pool)
    with place, Capture(place, pool), pytest.raises(CaptureError, match="captured already"):
        inner.__enter__()


def test_a_processor_is_no_workplace(cuda: str) -> None:
    with pytest.raises(ValueError, match="a CUDA device, got 'cpu'"):
        Workplace("cpu")


def test_nothing_warns_where_graphs_work(cuda: str, batches: Any) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        both(cuda, batches[:4])
