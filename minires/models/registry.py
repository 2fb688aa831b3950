"""Models by name.

    @register(input_shape=(3, 32, 32))
    def tinynet(*, num_classes: int = 10) -> nn.Module: ...

    model = create("tinynet", num_classes=7)

A family registers its nets where they are defined; nothing else need know of it.
"""

from __future__ import annotations

import fnmatch
import inspect
import typing
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

from minires import nn
from minires._names import nearest, unknown

Shape = tuple[int, int, int]
Build = TypeVar("Build", bound=Callable[..., nn.Module])


@dataclass(frozen=True)
class Entry:
    """A registered model.

    build: makes it, from keyword options. input_shape: (C, H, W) of the images it is meant for.
    options: the names of the options.
    """

    name: str
    build: Callable[..., nn.Module]
    input_shape: Shape
    options: tuple[str, ...]


_entries: dict[str, Entry] = {}


def register(*, input_shape: Shape, name: str | None = None) -> Callable[[Build], Build]:
    """Make a function that builds a model known by its name; a name used again is replaced.

    The function takes keywords that all have defaults, or `**options: Unpack[SomeTypedDict]`.
    """

    def add(build: Build) -> Build:
        known_as = name or build.__name__
        _entries[known_as] = Entry(known_as, build, input_shape, _option_names(build))
        return build

    return add


def _option_names(build: Callable[..., nn.Module]) -> tuple[str, ...]:
    names: list[str] = []
    for parameter in inspect.signature(build).parameters.values():
        if parameter.kind is inspect.Parameter.VAR_KEYWORD:
            (fields,) = typing.get_args(typing.get_type_hints(build)[parameter.name])
            names += typing.get_type_hints(fields)
        else:
            names.append(parameter.name)
    return tuple(names)


def list_models(pattern: str = "*") -> list[str]:
    """The names of all models, or of those that match a pattern such as "plain*".

    In the order of registration: family by family, shallow to deep.
    """
    return [name for name in _entries if fnmatch.fnmatchcase(name, pattern)]


def entry(name: str) -> Entry:
    """How the model of this name is built. Raises ValueError for an unknown one."""
    if name not in _entries:
        raise ValueError(unknown("model", name, _entries))
    return _entries[name]


def create(name: str, **options: Any) -> nn.Module:
    """A freshly initialised model: `create("resnet56", shortcut="B", num_classes=100)`.

    Raises ValueError for an unknown name and TypeError for an option the model does not take.
    """
    found = entry(name)
    for option in options:
        if option not in found.options:
            guess = nearest(option, found.options)
            hint = f" Did you mean {guess!r}?" if guess else ""
            raise TypeError(
                f"{name} takes no option {option!r}.{hint} Known: {', '.join(found.options)}"
            )
    return found.build(**options)
