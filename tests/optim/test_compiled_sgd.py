"""Steps of SGD that change all parameters of a group in one compiled pass."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import numpy as np
import pytest
from drawn import seeds
from hypothesis import given
from hypothesis import strategies as st

import minires as mr
from minires.kernels import threads
from minires.optim import SGD, sgd

pytest.importorskip("numba", reason="needs Numba")

SETTINGS = (
    {"momentum": 0.9},
    {"momentum": 0.9, "weight_decay": 0.05},
    {"momentum": 0.8, "dampening": 0.3, "weight_decay": 0.01},
    {"momentum": 0.9, "nesterov": True, "weight_decay": 0.01},
)
SIZES = (5, 100, 16, 1, 333, 64, 7)


@pytest.fixture
def compiled(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Any size is compiled; a list of how many parameters each pass has changed."""
    from minires.kernels.cpu import update

    counts: list[int] = []
    step = update.FusedSGD.step

    def counted(fused: Any, gradients: list[Any], **settings: Any) -> None:
        counts.append(len(gradients))
        step(fused, gradients, **settings)

    monkeypatch.setattr(sgd, "FUSED", 1)
    monkeypatch.setattr(update.FusedSGD, "step", counted)
    return counts


def parameters(sizes: Any = SIZES, dtype: Any = np.float32, seed: int = 0) -> list[Any]:
    rng = np.random.default_rng(seed)
    return [mr.nn.Parameter(rng.standard_normal(n).astype(dtype)) for n in sizes]


def give_gradients(params: list[Any], rng: np.random.Generator) -> None:
    for p in params:
        p.grad = mr.Tensor(rng.standard_normal(p.shape).astype(p.dtype))


def run(
    params: list[Any], steps: int = 4, optimiser: SGD | None = None, seed: int = 1, **settings: Any
) -> list[Any]:
    optimiser = SGD(params, lr=0.1, **settings) if optimiser is None else optimiser
    rng = np.random.default_rng(seed)
    for _ in range(steps):
        give_gradients(params, rng)
        optimiser.step()
    return [p.numpy().copy() for p in params]


def uncompiled(*args: Any, **settings: Any) -> list[Any]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sgd, "FUSED", 1 << 40)
        return run(*args, **settings)


def close(found: list[Any], expected: list[Any]) -> None:
    for a, b in zip(found, expected, strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=64 * np.finfo(b.dtype).eps)


@given(
    sizes=st.lists(st.integers(0, 200), min_size=1, max_size=9), seed=seeds,
    settings=st.sampled_from(SETTINGS), dtype=st.sampled_from([np.float32, np.float64]),
    workers=st.sampled_from([1, 2, 3, 64]),
)  # fmt: skip
def test_parameters_of_any_size(
    sizes: list[int], seed: int, settings: Any, dtype: Any, workers: int
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sgd, "FUSED", 1)
        patch.setattr(threads, "_count", workers)
        found = run(parameters(sizes, dtype, seed), **settings)
        patch.setattr(threads, "_count", 1)
        alone = run(parameters(sizes, dtype, seed), **settings)
    for a, b in zip(found, alone, strict=True):
        assert a.tobytes() == b.tobytes()  # whoever does it
    close(found, uncompiled(parameters(sizes, dtype, seed), **settings))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("settings", SETTINGS)
def test_a_large_parameter(settings: Any, dtype: Any) -> None:
    """Its size is no multiple of a vector, to have a rest."""
    sizes = (sgd.FUSED + 5,)
    found = run(parameters(sizes, dtype), **settings)
    close(found, uncompiled(parameters(sizes, dtype), **settings))


def test_all_parameters_of_a_group_in_one_pass(compiled: list[int]) -> None:
    """After the first step, which makes the buffers."""
    run(parameters(), steps=3, momentum=0.9)
    assert compiled == [7, 7]


def test_small_networks_are_not_compiled() -> None:
    from minires.kernels.cpu import update

    with pytest.MonkeyPatch.context() as patch:
        patch.delattr(update, "FusedSGD")
        run(parameters(), momentum=0.9)


def test_without_momentum_there_is_nothing_to_compile(compiled: list[int]) -> None:
    params = parameters()
    optimiser = SGD(params, lr=0.1, momentum=0.9)
    run(params, 2, optimiser)
    optimiser.param_groups[0]["momentum"] = 0.0
    before, buffers = [p.numpy().copy() for p in params], copy.deepcopy(optimiser.state_dict())
    found = run(params, 1, optimiser)
    assert compiled == [7]
    for a, b, p in zip(found, before, params, strict=True):
        np.testing.assert_allclose(a, b - 0.1 * p.grad.numpy(), rtol=1e-6, atol=1e-6)
    for number, entry in optimiser.state_dict()["state"].items():
        np.testing.assert_array_equal(
            entry["momentum_buffer"], buffers["state"][number]["momentum_buffer"]
        )


def test_groups_have_settings_of_their_own(compiled: list[int]) -> None:
    def found() -> list[Any]:
        params = parameters()
        groups = [{"params": params[:3]}, {"params": params[3:], "lr": 0.02, "momentum": 0.5}]
        return run(params, 4, SGD(groups, lr=0.1, momentum=0.9))

    together = found()
    assert compiled == 3 * [3, 4]
    sgd.FUSED = 1 << 40  # the fixture puts it back
    close(together, found())


def test_what_one_pass_cannot_take_is_updated_by_itself(compiled: list[int]) -> None:
    """Other dtypes, and arrays with gaps."""

    def found() -> list[Any]:
        params = parameters((5, 100)) + parameters((8,), np.float64)
        params.append(mr.nn.Parameter(np.ones((6, 4), np.float32).T))
        assert not params[-1].numpy().flags.c_contiguous
        return run(params, momentum=0.9)

    together = found()
    assert compiled == 3 * [2]
    sgd.FUSED = 1 << 40
    close(together, found())


def test_parameters_without_gradient_stay(compiled: list[int]) -> None:
    params = parameters()
    optimiser = SGD(params, lr=0.1, momentum=0.9)
    run(params, 2, optimiser)
    before = [p.numpy().copy() for p in params]
    give_gradients(params, np.random.default_rng(3))
    params[2].grad = None
    optimiser.step()
    assert compiled == [7, 6]
    assert [np.array_equal(p.numpy(), b) for p, b in zip(params, before, strict=True)] == [
        i == 2 for i in range(7)
    ]


def test_a_parameter_that_is_given_new_memory(compiled: list[int]) -> None:
    params = parameters()
    optimiser = SGD(params, lr=0.1, momentum=0.9)
    run(params, 2, optimiser)
    old = params[3].data
    kept, params[3].data = old.copy(), old.copy()
    run(params, 1, optimiser)
    np.testing.assert_array_equal(old, kept)
    assert not np.array_equal(params[3].numpy(), kept)


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda o: pickle.loads(pickle.dumps(o))])
def test_a_copy_moves_its_own_parameters(duplicate: Any, compiled: list[int]) -> None:
    params = parameters()
    optimiser = SGD(params, lr=0.1, momentum=0.9)
    run(params, 2, optimiser)
    twin = duplicate(optimiser)
    before = [p.numpy().copy() for p in params]
    others = twin.param_groups[0]["params"]
    moved = run(others, 2, twin)
    for p, b in zip(params, before, strict=True):
        np.testing.assert_array_equal(p.numpy(), b)
    for a, b in zip(run(params, 2, optimiser), moved, strict=True):
        np.testing.assert_array_equal(a, b)


def test_a_copy_of_a_pass_has_addresses_of_its_own() -> None:
    from minires.kernels.cpu.update import FusedSGD

    p, v, g = np.zeros((3, 40), np.float32)
    twin = copy.deepcopy(FusedSGD([p], [v]))
    twin.step([g + 1], 0.5, 0.0, 0.0, 0.0, nesterov=False)
    assert not p.any()
    assert (twin.parameters[0] == -0.5).all()
    assert (twin.buffers[0] == 1.0).all()


def test_a_state_that_is_loaded(compiled: list[int]) -> None:
    params = parameters()
    optimiser = SGD(params, lr=0.1, momentum=0.9)
    run(params, 2, optimiser)
    state = copy.deepcopy(optimiser.state_dict())
    values = [p.numpy().copy() for p in params]
    once = run(params, 2, optimiser)
    for p, v in zip(params, values, strict=True):
        p.data[...] = v
    optimiser.load_state_dict(state)
    for a, b in zip(run(params, 2, optimiser), once, strict=True):
        np.testing.assert_array_equal(a, b)
