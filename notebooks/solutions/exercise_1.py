"""Solutions to notebook 1, autograd."""

import numpy as np


def tanh_backward(gy, y):
    """d tanh(x)/dx = 1 - tanh(x)^2."""
    return gy * (1 - y**2)


def cross_entropy_grad(logits, labels):
    """softmax minus the label's one-hot vector, over N; shifted, so that nothing overflows."""
    p = np.exp(logits - logits.max(axis=1, keepdims=True))
    p /= p.sum(axis=1, keepdims=True)
    p[np.arange(len(labels)), labels] -= 1
    return p / len(labels)
