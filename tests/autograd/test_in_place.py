"""Changing an array between forward and backward is noticed, and nothing else is taken for it."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest

import minires as mr
from minires import functional as F
from minires.autograd.buffer import Buffer
from minires.testing.compare import assert_close

CHANGED = "was saved for backward and changed in place since"


def square(x: mr.Tensor) -> mr.Tensor:
    """Saves its input: the very array."""
    return (x * x).sum()


def set_zero(array: Any) -> None:
    array[...] = 0


def optimiser_step(t: mr.Tensor) -> None:
    t._data[...] = 0
    t._buffer.version += 1


def through_a_view(t: mr.Tensor) -> None:
    with mr.no_grad():
        t[:1].copy_([9.0])


def through_a_view_of_a_view(t: mr.Tensor) -> None:
    with mr.no_grad():
        t.reshape(1, -1).T[1:].detach()[0] = 9.0


def in_place_operator(t: mr.Tensor) -> None:
    with mr.no_grad():
        t -= 1.0


CHANGES: dict[str, Callable[[mr.Tensor], Any]] = {
    "data": lambda t: set_zero(t.data),
    "data -=": lambda t: exec("t.data -= 1", {"t": t}),
    "numpy()": lambda t: set_zero(t.numpy()),
    "a slice of numpy()": lambda t: set_zero(t.numpy()[1:]),
    "np.asarray": lambda t: set_zero(np.asarray(t)),
    "detach": lambda t: t.detach().copy_([0.0, 0.0]),
    "detach, data": lambda t: set_zero(t.detach().data),
    "Tensor(t)": lambda t: mr.Tensor(t).copy_([0.0, 0.0]),
    "Tensor(t).data": lambda t: set_zero(mr.Tensor(t).data),
    "copy_": lambda t: mr.no_grad()(t.copy_)([0.0, 0.0]),
    "item assignment": lambda t: mr.no_grad()(t.__setitem__)(0, 0.0),
    "in-place operator": in_place_operator,
    "a view": through_a_view,
    "a view of a view": through_a_view_of_a_view,
    "an optimiser": optimiser_step,
    "assigned data": lambda t: setattr(t, "data", np.zeros(2, t.dtype)),
    "assigned tensor": lambda t: setattr(t, "data", mr.Tensor(np.zeros(2, t.dtype))),
}

KINDS: dict[str, Callable[[], mr.Tensor]] = {
    "tensor of an array": lambda: mr.Tensor(np.array([1.0, 2.0]), requires_grad=True),
    "copied tensor": lambda: mr.tensor([1.0, 2.0], requires_grad=True),
    "parameter": lambda: mr.nn.Parameter([1.0, 2.0]),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("change", CHANGES)
def test_a_changed_leaf_is_noticed(change: str, kind: str) -> None:
    x = KINDS[kind]()
    loss = square(x)
    CHANGES[change](x)
    with pytest.raises(RuntimeError, match=rf"Mul: 'a' \(2 float\d\d\) {CHANGED}, so the gradient"):
        loss.backward()
    assert x.grad is None


INTERMEDIATE = [c for c in CHANGES if not c.startswith("assigned")]


@pytest.mark.parametrize("change", INTERMEDIATE)
def test_a_changed_intermediate_is_noticed(change: str) -> None:
    x = mr.nn.Parameter([1.0, 2.0])
    h = x * 3
    loss = square(h)
    CHANGES[change](h)
    with pytest.raises(RuntimeError, match=CHANGED):
        loss.backward()


@pytest.mark.parametrize("change", INTERMEDIATE)
def test_a_changed_output_is_noticed(change: str) -> None:
    """exp keeps its own result."""
    x = mr.nn.Parameter([1.0, 2.0])
    y = x.exp()
    CHANGES[change](y)
    with pytest.raises(RuntimeError, match=rf"Exp: 'y' \(2 float32\) {CHANGED}"):
        y.sum().backward()


def test_the_array_behind_a_tensor() -> None:
    array = np.array([1.0, 2.0])
    x = mr.Tensor(array, requires_grad=True)
    loss = square(x)
    array[0] = 5
    with pytest.raises(RuntimeError, match=CHANGED):
        loss.backward()


def test_an_array_handed_out_long_before() -> None:
    x = mr.nn.Parameter([1.0, 2.0])
    array = x.numpy()
    loss = square(x)
    array[0] = 5
    with pytest.raises(RuntimeError, match=CHANGED):
        loss.backward()


def test_an_array_that_was_assigned() -> None:
    x, array = mr.nn.Parameter([1.0, 2.0]), np.array([3.0, 4.0], np.float32)
    x.data = array
    loss = square(x)
    array[0] = 5
    with pytest.raises(RuntimeError, match=CHANGED):
        loss.backward()


def test_an_array_handed_out_after_it_was_saved() -> None:
    x = mr.nn.Parameter([1.0, 2.0])
    loss = square(x)
    array = x.numpy()
    array[0] = 5
    with pytest.raises(RuntimeError, match=CHANGED):
        loss.backward()


def test_a_batch_whose_array_is_filled_anew() -> None:
    """A loader that reuses its buffer while the graph of the last batch is still waiting."""
    buffer = np.ones((2, 3), np.float32)
    layer = mr.nn.Linear(3, 2)
    loss = layer(mr.Tensor(buffer)).sum()
    buffer[...] = 7
    with pytest.raises(RuntimeError, match=r"Linear: 'x' \(2x3 float32\) was saved"):
        loss.backward()


def test_one_of_several_saved_arrays() -> None:
    x, w = mr.Tensor(np.ones((1, 2, 3, 3)), requires_grad=True), mr.Tensor(
        np.ones((2, 2, 1, 1)), requires_grad=True)  # fmt: skip
    loss = F.conv2d(x, w).sum()
    w.data[0] = 0
    with pytest.raises(RuntimeError, match=r"Conv2d: 'weight' \(2x2x1x1 float64\)"):
        loss.backward()


def test_what_a_function_returns_unchanged_shares_its_version() -> None:
    class Same(mr.Function):
        def forward(self, x: Any) -> Any:
            return x

        def backward(self, gy: Any) -> Any:
            return gy

    x = mr.nn.Parameter([1.0, 2.0])
    loss = square(x)
    with mr.no_grad():
        Same()(x).copy_([0.0, 0.0])
    with pytest.raises(RuntimeError, match=CHANGED):
        loss.backward()


# -- no false alarms ------------------------------------------------------------------------------


def test_reading_is_no_change() -> None:
    for make in KINDS.values():
        x = make()
        x.numpy()
        loss = square(x)
        x.data, x.numpy(), np.asarray(x), np.array(x), x.tolist(), repr(x), x.detach(), x[0]
        mr.Tensor(x), x.clone(), x.to("cpu"), list(x), x == x
        loss.backward()
        assert x.grad.tolist() == [2, 4]


def test_a_change_before_forward_is_none() -> None:
    x = mr.nn.Parameter([1.0, 2.0])
    for name in CHANGES:
        if name not in ("in-place operator", "data -="):
            CHANGES[name](x)
    with mr.no_grad():
        x.copy_([3.0, 4.0])
    square(x).backward()
    assert x.grad.tolist() == [6, 8]


def test_a_change_after_backward_is_none() -> None:
    x = mr.nn.Parameter([1.0, 2.0])
    for step in range(3):
        x.zero_grad()
        square(x).backward()
        x.data -= 0.5 * x.grad.data
        assert x.grad.tolist() == ([2, 4] if step == 0 else [0, 0])


def test_a_change_to_what_was_not_saved_is_none() -> None:
    x = mr.nn.Parameter([1.0, 2.0])
    loss = (x + 1).sum()  # a sum keeps nothing
    x.data[...] = 0
    loss.backward()
    assert x.grad.tolist() == [1, 1]


def test_a_change_to_a_copy_is_none() -> None:
    x = mr.nn.Parameter([1.0, 2.0])
    loss = square(x)
    for copied in (x.clone().detach(), mr.tensor(x), mr.nn.Parameter(x), x[[0, 1]].detach()):
        copied.data[...] = 0
    loss.backward()
    assert x.grad.tolist() == [2, 4]


def test_a_constant_whose_data_is_replaced_still_gives_the_right_gradient() -> None:
    x, c = mr.nn.Parameter([1.0, 2.0]), mr.Tensor([3.0, 4.0])
    loss = (x * c).sum()
    c.data = np.zeros(2, np.float32)  # the old array lives on in the graph
    loss.backward()
    assert x.grad.tolist() == [3, 4]


def test_running_statistics_may_move_on() -> None:
    """Two forward passes before backward, as gradient accumulation does; then evaluation too."""
    bn = mr.nn.BatchNorm2d(2)
    x = mr.Tensor(np.arange(16, dtype=np.float32).reshape(2, 2, 2, 2), requires_grad=True)
    losses = [(bn(x) * x).sum(), (bn(x) * x).sum()]
    bn.eval()
    losses.append((bn(x) * x).sum())
    bn.train()
    losses.append((bn(x) * x).sum())
    for loss in losses:
        loss.backward()


def test_converting_to_the_same_dtype_is_no_change() -> None:
    layer = mr.nn.Linear(2, 2)
    loss = layer(mr.Tensor([[1.0, 2.0]])).sum()
    layer.float().to("cpu")
    loss.backward()


def test_converting_between_forward_and_backward_is_noticed() -> None:
    layer = mr.nn.Linear(2, 2)
    x = mr.Tensor([[1.0, 2.0]], requires_grad=True)
    loss = layer(x).sum()
    layer.double()
    with pytest.raises(RuntimeError, match=CHANGED):
        loss.backward()


def test_nan_is_equal_to_itself_for_this() -> None:
    x = mr.Tensor(np.array([np.nan, 1.0]), requires_grad=True)
    loss = square(x)
    loss.backward()
    assert np.isnan(x.grad.numpy()[0])


def test_empty_and_zero_dimensional_arrays() -> None:
    for array in (np.zeros((0, 3)), np.array(2.0)):
        x = mr.Tensor(array, requires_grad=True)
        square(x).backward()
        assert_close(x.grad, 2 * array)
    x = mr.Tensor(np.array(2.0), requires_grad=True)
    loss = square(x)
    x.data[...] = 3
    with pytest.raises(RuntimeError, match=CHANGED):
        loss.backward()


def test_non_contiguous_arrays() -> None:
    wide = np.arange(8.0).reshape(2, 4)
    x = mr.Tensor(wide[::-1, ::2], requires_grad=True)
    loss = square(x)
    wide[0, 1] = 100  # between the elements: not ours
    loss.backward()
    loss = square(x)
    wide[0, 2] = 100
    with pytest.raises(RuntimeError, match=CHANGED):
        loss.backward()


def gradient_of_a_kernel() -> mr.Tensor:
    """One that has no buffer until somebody asks for it."""
    weight = mr.Tensor(np.ones((1, 1, 1, 1), np.float32), requires_grad=True)
    F.conv2d(np.ones((1, 1, 2, 2), np.float32), weight).sum().backward()
    assert weight.grad is not None
    assert weight.grad._memory is None
    return weight.grad


def test_a_gradient_that_is_changed_through_a_view_is_noticed() -> None:
    gradient = gradient_of_a_kernel()
    view, q = gradient.detach(), mr.Tensor(np.ones((1, 1, 1, 1), np.float32), requires_grad=True)
    y = gradient * q
    view.copy_(0.0)
    with pytest.raises(RuntimeError, match=CHANGED):
        y.sum().backward()


def test_threads_that_share_a_tensor_share_its_buffer(monkeypatch: pytest.MonkeyPatch) -> None:
    gradient, together = gradient_of_a_kernel(), threading.Barrier(2)

    def slowly(array: Any) -> Buffer:
        time.sleep(0.05)
        return Buffer(array)

    def asked() -> Buffer:
        together.wait()
        return gradient._buffer

    monkeypatch.setattr(sys.modules[mr.Tensor.__module__], "Buffer", slowly)
    with ThreadPoolExecutor(2) as threads:
        one, other = [threads.submit(asked) for _ in range(2)]
    assert one.result() is other.result()


def test_what_is_no_array_is_not_saved() -> None:
    class Scaled(mr.Function):
        def forward(self, x: Any) -> Any:
            self.save(factors=(2.0, 3.0))
            return x * 2.0

    with pytest.raises(TypeError, match=r"Scaled: save\(\) keeps arrays; 'factors' is a tuple"):
        Scaled()(mr.Tensor([1.0], requires_grad=True))
