"""Nested state, as an optimiser's `state_dict()` is, taken apart into arrays and JSON."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from minires.autograd import Tensor


def pack(value: Any, name: str, arrays: dict[str, Any]) -> Any:
    """`value` with every array moved into `arrays`, under names that begin with `name`.

    Returns what JSON can hold. Raises TypeError for anything but dicts, lists, tuples, arrays,
    Tensors and plain values.
    """
    if isinstance(value, Tensor):
        value = value._data
    if isinstance(value, np.ndarray):
        arrays[name] = value
        return {"array": name}
    if isinstance(value, Mapping):
        return {"dict": [[key, pack(v, f"{name}.{key}", arrays)] for key, v in value.items()]}
    if isinstance(value, list | tuple):
        return [pack(v, f"{name}.{i}", arrays) for i, v in enumerate(value)]
    if isinstance(value, np.generic):
        value = value.item()
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise TypeError(f"{name}: cannot keep a {type(value).__name__} in a checkpoint")


def unpack(packed: Any, arrays: Mapping[str, Any]) -> Any:
    """What `pack` took apart; tuples come back as lists, Tensors as arrays."""
    if isinstance(packed, list):
        return [unpack(item, arrays) for item in packed]
    if not isinstance(packed, dict):
        return packed
    if "array" in packed:
        return arrays[packed["array"]]
    return {key: unpack(item, arrays) for key, item in packed["dict"]}
