"""Memory of a device: how much is in use, and what happens when there is no more."""

from __future__ import annotations

import gc
from typing import Any

import numpy as np
import pytest
from device_nets import RECIPE, assert_same, small_net, small_sets, state_of

import minires as mr
from minires.autograd import Tensor
from minires.kernels.cuda import emulate, emulate_cuda
from minires.training import Run


@pytest.fixture
def emulated() -> Any:
    """An emulated device's memory, whose limit is taken away afterwards."""
    if emulate.compiler() is None:
        pytest.skip("the emulator needs a C++ compiler")
    memory = emulate_cuda.memory(0)
    with emulate.device():
        yield memory
    memory.limit = None


def test_what_is_in_use_and_was_at_most(cuda: str) -> None:
    before = mr.cuda.memory_allocated()
    x = Tensor(np.zeros(1 << 18, np.float32)).to(cuda)
    mr.cuda.reset_peak_memory_stats()
    assert mr.cuda.memory_allocated(cuda) - before == 1 << 20
    y = x + x
    del y
    assert mr.cuda.memory_allocated() - before == 1 << 20
    assert mr.cuda.max_memory_allocated() - before == 2 << 20
    mr.cuda.reset_peak_memory_stats(0)
    assert mr.cuda.max_memory_allocated() - before == 1 << 20
    del x
    mr.cuda.empty_cache()
    mr.cuda.synchronize()
    assert mr.cuda.memory_allocated() == before
    assert mr.cuda.is_available()
    assert mr.cuda.current_device() == 0
    assert mr.cuda.device_count() >= 1
    with pytest.raises(ValueError, match="a CUDA device, got 'cpu'"):
        mr.cuda.synchronize("cpu")


@pytest.mark.parametrize("graph", [True, False])
@pytest.mark.parametrize("begun", [True, False])
def test_out_of_memory_in_training(emulated: Any, graph: bool, begun: bool, tmp_path: Any) -> None:
    sets = small_sets()
    recipe = RECIPE.replace(batch_size=40, epochs=4)
    whole = state_of(Run.new(small_net(), *sets, recipe, device="cuda").train().trained.model)
    run = Run.new(small_net(), *sets, recipe, device="cuda", graph=graph, out=tmp_path / "run")
    if begun:
        run.trainer.train_epoch()
    gc.collect()
    before = state_of(run.trained.model)
    emulated.limit = emulated.in_use + 60_000
    with pytest.raises(mr.cuda.OutOfMemoryError) as caught:
        run.trainer.train_epoch()
    error, text = caught.value, str(caught.value)
    assert "out of memory on cuda, with a batch of 40: " in text
    assert error.operation in text
    assert error.bytes == np.prod(error.shape) * error.dtype.itemsize
    assert f"{'x'.join(map(str, error.shape))} float32" in text
    assert error.in_use <= error.available == emulated.limit
    assert 1 <= error.fits < 40
    assert f"A batch of {error.fits} would fit" in text
    after = state_of(run.trained.model)
    learnt = [k for k in before if "running" not in k and "tracked" not in k]
    assert_same({k: before[k] for k in learnt}, {k: after[k] for k in learnt})
    assert (tmp_path / "run" / "checkpoint" / "last.safetensors").exists()

    # With memory to spare, the run goes on where it was.
    emulated.limit = None
    resumed = Run.resume(tmp_path / "run", *sets, model=small_net(), graph=graph).train()
    assert_same(state_of(resumed.trained.model), whole)


def test_the_batch_that_is_said_to_fit_does(emulated: Any) -> None:
    sets = small_sets()

    def run(batch: int) -> Run:
        """One with 60,000 bytes left for its steps."""
        emulated.limit = None
        recipe = RECIPE.replace(batch_size=batch, epochs=1)
        made = Run.new(small_net(), *sets, recipe, device="cuda", graph=False)
        gc.collect()
        emulated.limit = emulated.in_use + 60_000
        return made

    with pytest.raises(mr.cuda.OutOfMemoryError) as caught:
        run(40).train()
    fits = caught.value.fits
    del caught
    assert np.isfinite(run(fits).train().last.train_loss)
    with pytest.raises(mr.cuda.OutOfMemoryError, match="would fit"):
        run(2 * fits).train()


def test_nothing_fits(emulated: Any) -> None:
    run = Run.new(small_net(), *small_sets(), RECIPE, device="cuda")
    emulated.limit = emulated.in_use + 300
    with pytest.raises(mr.cuda.OutOfMemoryError, match="No batch would fit, however small"):
        run.train()
    emulated.limit = None
    run.trainer.train_epoch()


def test_outside_of_training_it_is_cupys_error(emulated: Any) -> None:
    x = Tensor(np.ones(1000, np.float32)).to("cuda")
    emulated.limit = emulated.in_use + 100
    with pytest.raises(MemoryError, match="Out of memory allocating 4,000 bytes"):
        x + x
