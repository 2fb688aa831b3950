"""Mixed precision: close to float32 within stated bounds; overflows skip a step and no more."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from device_nets import RECIPE, assert_same, distance, small_net, small_sets, state_of

from minires import functional as F
from minires.autograd import Tensor
from minires.kernels.arrays import to_host
from minires.kernels.cuda.graph import Workplace
from minires.kernels.cuda.steps import LossScale
from minires.optim import SGD
from minires.training import Run, fit
from minires.training.device_steps import DeviceSteps
from minires.training.precision import MixedPrecision

pytest.importorskip("ml_dtypes", reason="NumPy has no bfloat16: install ml_dtypes")

# Roundoff of what is stored: 2**-11 for tf32's factors and float16, 2**-8 for bfloat16. Errors of
# the layers add up, and a sum of many roundings grows slower than their number.
BOUNDS = {"tf32": 8 * 2.0**-11, "fp16": 16 * 2.0**-11, "bf16": 16 * 2.0**-8}


@pytest.fixture
def batch(rng: Any) -> Any:
    return rng.standard_normal((6, 8, 6, 6)).astype(np.float32), rng.integers(0, 10, 6)


def gradients(cuda: str, precision: str, batch: Any) -> tuple[Any, dict[str, np.ndarray]]:
    """The loss and the gradients of a small net in a precision."""
    from minires.training.precision import kernels_of

    model = small_net(channels=8).to(cuda)
    x, y = (Tensor(a).to(cuda) for a in batch)
    with kernels_of(precision):
        logits = MixedPrecision(model, precision)(x)
        assert logits.dtype == np.float32
        loss = F.cross_entropy(logits, y)
        loss.backward()
    assert all(p.dtype == p.grad.dtype == np.float32 for p in model.parameters())
    return loss.item(), {k: to_host(p.grad._data) for k, p in model.named_parameters()}


@pytest.mark.parametrize("precision", ["tf32", "fp16", "bf16"])
def test_gradients_are_close_to_float32s(cuda: str, batch: Any, precision: str) -> None:
    loss, right = gradients(cuda, "fp32", batch)
    near, found = gradients(cuda, precision, batch)
    assert near == pytest.approx(loss, rel=BOUNDS[precision])
    for name, gradient in found.items():
        error = np.linalg.norm(gradient - right[name]) / np.linalg.norm(right[name])
        # Batch norm's gradient is a difference of larger numbers: their errors weigh more in it.
        assert 0 < error < 2 * BOUNDS[precision], (name, error)


def test_fp32_rounds_nothing(cuda: str, batch: Any) -> None:
    """Also after somebody else has used tf32."""
    before = gradients(cuda, "fp32", batch)
    gradients(cuda, "tf32", batch)
    loss, found = gradients(cuda, "fp32", batch)
    assert loss == before[0]
    assert_same(found, before[1])


def test_what_is_16_bits_wide_and_what_is_not(cuda: str, batch: Any) -> None:
    seen: dict[str, Any] = {}
    model = small_net(channels=8).to(cuda)
    for name, module in model.named_modules():
        module.register_forward_hook(
            lambda _, args, out, name=name: seen.update(
                {name: (args[0].dtype.name, out.dtype.name)}
            )
        )
    weights = [p._data for p in model.parameters()]
    MixedPrecision(model, "bf16")(Tensor(batch[0]).to(cuda))
    assert seen["0"] == seen["1"] == seen["4"] == seen["7"] == ("bfloat16", "bfloat16")
    assert seen["8"] == ("bfloat16", "float32")  # the classifier
    assert all(a is p._data for a, p in zip(weights, model.parameters(), strict=True))
    assert model[1].running_mean.dtype == np.float32


def test_the_parameters_are_back_after_an_error(cuda: str) -> None:
    model = small_net().to(cuda)
    before = dict(model.named_parameters())
    with pytest.raises(ValueError, match="channels"):
        MixedPrecision(model, "fp16")(Tensor(np.ones((2, 3, 8, 8), np.float32)).to(cuda))
    after = dict(model.named_parameters())
    assert list(before) == list(after)
    assert all(before[k] is after[k] for k in before)


@pytest.mark.parametrize("precision", ["tf32", "fp16", "bf16"])
def test_runs_are_close_and_the_same_with_graphs(cuda: str, precision: str) -> None:
    sets = small_sets()

    def run(precision: str, graph: bool = True) -> Run:
        return fit(
            small_net(), *sets, RECIPE, device=cuda, precision=precision, graph=graph, log=None
        )

    right, found, plainly = run("fp32"), run(precision), run(precision, graph=False)
    assert found.trainer.on_device.steps.graphed.replays == 7
    assert_same(state_of(found.trained.model), state_of(plainly.trained.model))
    assert found.last.test_loss == pytest.approx(right.last.test_loss, rel=BOUNDS[precision])
    apart = distance(state_of(right.trained.model), state_of(found.trained.model))
    assert 0 < apart < 10 * BOUNDS[precision]


def steps_in_fp16(cuda: str, scale: LossScale, graph: bool) -> DeviceSteps:
    model = small_net(channels=8)
    place = Workplace(cuda)
    model.to(cuda)
    optimizer = SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=1e-3)
    return DeviceSteps(
        model, optimizer, lambda logits, y: F.cross_entropy(logits, y), place,
        precision="fp16", graph=graph, loss_scale=scale,
    )  # fmt: skip


@pytest.mark.parametrize("graph", [True, False])
def test_overflows_skip_steps_until_the_scale_fits(cuda: str, batch: Any, graph: bool) -> None:
    steps = steps_in_fp16(cuda, LossScale(initial=2.0**24, interval=3), graph)
    right = steps_in_fp16(cuda, LossScale(initial=256.0), False)
    start = {k: v for k, v in state_of(steps.model).items() if "weight" in k or "bias" in k}
    scales, skipped = [], 0
    for step in range(14):
        with steps.place:
            x, y = (steps.place.xp.asarray(a) for a in batch)
        steps.run(x, y, lr=0.05)
        figures = steps.read()
        if figures.skipped == step + 1:  # all so far
            weights = {k: v for k, v in state_of(steps.model).items() if k in start}
            assert_same(start, weights)
        if figures.skipped == skipped:
            right.run(x, y, lr=0.05)
        skipped = figures.skipped
        scales.append(figures.scale)
    assert figures.broken is None
    assert 1 <= figures.skipped < 12
    lowest = min(scales)
    assert lowest == 2.0**24 / 2 ** (scales.index(lowest) + 1)  # halved once for each skip
    assert max(scales[scales.index(lowest) :]) > lowest  # it grows back
    found, expected = state_of(steps.model), state_of(right.model)
    good = [k for k in found if "running" not in k and "tracked" not in k]
    apart = distance({k: expected[k] for k in good}, {k: found[k] for k in good})
    assert apart < 20 * BOUNDS["fp16"]


def test_bf16_needs_a_cupy_that_has_it(cuda: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from minires.training.precision import check_precision

    monkeypatch.setattr(Workplace(cuda).xp, "__version__", "13.6.0", raising=False)
    with pytest.raises(ValueError, match=r"bf16 needs CuPy 14, 13\.6\.0 is installed"):
        check_precision("bf16", cuda)
    assert check_precision("fp16", cuda) == "fp16"


def test_the_scale_is_resumed(cuda: str, tmp_path: Any) -> None:
    sets = small_sets()
    run = Run.new(small_net(), *sets, RECIPE, out=tmp_path / "run", device=cuda, precision="fp16")
    run.trainer.train_epoch()
    account = run.trainer.on_device.steps.account
    with run.trainer.on_device.place:
        account.scale.fill(1024.0)
    run._save_checkpoint()
    resumed = Run.resume(tmp_path / "run", *sets, model=small_net())
    assert resumed.trainer.precision == "fp16"
    assert resumed.trainer.on_device.steps.read().scale == 1024.0
    assert resumed.trainer.on_device.loss_scale() == {"scale": 1024.0, "good": 3}
    other = Run.resume(tmp_path / "run", *sets, model=small_net(), precision="bf16")
    assert other.trainer.on_device.steps.read().scale == 1.0
