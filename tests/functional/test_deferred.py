"""Activations and convolutions that are put off, and done on another operation's way."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

import minires as mr
import minires.functional as F
from minires import nn
from minires.autograd import tape
from minires.autograd.pending import Deferred, Pending
from minires.kernels import operations, reference, register, registry, use
from minires.kernels.fusing import AFTER, BEFORE, MOMENTS
from minires.models import resnet

PIXELS = (4, 16, 32, 64)  # N, C, H, W: as many as the fast batch norm takes


def images(rng: np.random.Generator, shape: tuple[int, ...] = PIXELS) -> Any:
    N, C, H, W = shape
    return rng.standard_normal((N, H, W, C)).astype(np.float32).transpose(0, 3, 1, 2)


def engine_owned(array: Any) -> mr.Tensor:
    """A tensor whose memory nobody outside holds, as every result of an operation is."""
    return mr.Tensor(array).clone()


def normalised(x: mr.Tensor) -> mr.Tensor:
    return F.batch_norm_relu(x, None, None, training=True)


@pytest.fixture
def everything_is_large(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tape, "LARGE", 0)


class Counted:
    """How often each part was fused, and how often an activation got a pass of its own."""

    def __init__(self) -> None:
        self.parts: list[str] = []


@pytest.fixture
def fusing(everything_is_large: None) -> Iterator[Counted]:
    """Convolution kernels that can fuse everything, written as the passes that they stand for."""
    counted = Counted()
    before_table = {
        name: list(registry.operation(name).kernels) for name in ("conv2d", "conv2d_grad_weight")
    }

    def conv2d_fused(
        x: Any, weight: Any, g: Any, before: Any = None, after: Any = None, moments: bool = False
    ) -> Any:
        if before is not None:
            counted.parts.append(BEFORE)
            x = operations.normalise(x, *before, None, True)
        y = reference.conv.conv2d(x, weight, g)
        if after is not None:
            counted.parts.append(AFTER)
            y = operations.normalise(y, None, None, *after)
        if not moments:
            return y
        counted.parts.append(MOMENTS)
        wide = y.astype(np.float64)
        return y, wide.mean(axis=(0, 2, 3)), wide.var(axis=(0, 2, 3))

    def grad_weight_fused(x: Any, gy: Any, g: Any, before: Any) -> Any:
        counted.parts.append("gradient")
        x = operations.normalise(x, *before, None, True)
        return reference.conv.conv2d_grad_weight(x, gy, g)

    parts = {BEFORE: None, AFTER: None, MOMENTS: None}
    for name, plain, fused in (
        ("conv2d", reference.conv.conv2d, conv2d_fused),
        ("conv2d_grad_weight", reference.conv.conv2d_grad_weight, grad_weight_fused),
    ):
        register(name, name="fusing", fused=fused, fuses=parts)(plain)
    yield counted
    for name, kernels in before_table.items():
        registry.operation(name).kernels = kernels
        registry.operation(name).forget()


# -- the tensor ------------------------------------------------------------------------------------


@pytest.mark.usefixtures("everything_is_large")
def test_what_is_known_without_the_array(rng: np.random.Generator) -> None:
    y = normalised(engine_owned(images(rng)))
    assert type(y) is Deferred
    assert y.shape == PIXELS
    assert y.ndim == 4
    assert y.dtype == np.float32
    assert y.device == "cpu"
    assert y.size == y.numel() == np.prod(PIXELS)
    assert not y.requires_grad
    assert type(y) is Deferred


READS: dict[str, Callable[[mr.Tensor], Any]] = {
    "numpy": lambda y: y.numpy(),
    "data": lambda y: y.data,
    "arithmetic": lambda y: y + 0,
    "slice": lambda y: y[0],
    "repr": repr,
    "detach": lambda y: y.detach(),
    "list": lambda y: y.tolist(),
    "dlpack": np.from_dlpack,
    "iteration": lambda y: next(iter(y)),
}


@pytest.mark.usefixtures("everything_is_large")
@pytest.mark.parametrize("read", READS)
def test_reading_makes_it_a_plain_tensor(read: str, rng: np.random.Generator) -> None:
    x = images(rng)
    y = normalised(engine_owned(x))
    assert type(y) is Deferred
    READS[read](y)
    assert type(y) is mr.Tensor
    with use(batch_norm_relu_train="numpy"):
        expected = normalised(mr.Tensor(x)).numpy()
    np.testing.assert_allclose(y.numpy(), expected, atol=1e-5)


class ReadOnTheWay(mr.Function):
    """Is handed what is pending; the tensor around it is read by somebody during forward."""

    takes_pending = True

    def __init__(self, tensor: mr.Tensor) -> None:
        self.tensor = tensor

    def forward(self, x: Any) -> Any:
        assert isinstance(x, Pending)
        self.save(x=self.tensor.detach()._data)
        return x.make() * 2.0


@pytest.mark.usefixtures("everything_is_large")
def test_what_is_made_during_forward_keeps_its_place_in_the_graph(rng: np.random.Generator) -> None:
    y = normalised(mr.Tensor(images(rng), requires_grad=True).clone())
    assert type(y) is Deferred
    node = ReadOnTheWay(y)(y).grad_fn
    assert type(y) is mr.Tensor
    assert node is not None
    assert node.recall("x").grad_fn is y.grad_fn


@pytest.mark.usefixtures("everything_is_large")
def test_assigning_data_replaces_what_is_pending(rng: np.random.Generator) -> None:
    y, other = normalised(engine_owned(images(rng))), images(rng)
    y.data = other
    assert type(y) is mr.Tensor
    assert y.data is other


@pytest.mark.usefixtures("everything_is_large")
def test_what_nobody_reads_is_never_made(rng: np.random.Generator) -> None:
    calls = []
    before, registry.observer = registry.observer, lambda op, kernel, args: (
        calls.append(op.name), kernel.function(*args)
    )[1]  # fmt: skip
    try:
        y = normalised(engine_owned(images(rng)))
        gone = weakref.ref(y)
        del y
        gc.collect()
    finally:
        registry.observer = before
    assert gone() is None
    assert calls == ["batch_norm_statistics"]


CHANGES: dict[str, Callable[[mr.Tensor], Any]] = {
    "copy_": lambda x: x.copy_(np.zeros(x.shape, np.float32)),
    "item": lambda x: x.__setitem__((0, 0), 7.0),
    "in place": lambda x: x.__iadd__(1.0),
    "view": lambda x: x[0].copy_(np.zeros(x.shape[1:], np.float32)),
    "data": lambda x: x.data.fill(3.0),
    "numpy": lambda x: x.numpy().fill(3.0),
    "dlpack": lambda x: np.from_dlpack(x).fill(3.0),
    "init": lambda x: nn.init.constant_(x, 0.0),
}


@pytest.mark.usefixtures("everything_is_large")
@pytest.mark.parametrize("change", CHANGES)
def test_it_is_made_before_what_it_is_made_from_changes(change: str, rng: Any) -> None:
    array = images(rng)
    x, expected = engine_owned(array), normalised(engine_owned(array)).numpy()
    y = normalised(x)
    assert type(y) is Deferred
    CHANGES[change](x)
    np.testing.assert_array_equal(y.numpy(), expected)


@pytest.mark.usefixtures("everything_is_large")
def test_memory_in_others_hands_is_not_waited_on(rng: np.random.Generator) -> None:
    array = images(rng)
    x = engine_owned(array)
    held = x.numpy()
    for given in (mr.Tensor(array), x):
        y = normalised(given)
        assert type(y) is mr.Tensor
    expected = y.numpy().copy()
    held.fill(0)
    np.testing.assert_array_equal(y.numpy(), expected)


@pytest.mark.usefixtures("everything_is_large")
def test_beta_may_move_on(rng: np.random.Generator) -> None:
    gamma, beta = (mr.Tensor(rng.standard_normal(16).astype(np.float32)) for _ in range(2))
    x = images(rng)

    def forward() -> mr.Tensor:
        return F.batch_norm_relu(engine_owned(x), None, None, gamma, beta, training=True)

    expected, y = forward().numpy(), forward()
    assert type(y) is Deferred
    gamma.copy_(np.zeros(16))
    beta.copy_(np.ones(16))
    np.testing.assert_array_equal(y.numpy(), expected)


# -- what takes it ---------------------------------------------------------------------------------


class Block(nn.Module):
    """conv, batch norm and ReLU, conv, batch norm, shortcut and ReLU."""

    def __init__(self, feeds_norm: bool = False) -> None:
        super().__init__()
        mr.manual_seed(1)
        self.conv1 = nn.Conv2d(32, 16, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        self.conv2 = nn.Conv2d(16, 32, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(32)
        self.conv1.feeds_norm = self.conv2.feeds_norm = feeds_norm

    def forward(self, x: mr.Tensor) -> mr.Tensor:
        return self.bn2.add_relu(self.conv2(self.bn1.relu(self.conv1(x))), x)


def step(model: nn.Module, x: Any) -> list[Any]:
    """The output, all gradients and running statistics of one step."""
    model.zero_grad()
    y = model(mr.Tensor(x))
    (y * y).mean().backward()
    arrays = [y.numpy(), *(p.grad.numpy() for p in model.parameters())]
    return [*arrays, *(b.numpy() for b in model.buffers())]


WIDE = (4, 32, 32, 64)


def test_the_next_convolution_does_it_on_the_way(fusing: Counted, rng: Any) -> None:
    x = images(rng, WIDE)
    fused = step(Block(), x)
    assert fusing.parts == [BEFORE, "gradient"]
    with use(conv2d="im2col", conv2d_grad_weight="im2col"):
        plain = step(Block(), x)
    assert len(fusing.parts) == 2
    for a, b in zip(fused, plain, strict=True):
        np.testing.assert_array_equal(a, b)


def test_statistics_come_from_the_convolution(fusing: Counted, rng: Any) -> None:
    x = images(rng, WIDE)
    fused, plain = step(Block(feeds_norm=True), x), step(Block(), x)
    assert fusing.parts == [MOMENTS, BEFORE, MOMENTS, "gradient", BEFORE, "gradient"]
    for a, b in zip(fused, plain, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)


def test_watching_does_not_change_the_bits(fusing: Counted, rng: Any) -> None:
    """A hook that looks at every output takes the fast way away, and nothing else."""
    x, seen = images(rng, WIDE), []
    alone = step(Block(feeds_norm=True), x)
    watched = Block(feeds_norm=True)
    for conv in (watched.conv1, watched.conv2):
        conv.register_forward_hook(lambda module, args, output: seen.append(output.numpy()))
    for a, b in zip(step(watched, x), alone, strict=True):
        np.testing.assert_array_equal(a, b)
    assert len(seen) == 2


@pytest.mark.parametrize("through", ["data", "numpy"])
def test_statistics_of_what_a_hook_has_changed(through: str, fusing: Counted, rng: Any) -> None:
    def double(module: nn.Module, args: Any, output: mr.Tensor) -> None:
        if through == "data":
            output.data *= 2
        else:  # the engine sees that the array was handed out, and not what became of it
            array = output.numpy()
            array *= 2

    def found(hooked: bool) -> Any:
        model = Block(feeds_norm=hooked)
        if hooked:
            model.conv1.register_forward_hook(double)
        else:
            model.conv1.weight.data *= 2
        with mr.no_grad():
            model(mr.Tensor(x))
        return model.bn1.running_var.numpy()

    x = images(rng, WIDE)
    np.testing.assert_allclose(found(True), found(False), rtol=1e-4)


@pytest.mark.parametrize("index", [slice(0, 2), (slice(None), slice(0, 8))], ids=str)
def test_statistics_of_a_part_are_its_own(index: Any, fusing: Counted, rng: Any) -> None:
    """A view shares the memory that the convolution's statistics are of, and not the statistics."""
    conv = nn.Conv2d(32, 16, 3, padding=1, bias=False)
    y = conv(mr.Tensor(images(rng, WIDE)))
    assert fusing.parts == [MOMENTS]
    with use(batch_norm_train="simd"):
        found = F.batch_norm(y[index], None, None, training=True)
    expected = F.batch_norm(mr.Tensor(y.numpy()[index].copy()), None, None, training=True)
    np.testing.assert_allclose(found.numpy(), expected.numpy(), atol=1e-4)


def test_a_batch_norm_of_ones_own_is_asked(fusing: Counted, rng: Any) -> None:
    """Who registers a batch norm gets all of it to do, and may return what he likes."""
    kernels = list(registry.operation("batch_norm_relu_train").kernels)

    def mine(x: Any, gamma: Any, beta: Any, eps: float) -> Any:
        return (np.ones_like(x), *reference.norm.batch_norm_train(x, gamma, beta, eps)[1:])

    try:
        register("batch_norm_relu_train", name="mine")(mine)
        y = Block(feeds_norm=True).bn1.relu(engine_owned(images(rng)))
    finally:
        registry.operation("batch_norm_relu_train").kernels = kernels
        registry.operation("batch_norm_relu_train").forget()
    np.testing.assert_array_equal(y.numpy(), 1)


def test_gradients_of_gradients(fusing: Counted, rng: np.random.Generator) -> None:
    x = mr.Tensor(rng.standard_normal((2, 16, 3, 3)), requires_grad=True)
    weight = mr.Tensor(rng.standard_normal((2, 16, 3, 3)), requires_grad=True)

    def f(x: Any, weight: Any) -> Any:
        return F.conv2d(F.batch_norm_relu(x, None, None, training=True), weight, padding=1)

    with use(batch_norm_relu_train="simd"):
        mr.gradcheck(f, (x, weight))
        mr.gradgradcheck(f, (x, weight))


def test_a_folded_net_does_everything_on_the_way(fusing: Counted, rng: Any) -> None:
    model = resnet.resnet20(num_classes=10)
    model.train()(mr.Tensor(images(rng, (4, 3, 16, 16))))
    folded = nn.fold_batch_norms(model.eval())
    x = mr.Tensor(images(rng, (2, 3, 16, 16)))
    fusing.parts.clear()
    with mr.no_grad():
        fused = folded(x).numpy()
        convolutions = [m for m in folded.modules() if isinstance(m, nn.Conv2d)]
        assert fusing.parts == [AFTER] * len(convolutions)
        with use(conv2d="im2col"):
            plain = folded(x).numpy()
    np.testing.assert_array_equal(fused, plain)


def test_a_folded_convolution_called_by_hand(fusing: Counted, rng: Any) -> None:
    folded = nn.fold_batch_norms(resnet.resnet20(num_classes=10).eval())
    x = engine_owned(images(rng, (2, 3, 16, 16)))
    with mr.no_grad():
        expected = F.conv2d(x, folded.conv1.weight, padding=1).numpy()
        y = folded.conv1(x)
        assert type(y) is Deferred
        assert y.shape == (2, 16, 16, 16)
        x.copy_(np.zeros(x.shape))
        np.testing.assert_array_equal(y.numpy(), expected)


def test_a_profile_gives_the_work_to_the_layer_that_asked(fusing: Counted, rng: Any) -> None:
    x, model = mr.Tensor(images(rng, WIDE)), Block(feeds_norm=True)
    with mr.profile() as watched:
        (model(x) ** 2).mean().backward()
    found = {(span.layer, span.name) for span in watched.spans if span.kind == "kernel"}
    assert {("conv1", "conv2d"), ("conv2", "conv2d"), ("bn1", "batch_norm_relu_grad")} <= found


@pytest.mark.parametrize("frozen", ["bn1", "conv2"])
def test_frozen_layers(frozen: str, fusing: Counted, rng: np.random.Generator) -> None:
    x = images(rng, WIDE)

    def found() -> list[Any]:
        model = Block()
        for parameter in getattr(model, frozen).parameters():
            parameter.requires_grad_(False)
        model.conv1.weight.requires_grad_(frozen != "bn1")
        (model(mr.Tensor(x)) ** 2).mean().backward()
        return [p.grad.numpy() for p in model.parameters() if p.grad is not None]

    fused = found()
    with use(conv2d="im2col", conv2d_grad_weight="im2col"):
        plain = found()
    for a, b in zip(fused, plain, strict=True):
        np.testing.assert_array_equal(a, b)
