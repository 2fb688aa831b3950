"""Two tensors never share one gradient: what one of them does to its own, the other never sees."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import minires as mr
from minires import functional as F


def shares(a: Any, b: Any) -> bool:
    return bool(np.shares_memory(a._data, b._data))


class ReturnsWhatItSaved(mr.Function):
    """y = 2a + 2b. Its gradients are one array, which it keeps."""

    def forward(self, a: Any, b: Any) -> Any:
        self.save(two=np.full(a.shape, 2.0))
        return 2 * (a + b)

    def backward(self, gy: Any) -> Any:
        two = self.saved.two
        return two, two


TWO = mr.Tensor(np.full((2, 2), 2.0))


class ReturnsAConstant(mr.Function):
    def forward(self, a: Any, b: Any) -> Any:
        return 2 * (a + b)

    def backward(self, gy: Any) -> Any:
        return TWO, TWO


class ReturnsViews(mr.Function):
    """Its gradients are views of one array."""

    def forward(self, a: Any, b: Any) -> Any:
        return np.concatenate([a, b])

    def backward(self, gy: Any) -> Any:
        both = gy * 1
        return [both[:2], both[2:]]


class KeepsAnAttribute(mr.Function):
    def __init__(self) -> None:
        self.kept = mr.Tensor(np.ones((2, 2)))

    def forward(self, a: Any, b: Any) -> Any:
        return a + b

    def backward(self, gy: Any) -> Any:
        return self.kept, self.kept


JOINS: dict[str, Callable[[Any, Any], Any]] = {
    "p + p": lambda p, q: p + p,
    "p + q": lambda p, q: p + q,
    "p - q": lambda p, q: p - q,
    "p + q + q + p + p": lambda p, q: p + q + q + p + p,
    "add_relu": F.add_relu,
    "add_relu of one": lambda p, q: F.add_relu(p, p),
    "reshape": lambda p, q: p.reshape(4) + q.reshape(-1),
    "transpose": lambda p, q: p.T + q.T,
    "sum": lambda p, q: p.sum() + q.sum(),
    "broadcast": lambda p, q: p.expand(3, 2, 2) + q,
    "clone": lambda p, q: p.clone() + q.clone(),
    "slice": lambda p, q: p[:] + q[...],
    "concatenate": lambda p, q: mr.concatenate([p, q, p]),
    "stack": lambda p, q: mr.stack([p, q]),
    "pad": lambda p, q: F.pad(p, (0, 0)) + F.pad(q, (1, 1))[:, 1:-1],
    "where": lambda p, q: mr.where(np.ones((2, 2), bool), p, q),
    "maximum": lambda p, q: mr.maximum(p, q),
    "cast": lambda p, q: p.float().double() + q,
    "dropout in eval": lambda p, q: F.dropout(p, training=False) + q,
    "returned saved array": lambda p, q: ReturnsWhatItSaved()(p, q),
    "returned constant": lambda p, q: ReturnsAConstant()(p, q),
    "returned constant twice": lambda p, q: ReturnsAConstant()(p, p) + ReturnsAConstant()(q, q),
    "returned views": lambda p, q: ReturnsViews()(p, q),
    "returned attribute": lambda p, q: KeepsAnAttribute()(p, q),
    "diamond": lambda p, q: (lambda h: h + h * 1 + h)(p + q),
}


@pytest.mark.parametrize("retain", [True, False])
@pytest.mark.parametrize("name", JOINS)
def test_gradients_at_a_join(name: str, retain: bool) -> None:
    p, q = (mr.Tensor(np.array([[1.0, 2.0], [3.0, 4.0]]) + k, requires_grad=True) for k in (0, 1))
    y = JOINS[name](p, q)
    upstream = np.full(y.shape, 1.0)
    y.backward(upstream, retain_graph=True)
    expected = [g if g is None else g.numpy().copy() for g in (p.grad, q.grad)]
    first = [p.grad, q.grad]
    tensors = [t for t in (p.grad, q.grad, p, q, y, TWO) if t is not None]
    for a, b in itertools.combinations(tensors, 2):
        if {id(a), id(b)} & {id(p.grad), id(q.grad)}:
            assert not shares(a, b)
    for g in tensors[: -4]:
        assert not np.shares_memory(g._data, upstream)
        assert g._data.flags.writeable
        g._data += 100  # a weight decay that adds in place
    np.testing.assert_array_equal(upstream, np.ones(y.shape))
    np.testing.assert_array_equal(TWO.numpy(), np.full((2, 2), 2.0))

    p.zero_grad()
    q.zero_grad()
    y.backward(upstream, retain_graph=retain)
    for t, wanted, old in zip((p, q), expected, first, strict=True):
        if wanted is None:
            assert t.grad is None
            continue
        np.testing.assert_array_equal(t.grad.numpy(), wanted)
        assert not shares(t.grad, old)


def test_accumulated_gradients_own_their_memory() -> None:
    p, q = (mr.Tensor([1.0, 2.0], requires_grad=True) for _ in range(2))
    for _ in range(3):
        (p + q).backward(np.ones(2))
    assert p.grad.tolist() == q.grad.tolist() == [3, 3]
    assert not shares(p.grad, q.grad)


def test_a_scalar_added_thrice() -> None:
    """Zero-dimensional sums are NumPy scalars unless one takes care."""
    p = mr.Tensor(2.0, requires_grad=True)
    (p + p + p + p).backward()
    assert p.grad.item() == 4
    assert type(p.grad._data) is np.ndarray
    p.grad.data[...] = 1
    assert p.grad.item() == 1


def test_results_of_grad_do_not_share() -> None:
    p, q = (mr.Tensor([1.0, 2.0], requires_grad=True) for _ in range(2))
    h = p + q
    upstream = mr.Tensor([1.0, 1.0])
    found = mr.grad(h, [h, p, q, p], upstream)
    for a, b in itertools.combinations([*found, upstream], 2):
        assert not shares(a, b)


def test_intermediate_and_leaf_gradients_do_not_share() -> None:
    p = mr.Tensor([1.0, 2.0], requires_grad=True)
    h = p.reshape(2)
    h.retain_grad()
    (h + 0.0).backward(np.ones(2))
    assert not shares(h.grad, p.grad)


def test_gradients_with_a_graph_do_not_share() -> None:
    p, q = (mr.Tensor([1.0, 2.0], requires_grad=True) for _ in range(2))
    upstream = mr.Tensor([1.0, 1.0], requires_grad=True)
    found = mr.grad(p + q, [p, q], upstream, create_graph=True)
    assert not shares(*found)
    assert not any(shares(g, upstream) for g in found)


def test_weight_decay_in_place_at_a_residual_join() -> None:
    """The bug this guards against: both branches' weights decayed in one shared gradient."""
    p, q = (mr.nn.Parameter([1.0]) for _ in range(2))
    (p + q).backward()
    for t in (p, q):
        t.grad._data[...] += 0.1 * t._data
    np.testing.assert_allclose([p.grad.item(), q.grad.item()], [1.1, 1.1], rtol=1e-6)
