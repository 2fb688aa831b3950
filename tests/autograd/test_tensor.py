"""Making tensors, reading them, showing them, copying them."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import numpy as np
import pytest

import minires as mr
from minires.testing.compare import assert_close

# -- making ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("data", "dtype"),
    [
        (1.5, np.float32),
        (2, np.int64),
        (True, np.bool_),
        ([1.0, 2.0], np.float32),
        ([1, 2], np.int64),
        ([[1, 2.5], [3, 4]], np.float32),
        ([], np.float32),
        ((True, False), np.bool_),
        (np.float64(1.5), np.float64),
        (np.float16(1.5), np.float16),
        (np.array([1.0]), np.float64),
        (np.array([1], np.uint8), np.uint8),
    ],
)
def test_dtypes_of_new_tensors(data: Any, dtype: Any) -> None:
    for x in (mr.Tensor(data), mr.tensor(data)):
        assert x.dtype == dtype
        np.testing.assert_array_equal(x.numpy(), np.asarray(data))
        assert not x.requires_grad
        assert x.is_leaf


def test_dtype_asked_for() -> None:
    assert mr.Tensor([1, 2], dtype=np.float32).dtype == np.float32
    for make in (mr.Tensor, mr.tensor):
        x = make([0.1], dtype=np.float64)
        assert x.item() == 0.1  # not rounded to float32 on the way
    array = np.zeros(2)
    assert mr.Tensor(array, dtype=np.float64)._data is array


def test_a_tensor_shares_its_array_and_tensor_copies_it() -> None:
    array = np.zeros(2)
    assert mr.Tensor(array).data is array
    assert mr.Tensor(mr.Tensor(array)).data is array
    assert not np.shares_memory(mr.tensor(array).data, array)
    assert not np.shares_memory(mr.tensor(mr.Tensor(array)).data, array)
    assert not np.shares_memory(mr.nn.Parameter(array).data, array)
    assert not np.shares_memory(mr.nn.Parameter(mr.Tensor(array)).data, array)


@pytest.mark.parametrize("data", ["text", None, [None], 1j, {"a": 1}, np.array(["a"]), range])
def test_what_is_no_number(data: Any) -> None:
    with pytest.raises(TypeError, match="Tensor: needs numbers, got"):
        mr.Tensor(data)


def test_other_data_that_is_refused() -> None:
    with pytest.raises(ValueError, match="rows of unequal length"):
        mr.Tensor([[1, 2], [3]])
    with pytest.raises(TypeError, match=r"a sequence of Tensors; use mr.stack\(tensors\)"):
        mr.Tensor([mr.Tensor(1.0), mr.Tensor(2.0)])
    for make in (mr.Tensor, mr.tensor, mr.nn.Parameter):
        with pytest.raises(TypeError, match="only floating-point tensors can require gradients, "
                                            "got int64"):  # fmt: skip
            make([1, 2], requires_grad=True)


# -- reading --------------------------------------------------------------------------------------


def test_what_it_is() -> None:
    x = mr.Tensor(np.zeros((2, 3, 4), np.float32), requires_grad=True)
    assert (x.shape, x.ndim, x.size, x.numel(), len(x)) == ((2, 3, 4), 3, 24, 24, 2)
    assert x.device == "cpu"
    assert x.is_leaf
    assert x.grad_fn is None
    y = x * 2
    assert not y.is_leaf
    assert y.grad_fn.name == "Mul"
    assert y.requires_grad


def test_item_and_numbers() -> None:
    assert mr.Tensor([[2.5]]).item() == 2.5
    assert type(mr.Tensor([[2.5]]).item()) is float
    assert float(mr.Tensor(2.5)) == 2.5
    assert int(mr.Tensor([3])) == 3
    assert mr.Tensor([[1, 2]]).tolist() == [[1, 2]]
    assert bool(mr.Tensor([0.0])) is False
    with pytest.raises(ValueError, match=r"item\(\): needs one element, this tensor has 2 float32"):
        mr.Tensor([1.0, 2.0]).item()
    with pytest.raises(ValueError, match="ambiguous"):
        bool(mr.Tensor([1.0, 2.0]))


def test_formatting() -> None:
    x = mr.Tensor(np.pi)
    assert f"{x:.3f} {x:>8.1e}" == "3.142  3.1e+00"
    assert f"{x}" == str(x)
    assert f"{mr.Tensor([1.0, 2.0])}" == "tensor([1., 2.])"
    with pytest.raises(ValueError, match="needs one element"):
        f"{mr.Tensor([1.0, 2.0]):.2f}"


def test_numpy_takes_a_tensor() -> None:
    array = np.array([1.0, 2.0])
    x = mr.Tensor(array)
    assert np.asarray(x) is array
    assert not np.shares_memory(np.array(x), array)
    assert np.asarray(x, np.float32).dtype == np.float32
    with pytest.raises(ValueError, match="copy"):
        np.asarray(x, np.float32, copy=False)
    assert np.mean(np.asarray(x)) == 1.5


def test_repr() -> None:
    x = mr.Tensor([1.0, 2.0], requires_grad=True)
    assert repr(x) == "tensor([1., 2.], requires_grad=True)"
    assert repr(x * 2) == "tensor([2., 4.], grad_fn=<Mul>)"
    assert repr(mr.Tensor(np.array([1.0]))) == "tensor([1.], dtype=float64)"
    assert repr(mr.Tensor([1, 2])) == "tensor([1, 2])"
    assert repr(mr.Tensor(np.array(1, np.int8))) == "tensor(1, dtype=int8)"
    assert repr(mr.nn.Parameter([1.0])).startswith("Parameter containing:\ntensor([1.], req")
    assert len(repr(mr.Tensor(np.zeros((1000, 1000))))) < 2000


def test_hash_and_membership() -> None:
    x, y = mr.Tensor([1.0]), mr.Tensor([1.0])
    assert len({x, y}) == 2
    assert {x: 1}[x] == 1
    assert 2 in mr.Tensor([1, 2])
    assert 3 not in mr.Tensor([1, 2])


# -- changing -------------------------------------------------------------------------------------


def test_copy_and_item_assignment() -> None:
    x = mr.Tensor(np.zeros((2, 3), np.float32))
    assert x.copy_([1, 2, 3]) is x  # broadcast and cast
    x[0, mr.Tensor([0, 2])] = mr.Tensor([7.0, 8.0])
    x[1] = 5
    x[x > 7] = -1
    np.testing.assert_array_equal(x.numpy(), [[7, 2, -1], [5, 5, 5]])
    assert x.dtype == np.float32
    with pytest.raises(ValueError, match="broadcast"):
        x.copy_(np.zeros(4))


def test_a_recorded_tensor_is_not_changed_in_place() -> None:
    x = mr.Tensor([1.0, 2.0], requires_grad=True)
    for change in (lambda t: t.copy_([0.0, 0.0]), lambda t: t.__setitem__(0, 0.0)):
        for t in (x, x * 2):
            with pytest.raises(RuntimeError, match=r"in-place changes are not recorded; use"):
                change(t)
    with mr.no_grad():
        x[0] = 3.0
    assert x.tolist() == [3, 2]


def test_assigning_data() -> None:
    x = mr.Tensor([1.0, 2.0], requires_grad=True)
    x.data = np.array([3.0, 4.0], np.float32)
    assert_close(x, np.array([3, 4], np.float32))
    x.data = [5.0, 6.0]
    assert x.dtype == np.float32
    x.data -= 1
    assert_close(x, np.array([4, 5], np.float32))
    other = mr.Tensor(np.array([1.0, 1.0]))
    x.data = other
    assert x.dtype == np.float64
    with pytest.raises(ValueError, match=r"data: expected shape \(2,\), got \(3,\)"):
        x.data = np.zeros(3)
    with pytest.raises(TypeError, match="data: this tensor requires gradients, got dtype int64"):
        x.data = np.zeros(2, np.int64)
    with pytest.raises(TypeError, match="needs numbers"):
        x.data = "ab"


def test_requires_grad_can_be_switched() -> None:
    x = mr.Tensor([1.0])
    assert x.requires_grad_() is x
    assert x.requires_grad
    assert not x.requires_grad_(False).requires_grad
    with pytest.raises(TypeError, match="requires_grad_: only floating-point tensors, got int64"):
        mr.Tensor([1]).requires_grad_()
    y = mr.Tensor([1.0], requires_grad=True) * 2
    with pytest.raises(RuntimeError, match=r"only a leaf can stop requiring gradients; detach\(\)"):
        y.requires_grad_(False)


def test_detach_shares_memory() -> None:
    x = mr.Tensor([1.0, 2.0], requires_grad=True)
    y = (x * 2).detach()
    assert not y.requires_grad
    assert y.is_leaf
    assert x.detach().data is x.data


# -- conversion -----------------------------------------------------------------------------------


def test_conversions() -> None:
    x = mr.Tensor([1.5], requires_grad=True)
    assert x.to("cpu") is x
    assert x.cpu() is x
    assert x.float() is x
    assert x.to(np.float32) is x
    assert x.double().dtype == np.float64
    assert x.double().requires_grad
    assert x.to("float64").dtype == np.float64
    whole = x.astype(np.int64)
    assert whole.dtype == np.int64
    assert not whole.requires_grad
    for device in ("mps", "cuda:", "cuda:x", "cpu:0"):
        with pytest.raises(ValueError, match=f"unknown device '{device}'; known are 'cpu', 'cuda'"):
            x.to(device)
    with pytest.raises(TypeError):
        x.to("no such type")


# -- copying --------------------------------------------------------------------------------------


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))])
@pytest.mark.parametrize("kind", [mr.Tensor, mr.nn.Parameter])
def test_deep_copies_and_pickles(kind: Any, copied: Any) -> None:
    x = kind(np.array([1.0, 2.0]), requires_grad=True)
    (x * x).sum().backward()
    x.register_hook(lambda g: g * 100)
    y = copied(x)
    assert type(y) is kind
    assert y.requires_grad
    assert_close(y, x)
    assert_close(y.grad, x.grad)
    assert not np.shares_memory(y._data, x._data)
    with mr.no_grad():
        y += 1
    assert x.tolist() == [1, 2]
    y.zero_grad()
    (y * y).sum().backward()
    assert_close(y.grad, np.array([4.0, 6.0]))  # the hook stayed with x


def test_a_shallow_copy_shares_memory_and_versions() -> None:
    x = mr.Tensor([1.0], requires_grad=True)
    loss = (x * x).sum()
    y = copy.copy(x)
    assert y is not x
    assert np.shares_memory(y._data, x._data)
    with mr.no_grad():
        y += 1
    with pytest.raises(RuntimeError, match="changed in place"):
        loss.backward()


@pytest.mark.parametrize("copied", [copy.deepcopy, copy.copy, pickle.dumps])
def test_a_piece_of_a_graph_is_not_copied(copied: Any) -> None:
    y = mr.Tensor([1.0], requires_grad=True) * 2
    with pytest.raises(RuntimeError, match=r"only leaves can be copied or pickled.*detach\(\) it"):
        copied(y)
    assert_close(copy.deepcopy(y.detach()), y)


def test_deep_copies_in_one_structure_stay_shared() -> None:
    p = mr.nn.Parameter([1.0])
    a, b = copy.deepcopy([p, p])
    assert a is b
