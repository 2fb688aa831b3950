"""Every operation and layer of the table of gradient cases: forward, backward, and gradcheck."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import pytest

import minires as mr
from minires import nn
from minires.autograd import Function
from minires.functional.loss import correct, one_hot
from minires.kernels.cuda import norm
from minires.models.blocks import BasicBlock
from minires.models.resnet import ResNet
from minires.testing.cases import Case, cases, covered
from minires.testing.gradcheck import gradcheck, gradgradcheck
from minires.testing.problem import floating
from minires.testing.small_nets import away_from_start

ON_THE_HOST = (
    "transfer", "where", "max_pool2d_take", "max_pool2d_grad", "bias_relu",
    "batch_norm: evaluation", "batch_norm_relu: evaluation", "batch_norm_add_relu: evaluation",
)  # fmt: skip
"""Cases that name the host or hold its arrays: checked by layers, below, and in test_transfers."""

CASES = [case for case in cases() if not case.name.startswith(ON_THE_HOST)]
FIRST = list({case.operation: case for case in reversed(CASES)}.values())
"""One case of each operation."""


def built(case: Case, device: str) -> tuple[Any, tuple[Any, ...]]:
    """A case's function and inputs, on a device, in float64."""
    mr.manual_seed(0)
    fn, inputs = case.build()
    if isinstance(fn, nn.Module):
        fn.double().to(device)
    moved = tuple(
        i.detach().to(device).requires_grad_(i.requires_grad) if isinstance(i, mr.Tensor) else i
        for i in inputs
    )
    return fn, moved


def results(case: Case, device: str) -> list[np.ndarray]:
    """Outputs, and gradients by inputs and parameters, on the host."""
    fn, inputs = built(case, device)
    mr.manual_seed(1)
    outputs = floating(fn(*inputs))
    assert {y.device for y in outputs} == {device}
    wanted = [t for t in inputs if isinstance(t, mr.Tensor) and t.requires_grad]
    wanted += list(fn.parameters()) if isinstance(fn, nn.Module) else []
    rng = np.random.default_rng(1)
    seeds = [mr.Tensor(np.asarray(rng.standard_normal(y.shape))).to(device) for y in outputs]
    found = mr.grad(outputs, wanted, seeds, allow_unused=True)
    assert {g.device for g in found if g is not None} <= {device}
    return [t.detach().cpu().numpy() for t in (*outputs, *found) if t is not None]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_outputs_and_gradients_equal_the_cpus(cuda: str, case: Case) -> None:
    got, expected = results(case, cuda), results(case, "cpu")
    for a, b in zip(got, expected, strict=True):
        assert a.dtype == b.dtype
        np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("case", FIRST, ids=lambda case: case.name)
def test_gradcheck_on_the_device(cuda: str, case: Case) -> None:
    fn, inputs = built(case, cuda)
    gradcheck(fn, inputs)


@pytest.mark.parametrize(
    "name", ["conv2d", "batch_norm", "batch_norm_add_relu", "cross_entropy", "max_pool2d", "linear"]
)
def test_gradients_of_gradients_on_the_device(cuda: str, name: str) -> None:
    fn, inputs = built(cases([name])[0], cuda)
    gradgradcheck(fn, inputs)


def test_gradcheck_of_a_small_residual_net(cuda: str) -> None:
    mr.manual_seed(0)
    net = ResNet(partial(BasicBlock, shortcut="B"), [1, 1, 1], width=3, stem="cifar",
                 num_classes=3)  # fmt: skip
    rng = np.random.default_rng(0)
    away_from_start(lambda: net, rng).double().to(cuda)
    x = mr.Tensor(rng.standard_normal((1, 3, 5, 4))).to(cuda).detach().requires_grad_()
    gradcheck(net, (x,))


def test_a_wrong_gradient_is_caught_on_the_device(cuda: str) -> None:
    class Wrong(Function):
        def forward(self, x: Any) -> Any:
            self.save(x=x)
            return x * x

        def backward(self, gy: mr.Tensor) -> mr.Tensor:
            return 1.01 * 2.0 * gy * self.saved.x

    x = mr.Tensor(np.arange(1.0, 5.0)).to(cuda).detach().requires_grad_()
    with pytest.raises(AssertionError):
        gradcheck(lambda x: Wrong()(x), (x,))


def test_the_cases_cover_the_device_too(cuda: str) -> None:
    """The cross-entropy of labels goes through its own operation, wherever the logits live."""
    assert any(f.__name__ == "CrossEntropy" for f in covered(cases(["cross_entropy"])))


# -- what differs on a device ---------------------------------------------------------------------


def logits(cuda: str) -> mr.Tensor:
    rng = np.random.default_rng(0)
    return mr.Tensor(rng.standard_normal((4, 3))).to(cuda).detach().requires_grad_()


def test_labels_on_a_device_are_not_looked_at(cuda: str) -> None:
    x, labels = logits(cuda), mr.Tensor(np.array([0, 3, -1, 2])).to(cuda)
    losses = mr.functional.cross_entropy(x, labels, reduction="none")
    np.testing.assert_array_equal(np.isnan(losses.tolist()), [False, True, True, False])
    weighted = mr.functional.cross_entropy(x, labels, weight=np.ones(3), reduction="none")
    np.testing.assert_array_equal(np.isnan(weighted.tolist()), [False, True, True, False])
    assert np.isnan(mr.functional.nll_loss(x, labels).item())
    with pytest.raises(ValueError, match="label 3 at position 1 is out of range for 3 classes"):
        mr.functional.cross_entropy(x, np.array([0, 3, -1, 2]))


@pytest.mark.parametrize("where", ["host", "device"])
@pytest.mark.parametrize("weighted", [False, True])
def test_ignored_labels(cuda: str, where: str, weighted: bool) -> None:
    x, labels = logits(cuda), np.array([0, -100, 2, -100])
    weight = np.array([1.0, 2.0, 0.5]) if weighted else None
    given = mr.Tensor(labels).to(cuda) if where == "device" else labels
    loss = mr.functional.cross_entropy(x, given, weight)
    expected = mr.functional.cross_entropy(x.detach().cpu(), labels, weight)
    np.testing.assert_allclose(loss.item(), expected.item(), rtol=1e-12)
    everything = np.full(4, -100)
    given = mr.Tensor(everything).to(cuda) if where == "device" else everything
    assert np.isnan(mr.functional.cross_entropy(x, given, weight).item())


def test_labels_of_another_device(cuda: str) -> None:
    with pytest.raises(ValueError, match=r"x lives on cuda:0 and target on cpu; bring it there"):
        mr.functional.cross_entropy(logits(cuda), mr.Tensor(np.array([0, 1, 2, 0])))


@pytest.mark.parametrize("function", ["where", "bias_relu", "batch_norm_eval"])
def test_constants_on_the_device(cuda: str, function: str) -> None:
    """The cases whose constants lie on the host, with constants on the device."""
    rng = np.random.default_rng(0)
    x, r = (mr.Tensor(rng.standard_normal((2, 3, 4, 2))).to(cuda).detach() for _ in range(2))
    x.requires_grad_()
    channel = [mr.Tensor(rng.uniform(0.5, 1.5, 3)).to(cuda) for _ in range(4)]
    calls = {
        "where": lambda x: mr.where(r > 0, x, 2.0 * x),
        "bias_relu": lambda x: mr.functional.bias_relu(x, channel[0], r),
        "batch_norm_eval": lambda x: mr.functional.batch_norm_add_relu(x, r, *channel),
    }
    gradcheck(calls[function], (x,))


def test_counting_right_answers(cuda: str) -> None:
    x = logits(cuda)
    labels = x.detach().cpu().numpy().argmax(1)
    labels[0] = (labels[0] + 1) % 3
    for given in (labels, mr.Tensor(labels).to(cuda)):
        count = correct(x, given)
        assert (count.device, count.item()) == ("cuda:0", 3)
    assert correct(x.detach().cpu(), labels).item() == 3


def test_one_hot(cuda: str) -> None:
    labels = mr.Tensor(np.array([1, 0, 5])).to(cuda)
    found = mr.Tensor(one_hot(labels, 3)).tolist()
    assert found[:2] == [[0.0, 1.0, 0.0], [1.0, 0.0, 0.0]]
    assert np.isnan(found[2]).all()


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_batch_norm_of_16_bit_images_keeps_float32_statistics(cuda: str, dtype: str) -> None:
    if dtype == "bfloat16":
        pytest.importorskip("ml_dtypes", reason="NumPy has no bfloat16: install ml_dtypes")
    rng = np.random.default_rng(0)
    x = rng.standard_normal((4, 8, 3, 3)).astype(np.float32)
    layer, expected = nn.BatchNorm2d(8).to(cuda), nn.BatchNorm2d(8)
    images = mr.Tensor(x).to(cuda).astype(dtype).requires_grad_()
    for mode in (True, False):
        layer.train(mode)
        expected.train(mode)
        y = layer(images)
        assert y.dtype == images.dtype
        np.testing.assert_allclose(
            y.detach().float().cpu().numpy(), expected(mr.Tensor(x)).numpy(), atol=0.05
        )
    y = layer.train().relu(images)
    y.sum().backward()
    assert images.grad.dtype == images.dtype
    assert layer.weight.grad.dtype == np.float32
    assert layer.running_mean.dtype == np.float32


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("C", [3, 300])
def test_running_statistics_move_in_one_launch(
    cuda: str, C: int, dtype: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    launches = []
    move = norm.move_statistics
    monkeypatch.setattr(norm, "move_statistics", lambda *a: launches.append(a) or move(*a))
    rng = np.random.default_rng(0)
    layer, expected = nn.BatchNorm2d(C, momentum=0.3), nn.BatchNorm2d(C, momentum=0.3)
    for net in (layer, expected):
        net.to(dtype)
    layer.to(cuda)
    for _ in range(3):
        x = (3.0 * rng.standard_normal((4, C, 2, 3)) + 1.0).astype(dtype)
        layer(mr.Tensor(x).to(cuda))
        expected(mr.Tensor(x))
    assert len(launches) == 3
    for name in ("running_mean", "running_var"):
        found, right = getattr(layer, name), getattr(expected, name)
        assert found.dtype == dtype
        assert found._buffer.version == right._buffer.version
        np.testing.assert_allclose(
            found.cpu().numpy(), right.numpy(), rtol=20 * np.finfo(dtype).eps, atol=1e-7
        )


def test_running_statistics_of_another_dtype(cuda: str) -> None:
    x = mr.Tensor(np.random.default_rng(0).standard_normal((4, 3, 2, 2)).astype(np.float32))
    mean, var = (mr.Tensor(np.full(3, v)) for v in (0.0, 1.0))  # float64
    on_device = mean.to(cuda), var.to(cuda)
    mr.functional.batch_norm(x.to(cuda), *on_device, training=True)
    mr.functional.batch_norm(x, mean, var, training=True)
    for found, right in zip(on_device, (mean, var), strict=True):
        assert found.dtype == np.float64
        np.testing.assert_allclose(found.cpu().numpy(), right.numpy(), rtol=1e-5)
