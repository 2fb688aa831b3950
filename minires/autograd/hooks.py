"""Hooks: functions called on the way, and the handles that remove them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

Hooks = dict[Any, Callable[..., Any]]


class Handle:
    """Stands for one registered hook: `handle.remove()`, or `handle()`, removes it."""

    __slots__ = ("_hooks",)

    def __init__(self, hooks: Hooks, hook: Callable[..., Any]) -> None:
        self._hooks = hooks
        hooks[self] = hook

    def remove(self) -> None:
        self._hooks.pop(self, None)

    __call__ = remove
