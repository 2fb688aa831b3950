"""Differentiable operations: each one names its kernels and its backward."""

from minires.autograd import (
    clip,
    concatenate,
    exp,
    flatten,
    log,
    matmul,
    maximum,
    minimum,
    sigmoid,
    sqrt,
    stack,
    tanh,
    where,
)
from minires.functional.activation import add_relu, dropout, log_softmax, relu, softmax
from minires.functional.conv import conv2d
from minires.functional.linear import linear, pad
from minires.functional.loss import correct, cross_entropy, mse_loss, nll_loss, one_hot
from minires.functional.norm import batch_norm, batch_norm_add_relu, batch_norm_relu, bias_relu
from minires.functional.pool import adaptive_avg_pool2d, avg_pool2d, max_pool2d
