"""Initialisation of weights."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np

from minires.autograd import Tensor
from minires.functional.random import generator
from minires.kernels.arrays import active, to_device

_skip = False


@contextmanager
def skip_init() -> Iterator[None]:
    """Modules built inside keep zeros: quick, for models that are loaded or only counted."""
    global _skip
    previous, _skip = _skip, True
    try:
        yield
    finally:
        _skip = previous


def fan(shape: tuple[int, ...]) -> tuple[int, int]:
    """(fan_in, fan_out) of a weight (O, I, ...): connections per output and per input."""
    if len(shape) < 2:
        raise ValueError(f"fan: needs a weight with at least two axes, got shape {shape}")
    receptive = math.prod(shape[2:])
    return shape[1] * receptive, shape[0] * receptive


def normal_(tensor: Tensor, mean: float = 0.0, std: float = 1.0) -> Tensor:
    """Fill with draws from N(mean, std^2), in place."""
    if not _skip:
        draws = generator().standard_normal(tensor.shape, dtype=np.float32)
        _fill(tensor, mean + std * draws)
    return tensor


def uniform_(tensor: Tensor, low: float, high: float) -> Tensor:
    """Fill with draws from U[low, high), in place."""
    if not _skip:
        _fill(tensor, low + (high - low) * generator().random(tensor.shape, dtype=np.float32))
    return tensor


def constant_(tensor: Tensor, value: float) -> Tensor:
    """Fill with one value, in place."""
    _fill(tensor, np.asarray(value))
    return tensor


def kaiming_normal_(
    tensor: Tensor, a: float = 0.0, mode: str = "fan_in", nonlinearity: str = "leaky_relu"
) -> Tensor:
    """N(0, gain^2 / fan), in place, as torch.nn.init.kaiming_normal_.

    He et al. (2015), "Delving Deep into Rectifiers", equation 10 (fan_in) or 14 (fan_out).
    nonlinearity: "relu" (gain^2 = 2), "leaky_relu" with slope `a` (2 / (1 + a^2)), "linear" (1).

    Raises ValueError for another mode or nonlinearity.
    """
    if mode not in ("fan_in", "fan_out"):
        raise ValueError(f"kaiming_normal_: mode is 'fan_in' or 'fan_out', got {mode!r}")
    squared_gains = {"relu": 2.0, "leaky_relu": 2.0 / (1.0 + a * a), "linear": 1.0}
    if nonlinearity not in squared_gains:
        raise ValueError(
            f"kaiming_normal_: nonlinearity is one of {', '.join(squared_gains)}, got "
            f"{nonlinearity!r}"
        )
    fan_in, fan_out = fan(tensor.shape)
    count = fan_in if mode == "fan_in" else fan_out
    return normal_(tensor, std=math.sqrt(squared_gains[nonlinearity] / count))


def _fill(tensor: Tensor, values: np.ndarray) -> None:
    data = tensor._data
    tensor._buffer.settle()
    with active(data):
        data[...] = to_device(np.asarray(values, data.dtype), tensor.device)
    tensor._buffer.version += 1
