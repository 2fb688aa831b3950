"""Errors for unknown names: list what exists and suggest the nearest."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


def nearest(name: str, known: Iterable[str]) -> str | None:
    """The known name most like `name`, or None if nothing is close."""
    by_lower = {candidate.lower(): candidate for candidate in known}
    matches = difflib.get_close_matches(name.lower(), by_lower, n=1, cutoff=0.6)
    return by_lower[matches[0]] if matches else None


def unknown(kind: str, name: object, known: Iterable[str]) -> str:
    """Message for an unknown name: `unknown model 'resnet21'. Did you mean 'resnet20'? ...`."""
    choices = sorted(known)
    guess = nearest(str(name), choices)
    hint = f" Did you mean {guess!r}?" if guess else ""
    return f"unknown {kind} {name!r}.{hint} Known: {', '.join(choices)}"
