"""The checks are checked: wrong joins, convolutions and batch norms, alone and within nets.

A bug sits in a Function, in a registered kernel, or in how operations are put together. Each must
be caught, named and explained, and its right twin must pass.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from planting import Array, Block, failed, planted, tensor

import minires as mr
from minires import functional as F
from minires import nn
from minires.functional.activation import AddReLU, ReLUGrad
from minires.functional.norm_training import BatchNormTrain
from minires.kernels.reference import conv as reference_conv
from minires.kernels.reference import norm as reference_norm
from minires.testing import gradcheck, gradgradcheck

# -- the residual join -------------------------------------------------------------------------


class DroppedJoin(AddReLU):
    def backward(self, gy: mr.Tensor) -> tuple[mr.Tensor | None, ...]:
        return ReLUGrad()(gy, self.saved.y), None


class DoubledJoin(AddReLU):
    def backward(self, gy: mr.Tensor) -> tuple[mr.Tensor, mr.Tensor]:
        gx = ReLUGrad()(gy, self.saved.y)
        return gx, gx + gx


class UnmaskedJoin(AddReLU):
    def backward(self, gy: mr.Tensor) -> tuple[mr.Tensor, mr.Tensor]:
        return gy, gy


def hooked_join(a: mr.Tensor, b: mr.Tensor) -> mr.Tensor:
    b = b.clone()
    if b.requires_grad:
        b.register_hook(lambda g: g * 2.0)
    return F.add_relu(a, b)


def images(rng: np.random.Generator) -> mr.Tensor:
    return tensor(rng, 2, 2, 5, 4)


@pytest.mark.parametrize("shape", [(2, 2, 1), (2, 4, 2)], ids=["identity", "projection"])
def test_the_right_block_passes(shape: tuple[int, int, int], rng: np.random.Generator) -> None:
    assert gradcheck(Block(*shape), images(rng))
    assert gradgradcheck(Block(*shape), images(rng))


@pytest.mark.parametrize(
    ("join", "kind"),
    [(DroppedJoin, "missing"), (DoubledJoin, "twice")],
)
@pytest.mark.parametrize("shape", [(2, 2, 1), (2, 4, 2)], ids=["identity", "projection"])
def test_a_wrong_join_is_named(
    join: Any, kind: str, shape: tuple[int, int, int], rng: np.random.Generator
) -> None:
    report = failed(Block(*shape, join=lambda a, b: join()(a, b)), images(rng))
    (cause,) = report.causes
    assert cause.kind == kind
    assert cause.where.startswith(join.__name__)
    assert "the gradient of b" in cause.text


def test_a_detached_shortcut_is_recognised_by_what_is_missing(rng: np.random.Generator) -> None:
    """No operation is wrong here: they are put together wrongly."""
    report = failed(Block(2, 2, join=lambda a, b: F.add_relu(a, b.detach())), images(rng))
    (cause,) = report.causes
    assert cause.kind == "path dropped"
    assert "the shortcut" in cause.text
    assert report.elements[0].tensor == "x"


def test_a_detached_projection_has_no_gradient_at_all(rng: np.random.Generator) -> None:
    report = failed(Block(2, 4, 2, join=lambda a, b: F.add_relu(a, b.detach())), images(rng))
    assert "missing" in report.kinds
    wrong = {t.name for t in report.tensors if not t.passed}
    assert wrong == {"x", "downsample.weight", "downsample.bias"}


def test_a_shortcut_doubled_by_a_hook(rng: np.random.Generator) -> None:
    report = failed(Block(2, 2, join=hooked_join), images(rng))
    assert report.kinds == {"path doubled"}


def test_a_join_without_its_mask(rng: np.random.Generator) -> None:
    report = failed(lambda a, b: UnmaskedJoin()(a, b), images(rng), images(rng))
    assert all(cause.where.startswith("UnmaskedJoin") for cause in report.causes)


# -- convolution kernels -----------------------------------------------------------------------


def flipped_input(gy: Array, weight: Array, g: Any) -> Array:
    return reference_conv.conv2d_grad_input(gy, weight[:, :, ::-1, ::-1], g)


def transposed_input(gy: Array, weight: Array, g: Any) -> Array:
    return reference_conv.conv2d_grad_input(gy, weight.transpose(1, 0, 2, 3), g)


def flipped_weight(x: Array, gy: Array, g: Any) -> Array:
    return reference_conv.conv2d_grad_weight(x, gy, g)[:, :, ::-1, ::-1].copy()


def transposed_weight(x: Array, gy: Array, g: Any) -> Array:
    return reference_conv.conv2d_grad_weight(x, gy, g).transpose(1, 0, 2, 3).copy()


def spatially_transposed_weight(x: Array, gy: Array, g: Any) -> Array:
    return reference_conv.conv2d_grad_weight(x, gy, g).transpose(0, 1, 3, 2).copy()


def off_by_one_input(gy: Array, weight: Array, g: Any) -> Array:
    """Written from the definition, but with i * stride + 1 where i * stride belongs."""
    (KH, KW), (sh, sw), (ph, pw), (OH, OW) = g.kernel, g.stride, g.padding, g.out
    gx = np.zeros(g.x_shape)
    for i, j, u, v in np.ndindex(OH, OW, KH, KW):
        h, w = i * sh + 1 + u - ph, j * sw + v - pw
        if 0 <= h < g.H and 0 <= w < g.W:
            gx[:, :, h, w] += gy[:, :, i, j] @ weight[:, :, u, v]
    return gx


def stride_one_weight(x: Array, gy: Array, g: Any) -> Array:
    """Walks the input with stride 1 whatever the stride is."""
    (KH, KW), (ph, pw), (OH, OW) = g.kernel, g.padding, g.out
    padded = np.pad(x, ((0, 0), (0, 0), (ph, ph), (pw, pw)))
    gw = np.zeros(g.weight_shape)
    for u, v in np.ndindex(KH, KW):
        gw[:, :, u, v] = np.einsum("nchw,nohw->oc", padded[:, :, u : u + OH, v : v + OW], gy)
    return gw


def careless_padding(gy: Array, weight: Array, g: Any) -> Array:
    """Half of the gradient gets lost in the outermost rows."""
    gx = reference_conv.conv2d_grad_input(gy, weight, g).copy()
    gx[:, :, [0, -1]] *= 0.5
    return gx


@pytest.mark.parametrize(
    ("kernel", "kind", "text"),
    [
        (flipped_input, "flipped", "would be right for weight flipped in both spatial axes"),
        (transposed_input, "transposed", "would be right for weight with its first two axes"),
        (flipped_weight, "flipped", "is the right one flipped in both spatial axes"),
        (transposed_weight, "transposed", "first two axes (channels) swapped"),
        (spatially_transposed_weight, "transposed", "height and width swapped"),
        (off_by_one_input, "shifted", "shifted by 1 rows and 0 columns"),
        (careless_padding, "border", "but for the outermost pixel"),
    ],
)
def test_wrong_convolution_gradients(
    kernel: Callable[..., Array], kind: str, text: str, rng: np.random.Generator
) -> None:
    operation = "conv2d_grad_weight" if "weight" in kernel.__name__ else "conv2d_grad_input"
    x, w = tensor(rng, 2, 3, 6, 7), tensor(rng, 3, 3, 3, 3)

    def conv(x: mr.Tensor, weight: mr.Tensor) -> mr.Tensor:
        return F.conv2d(x, weight, stride=2 if kind == "shifted" else 1, padding=1)

    assert gradcheck(conv, (x, w))
    with planted(**{operation: kernel}):
        (cause,) = failed(conv, x, w).causes
    assert cause.kind == kind, cause
    assert text in cause.text
    assert cause.where.startswith("Conv2d(2x3x6x7, 3x3x3x3)")


def test_a_wrong_stride_is_caught(rng: np.random.Generator) -> None:
    x, w = tensor(rng, 2, 3, 6, 7), tensor(rng, 3, 3, 3, 3)
    with planted(conv2d_grad_weight=stride_one_weight):
        assert gradcheck(lambda x, w: F.conv2d(x, w), (x, w))  # with stride 1 it is right
        report = failed(lambda x, w: F.conv2d(x, w, stride=2), x, w)
    assert report.elements[0].tensor == "w"
    assert report.causes[0].where.startswith("Conv2d")


def test_the_fault_is_found_in_the_depth_of_a_net(rng: np.random.Generator) -> None:
    """The parameters before the fault are all wrong; the operation is named all the same."""
    net = nn.Sequential(
        {
            "stem": nn.Conv2d(1, 2, 3, padding=1),
            "layer1": nn.Sequential(Block(2, 2), Block(2, 2)),
            "layer2": nn.Sequential(Block(2, 3, 2)),
            "pool": nn.AdaptiveAvgPool2d(1),
            "flatten": nn.Flatten(),
            "fc": nn.Linear(3, 4),
        }
    )
    x = tensor(rng, 2, 1, 7, 6)
    assert gradcheck(net, x)
    with planted(conv2d_grad_input=flipped_input):
        report = failed(net, x)
    kinds = {(c.kind, c.where.rpartition(", in ")[2]) for c in report.causes}
    assert kinds == {("flipped", "stem")}
    assert "other calls" in report.causes[0].text
    right = {t.name for t in report.tensors if t.passed}
    assert {"fc.weight", "fc.bias", "layer2.0.bn2.weight", "layer2.0.conv2.weight"} <= right
    assert "stem.weight" not in right
    assert "tensors are wrong; right:" in str(report)


# -- batch norm --------------------------------------------------------------------------------


class NoInputGradient(BatchNormTrain):
    def backward(self, gy: mr.Tensor) -> tuple[mr.Tensor, ...]:
        gx, ggamma, gbeta = super().backward(gy)
        return gx * 0.0, ggamma, gbeta


def batch_norm_grad(keep_mean: bool, keep_variance: bool, keep_gamma: bool) -> Any:
    """The textbook formula with terms left out."""

    def kernel(gy: Array, x: Array, gamma: Array, mean: Array, inv_std: Array) -> Any:
        axes, m = (0, 2, 3), gy[:, 0].size
        columns = (1, -1, 1, 1)
        xhat = (x - mean.reshape(columns)) * inv_std.reshape(columns)
        gbeta, ggamma = gy.sum(axes), (gy * xhat).sum(axes)
        dx = gy.copy()
        if keep_mean:
            dx -= gbeta.reshape(columns) / m
        if keep_variance:
            dx -= xhat * ggamma.reshape(columns) / m
        dx *= inv_std.reshape(columns)
        if keep_gamma:
            dx *= gamma.reshape(columns)
        return dx, ggamma, gbeta

    return kernel


def normalise(x: mr.Tensor, gamma: mr.Tensor, beta: mr.Tensor) -> mr.Tensor:
    return F.batch_norm(x, None, None, gamma, beta, training=True)


@pytest.mark.parametrize(
    ("terms", "kind"),
    [
        ((False, True, True), "mean term"),
        ((True, False, True), "variance term"),
        ((False, False, True), "batch statistics"),
        ((True, True, False), "missing factor"),
    ],
)
def test_batch_norm_with_a_term_missing(
    terms: tuple[bool, bool, bool], kind: str, rng: np.random.Generator
) -> None:
    inputs = tensor(rng, 4, 3, 3, 4), tensor(rng, 3), tensor(rng, 3)
    with planted(batch_norm_grad=batch_norm_grad(True, True, True)):
        assert gradcheck(normalise, inputs)
    with planted(batch_norm_grad=batch_norm_grad(*terms)):
        alone = failed(normalise, *inputs)
        within = failed(Block(3, 3), tensor(rng, 3, 3, 4, 5))
    for report in (alone, within):
        (cause,) = report.causes
        assert cause.kind == kind
        assert cause.where.startswith("BatchNormTrain")
        assert "the gradient of x" in cause.text
    assert "gamma" in cause.text or kind != "missing factor"
    assert {t.name: t.passed for t in alone.tensors} == {"x": False, "gamma": True, "beta": True}
    assert within.causes[0].where.endswith("in bn1")


def test_batch_norm_without_input_gradient(rng: np.random.Generator) -> None:
    inputs = tensor(rng, 4, 3, 3, 4), tensor(rng, 3), tensor(rng, 3)
    (cause,) = failed(lambda *ts: NoInputGradient(1e-5)(*ts), *inputs).causes
    assert cause.kind == "missing"
    assert "of x" in cause.text


def test_second_order_faults_are_not_blamed_on_batch_norm(rng: np.random.Generator) -> None:
    """Its gradient takes the statistics of x as constants when called alone, but not in a graph."""

    class Square(mr.Function):
        def forward(self, x: Array) -> Array:
            self.save(x=x)
            return x * x

        def backward(self, gy: mr.Tensor) -> mr.Tensor:
            return 2 * gy * self.saved.x.detach()

    inputs = tensor(rng, 4, 3, 3, 4), tensor(rng, 3), tensor(rng, 3)
    assert gradgradcheck(lambda *ts: normalise(*ts) ** 2, inputs)
    report = gradgradcheck(lambda *ts: Square()(normalise(*ts)), inputs, raise_exception=False)
    assert not report
    assert not any("BatchNorm" in cause.where for cause in report.causes)


# -- needles and digits -----------------------------------------------------------------------


def test_one_wrong_weight_of_a_net(rng: np.random.Generator) -> None:
    def grad_weight(x: Array, gy: Array, g: Any) -> Array:
        gw = reference_conv.conv2d_grad_weight(x, gy, g)
        if g.weight_shape == (4, 4, 3, 3):
            gw[2, 0, 1, 1] *= 0.5
        return gw

    with planted(conv2d_grad_weight=grad_weight):
        report = failed(Block(2, 4, 2), tensor(rng, 2, 2, 7, 6))
    (element,) = report.elements
    assert (element.tensor, element.index) == ("conv2.weight", (2, 0, 1, 1))
    assert element.analytic == pytest.approx(0.5 * element.numeric, rel=1e-6)
    assert "conv2.weight[2,0,1,1]: analytic" in str(report)
    assert "relative error 0.5" in str(report)
    (cause,) = report.causes
    assert cause.kind == "one element"
    assert cause.where.endswith("in conv2")
    assert "weight[2,0,1,1] alone" in cause.text


def test_a_float32_kernel_inside_a_float64_net(rng: np.random.Generator) -> None:
    def grad_weight(x: Array, gy: Array, g: Any) -> Array:
        single = reference_conv.conv2d_grad_weight(x.astype("f4"), gy.astype("f4"), g)
        return single.astype("f8")

    with planted(conv2d_grad_weight=grad_weight):
        report = failed(Block(2, 2), images(rng))
    assert report.kinds == {"float32"}
    assert report.causes[0].where == "Conv2d.backward"


def test_planting_leaves_nothing_behind(rng: np.random.Generator) -> None:
    with planted(batch_norm_grad=reference_norm.batch_norm_grad):
        pass
    assert all(kernel.name != "planted" for kernel in mr.kernels.available())
    assert gradcheck(normalise, (tensor(rng, 4, 3, 3, 4), tensor(rng, 3), tensor(rng, 3)))
