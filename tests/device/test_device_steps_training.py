"""Runs on a device: the trainer's batches, readings, checkpoints, errors."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from device_nets import RECIPE, assert_same, distance, small_net, small_sets, state_of

import minires as mr
from minires.data import Loader
from minires.kernels.arrays import to_host
from minires.kernels.cuda.graph import Workplace
from minires.training import NotFiniteError, Run, device_training, fit, load_model
from minires.training.resident import ResidentBatches, obstacle
from minires.training.transfer import Transfer


@pytest.fixture(scope="module")
def sets() -> Any:
    return small_sets()


def train(sets: Any, device: str, **options: Any) -> Run:
    recipe = options.pop("recipe", RECIPE)
    return fit(small_net(), *sets, recipe, device=device, log=None, **options)


TIMES = ("seconds", "images_per_second")


def metrics(run: Run) -> list[dict[str, Any]]:
    return [{k: v for k, v in m.as_dict().items() if k not in TIMES} for m in run.history]


def test_a_run_is_that_of_the_processor_up_to_rounding(cuda: str, sets: Any) -> None:
    on_cpu, on_device = train(sets, "cpu"), train(sets, cuda)
    for ours, theirs in zip(metrics(on_device), metrics(on_cpu), strict=True):
        assert ours == pytest.approx(theirs, rel=2e-3)
    assert distance(state_of(on_cpu.trained.model), state_of(on_device.trained.model)) < 1e-3
    assert on_device.trainer.on_device.steps.graphed.replays == 9 - 2


def test_a_run_with_graphs_is_the_run_without(cuda: str, sets: Any) -> None:
    """Bit for bit, with a learning rate that changes at every step."""
    graphs, launches = train(sets, cuda), train(sets, cuda, graph=False)
    assert metrics(graphs) == metrics(launches)
    assert_same(state_of(graphs.trained.model), state_of(launches.trained.model))


def test_batches_made_on_the_device_are_the_loaders(cuda: str, sets: Any) -> None:
    """Bit for bit, through two epochs; so are those that are sent."""
    from minires.training import Normalization

    recipe = RECIPE.replace(normalization="pixel_mean", flip=True, crop_padding=2)
    normalization = Normalization.fit("pixel_mean", sets[0])
    loader = Loader(
        sets[0], 16, shuffle=True, transform=recipe.augmentation(sets[0], normalization), seed=4
    )
    place = Workplace(cuda)
    made = ResidentBatches(loader, recipe, normalization, place)
    sent = Transfer(loader, place)
    assert obstacle(recipe, loader, place) is None
    for epoch in (0, 1, 5):
        loader.set_epoch(epoch)
        expected = list(loader)
        with place:
            sizes = made.begin_epoch()
            arrived = [(to_host(x).copy(), to_host(y).copy()) for x, y in sent]
            cursor = place.xp.zeros(1, np.int64)
            for (x, y), n, (u, v) in zip(expected, sizes, arrived, strict=True):
                a, b = made.batch(cursor, n)
                cursor += n
                np.testing.assert_array_equal(to_host(a), x)
                np.testing.assert_array_equal(to_host(b), y)
                np.testing.assert_array_equal(u, x)
                np.testing.assert_array_equal(v, y)


def test_sent_batches_stay_until_the_next_is_asked_for(cuda: str, sets: Any) -> None:
    """The copy of a later batch does not write where an earlier one is being used."""
    loader = Loader(sets[0], 4, seed=1)
    place = Workplace(cuda)
    with place:
        for (x, y), (u, v) in zip(Transfer(loader, place), loader, strict=True):
            place.stream.synchronize()
            np.testing.assert_array_equal(to_host(x), u)
            np.testing.assert_array_equal(to_host(y), v)
        half = iter(Transfer(loader, place))
        next(half)
        half.close()  # the thread ends, although it waits for room


def test_an_error_of_the_transform_arrives(cuda: str, sets: Any) -> None:
    def broken(images: Any, rng: Any = None) -> Any:
        raise ValueError("no such colour")

    place = Workplace(cuda)
    with pytest.raises(ValueError, match="no such colour"), place:
        list(Transfer(Loader(sets[0], 4, transform=broken), place))


def test_sets_are_kept_where_they_are_if_they_are_large(
    cuda: str, sets: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from minires.training import resident

    resized = RECIPE.replace(resized_crop=(0.5, 1.0), crop_padding=0)
    run = train(sets, cuda, recipe=resized.replace(epochs=1))
    assert run.trainer.on_device.why_not == "images are resized"
    monkeypatch.setattr(resident, "SHARE", 0.0)
    sent = train(sets, cuda)
    assert "free memory" in sent.trainer.on_device.why_not
    monkeypatch.undo()
    made = train(sets, cuda)
    assert made.trainer.on_device.why_not is None
    assert metrics(sent) == metrics(made)
    assert_same(state_of(sent.trained.model), state_of(made.trained.model))


def test_readings_come_at_intervals_and_at_the_end(
    cuda: str, sets: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(device_training, "INTERVAL", 2)
    seen: list[tuple[int, int, int]] = []
    recipe = RECIPE.replace(batch_size=8, epochs=2)
    run = train(sets, cuda, recipe=recipe, on_step=lambda p: seen.append((p.epoch, p.step, p.done)))
    assert seen == [(1, 2, 2), (1, 4, 4), (1, 5, 5), (2, 2, 7), (2, 4, 9), (2, 5, 10)]
    assert [m.step for m in run.history] == [5, 10]


def test_a_careful_start_looks_at_every_batch(cuda: str, sets: Any) -> None:
    recipe = RECIPE.replace(careful_lr=0.004, careful_error=0.985, epochs=5)
    rates: dict[str, list[float]] = {"cpu": [], cuda: []}
    for device, seen in rates.items():
        run = Run.new(small_net(), *sets, recipe, device=device)
        given = run.trainer.learning_rate

        def noted(given: Any = given, seen: list[float] = seen) -> float:
            seen.append(given())
            return seen[-1]

        run.trainer.learning_rate = noted  # type: ignore[method-assign]
        run.train()
    assert rates["cpu"] == rates[cuda]
    assert 1 < rates[cuda].count(0.004) < len(rates[cuda])


def test_what_breaks_is_told_and_weights_stay_as_they_were(cuda: str, sets: Any) -> None:
    """The learning rate ruins the weights in step 2; step 3 is the first that cannot be done."""
    recipe = RECIPE.replace(lr=1e30, schedule="constant", batch_size=8)
    run = Run.new(small_net(), *sets, recipe, device=cuda)
    with pytest.raises(NotFiniteError, match="noticed after step 5") as caught:
        run.train()
    step = caught.value.step
    assert 2 <= step <= 4
    assert f"those before step {step}" in str(caught.value)
    broken = {k: v for k, v in state_of(run.trained.model).items() if "running" not in k}
    assert all(np.isfinite(v).all() for v in broken.values())
    again = Run.new(small_net(), *sets, recipe.replace(iterations=step - 1), device=cuda)
    again.train()
    expected = {k: v for k, v in state_of(again.trained.model).items() if "running" not in k}
    expected.pop("1.num_batches_tracked"), expected.pop("5.num_batches_tracked")
    assert_same(expected, {k: broken[k] for k in expected})


@pytest.mark.parametrize("graph", [True, False])
def test_resumed_on_the_device_and_on_the_processor(
    cuda: str, sets: Any, tmp_path: Any, graph: bool
) -> None:
    whole = train(sets, cuda, graph=graph)
    folder = tmp_path / "run"
    run = Run.new(small_net(), *sets, RECIPE, out=folder, device=cuda, graph=graph)
    run.trainer.train_epoch()
    run._save_checkpoint()
    config = json.loads((folder / "config.json").read_text())
    assert (config["device"], config["precision"], config["graph"]) == (cuda, "fp32", graph)
    resumed = Run.resume(folder, *sets, model=small_net(9))
    assert (resumed.trainer.device, resumed.trainer.step) == (cuda, 3)
    resumed.train()
    assert_same(state_of(whole.trained.model), state_of(resumed.trained.model))
    elsewhere = Run.resume(folder, *sets, model=small_net(9), device="cpu")
    assert elsewhere.finished
    probabilities = [r.trained.predict(sets[1].images) for r in (resumed, elsewhere)]
    np.testing.assert_allclose(*probabilities, atol=1e-5)
    loaded = load_model(folder, small_net(9))
    assert_same(state_of(loaded.model), state_of(whole.trained.model))


def test_begun_on_the_processor_and_finished_on_the_device(
    cuda: str, sets: Any, tmp_path: Any
) -> None:
    run = Run.new(small_net(), *sets, RECIPE, out=tmp_path / "run")
    run.trainer.train_epoch()
    run._save_checkpoint()
    resumed = Run.resume(tmp_path / "run", *sets, model=small_net(), device=cuda)
    resumed.train()
    assert resumed.trainer.device == cuda
    whole = train(sets, "cpu")
    assert distance(state_of(whole.trained.model), state_of(resumed.trained.model)) < 1e-3


def test_a_processor_computes_in_fp32_only(sets: Any) -> None:
    for precision in ("bf16", "fp16", "tf32"):
        with pytest.raises(ValueError, match=f"'{precision}' is for CUDA devices"):
            train(sets, "cpu", precision=precision)
    with pytest.raises(ValueError, match=r"precision 'fp8'.*fp32"):
        train(sets, "cpu", precision="fp8")
    with pytest.raises(ValueError, match="unknown device 'gpu'"):
        train(sets, "gpu")


def test_evaluation_between_epochs_sees_the_model_as_it_is(cuda: str, sets: Any) -> None:
    """Its graphs are captured once, and the weights change under them."""
    run = Run.new(small_net(), *sets, RECIPE.replace(batch_size=8), device=cuda)
    trainer = run.trainer
    for _ in range(3):
        metrics = trainer.train_epoch()
        expected = mr.training.evaluate(
            trainer.model, sets[1], trainer.normalization.transform(), batch_size=8, device=cuda
        )
        assert metrics.test_loss == expected.loss
        np.testing.assert_array_equal(trainer.evaluate(sets[1]).confusion, expected.confusion)
    assert trainer.on_device.evaluation.graphed.captures == 2
    other = trainer.evaluate(sets[0])
    assert other.images == 40


def test_a_model_of_too_few_classes(cuda: str, sets: Any) -> None:
    net = mr.nn.Sequential(mr.nn.Flatten(), mr.nn.Linear(64, 3))
    with pytest.raises(ValueError, match="train: the model gives 16x3 for 16 images; expected 16x"):
        fit(net, *sets, RECIPE, device=cuda, log=None)


def test_evaluation_on_the_device(cuda: str, sets: Any) -> None:
    run = train(sets, "cpu", recipe=RECIPE.replace(epochs=1))
    model, transform = run.trained.model, run.trained.normalization.transform()
    expected = mr.training.evaluate(model, sets[1], transform)
    model.to(cuda)
    for batch_size in (256, 7):
        result = mr.training.evaluate(
            model, sets[1], transform, batch_size=batch_size, device=cuda
        )
        assert result.loss == pytest.approx(expected.loss, rel=1e-5)
        np.testing.assert_array_equal(result.confusion, expected.confusion)
