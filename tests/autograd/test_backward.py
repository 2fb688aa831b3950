"""backward() and grad(): what they reach, what they touch, what they refuse."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import minires as mr
from minires.testing.compare import assert_close


def leaf(*values: float) -> mr.Tensor:
    return mr.Tensor(np.array(values, np.float64), requires_grad=True)


# -- backward -------------------------------------------------------------------------------------


def test_gradients_accumulate_over_calls() -> None:
    x = leaf(1, 2)
    (x * 3).sum().backward()
    first = x.grad
    (x * x).sum().backward()
    assert x.grad.tolist() == [5, 7]
    assert first.tolist() == [3, 3]  # whoever kept the first gradient still has it
    x.zero_grad()
    assert x.grad is None


def test_a_gradient_for_a_non_scalar() -> None:
    x = leaf(1, 2)
    (x * x).backward([10.0, 1.0])
    assert x.grad.tolist() == [20, 4]
    for gradient in (np.array([1, 2]), mr.Tensor([1.0, 2.0]), (1, 2)):
        x.zero_grad()
        (x * 2).backward(gradient)
        assert x.grad.tolist() == [2, 4]
        assert x.grad.dtype == np.float64


def test_a_gradient_of_one_element_needs_no_argument() -> None:
    x = mr.Tensor([[3.0]], requires_grad=True)
    (x * x).backward()
    assert x.grad.tolist() == [[6]]


def test_a_leaf_is_its_own_output() -> None:
    x, upstream = leaf(1, 2), np.array([5.0, 6.0])
    x.backward(upstream)
    assert x.grad.tolist() == [5, 6]
    assert not np.shares_memory(x.grad._data, upstream)


def test_an_upstream_gradient_in_another_dtype_is_converted() -> None:
    for gradient in (mr.Tensor([1.0, 2.0]), np.array([1, 2], np.int32)):
        x = leaf(1, 2)
        x.backward(gradient)
        assert x.grad.dtype == np.float64
        assert x.grad.tolist() == [1, 2]
        assert mr.grad(x, [x], gradient)[0].dtype == np.float64


def test_refusals() -> None:
    x = leaf(1, 2)
    with pytest.raises(RuntimeError, match="the output has 2 float64, and only a scalar has a gra"):
        (x * 2).backward()
    with pytest.raises(ValueError, match=r"backward: gradient has shape \(3,\), expected \(2,\)"):
        (x * 2).backward([1, 2, 3])
    with pytest.raises(ValueError, match=r"gradient has shape \(\), expected \(2,\)"):
        (x * 2).backward(1.0)  # nothing is broadcast
    with pytest.raises(RuntimeError, match="backward: this tensor does not require gradients; no"):
        mr.Tensor([1.0]).backward()
    with mr.no_grad():
        y = (x * 2).sum()
    with pytest.raises(RuntimeError, match=r"computed inside no_grad\(\)"):
        y.backward()


def test_twice_through_a_freed_graph() -> None:
    x = leaf(2)
    y = (x * x).sum()
    y.backward()
    message = r"freed by an earlier backward \(at Sum\)\. Compute the loss again, or pass retain_gr"
    with pytest.raises(RuntimeError, match=message):
        y.backward()
    assert x.grad.tolist() == [4]


def test_twice_through_a_graph_freed_below() -> None:
    x = leaf(2)
    h = x * x
    (h * 2).sum().backward()
    with pytest.raises(RuntimeError, match="the graph was freed"):
        (h * 3).sum().backward()
    assert x.grad.tolist() == [8]  # nothing half-done was left behind


def test_a_retained_graph_can_be_walked_again() -> None:
    x = leaf(2)
    y = (x * x).sum()
    y.backward(retain_graph=True)
    y.backward(retain_graph=True)
    y.backward()
    assert x.grad.tolist() == [12]
    with pytest.raises(RuntimeError, match="the graph was freed"):
        y.backward()


def test_only_what_requires_gradients_gets_them() -> None:
    x, c = leaf(2), mr.Tensor([3.0])
    y = x * c + c
    y.backward()
    assert c.grad is None
    assert x.grad.tolist() == [3]
    assert y.grad is None


def test_an_input_that_is_not_needed_is_not_computed() -> None:
    asked = []

    class Probe(mr.Function):
        def forward(self, a: Any, b: Any) -> Any:
            return a + b

        def backward(self, gy: Any) -> Any:
            asked.append(self.needs)
            return gy, gy

    a, b = leaf(1), leaf(2)
    y = Probe()(a, mr.Tensor(np.array([2.0])))
    y.backward()
    y = Probe()(a, b)
    mr.grad(y, [b], retain_graph=True)
    mr.grad(y, [a, b])
    assert asked == [(True, False), (False, True), (True, True)]
    assert a.grad.tolist() == [1]
    assert b.grad is None


# -- grad -----------------------------------------------------------------------------------------


def test_grad_touches_no_grad() -> None:
    x = leaf(1, 2)
    h = x * x
    h.retain_grad()
    (g,) = mr.grad(h.sum(), [x])
    assert g.tolist() == [2, 4]
    assert x.grad is None
    assert h.grad is None


def test_grad_takes_single_tensors() -> None:
    x = leaf(1, 2)
    (g,) = mr.grad(x * 2, x, np.array([1.0, 3.0]))
    assert g.tolist() == [2, 6]
    (g,) = mr.grad((x * 2).sum(), x)
    assert g.tolist() == [2, 2]


def test_grad_of_intermediates() -> None:
    x = leaf(1, 2)
    h = x * x
    y = (h * h).sum()
    gy, gh, gx = mr.grad(y, [y, h, x], retain_graph=True)
    assert gy.tolist() == 1
    assert gh.tolist() == [2, 8]
    assert gx.tolist() == [4, 32]
    (gh,) = mr.grad(y, [h])
    assert gh.tolist() == [2, 8]


def test_grad_of_an_intermediate_leaves_the_graph_below_it() -> None:
    x = leaf(3)
    h = x * x
    y = h * 2
    mr.grad(y, [h])
    h.backward()
    assert x.grad.tolist() == [6]


def test_an_intermediate_on_several_paths_gets_their_sum() -> None:
    x = leaf(3)
    h = x * 2
    y = h * h + h * 5
    gh, gx = mr.grad(y, [h, x])
    assert gh.tolist() == [17]
    assert gx.tolist() == [34]


def test_grad_of_several_outputs_adds_up() -> None:
    x = leaf(1, 2)
    a, b = (x * x).sum(), x * 3
    (g,) = mr.grad([a, b], [x], [None, np.array([1.0, 10.0])])
    assert g.tolist() == [5, 34]
    c = x * 2
    (g,) = mr.grad([c, c], [x], [np.ones(2), np.ones(2)])
    assert g.tolist() == [4, 4]


def test_the_same_input_twice() -> None:
    x = leaf(2)
    a, b = mr.grad(x * x, [x, x])
    assert a.tolist() == b.tolist() == [4]
    assert not np.shares_memory(a._data, b._data)


def test_unused_inputs() -> None:
    x, z = leaf(1), leaf(2)
    h = x * 2
    with pytest.raises(RuntimeError, match="the outputs do not depend on input 1; pass allow_unu"):
        mr.grad(h, [x, z], retain_graph=True)
    assert mr.grad(h, [x, z], allow_unused=True, retain_graph=True)[1] is None
    unrelated = z * 3
    assert mr.grad(h, [unrelated], allow_unused=True) == (None,)


def test_grad_refusals() -> None:
    x = leaf(1, 2)
    y = (x * x).sum()
    with pytest.raises(RuntimeError, match="grad: input 0 does not require gradients"):
        mr.grad(y, [mr.Tensor([1.0])])
    with pytest.raises(TypeError, match="grad: input 1 is no Tensor but ndarray"):
        mr.grad(y, [x, np.ones(2)])  # type: ignore[list-item]
    with pytest.raises(ValueError, match="grad: 1 outputs but 2 grad_outputs"):
        mr.grad(y, [x], [None, None])
    with pytest.raises(TypeError, match="grad: expected a Tensor, got float"):
        mr.grad([1.0], [x])  # type: ignore[list-item]
    with pytest.raises(RuntimeError, match="the output has 2 float64"):
        mr.grad(x * 2, [x])
    mr.grad(y, [x])
    with pytest.raises(RuntimeError, match="the graph was freed"):
        mr.grad(y, [x])


def test_model_parameters_can_be_given_as_an_iterator() -> None:
    model = mr.nn.Linear(2, 1)
    loss = model(mr.Tensor([[1.0, 2.0]])).sum()
    gw, gb = mr.grad(loss, model.parameters())
    assert_close(gw, np.array([[1, 2]], np.float32))
    assert_close(gb, np.array([1], np.float32))


# -- gradients of gradients -----------------------------------------------------------------------


def test_create_graph_keeps_the_graph_and_leaves_a_graph_on_grad() -> None:
    x = leaf(2)
    y = (x**3).sum()
    y.backward(create_graph=True)
    assert x.grad.requires_grad
    g, x.grad = x.grad, None
    g.backward(create_graph=True)
    assert_close(x.grad, np.array([12.0]))
    g, x.grad = x.grad, None
    g.backward()
    assert_close(x.grad, np.array([6.0]))
    assert not x.grad.requires_grad


def test_a_gradient_penalty() -> None:
    """d/dx sum((dy/dx)^2) for y = x^3: 2 * 3x^2 * 6x."""
    x = leaf(1, 2)
    (g,) = mr.grad((x**3).sum(), [x], create_graph=True)
    (g * g).sum().backward()
    assert_close(x.grad, 36 * np.array([1.0, 8.0]))


def test_the_upstream_gradient_is_differentiable_too() -> None:
    x, v = leaf(3), leaf(2)
    (g,) = mr.grad(x * x, [x], v, create_graph=True)
    gx, gv = mr.grad(g, [x, v])
    assert (gx.tolist(), gv.tolist()) == ([4], [6])


def test_without_create_graph_nothing_of_the_walk_is_recorded() -> None:
    x = leaf(2)
    (g,) = mr.grad(x * x, [x])
    assert not g.requires_grad
    assert g.grad_fn is None
    assert mr.is_grad_enabled()


def test_grad_inside_no_grad_can_create_a_graph() -> None:
    x = leaf(2)
    y = x * x
    with mr.no_grad():
        (g,) = mr.grad(y, [x], create_graph=True)
    assert mr.grad(g, [x])[0].tolist() == [2]


@pytest.mark.parametrize(
    ("function", "first", "second"),
    [
        (lambda x, c: x * c, 3.0, 0.0),
        (lambda x, c: c * x, 3.0, 0.0),
        (lambda x, c: c / x, -1 / 3, 2 / 9),
        (lambda x, c: x / c, 1 / 3, 0.0),
        (lambda x, c: x**c, 27.0, 18.0),
        (lambda x, c: mr.stack([x, c]).sum() * x, 9.0, 2.0),
    ],
)
def test_a_detached_copy_is_a_constant_although_it_shares_the_array(
    function: Any, first: float, second: float
) -> None:
    x = leaf(3)
    (g,) = mr.grad(function(x, x.detach()), [x], create_graph=True)
    assert_close(g, np.array([first]))
    if second:
        assert_close(mr.grad(g, [x])[0], np.array([second]))
    else:
        assert not g.requires_grad


def test_an_integer_that_was_made_to_require_gradients() -> None:
    x = mr.Tensor([1, 2])
    x.requires_grad = True
    with pytest.raises(TypeError, match="Mul: input 0 is int64 and cannot have a gradient"):
        (x * 2.5).sum().backward()


# -- hooks and retain_grad ------------------------------------------------------------------------


def test_a_hook_sees_the_whole_gradient_once() -> None:
    x = leaf(1, 2)
    h = x * 2
    seen = []
    h.register_hook(lambda g: seen.append(g.tolist()))
    x.register_hook(lambda g: seen.append(g.tolist()))
    (h + h * h).sum().backward()
    assert seen == [[5, 9], [10, 18]]


def test_hooks_run_in_order_and_may_replace() -> None:
    x = leaf(1)
    h = x * 2
    h.register_hook(lambda g: g + 1)
    h.register_hook(lambda g: g * 10)
    h.register_hook(lambda g: None)
    x.register_hook(lambda g: g - 1)
    h.backward()
    assert x.grad.tolist() == [39]


def test_hooks_are_removed_once_each() -> None:
    x = leaf(1)
    calls: list[str] = []

    def hook(g: mr.Tensor) -> None:
        calls.append("called")

    for tensor in (x, x * 2):
        calls.clear()
        first, second = tensor.register_hook(hook), tensor.register_hook(hook)
        first.remove()
        first.remove()
        tensor.backward(retain_graph=True)
        assert calls == ["called"]
        second()
        tensor.backward()
        assert calls == ["called"]


def test_a_hook_may_remove_itself() -> None:
    x = leaf(1)
    handles = []
    calls = []

    def once(g: mr.Tensor) -> None:
        calls.append(1)
        handles[0].remove()

    handles.append(x.register_hook(once))
    x.backward()
    x.backward()
    assert calls == [1]


def test_what_a_hook_may_not_return() -> None:
    for bad in (mr.Tensor(np.zeros(3)), np.zeros(1), 1.0):
        x = leaf(1)
        x.register_hook(lambda g, bad=bad: bad)
        with pytest.raises(ValueError, match=r"hook: expected None or a Tensor of shape \(1,\)"):
            (x * 2).backward()
        assert x.grad is None


def test_a_hook_in_another_dtype_is_converted() -> None:
    x = mr.Tensor([1.0], requires_grad=True)
    x.register_hook(lambda g: g.double() * 3)
    (x * 2).backward()
    assert x.grad.dtype == np.float32
    assert x.grad.tolist() == [6]


def test_what_a_hook_keeps_is_never_added_into() -> None:
    x = leaf(1)
    kept: list[mr.Tensor] = []
    h = x * 2
    h.register_hook(kept.append)
    x.register_hook(kept.append)
    (h * 3 + h * 4 + x * 5 + x * 6).backward()
    (x * 7).backward()
    assert [k.tolist() for k in kept] == [[7], [25], [7]]
    assert x.grad.tolist() == [32]
    assert not any(np.shares_memory(k._data, x.grad._data) for k in kept)


def test_hooks_work_in_grad_and_for_gradients_of_gradients() -> None:
    x = leaf(2)
    h = x * x
    h.register_hook(lambda g: g * g)
    (gh, gx) = mr.grad(h * 3, [h, x], create_graph=True)
    assert gh.tolist() == [9]
    assert gx.tolist() == [36]
    assert mr.grad(gx, [x])[0].tolist() == [18]


def test_hooks_need_gradients() -> None:
    for call in (lambda t: t.register_hook(print), lambda t: t.retain_grad()):
        with pytest.raises(RuntimeError, match="this tensor does not require gradients"):
            call(mr.Tensor([1.0]))


def test_retain_grad() -> None:
    x = leaf(1, 2)
    h = x * x
    h.retain_grad()
    h.retain_grad()  # again changes nothing
    x.retain_grad()  # a leaf has its gradient anyway
    (h * 3).sum().backward(retain_graph=True)
    assert h.grad.tolist() == [3, 3]
    assert x.grad.tolist() == [6, 12]
    assert not np.shares_memory(h.grad._data, x.grad._data)
    h.backward([1.0, 1.0])
    assert h.grad.tolist() == [4, 4]


def test_retain_grad_sees_what_hooks_made_of_it() -> None:
    x = leaf(1)
    h = x * 2
    h.retain_grad()
    h.register_hook(lambda g: g * 10)  # registered after, run before
    h.backward()
    assert h.grad.tolist() == [10]
    assert x.grad.tolist() == [20]


def test_a_dropped_intermediate_is_not_kept_for_its_gradient() -> None:
    x = leaf(1)
    h = x * 2
    h.retain_grad()
    y = h * 3
    del h
    y.backward()
    assert x.grad.tolist() == [6]
