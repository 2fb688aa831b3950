"""Errors for unknown names: list what exists and suggest the nearest."""

from __future__ import annotations

import difflib
import itertools
from collections.abc import Iterable


def nearest(name: str, known: Iterable[str]) -> str | None:
    """The known name most like `name`, or None if nothing is close."""
    by_lower = {candidate.lower(): candidate for candidate in known}
    wanted = name.lower()

    def likeness(candidate: str) -> tuple[float, int]:
        pairs = zip(candidate, wanted, strict=False)
        shared = sum(1 for _ in itertools.takewhile(lambda pair: pair[0] == pair[1], pairs))
        return difflib.SequenceMatcher(None, candidate, wanted).ratio(), shared

    best = max(sorted(by_lower), key=likeness, default=None)
    return by_lower[best] if best is not None and likeness(best)[0] >= 0.6 else None


def unknown(kind: str, name: object, known: Iterable[str]) -> str:
    """Message for an unknown name: `unknown model 'resnet21'. Did you mean 'resnet20'? ...`."""
    choices = sorted(known)
    guess = nearest(str(name), choices)
    hint = f" Did you mean {guess!r}?" if guess else ""
    return f"unknown {kind} {name!r}.{hint} Known: {', '.join(choices)}"
