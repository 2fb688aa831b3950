"""The random generator behind initialisation and dropout."""

from __future__ import annotations

from typing import Any

import numpy as np

_generator = np.random.Generator(np.random.PCG64(0))


def generator() -> np.random.Generator:
    """The generator in use; seeded with 0 when minires is imported."""
    return _generator


def manual_seed(seed: int) -> None:
    """Start the generator of initialisation and dropout afresh. Raises ValueError if negative."""
    global _generator
    if isinstance(seed, bool) or not isinstance(seed, int | np.integer):
        raise TypeError(f"manual_seed: needs an integer, got {seed!r}")
    if seed < 0:
        raise ValueError(f"manual_seed: needs a non-negative integer, got {seed}")
    _generator = np.random.Generator(np.random.PCG64(int(seed)))


def get_rng_state() -> dict[str, Any]:
    """The generator's state as plain numbers, for a checkpoint."""
    return dict(_generator.bit_generator.state)


def set_rng_state(state: dict[str, Any]) -> None:
    """Go on from a state that `get_rng_state` returned."""
    _generator.bit_generator.state = state
