"""Solutions to notebook 6, kernels in NumPy: right for every geometry, and not slow."""

import numpy as np


def taps(g):
    """For each (u, v) of the kernel: the slices of a padded x that it reads, one per axis."""
    for u, v in np.ndindex(*g.kernel):
        yield u, v, tuple(
            slice(k * d, k * d + s * (o - 1) + 1, s)
            for k, d, s, o in zip((u, v), g.dilation, g.stride, g.out, strict=True)
        )


def groups(g):
    """The slices of input and of output channels that belong together."""
    C, O = g.C // g.groups, g.O // g.groups
    for k in range(g.groups):
        yield slice(k * C, (k + 1) * C), slice(k * O, (k + 1) * O)


def conv2d(x, weight, g):
    """Tap by tap: y gets the weight of (u, v) times the pixels that this tap reads."""
    (PH, PW), y = g.padding, np.zeros(g.y_shape, x.dtype)
    padded = np.pad(x, ((0, 0), (0, 0), (PH, PH), (PW, PW)))
    for u, v, (rows, columns) in taps(g):
        for C, O in groups(g):
            y[:, O] += np.einsum("nchw,oc->nohw", padded[:, C, rows, columns], weight[O, :, u, v])
    return y


def conv2d_grad_input(gy, weight, g):
    """The same walk the other way: every tap gives back to the pixel that it read."""
    (PH, PW), (N, C, H, W) = g.padding, g.x_shape
    padded = np.zeros((N, C, H + 2 * PH, W + 2 * PW), gy.dtype)
    for u, v, (rows, columns) in taps(g):
        for c, O in groups(g):
            padded[:, c, rows, columns] += np.einsum("nohw,oc->nchw", gy[:, O], weight[O, :, u, v])
    return padded[:, :, PH : PH + H, PW : PW + W].copy()
