"""Solutions to notebook 5, degradation."""

import numpy as np


def identity_kernel(C):
    """A one in the middle, from each channel to itself."""
    weight = np.zeros((C, C, 3, 3))
    weight[np.arange(C), np.arange(C), 1, 1] = 1
    return weight


def diagnose(shallow_train, deep_train, shallow_test, deep_test):
    """Worse on what it was trained on: degradation. Worse only on new images: overfitting."""
    if deep_train > shallow_train:
        return "degradation"
    return "overfitting" if deep_test > shallow_test else "better"
