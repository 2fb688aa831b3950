"""Whole networks against the same nets in torch.nn: loss, gradients, statistics, a step."""

import numpy as np
import pytest
from against_torch import close, to_torch, torch
from torch_resnet import Basic, Deep, Net

import minires as mr
from minires import functional as F
from minires import models, optim

NETS = {
    "resnet18": (Basic, (2, 2, 2, 2), 64, 1000, False, "B"),
    "resnet50": (Deep, (3, 4, 6, 3), 64, 1000, False, "B"),
    "resnet20": (Basic, (3, 3, 3), 16, 10, True, "A"),
    "plain20": (Basic, (3, 3, 3), 16, 10, True, "none"),
}


def twins(name, shortcut=None, **options):
    """Our net and theirs with the same weights, in float64."""
    block, counts, width, classes, cifar, option = NETS[name]
    mr.manual_seed(7)
    chosen = {} if shortcut is None else {"shortcut": shortcut}
    ours = models.create(name, **chosen, **options).double()
    rng = np.random.default_rng(7)
    for key, parameter in ours.named_parameters():
        if parameter.ndim == 1:  # gammas and betas that are all alike would hide mistakes
            parameter.data = (
                ("weight" in key) + 0.2 * rng.standard_normal(parameter.shape)
            ).astype(np.float64)
    theirs = Net(block, counts, options.get("width", width), classes, cifar, shortcut or option)
    theirs.double()
    state = {k: torch.from_numpy(v.numpy().copy()) for k, v in ours.state_dict().items()}
    theirs.load_state_dict(state)  # strict: the same names, no more and no fewer
    return ours, theirs


@pytest.mark.parametrize(
    ("name", "shortcut", "options", "shape"),
    [
        ("resnet18", None, {}, (3, 3, 64, 64)),
        ("resnet50", None, {}, (2, 3, 64, 64)),
        ("resnet20", None, {}, (4, 3, 32, 32)),
        ("resnet18", "A", {"width": 8}, (3, 3, 50, 41)),
        ("resnet18", "C", {"width": 8}, (3, 3, 64, 64)),
        ("resnet50", "C", {"width": 8}, (3, 3, 64, 64)),
        ("resnet20", "B", {}, (4, 3, 17, 20)),
        ("plain20", None, {}, (4, 3, 16, 16)),
    ],
)
def test_a_training_step(name, shortcut, options, shape):
    ours, theirs = twins(name, shortcut, **options)
    rng = np.random.default_rng(0)
    x, labels = rng.standard_normal(shape), rng.integers(0, 10, shape[0])
    a, b = mr.Tensor(x, requires_grad=True), to_torch(x).requires_grad_()

    logits, expected_logits = ours(a), theirs(b)
    close(logits, expected_logits, "logits", 1e-10)
    loss = F.cross_entropy(logits, labels)
    expected_loss = torch.nn.functional.cross_entropy(expected_logits, to_torch(labels))
    loss.backward()
    expected_loss.backward()
    close(loss, expected_loss, "loss", 1e-11)
    close(a.grad, b.grad, "gradient of the images", 1e-9)
    for key, parameter in ours.named_parameters():
        close(parameter.grad, theirs.get_parameter(key).grad, f"gradient of {key}", 1e-9)
    for key, tensor in ours.named_buffers():
        close(tensor, theirs.get_buffer(key), key, 1e-11)

    settings = {"lr": 0.1, "momentum": 0.9, "weight_decay": 1e-4}
    optim.SGD(ours.parameters(), **settings).step()
    torch.optim.SGD(theirs.parameters(), **settings).step()
    for key, parameter in ours.named_parameters():
        close(parameter, theirs.get_parameter(key), f"{key} after a step", 1e-9)

    ours.eval()
    theirs.eval()
    with mr.no_grad(), torch.no_grad():
        close(ours(mr.Tensor(x)), theirs(to_torch(x)), "logits in evaluation", 1e-8)


def test_single_precision():
    """In float32 the logits agree to a few parts in 1e5 after 20 layers."""
    ours, theirs = twins("resnet20")
    ours.float().eval()
    theirs.float().eval()
    x = np.random.default_rng(0).standard_normal((4, 3, 32, 32)).astype(np.float32)
    with mr.no_grad(), torch.no_grad():
        close(ours(mr.Tensor(x)), theirs(to_torch(x)), "logits", 5e-5)
