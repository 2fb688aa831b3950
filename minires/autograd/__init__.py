"""Automatic differentiation: tensors, the tape they are recorded on, and the walk back."""

from minires.autograd.tape import (  # isort: skip - the tape comes first, Tensor builds on it
    Function,
    enable_grad,
    functions,
    is_grad_enabled,
    no_grad,
    set_grad_enabled,
)
from minires.autograd.backward import grad
from minires.autograd.convert import from_dlpack, tensor
from minires.autograd.elementwise import (
    as_tensor,
    clip,
    exp,
    log,
    maximum,
    minimum,
    sigmoid,
    sqrt,
    sum_to,
    tanh,
    where,
)
from minires.autograd.linalg import matmul
from minires.autograd.parameter import Parameter
from minires.autograd.pending import Pending, made
from minires.autograd.reductions import normalise_axes
from minires.autograd.shaping import broadcast_to, concatenate, flatten, pad_axes, stack
from minires.autograd.tensor import Tensor
