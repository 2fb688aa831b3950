"""Solutions to notebook 3, batch norm."""

import numpy as np

OVER = (0, 2, 3)


def batch_norm_backward(gy, x, gamma, eps):
    """gx = gamma * inv_std * (gy - mean(gy) - xhat * mean(gy * xhat)), means over a channel."""
    mean, var = x.mean(OVER, keepdims=True), x.var(OVER, keepdims=True)
    inv_std = 1 / np.sqrt(var + eps)
    xhat = (x - mean) * inv_std
    removed = gy.mean(OVER, keepdims=True) + xhat * (gy * xhat).mean(OVER, keepdims=True)
    gx = gamma.reshape(1, -1, 1, 1) * inv_std * (gy - removed)
    return gx, (gy * xhat).sum(OVER), gy.sum(OVER)


def upstream(x):
    """x itself: with eps = 0 it is a multiple of xhat plus a constant, and both are removed."""
    return x.copy()
