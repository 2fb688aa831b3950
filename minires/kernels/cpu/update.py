"""The optimiser's step in one pass: each number of parameter, gradient and buffer is read once.

In array operations the same step takes five passes over memory, and two arrays to compute in. A
network has some hundred parameters, most of them of a few hundred numbers, for which a call costs
more than the work: so all are changed in one call, by the addresses of their memory. Workers share
the numbers, as if the parameters stood in a row.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic
from numba.np.arrayobj import populate_array

from minires.kernels.cpu.simd import fill, fmuladd, lanes, load, store
from minires.kernels.cpu.team import parallel
from minires.kernels.threads import num_threads, use_own_threads


@intrinsic
def _numbers_at(typingctx: Any, like: Any, address: Any, size: Any) -> Any:
    """The array of `size` numbers at an address, of the dtype of `like`, a flat array."""

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        array = context.make_array(sig.return_type)(context, builder)
        itemsize = context.get_constant(types.intp, sig.return_type.dtype.bitwidth // 8)
        pointer = builder.inttoptr(args[1], array.data.type)
        shape = cgutils.pack_array(builder, [args[2]])
        strides = cgutils.pack_array(builder, [itemsize])
        populate_array(array, pointer, shape, strides, itemsize, meminfo=None)
        return array._getvalue()

    return like(like, types.intp, types.intp), codegen


@parallel
def _sgd(
    worker, addresses, sizes, like, lr, momentum, fresh, decay, nesterov, workers, L
):  # fmt: skip
    total = sizes.sum()
    first, last = worker * total // workers, (worker + 1) * total // workers
    m, f, w, step = fill(like, momentum), fill(like, fresh), fill(like, decay), fill(like, -lr)
    for k in range(len(sizes)):
        size = sizes[k]
        if first < size and last > 0:
            p = _numbers_at(like, addresses[k, 0], size)
            g = _numbers_at(like, addresses[k, 1], size)
            v = _numbers_at(like, addresses[k, 2], size)
            # Whole vectors of the parameter, and the rest with its end.
            for i in range(max(first, 0) // L * L, min(last, size) // L * L, L):
                at = load(p, i)
                d = fmuladd(w, at, load(g, i))
                moved = fmuladd(m, load(v, i), f * d)
                store(v, i, moved)
                store(p, i, fmuladd(step, fmuladd(m, moved, d) if nesterov else moved, at))
            for i in range(size // L * L if last >= size else size, size):
                d = g[i] + decay * p[i]
                v[i] = momentum * v[i] + fresh * d
                p[i] -= lr * (d + momentum * v[i] if nesterov else v[i])
        first, last = first - size, last - size


def can_update(dtype: Any, *arrays: Any) -> bool:
    """Whether `FusedSGD` takes them: contiguous, of this dtype, float32 or float64."""
    return dtype.char in "fd" and all(a.dtype == dtype and a.flags.c_contiguous for a in arrays)


class FusedSGD:
    """Steps of SGD with momentum that change parameters and their momentum buffers, where they are.

    The formulas are in minires/optim/sgd.py.
    """

    def __init__(self, parameters: list[Any], buffers: list[Any]) -> None:
        self.parameters, self.buffers = parameters, buffers
        self._sizes = np.array([p.size for p in parameters])
        self._addresses = np.empty((len(parameters), 3), np.int64)
        self._addresses[:, 0] = [p.ctypes.data for p in parameters]
        self._addresses[:, 2] = [v.ctypes.data for v in buffers]

    def __reduce__(self) -> Any:
        """A copy finds its own arrays' addresses."""
        return type(self), (self.parameters, self.buffers)

    def step(
        self, gradients: list[Any], lr: float, momentum: float, dampening: float,
        weight_decay: float, nesterov: bool,
    ) -> None:  # fmt: skip
        use_own_threads()
        self._addresses[:, 1] = [g.ctypes.data for g in gradients]
        like = self.parameters[0].reshape(-1)
        kind = like.dtype.type
        numbers = kind(lr), kind(momentum), kind(1 - dampening), kind(weight_decay)
        _sgd(
            self._addresses, self._sizes, like, *numbers, nesterov, num_threads(), lanes(like.dtype)
        )
