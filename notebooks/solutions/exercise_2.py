"""Solutions to notebook 2, convolution."""

import numpy as np


def im2col(x, KH, KW, stride, padding):
    """Row (n, i, j) holds the window under output (i, j), in the order of the weight."""
    C = x.shape[1]
    padded = np.pad(x, ((0, 0), (0, 0), (padding, padding), (padding, padding)))
    windows = np.lib.stride_tricks.sliding_window_view(padded, (KH, KW), axis=(2, 3))
    windows = windows[:, :, ::stride, ::stride]  # (N, C, OH, OW, KH, KW)
    return windows.transpose(0, 2, 3, 1, 4, 5).reshape(-1, C * KH * KW)


def conv2d_grad_weight(x, gy, KH, KW, stride, padding):
    """y = columns @ weight^T, so the gradient is gy^T @ columns."""
    O, C = gy.shape[1], x.shape[1]
    rows = gy.transpose(0, 2, 3, 1).reshape(-1, O)
    return (rows.T @ im2col(x, KH, KW, stride, padding)).reshape(O, C, KH, KW)
