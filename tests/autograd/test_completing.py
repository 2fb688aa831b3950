"""When an operation is told that what it returns completes the gradient of its input."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import minires as mr
from minires.autograd import backward


class Twice(mr.Function):
    """2x, which adds at joins. It notes what it was told to complete."""

    adds = True
    returns_new = True

    def __init__(self, told: list[Any]) -> None:
        self.told = told

    def forward(self, x: Any) -> Any:
        return 2 * x

    def backward(self, gy: mr.Tensor) -> Any:
        self.told.append(None if self.completes is None else self.completes.name)
        total, self.waiting = self.waiting, None
        return 2 * gy if total is None else mr.Tensor(total + 2 * gy.numpy())


class Made(mr.Function):
    """What is between: x + 1, whose gradient is new each time."""

    returns_new = True

    def forward(self, x: Any) -> Any:
        return x + 1

    def backward(self, gy: mr.Tensor) -> Any:
        return 1.0 * gy


@pytest.fixture(autouse=True)
def everything_is_large(monkeypatch: pytest.MonkeyPatch) -> None:
    """For a join to be added at."""
    monkeypatch.setattr(backward, "LARGE", 0)


@pytest.fixture
def told() -> list[Any]:
    return []


@pytest.fixture
def leaf() -> mr.Tensor:
    return mr.Tensor(np.array([1.0, 2.0]), requires_grad=True)


def test_the_only_use(told: list[Any], leaf: mr.Tensor) -> None:
    Twice(told)(Made()(leaf)).sum().backward()
    assert told == ["Made"]


def test_a_leaf_is_nobodys_output(told: list[Any], leaf: mr.Tensor) -> None:
    Twice(told)(leaf).sum().backward()
    assert told == [None]


@given(uses=st.integers(2, 5))
def test_of_several_uses_the_last(uses: int) -> None:
    told: list[Any] = []
    leaf = mr.Tensor(np.array([1.0, 2.0]), requires_grad=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(backward, "LARGE", 0)
        made = Made()(leaf)
        sum(Twice(told)(made) for _ in range(uses)).sum().backward()
    assert told == [None] * (uses - 1) + ["Made"]
    assert leaf.grad.tolist() == [2 * uses] * 2


def test_not_while_another_use_is_outstanding(told: list[Any], leaf: mr.Tensor) -> None:
    """What was computed first contributes last."""
    made = Made()(leaf)
    (Made()(made) + Twice(told)(made)).sum().backward()
    made = Made()(leaf)
    (Twice(told)(made) + Made()(made)).sum().backward()
    assert told == [None, "Made"]


def test_not_where_a_use_is_not_part_of_the_walk(told: list[Any], leaf: mr.Tensor) -> None:
    made = Made()(leaf)
    unused = made * 3
    Twice(told)(made).sum().backward(retain_graph=True)
    assert told == [None]
    (unused + Twice(told)(made)).sum().backward()
    assert told == [None, None]


def test_not_where_a_walk_starts(told: list[Any], leaf: mr.Tensor) -> None:
    made = Made()(leaf)
    y = Twice(told)(made)
    mr.autograd.backward.backward([made, y], [np.ones(2), np.ones(2)])
    assert told == [None]
    assert leaf.grad.tolist() == [3, 3]


def test_not_what_a_hook_is_shown(told: list[Any], leaf: mr.Tensor) -> None:
    made = Made()(leaf)
    made.register_hook(lambda gradient: None)
    Twice(told)(made).sum().backward()
    assert told == [None]


def test_not_what_is_retained(told: list[Any], leaf: mr.Tensor) -> None:
    made = Made()(leaf)
    made.retain_grad()
    Twice(told)(made).sum().backward()
    assert told == [None]
    assert made.grad.tolist() == [2, 2]


def test_not_what_grad_is_asked_for(told: list[Any], leaf: mr.Tensor) -> None:
    made = Made()(leaf)
    y = Twice(told)(made).sum()
    mr.grad(y, [made, leaf], retain_graph=True)
    mr.grad(y, leaf)
    assert told == [None, "Made"]


def test_not_if_it_is_to_be_differentiated_again(told: list[Any], leaf: mr.Tensor) -> None:
    Twice(told)(Made()(leaf)).sum().backward(create_graph=True)
    assert told == [None]


def test_not_what_was_freed(told: list[Any], leaf: mr.Tensor) -> None:
    made = Made()(leaf)
    made.sum().backward()
    made._node.consumers = 1  # as if the freed use had never been
    with pytest.raises(RuntimeError, match="graph was freed"):
        Twice(told)(made).sum().backward()
    assert told == [None]


def test_not_one_of_several_outputs(told: list[Any], leaf: mr.Tensor) -> None:
    class Both(Made):
        def forward(self, x: Any) -> Any:
            return x + 1, x + 2

        def backward(self, *gradients: mr.Tensor) -> Any:
            return gradients[0] + gradients[1]

    first, _ = Both()(leaf)
    Twice(told)(first).sum().backward()
    assert told == [None]


def test_not_beside_a_gradient_that_cannot_be_added_to(
    told: list[Any], leaf: mr.Tensor, monkeypatch: Any
) -> None:
    monkeypatch.setattr(backward, "LARGE", 1 << 60)
    made = Made()(leaf)
    (Twice(told)(made) + Twice(told)(made)).sum().backward()
    assert told == [None, None]


def test_a_graph_that_is_kept_is_walked_alike(told: list[Any], leaf: mr.Tensor) -> None:
    made = Made()(leaf)
    y = (Twice(told)(made) + Twice(told)(made)).sum()
    y.backward(retain_graph=True)
    y.backward()
    assert told == 2 * [None, "Made"]


def test_nothing_is_kept_alive(told: list[Any], leaf: mr.Tensor) -> None:
    made = Made()(leaf)
    y, node = Twice(told)(made), weakref.ref(made._node)
    y.sum().backward()
    del made
    gc.collect()
    assert told == ["Made"]
    assert node() is None


def test_an_operation_that_does_not_add_is_not_told(leaf: mr.Tensor) -> None:
    seen: list[Callable[..., Any] | None] = []

    class Plain(Twice):
        adds = False

        def backward(self, gy: mr.Tensor) -> Any:
            seen.append(self.completes)
            return 2 * gy

    Plain([])(Made()(leaf)).sum().backward()
    assert seen == [None]
