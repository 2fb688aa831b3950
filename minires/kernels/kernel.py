"""What a kernel is: a function of arrays, and what is to be known before it is called."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from minires.kernels.condition import Condition, condition_text, never

Workspace = Callable[[Any, str], int]
"""(geometry, dtype) -> bytes of memory a call takes besides its arguments and results."""


@dataclass(frozen=True)
class Kernel:
    """One implementation of one operation.

    only: the geometries it supports; None for all.
    worth: those among them for which it is chosen unasked; None for all.
    dtypes: the dtypes it supports, by name; empty for all.
    exact: whether its result is the plain sum of products but for rounding; Winograd's and
        Fourier's are not, and are never chosen under use(algorithm="exact").
    workspace: bytes of a call besides arguments and results; None if nobody said.
    into: the same with an array in front that the result is added to; None if it cannot.
    fused: the same with parts of other operations done on the way (`fusing.py`).
    fuses: the parts that `fused` can do, each with the geometries for which it can; None for all.
    """

    operation: str
    backend: str
    name: str
    function: Callable[..., Any]
    only: Condition | None = None
    worth: Condition | None = None
    dtypes: tuple[str, ...] = ()
    exact: bool = True
    workspace: Workspace | None = None
    into: Callable[..., Any] | None = None
    fused: Callable[..., Any] | None = None
    fuses: Mapping[str, Condition | None] = field(default_factory=dict, compare=False)

    def supports(self, geometry: Any, dtype: str) -> bool:
        """Whether it can compute this."""
        fits = self.only is None or bool(self.only(geometry))
        return fits and (not self.dtypes or dtype in self.dtypes)

    def can_fuse(self, part: str, geometry: Any) -> bool:
        """Whether `fused` can do this part of another operation on the way."""
        only = self.fuses.get(part, never)
        return only is None or bool(only(geometry))

    @property
    def summary(self) -> str:
        """The first line of the function's docstring."""
        return (self.function.__doc__ or "").strip().split("\n")[0]

    @property
    def constraint(self) -> str:
        """What it supports, as text: "any", or the condition `only`."""
        return condition_text(self.only)

    def workspace_bytes(self, geometry: Any, dtype: str) -> int | None:
        """Bytes that a call takes besides its arguments and results; None if nobody said."""
        return None if self.workspace is None else int(self.workspace(geometry, dtype))

    @property
    def ours(self) -> bool:
        """Whether it came with minires; tables of measurements know no others."""
        return getattr(self.function, "__module__", "").startswith("minires.kernels.")


def loaded(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function itself, where this one only stands in for it until its module is imported."""
    load: Callable[[], Callable[..., Any]] | None = getattr(function, "load", None)
    return function if load is None else load()
