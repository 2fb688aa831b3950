"""Who may write into a gradient: only the walk, and only into what nobody else holds."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest

import minires as mr
from minires import functional as F
from minires.autograd import functions
from minires.testing.cases import cases


def leaf(*values: float) -> mr.Tensor:
    return mr.Tensor(np.array(values), requires_grad=True)


def test_a_join_whose_second_input_has_an_older_path() -> None:
    """Both inputs get one array; what the older path adds to one must not reach the other."""
    for first, second in ((True, False), (False, True)):
        p, q = leaf(1.0, 2.0), leaf(3.0, 4.0)
        older = (q if second else p) * 3.0
        (F.add_relu(p, q) + older).backward(np.ones(2))
        assert p.grad.tolist() == ([4.0, 4.0] if first else [1.0, 1.0])
        assert q.grad.tolist() == ([4.0, 4.0] if second else [1.0, 1.0])


class KeepsItsGradient(mr.Function):
    """y = x, by somebody who hands out the same array of ones at every backward."""

    def __init__(self) -> None:
        self.kept = mr.Tensor(np.ones(2))

    def forward(self, x: Any) -> Any:
        return x + 0.0

    def backward(self, gy: Any) -> Any:
        return self.kept


def test_what_an_operation_keeps_is_not_summed_into() -> None:
    p, operations = leaf(1.0, 2.0), [KeepsItsGradient(), KeepsItsGradient()]
    (operations[0](p) + operations[1](p)).backward(np.ones(2))
    assert p.grad.tolist() == [2.0, 2.0]
    assert [op.kept.tolist() for op in operations] == [[1.0, 1.0], [1.0, 1.0]]


class ReturnsNewArrays(mr.Function):
    """y = x, with a gradient in memory of its own."""

    returns_new = True

    def forward(self, x: Any) -> Any:
        return x + 0.0

    def backward(self, gy: Any) -> Any:
        return gy * 1.0


class ReturnsOneItKeeps(ReturnsNewArrays):
    kept = mr.Tensor(np.ones(2))

    def backward(self, gy: Any) -> Any:
        return self.kept


def test_a_promise_of_new_arrays_binds_nobody_who_derives_from_it() -> None:
    p = leaf(1.0, 2.0)
    (ReturnsNewArrays()(p) + ReturnsOneItKeeps()(p)).backward(np.ones(2))
    assert p.grad.tolist() == [2.0, 2.0]
    assert ReturnsOneItKeeps.kept.tolist() == [1.0, 1.0]


class ReturnsWhatItSaved(mr.Function):
    """y = 2x, of the engine by its own word; its gradient is the array it saved."""

    def forward(self, x: Any) -> Any:
        self.save(two=np.full(x.shape, 2.0))
        return 2.0 * x

    def backward(self, gy: Any) -> Any:
        return self.saved.two


ReturnsWhatItSaved.of_engine = True


def test_saved_arrays_are_not_summed_into() -> None:
    p = leaf(1.0, 2.0)
    y = ReturnsWhatItSaved()(p) + ReturnsWhatItSaved()(p)
    for times in (1, 2):
        y.backward(np.ones(2), retain_graph=True)
        assert p.grad.tolist() == [4.0 * times, 4.0 * times]


def test_what_a_hook_was_shown_is_not_changed_afterwards() -> None:
    p, shown = leaf(1.0, 2.0), []
    p.register_hook(shown.append)
    (p * 2.0 + p * 3.0).backward(np.ones(2))
    p.grad._data += 100.0  # as weight decay in place would
    assert shown[0].tolist() == [5.0, 5.0]


class RemembersUpstream(mr.Function):
    def forward(self, x: Any) -> Any:
        return 2.0 * x

    def backward(self, gy: Any) -> Any:
        self.upstream = gy
        return gy * 2.0


def test_the_gradient_of_an_intermediate_tensor_is_the_callers_alone() -> None:
    p, operation = leaf(1.0, 2.0), RemembersUpstream()
    h = operation(p)
    found, _ = mr.grad(h * 2.0 + h * 3.0, [h, p], np.ones(2))
    assert found.tolist() == [5.0, 5.0]
    found._data += 100.0
    assert operation.upstream.tolist() == [5.0, 5.0]


def test_which_inputs_are_wanted_is_asked_anew_at_each_walk() -> None:
    p, q = leaf(2.0), leaf(3.0)
    y = p * q
    (only,) = mr.grad(y, [p], np.ones(1), retain_graph=True)
    assert only.tolist() == [3.0]
    y.backward(np.ones(1))
    assert (p.grad.tolist(), q.grad.tolist()) == ([3.0], [2.0])


def test_a_tensor_and_its_detached_twin_are_two_inputs() -> None:
    """They share one array, and the graph must not take the one for the other."""
    for swapped in (False, True):
        x = leaf(3.0)
        still = x.detach()
        y = still * x if swapped else x * still
        (first,) = mr.grad(y, [x], np.ones(1), create_graph=True)
        assert first.tolist() == [3.0]
        assert not first.requires_grad or mr.grad(
            first, [x], np.ones(1), allow_unused=True
        ) == (None,)


def test_gradients_of_one_operation_are_one_array_or_lie_apart(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What the engine believes of its own operations: two gradients that share memory are the same
    array, or views of what backward was given or kept. True of every case of the table."""
    looked: set[str] = set()

    def watched(backward: Any) -> Any:
        def wrapper(self: Any, *upstream: Any) -> Any:
            saved = [s[0] for s in (self._saved or {}).values() if type(s) is tuple]
            known = [*saved, *(t._data for t in upstream if t is not None)]
            result = backward(self, *upstream)
            results = result if isinstance(result, tuple | list) else (result,)
            arrays = [t._data for t in results if t is not None]
            for a, b in itertools.combinations(arrays, 2):
                looked.add(self.name)
                assert a is b or not np.may_share_memory(a, b) or any(
                    np.may_share_memory(a, k) for k in known
                ), self.name
            return result

        return wrapper

    for kind in functions().values():
        if kind.of_engine and "backward" in vars(kind):
            monkeypatch.setattr(kind, "backward", watched(vars(kind)["backward"]))
    for case in cases():
        fn, inputs = case.build()
        y = fn(*inputs)
        for one in y if isinstance(y, tuple | list) else (y,):
            leaves = [t for t in inputs if isinstance(t, mr.Tensor) and t.requires_grad]
            again = mr.grad(one, leaves, np.ones(one.shape), create_graph=True, allow_unused=True)
            for g in again:
                if case.second_order and g is not None and g.requires_grad:
                    g.backward(np.ones(g.shape), retain_graph=True)
    assert {"Add", "Mul", "Conv2d", "BatchNormReLUTrain", "AddReLU"} <= looked
