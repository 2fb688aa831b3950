"""Optimisers against PyTorch's over twenty steps of a small net, and schedules against theirs."""

import numpy as np
import pytest
from against_torch import close, to_torch, torch

import minires as mr
from minires import functional as F
from minires import nn, optim

STEPS = 20


def twins():
    """Conv, batch norm, ReLU, linear: the same net on both sides, in float64."""
    mr.manual_seed(3)
    ours = nn.Sequential(
        nn.Conv2d(2, 4, 3, padding=1, bias=False),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(64, 3),
    ).double()
    theirs = torch.nn.Sequential(
        torch.nn.Conv2d(2, 4, 3, padding=1, bias=False),
        torch.nn.BatchNorm2d(4),
        torch.nn.ReLU(),
        torch.nn.Flatten(),
        torch.nn.Linear(64, 3),
    ).double()
    theirs.load_state_dict({k: to_torch(v.numpy()) for k, v in ours.state_dict().items()})
    return ours, theirs


def train(ours, theirs, optimiser, reference, rates=None):
    rng = np.random.default_rng(0)
    for step in range(STEPS):
        if rates is not None:
            optimiser.lr = rates[step]
            for group in reference.param_groups:
                group["lr"] = rates[step]
        x, labels = rng.standard_normal((6, 2, 4, 4)), rng.integers(0, 3, 6)
        optimiser.zero_grad()
        F.cross_entropy(ours(mr.Tensor(x)), labels).backward()
        optimiser.step()
        reference.zero_grad()
        torch.nn.functional.cross_entropy(theirs(to_torch(x)), to_torch(labels)).backward()
        reference.step()


def compare_parameters(ours, theirs, tolerance=1e-12):
    for name, parameter in ours.named_parameters():
        close(parameter, theirs.get_parameter(name), name, tolerance)


SGD = [
    {},
    {"weight_decay": 1e-2},
    {"momentum": 0.9},
    {"momentum": 0.9, "weight_decay": 1e-2},
    {"momentum": 0.9, "dampening": 0.4},
    {"momentum": 0.9, "dampening": 0.4, "weight_decay": 1e-2},
    {"momentum": 0.9, "nesterov": True},
    {"momentum": 0.9, "nesterov": True, "weight_decay": 1e-2},
]


@pytest.mark.parametrize("settings", SGD, ids=str)
def test_sgd(settings):
    ours, theirs = twins()
    optimiser = optim.SGD(ours.parameters(), lr=0.02, **settings)
    reference = torch.optim.SGD(theirs.parameters(), lr=0.02, **settings)
    train(ours, theirs, optimiser, reference)
    compare_parameters(ours, theirs)
    # The saved states have the same form and the same contents.
    state, expected = optimiser.state_dict(), reference.state_dict()
    buffers = {n: s for n, s in expected["state"].items() if s.get("momentum_buffer") is not None}
    assert list(state["state"]) == list(buffers)
    for number, entry in state["state"].items():
        close(
            entry["momentum_buffer"], buffers[number]["momentum_buffer"], f"buffer {number}", 1e-11
        )
    for group, theirs_too in zip(state["param_groups"], expected["param_groups"], strict=True):
        assert group.items() <= theirs_too.items()


def test_sgd_with_a_schedule_and_groups():
    ours, theirs = twins()
    schedule = optim.OneCycle(0.05, STEPS)
    rates = [schedule(step) for step in range(STEPS)]
    groups = []
    for net in (ours, theirs):
        parameters = list(net.parameters())
        plain = [p for p in parameters if len(p.shape) == 1]
        groups.append(
            [
                {"params": [p for p in parameters if len(p.shape) > 1]},
                {"params": plain, "weight_decay": 0.0, "momentum": 0.5},
            ]
        )
    settings = {"lr": 1.0, "momentum": 0.9, "weight_decay": 1e-2}
    train(
        ours,
        theirs,
        optim.SGD(groups[0], **settings),
        torch.optim.SGD(groups[1], **settings),
        rates,
    )
    compare_parameters(ours, theirs)


@pytest.mark.parametrize("name", ["Adam", "AdamW"])
@pytest.mark.parametrize("settings", [{}, {"weight_decay": 0.1, "betas": (0.8, 0.95)}], ids=str)
def test_adam(name, settings):
    ours, theirs = twins()
    optimiser = getattr(optim, name)(ours.parameters(), lr=0.01, eps=1e-6, **settings)
    reference = getattr(torch.optim, name)(theirs.parameters(), lr=0.01, eps=1e-6, **settings)
    train(ours, theirs, optimiser, reference)
    compare_parameters(ours, theirs, 1e-11)


def their_rates(make, steps, base=0.1):
    optimiser = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=base)
    scheduler = make(optimiser)
    rates = []
    for _ in range(steps):
        rates.append(optimiser.param_groups[0]["lr"])
        optimiser.step()
        scheduler.step()
    return rates


def test_multistep():
    schedule = optim.MultiStep(0.1, [3, 7, 7], gamma=0.2)
    expected = their_rates(
        lambda o: torch.optim.lr_scheduler.MultiStepLR(o, [3, 7, 7], gamma=0.2), 10
    )
    assert [schedule(step) for step in range(10)] == pytest.approx(expected, rel=1e-12)


def test_cosine():
    schedule = optim.Cosine(0.1, 20, end=0.01)
    expected = their_rates(
        lambda o: torch.optim.lr_scheduler.CosineAnnealingLR(o, T_max=19, eta_min=0.01), 20
    )
    assert [schedule(step) for step in range(20)] == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("patience", [0, 2])
def test_plateau(patience):
    errors = np.abs(np.random.default_rng(0).standard_normal(60)) + np.linspace(2, 0, 60)
    ours = optim.Plateau(0.1, factor=0.5, patience=patience, threshold=0.01, minimum=1e-3)
    optimiser = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.1)
    theirs = torch.optim.lr_scheduler.ReduceLROnPlateau(
        optimiser, factor=0.5, patience=patience, threshold=0.01, min_lr=1e-3
    )
    expected = []
    for error in errors:
        theirs.step(error)
        expected.append(optimiser.param_groups[0]["lr"])
    assert [ours.observe(error) for error in errors] == pytest.approx(expected, rel=1e-12)
    assert len(set(expected)) > 3
