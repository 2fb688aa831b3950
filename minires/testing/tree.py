"""Arguments that hold arrays inside dicts, lists and tuples: taken apart and put together again.

A container is opened only if there is a Tensor or an array somewhere in it; a shape or a list of
plain numbers stays one value.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from minires.autograd import Tensor


def holds_arrays(value: Any) -> bool:
    """Whether a value is a container with a Tensor or an array somewhere in it."""
    return any(
        isinstance(item, Tensor | np.ndarray) or holds_arrays(item) for item in _items(value)
    )


def leaves(value: Any, name: str) -> Iterator[tuple[str, Any]]:
    """What a value is made of, with names such as `params['W1']`; itself if it is no container."""
    if not holds_arrays(value):
        yield name, value
        return
    keys = value if isinstance(value, Mapping) else range(len(value))
    for key, item in zip(keys, _items(value), strict=True):
        yield from leaves(item, f"{name}[{key!r}]")


def rebuilt(value: Any, parts: Iterator[Any]) -> Any:
    """A value like this one, made of other parts in the order of `leaves`."""
    if not holds_arrays(value):
        return next(parts)
    if isinstance(value, Mapping):
        return {key: rebuilt(item, parts) for key, item in value.items()}
    items = [rebuilt(item, parts) for item in value]
    if hasattr(value, "_fields"):  # a named tuple
        return type(value)(*items)
    return tuple(items) if isinstance(value, tuple) else items


def _items(value: Any) -> Sequence[Any]:
    if isinstance(value, Mapping):
        return list(value.values())
    return value if isinstance(value, tuple | list) else ()
