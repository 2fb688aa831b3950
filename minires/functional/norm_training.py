"""Batch normalisation by the batch's own statistics, alone and with what stands behind it."""

from __future__ import annotations

from typing import Any, ClassVar

from minires.autograd import Function, Tensor, enable_grad, grad, is_grad_enabled, no_grad, tape
from minires.functional.activation import ReLUGrad
from minires.functional.deferred import PendingActivation
from minires.kernels import cpu
from minires.kernels import operations as ops
from minires.kernels.arrays import xp_of
from minires.kernels.fusing import MOMENTS, SUMS, Before, Rectified
from minires.kernels.registry import Operation


def per_channel(v: Tensor, ndim: int) -> Tensor:
    """(C,) -> (1, C, 1, 1) or (1, C): to broadcast over a batch."""
    return v.reshape((1, -1) + (1,) * (ndim - 2))


def over_rows(x: Tensor, keepdims: bool = False) -> Tensor:
    """Sum over everything but the channels."""
    return x.sum(axis=(0, *range(2, x.ndim)), keepdims=keepdims)


class BatchStatistics:
    """What the three in training mode share: `mean`, `var` (biased) and the inverse deviation
    `inv_std` are left as attributes.

    moments: mean and variance in float64, if the convolution that made x has summed them.
    applied: what was done to x, of arrays that nobody changes; None if a kernel did it all.
    """

    operation: ClassVar[Operation]
    applied: Before | None = None

    def __init__(self, eps: float, moments: tuple[Any, Any] | None = None) -> None:
        self.eps, self.moments = eps, moments

    def statistics(self, x: Any, gamma: Any, beta: Any) -> Before:
        """Sets the attributes; returns `applied`."""
        if self.moments is None:
            self.mean, self.var, self.inv_std = ops.batch_norm_statistics(x, self.eps)
            self.applied = _before(self.mean, self.inv_std, gamma, beta)
        else:
            self.mean, self.var, self.inv_std, scale, shift = cpu.normaliser(
                self.moments, self.eps, gamma, beta, x.dtype
            )
            self.applied = Before(self.mean, scale, shift)
        return self.applied

    def gradients_by_operations(self, gy: Tensor, x: Tensor, *gamma: Tensor) -> tuple[Tensor, ...]:
        """Of x, gamma and beta, as an operation that can be differentiated."""
        gradients: tuple[Tensor, ...] = BatchNormGrad(self.eps, self.mean, self.inv_std)(
            gy, x, *gamma
        )
        return gradients


class BatchNormTrain(BatchStatistics, Function):
    """Normalise by the batch's own statistics."""

    operation = ops.batch_norm_train
    returns_new = True

    def forward(self, x: Any, gamma: Any = None, beta: Any = None) -> Any:
        if self.moments is None:
            y, self.mean, self.var, self.inv_std = ops.batch_norm_train(x, gamma, beta, self.eps)
        else:
            y = ops.normalise(x, *self.statistics(x, gamma, beta), None, False)
        self.save(x=x) if gamma is None else self.save(x=x, gamma=gamma)
        return y

    def backward(self, gy: Tensor) -> tuple[Tensor, ...]:
        saved = self.saved
        affine = (saved.gamma,) if hasattr(saved, "gamma") else ()
        gradients = self.gradients_by_operations(gy, saved.x, *affine)
        return gradients if affine else gradients[:1]


class GradientMasked:
    """Whose upstream gradient the operation that completes it may mask by a ReLU, and sum.

    summed: such a gradient's array, and what else there is to say to `fused` about it.
    """

    summed: tuple[Any, dict[str, Any]] | None = None

    def rectified(self) -> Rectified | None:
        """What the gradient is to be masked by, and summed with; None if it is not to be."""
        raise TypeError(f"{type(self).__name__}: whose gradient may come masked says by what")

    def known_of(self, gy: Any) -> dict[str, Any]:
        """What there is to say about this gradient, once; nothing if it has no sums."""
        summed, self.summed = self.summed, None
        # Not if a backward that was interrupted has left the sums of some other gradient.
        return summed[1] if summed is not None and summed[0] is gy else {}


class RectifiedNorm(BatchStatistics, GradientMasked):
    """What the two with a ReLU share: of a gradient that comes masked and with its sums, one pass
    over memory is left.
    """

    gradient: ClassVar[Operation]

    def before(self: Any) -> tuple[Any, Before]:
        """x and what was done to it."""
        recall = self.recall_array
        if self.applied is None:
            gamma, beta = (recall("gamma"), recall("beta")) if self.keeps("gamma") else (None, None)
            self.applied = _before(self.mean, self.inv_std, gamma, beta)
        return recall("x"), self.applied

    def rectified(self) -> Rectified | None:
        x, before = self.before()
        return Rectified(x, *before) if SUMS in self.gradient.chosen(x).parts else None

    def _gradients(self, gy: Any, *args: Any) -> Any:
        """What the kernel makes of gy and the other arguments."""
        kernel, known = self.gradient.chosen(gy), self.known_of(gy)
        return kernel.fused(gy, *args, **known) if known else kernel(gy, *args)


class BatchNormReLUTrain(RectifiedNorm, Function):
    """`BatchNormTrain` with a ReLU behind it, in one pass over memory each way.

    A large result is put off, for the convolution behind it to compute as it loads x. Nor need that
    keep its input: one more pass over x makes it again.
    """

    operation, gradient = ops.batch_norm_relu_train, ops.batch_norm_relu_grad
    returns_new = True

    def forward(self, x: Any, gamma: Any = None, beta: Any = None) -> Any:
        y: Any
        kernel = ops.batch_norm_relu_train.chosen(x)
        if MOMENTS in kernel.parts:
            y = PendingActivation(x, self.statistics(x, gamma, beta))
            if x.nbytes < tape.LARGE:
                y = y.make()
        else:
            y, self.mean, self.var, self.inv_std = kernel(x, gamma, beta, self.eps)
        self.save(x=x) if gamma is None else self.save(x=x, gamma=gamma, beta=beta)
        return y

    def backward(self, gy: Tensor) -> tuple[Tensor, ...]:
        if is_grad_enabled():
            return self._backward_in_operations(gy)
        recall, affine = self.recall_array, self.keeps("gamma")
        gamma, beta = (recall("gamma"), recall("beta")) if affine else (None, None)
        gx, ggamma, gbeta = self._gradients(
            gy._data, recall("x"), gamma, beta, self.mean, self.inv_std
        )
        wrap = Tensor._wrap
        return (wrap(gx), wrap(ggamma), wrap(gbeta)) if affine else (wrap(gx),)

    def _backward_in_operations(self, gy: Tensor) -> tuple[Tensor, ...]:
        """To be differentiated again: one operation after the other."""
        saved = self.saved
        affine = (saved.gamma, saved.beta) if hasattr(saved, "gamma") else ()
        with no_grad():
            mean, inv_std = Tensor._wrap(self.mean), Tensor._wrap(self.inv_std)
            y = (saved.x - per_channel(mean, gy.ndim)) * per_channel(inv_std, gy.ndim)
            if affine:
                y = y * per_channel(saved.gamma, gy.ndim) + per_channel(saved.beta, gy.ndim)
        gz = ReLUGrad()(gy, y)
        gradients = self.gradients_by_operations(gz, saved.x, *affine[:1])
        return gradients if affine else gradients[:1]

    def can_rebuild(self) -> bool:
        return True

    def rebuild(self) -> Any:
        x, before = self.before()
        return ops.normalise(x, *before, None, True)


class BatchNormAddReLUTrain(RectifiedNorm, Function):
    """relu(batch norm of x + r): the end of a residual block, in one pass over memory.

    Where the block before keeps its own output, which is r, this one's is made again from it: of
    blocks in a row, every other one keeps its output.
    """

    operation, gradient = ops.batch_norm_add_relu_train, ops.batch_norm_add_relu_grad
    returns_new = True

    def can_rebuild(self) -> bool:
        before = self._block_before()
        return before is not None and before.keeps_output()

    def rebuild(self) -> Any:
        before = self._block_before()
        r = None if before is None else before.recall_array("y")
        x, parts = self.before()
        return ops.normalise(x, *parts, r, True)

    def rectified(self) -> Rectified | None:
        part = super().rectified()
        return None if part is None else part._replace(y=self.recall_array("y"))

    def _block_before(self) -> BatchNormAddReLUTrain | None:
        """The operation that made r, if it is the end of a block too."""
        edge = self.edges[1] if self.edges else None
        maker = edge[0] if isinstance(edge, tuple) else None
        return maker if isinstance(maker, BatchNormAddReLUTrain) else None

    def forward(self, x: Any, r: Any, gamma: Any = None, beta: Any = None) -> Any:
        if self.moments is None:
            y, self.mean, self.var, self.inv_std = ops.batch_norm_add_relu_train(
                x, r, gamma, beta, self.eps
            )
        else:
            y = ops.normalise(x, *self.statistics(x, gamma, beta), r, True)
        self.save(x=x, y=y) if gamma is None else self.save(x=x, y=y, gamma=gamma, beta=beta)
        return y

    def backward(self, gy: Tensor) -> tuple[Tensor, ...]:
        affine = self.keeps("gamma")
        if is_grad_enabled():  # to be differentiated again
            saved = self.saved
            gr = ReLUGrad()(gy, saved.y)
            scaled = (saved.gamma,) if affine else ()
            gx, *rest = self.gradients_by_operations(gr, saved.x, *scaled)
            return (gx, gr, *rest) if affine else (gx, gr)
        recall, wrap = self.recall_array, Tensor._wrap
        gx, gr, ggamma, gbeta = self._gradients(
            gy._data, recall("x"), recall("y"), recall("gamma") if affine else None,
            self.mean, self.inv_std,
        )  # fmt: skip
        both = wrap(gx), wrap(gr)
        return (*both, wrap(ggamma), wrap(gbeta)) if affine else both


def _before(mean: Any, inv_std: Any, gamma: Any, beta: Any) -> Before:
    """What batch norm does to x. A copy of beta, which moves on."""
    if gamma is None:
        return Before(mean, inv_std, xp_of(inv_std).zeros_like(inv_std))
    return Before(mean, gamma * inv_std, beta.copy())


class BatchNormGrad(Function):
    """The gradients of training-mode batch norm as an operation of (gy, x, gamma)."""

    def __init__(self, eps: float, mean: Any, inv_std: Any) -> None:
        self.eps, self.mean, self.inv_std = eps, mean, inv_std

    def forward(self, gy: Any, x: Any, gamma: Any = None) -> Any:
        kept = {"gamma": gamma} if gamma is not None else {}
        self.save(gy=gy, x=x, **kept)
        return ops.batch_norm_grad(gy, x, gamma, self.mean, self.inv_std)

    def backward(self, vx: Tensor, vgamma: Tensor, vbeta: Tensor) -> tuple[Tensor | None, ...]:
        """Differentiate  <vx, gx> + <vgamma, ggamma> + <vbeta, gbeta>  once more.

        The gradients are written out in differentiable operations, with the statistics computed
        from x again, and that expression is differentiated. It runs only for gradients of
        gradients, so it is written to be read, not to be fast.
        """
        saved, create_graph = self.saved, is_grad_enabled()
        inputs = [saved.gy, saved.x, *([saved.gamma] if hasattr(saved, "gamma") else [])]
        with enable_grad():
            # Stand-ins: what reaches the inputs through vx, vgamma and vbeta is not ours to count.
            if create_graph:
                inputs = [t.reshape(t.shape) for t in inputs]
            else:
                inputs = [t.detach().requires_grad_() for t in inputs]
            wanted = [t for t in inputs if t.requires_grad]
            gx, ggamma, gbeta = _gradients(*inputs, eps=self.eps)
            paired = (vx * gx).sum() + (vgamma * ggamma).sum() + (vbeta * gbeta).sum()
            found = iter(grad(paired, wanted, create_graph=create_graph, allow_unused=True))
        return tuple(next(found) if t.requires_grad else None for t in inputs)


def _gradients(
    gy: Tensor, x: Tensor, gamma: Tensor | None = None, *, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    """The formulas of kernels/reference/norm.py in differentiable operations."""
    m = x.size // x.shape[1]
    centred = x - over_rows(x, keepdims=True) * (1.0 / m)
    inv_std = (over_rows(centred * centred, keepdims=True) * (1.0 / m) + eps) ** -0.5
    xhat = centred * inv_std
    gbeta, ggamma = over_rows(gy), over_rows(gy * xhat)
    gx = inv_std * (gy - per_channel(gbeta, x.ndim) * (1.0 / m)
                    - xhat * per_channel(ggamma, x.ndim) * (1.0 / m))  # fmt: skip
    return gx if gamma is None else gx * per_channel(gamma, x.ndim), ggamma, gbeta
