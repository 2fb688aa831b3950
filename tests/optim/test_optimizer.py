"""What all optimisers share: groups, checks, the learning rate, saved state."""

import json

import numpy as np
import pytest

import minires as mr
from minires import nn, optim
from minires.optim import SGD, Adam, AdamW
from minires.testing.compare import assert_close

OPTIMISERS = [
    (SGD, {}),
    (SGD, {"momentum": 0.9, "weight_decay": 0.01}),
    (SGD, {"momentum": 0.9, "weight_decay": 0.01, "nesterov": True}),
    (Adam, {"weight_decay": 0.01}),
    (AdamW, {}),
]
KINDS = [SGD, Adam, AdamW]


def parameters(*shapes, seed=0, dtype=np.float64):
    rng = np.random.default_rng(seed)
    return [nn.Parameter(rng.standard_normal(shape).astype(dtype)) for shape in shapes]


def give_gradients(params, seed):
    rng = np.random.default_rng(seed)
    for p in params:
        p.grad = mr.Tensor(rng.standard_normal(p.shape).astype(p.dtype))


SHAPES = [(3, 2, 3, 3), (5,), (), (1, 1)]


@pytest.mark.parametrize(("make", "settings"), OPTIMISERS)
def test_gradients_are_only_read(make, settings):
    params = parameters(*SHAPES)
    optimiser = make(params, lr=0.1, **settings)
    for step in range(3):
        give_gradients(params, step)
        kept = [p.grad for p in params]
        before = [g.numpy().copy() for g in kept]
        optimiser.step()
        assert all(p.grad is g for p, g in zip(params, kept, strict=True))
        for g, b in zip(kept, before, strict=True):
            assert np.array_equal(g.numpy(), b)


@pytest.mark.parametrize(("make", "settings"), OPTIMISERS)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_steps_happen_in_place_and_keep_the_dtype(make, settings, dtype):
    params = parameters(*SHAPES, dtype=dtype)
    arrays = [p._data for p in params]
    before = [a.copy() for a in arrays]
    optimiser = make(params, lr=0.1, **settings)
    for step in range(2):
        give_gradients(params, step)
        optimiser.step()
    for p, a, b in zip(params, arrays, before, strict=True):
        assert p._data is a
        assert a.dtype == dtype
        assert not np.array_equal(a, b)
    for entry in optimiser.state.values():
        assert all(a.dtype == dtype for a in entry.values() if isinstance(a, np.ndarray))


@pytest.mark.parametrize(("make", "settings"), OPTIMISERS)
def test_parameters_without_a_gradient_stay(make, settings):
    a, b = parameters((3,), (3,))
    optimiser = make([a, b], lr=0.1, **settings)
    kept = b.numpy().copy()
    for step in range(2):
        give_gradients([a], step)
        optimiser.step()
    assert np.array_equal(b.numpy(), kept)
    assert b not in optimiser.state
    optimiser.zero_grad()
    assert a.grad is None
    before = a.numpy().copy()
    optimiser.step()
    assert np.array_equal(a.numpy(), before)


@pytest.mark.parametrize(("make", "settings"), OPTIMISERS)
def test_memory_layout_does_not_matter(make, settings):
    """Transposed parameters and gradients, and a view of every other element."""
    rng = np.random.default_rng(3)
    values, gradients = rng.standard_normal((4, 6)), rng.standard_normal((2, 4, 6))
    plain, turned = nn.Parameter(values), nn.Parameter(np.zeros((4, 6)))
    turned.data = np.asfortranarray(values)
    strided = nn.Parameter(np.zeros((4, 6)))
    strided.data = np.repeat(values, 2, axis=1)[:, ::2]
    optimiser = make([plain, turned, strided], lr=0.1, **settings)
    for g in gradients:
        plain.grad = mr.Tensor(g)
        turned.grad = strided.grad = mr.Tensor(g.T.copy().T)
        optimiser.step()
    assert np.array_equal(plain.numpy(), turned.numpy())
    assert np.array_equal(plain.numpy(), strided.numpy())


@pytest.mark.parametrize("make", KINDS)
def test_a_step_between_forward_and_backward_is_noticed(make):
    (weight,) = parameters((3, 3))
    x = mr.Tensor(np.ones((2, 3)), requires_grad=True)
    loss = (x @ weight).sum()
    give_gradients([weight], 0)
    make([weight], lr=0.1).step()
    with pytest.raises(RuntimeError, match="changed in place"):
        loss.backward()


@pytest.mark.parametrize("make", KINDS)
def test_groups_have_settings_of_their_own(make):
    a, b, c = parameters((4,), (4,), (4,))
    c.data = b.numpy().copy()
    grouped = make([{"params": [a]}, {"params": b, "lr": 0.5, "weight_decay": 0.2}], lr=0.1)
    alone = make([c], lr=0.5, weight_decay=0.2)
    give_gradients([a, b], 1)
    c.grad = b.grad
    grouped.step()
    alone.step()
    assert np.array_equal(b.numpy(), c.numpy())
    assert [g["lr"] for g in grouped.param_groups] == [0.1, 0.5]
    with pytest.raises(ValueError, match=r"different learning rates \[0.1, 0.5\]"):
        grouped.lr  # noqa: B018
    grouped.lr = 0.3
    assert grouped.lr == 0.3
    grouped.add_param_group({"params": parameters((2,)), "lr": 0.0})
    assert [g["lr"] for g in grouped.param_groups] == [0.3, 0.3, 0.0]
    assert "1 tensors, 2 numbers: lr=0.0" in repr(grouped)


@pytest.mark.parametrize("make", KINDS)
def test_bad_parameters(make):
    (p,) = parameters((3,))
    with pytest.raises(ValueError, match="no parameters to optimise"):
        make([], lr=0.1)
    with pytest.raises(ValueError, match="a group without parameters"):
        make([{"params": []}], lr=0.1)
    with pytest.raises(TypeError, match="got one Parameter; put it into a list"):
        make(p, lr=0.1)
    with pytest.raises(TypeError, match=r"got one Linear; pass its parameters\(\)"):
        make(nn.Linear(2, 2))
    with pytest.raises(TypeError, match="got one dict; put it into a list"):
        make({"params": [p]}, lr=0.1)
    with pytest.raises(TypeError, match=r"parameter 1 is a ndarray, expected a Tensor$"):
        make([p, np.zeros(3)], lr=0.1)
    with pytest.raises(TypeError, match=r"pass parameters\(\), not named_parameters\(\)"):
        make(nn.Linear(2, 2).named_parameters(), lr=0.1)
    with pytest.raises(ValueError, match=r"parameter 0 \(3\) is the result of an operation"):
        make([p * 2.0], lr=0.1)
    with pytest.raises(ValueError, match="given twice"):
        make([p, p], lr=0.1)
    with pytest.raises(ValueError, match="given twice"):
        make([{"params": [p]}, {"params": [p]}], lr=0.1)
    with pytest.raises(TypeError, match="a group is a dict with 'params'"):
        make([{"lr": 0.1}], lr=0.1)
    with pytest.raises(TypeError, match="a group is a dict with 'params'"):
        make([{"params": [p]}, p], lr=0.1)
    with pytest.raises(ValueError, match=r"setting 'weight_deacy'. Did you mean 'weight_decay'\?"):
        make([{"params": [p], "weight_deacy": 0.1}], lr=0.1)


@pytest.mark.parametrize("make", KINDS)
@pytest.mark.parametrize("value", [-0.1, float("nan"), float("inf")])
@pytest.mark.parametrize("setting", ["lr", "weight_decay"])
def test_impossible_settings(make, setting, value):
    (p,) = parameters((3,))
    with pytest.raises(ValueError, match=f"{make.__name__}: {setting} must be a number from 0 up"):
        make([p], **{setting: value})
    with pytest.raises(ValueError, match=f"{setting} must be a number from 0 up"):
        make([{"params": [p], setting: value}])
    with pytest.raises(TypeError, match=f"{setting} takes a number, got '0.1'"):
        make([p], **{setting: "0.1"})
    optimiser = make([p])
    with pytest.raises(ValueError, match="lr must be a number from 0 up"):
        optimiser.lr = value


def test_a_gradient_of_the_wrong_shape_is_refused():
    (p,) = parameters((3, 2))
    p.grad = mr.Tensor(np.ones(2))
    with pytest.raises(ValueError, match="shape 3x2 has a gradient of shape 2"):
        SGD([p], lr=0.1).step()


def copied(state):
    """As through a file: numbers as JSON, arrays apart."""
    text = json.dumps(state, default=lambda a: {"shape": a.shape, "values": a.ravel().tolist()})

    def array(entry):
        if set(entry) == {"shape", "values"}:
            return np.array(entry["values"]).reshape(entry["shape"])
        return entry

    return json.loads(text, object_hook=array)


@pytest.mark.parametrize(("make", "settings"), OPTIMISERS)
def test_a_saved_run_goes_on_with_the_same_bits(make, settings):
    straight, broken = parameters(*SHAPES), parameters(*SHAPES)
    one = make([{"params": straight[:2]}, {"params": straight[2:], "lr": 0.2}], lr=0.1, **settings)
    two = make([{"params": broken[:2]}, {"params": broken[2:], "lr": 0.2}], lr=0.1, **settings)
    for step in range(3):
        for params, optimiser in ((straight, one), (broken, two)):
            give_gradients(params, step)
            optimiser.step()
    state = copied(two.state_dict())  # keys are strings and tuples are lists, as JSON has them
    resumed = [nn.Parameter(p.numpy()) for p in broken]
    three = make([{"params": resumed[:2]}, {"params": resumed[2:]}], lr=7.0)
    three.load_state_dict(state)
    assert [g["lr"] for g in three.param_groups] == [0.1, 0.2]
    for step in range(3, 6):
        for params, optimiser in ((straight, one), (resumed, three)):
            give_gradients(params, step)
            optimiser.step()
    for a, b in zip(straight, resumed, strict=True):
        assert np.array_equal(a.numpy(), b.numpy())


def test_state_dict_is_pytorchs():
    params = parameters((2,), (3,), (4,))
    optimiser = SGD([{"params": params[:1]}, {"params": params[1:], "lr": 0.5}], 0.1, momentum=0.9)
    give_gradients([params[2]], 0)
    optimiser.step()
    state = optimiser.state_dict()
    assert list(state) == ["state", "param_groups"]
    assert list(state["state"]) == [2]
    assert_close(state["state"][2]["momentum_buffer"], params[2].grad)
    common = {"momentum": 0.9, "dampening": 0.0, "weight_decay": 0.0, "nesterov": False}
    assert state["param_groups"] == [
        {"params": [0], "lr": 0.1, **common},
        {"params": [1, 2], "lr": 0.5, **common},
    ]


@pytest.mark.parametrize("make", KINDS)
def test_loading_copies(make):
    params = parameters((3,))
    one, two = make(params, lr=0.1), make(parameters((3,)), lr=0.1)
    if make is SGD:
        one.param_groups[0]["momentum"] = 0.9
    give_gradients(params, 0)
    one.step()
    two.load_state_dict(one.state_dict())
    name = make.arrays[0]
    held = two.state_dict()["state"][0][name].copy()
    one.step()
    assert np.array_equal(two.state_dict()["state"][0][name], held)


def test_a_state_that_does_not_fit_changes_nothing():
    params = parameters((2,), (3,))
    optimiser = SGD(params, lr=0.1, momentum=0.9)
    give_gradients(params, 0)
    optimiser.step()
    before = optimiser.state_dict()
    buffers = [entry["momentum_buffer"].copy() for entry in before["state"].values()]

    fewer = SGD(parameters((2,)), lr=0.2, momentum=0.9).state_dict()
    with pytest.raises(ValueError, match=r"groups of \[2\] parameters, the state has \[1\]"):
        optimiser.load_state_dict(fewer)
    with pytest.raises(ValueError, match=r"differ in the settings .*betas.* another optimiser"):
        optimiser.load_state_dict(Adam(parameters((2,), (3,))).state_dict())
    other = SGD(parameters((2,), (4,)), lr=0.2, momentum=0.9)
    give_gradients(other.param_groups[0]["params"], 1)
    other.step()
    with pytest.raises(ValueError, match="momentum_buffer of parameter 1: expected 3, got 4"):
        optimiser.load_state_dict(other.state_dict())
    stray = {**before, "state": {5: before["state"][0]}}
    with pytest.raises(ValueError, match="state for parameter 5, which is none"):
        optimiser.load_state_dict(stray)
    negative = {**before, "param_groups": [{**before["param_groups"][0], "lr": -1.0}]}
    with pytest.raises(ValueError, match="lr must be a number from 0 up"):
        optimiser.load_state_dict(negative)

    after = optimiser.state_dict()
    assert after["param_groups"] == before["param_groups"]
    for entry, buffer in zip(after["state"].values(), buffers, strict=True):
        assert np.array_equal(entry["momentum_buffer"], buffer)


def test_an_optimiser_of_ones_own():
    class SignDescent(optim.Optimizer):
        def __init__(self, params, lr):
            super().__init__(params, lr=lr)

        def update(self, parameter, gradient, group):
            parameter._data -= group["lr"] * np.sign(gradient)

    (p,) = parameters((4,))
    before = p.numpy().copy()
    give_gradients([p], 0)
    SignDescent([p], lr=0.5).step()
    assert_close(p, before - 0.5 * np.sign(p.grad.numpy()))

    with pytest.raises(TypeError, match="Optimizer defines no update"):
        optim.Optimizer([p], lr=0.1).step()


@pytest.mark.parametrize(("make", "settings"), OPTIMISERS)
def test_a_net_learns(make, settings):
    mr.manual_seed(0)
    rng = np.random.default_rng(0)
    x = rng.standard_normal((64, 5)).astype(np.float32)
    y = (x[:, 0] + x[:, 1] > 0).astype(np.int64)
    model = nn.Sequential(nn.Linear(5, 8), nn.ReLU(), nn.Linear(8, 2))
    optimiser = make(model.parameters(), lr=0.1 if make is SGD else 0.02, **settings)
    losses = []
    for _ in range(60):
        loss = mr.functional.cross_entropy(model(mr.Tensor(x)), y)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert losses[-1] < 0.6 * losses[0]
