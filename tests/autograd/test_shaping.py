"""Shapes, axes, slices, padding and joins."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from checks import check_operation, check_orders
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, basic_indices

import minires as mr
from minires.autograd import broadcast_to, concatenate, flatten, pad_axes, stack
from minires.testing.compare import assert_close

# -- shapes and axes ------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(6, 4), (-1,), (2, -1, 2), (1, 24, 1), [4, 6], (2, 3, 4)])
def test_reshape(shape: Any, rng: np.random.Generator) -> None:
    x = rng.standard_normal((2, 3, 4))
    check_operation(lambda x: x.reshape(shape), lambda x: x.reshape(shape), [x], rng)
    check_operation(lambda x: x.reshape(*shape), lambda x: x.reshape(shape), [x], rng)
    check_operation(lambda x: x.view(*shape), lambda x: x.reshape(shape), [x], rng)


def test_reshape_of_other_memory(rng: np.random.Generator) -> None:
    """Channels-last memory in reverse: the values come in logical order all the same."""
    x = rng.standard_normal((2, 4, 3)).transpose(0, 2, 1)[::-1]
    assert_close(mr.Tensor(x).reshape(-1), x.flatten())


def test_reshape_to_nothing_and_back() -> None:
    assert mr.Tensor([[5.0]]).reshape(()).shape == ()
    assert mr.Tensor(5.0).reshape(1, 1).shape == (1, 1)
    assert mr.Tensor(np.ones((0, 3))).reshape(3, 0).shape == (3, 0)


def test_reshape_that_does_not_fit() -> None:
    with pytest.raises(ValueError, match=r"reshape: 6 elements of shape \(2, 3\) do not fit \(4"):
        mr.Tensor(np.ones((2, 3))).reshape(4, -1)


@pytest.mark.parametrize("axes", [(0, 1, 2), (2, 0, 1), (-1, 0, 1), (1, -1, 0)])
def test_permute(axes: Any, rng: np.random.Generator) -> None:
    x = rng.standard_normal((2, 3, 4))
    check_operation(lambda x: x.permute(axes), lambda x: x.transpose(axes), [x], rng)
    check_operation(lambda x: x.permute(*axes), lambda x: x.transpose(axes), [x], rng)
    check_operation(lambda x: x.transpose(*axes), lambda x: x.transpose(axes), [x], rng)


def test_transpose_of_two_axes_swaps_them(rng: np.random.Generator) -> None:
    x = rng.standard_normal((2, 3, 4))
    check_operation(lambda x: x.transpose(0, -1), lambda x: x.swapaxes(0, -1), [x], rng)
    check_operation(lambda x: x.T, lambda x: x.T, [x], rng)
    check_operation(lambda x: x.transpose(), lambda x: x.T, [x], rng)
    matrix = mr.Tensor(x[0])
    for swapped in (matrix.transpose(0, 1), matrix.transpose(1, 0), matrix.transpose((1, 0))):
        assert_close(swapped, x[0].T)


def test_a_zero_dimensional_tensor_has_nothing_to_permute() -> None:
    x = mr.Tensor(1.0, requires_grad=True)
    assert mr.grad(x.T, [x])[0].item() == 1
    assert x.permute(()).shape == ()


@pytest.mark.parametrize("axes", [(0, 1), (0, 0, 1), (0, 1, 5), (0, 1, 2, 3)])
def test_axes_that_do_not_permute(axes: Any) -> None:
    with pytest.raises(ValueError, match=r"permute: axes|out of bounds"):
        mr.Tensor(np.ones((2, 3, 4))).permute(axes)


def test_transpose_takes_no_single_axis() -> None:
    with pytest.raises(ValueError, match=r"permute: axes \(1,\) do not permute 2 dimensions"):
        mr.Tensor(np.ones((2, 3))).transpose(1)


def test_transpose_out_of_range() -> None:
    with pytest.raises(ValueError, match="transpose: axis 3 is out of range for 3 dimensions"):
        mr.Tensor(np.ones((2, 3, 4))).transpose(0, 3)


def test_flatten(rng: np.random.Generator) -> None:
    x = rng.standard_normal((2, 3, 4, 5))
    check_operation(lambda x: x.flatten(), lambda x: x.reshape(-1), [x], rng)
    check_operation(lambda x: x.flatten(1), lambda x: x.reshape(2, -1), [x], rng)
    check_operation(lambda x: flatten(x, 1, -2), lambda x: x.reshape(2, 12, 5), [x], rng)
    assert mr.Tensor(1.0).flatten().shape == (1,)
    assert mr.Tensor(np.ones((2, 0, 3))).flatten(1).shape == (2, 0)
    with pytest.raises(ValueError, match="start_dim 2 lies behind end_dim 1"):
        mr.Tensor(x).flatten(2, 1)
    with pytest.raises(ValueError, match="flatten: end_dim 4 is out of range for 4 dimensions"):
        mr.Tensor(x).flatten(0, 4)


def test_squeeze_and_unsqueeze(rng: np.random.Generator) -> None:
    x = rng.standard_normal((1, 3, 1))
    check_operation(lambda x: x.squeeze(), lambda x: x.reshape(3), [x], rng)
    check_operation(lambda x: x.squeeze(-1), lambda x: x.reshape(1, 3), [x], rng)
    check_operation(lambda x: x.squeeze(1) * 1.0, lambda x: x, [x], rng)  # not of size one: kept
    for axis in range(-4, 4):
        check_operation(
            lambda x, a=axis: x.unsqueeze(a), lambda x, a=axis: np.expand_dims(x, a), [x], rng
        )
    for name in ("squeeze", "unsqueeze"):
        with pytest.raises(ValueError, match=f"{name}: axis 4 is out of range for 3 dimensions"):
            getattr(mr.Tensor(x), name)(4)


@pytest.mark.parametrize("shape", [(2, 3), (5, 2, 3), (0, 2, 3), (2, 3, 2, 3)])
def test_broadcast_to(shape: tuple[int, ...], rng: np.random.Generator) -> None:
    x = rng.standard_normal((2, 1) if shape != (2, 3, 2, 3) else (3, 1, 3))
    check_operation(
        lambda x: broadcast_to(x, shape), lambda x: np.broadcast_to(x, shape), [x], rng
    )


def test_expand_keeps_sizes() -> None:
    x = mr.Tensor(np.ones((2, 1)))
    assert x.expand(-1, 3).shape == (2, 3)
    assert x.expand(4, -1, -1).shape == (4, 2, 1)
    for shape in ((-1, 2, 3), (-1,)):
        with pytest.raises(ValueError, match="has no size to keep for each -1"):
            x.expand(shape)
    with pytest.raises(ValueError, match=r"broadcast_to: \(2, 1\) does not broadcast to \(3, 3\)"):
        x.expand(3, 3)


# -- slices ---------------------------------------------------------------------------------------

MASK = np.array([True, False, True])
INDICES = {
    "integer": 1,
    "negative": -1,
    "numpy integer": np.int64(1),
    "slice": slice(1, None),
    "every second": slice(None, None, 2),
    "backwards": slice(None, None, -1),
    "backwards in steps": slice(2, None, -2),
    "nothing": slice(2, 1),
    "ellipsis": (..., 0),
    "new axis": (None, 1, ..., None),
    "pair": (1, 2),
    "all": (2, 3, 1),
    "list": [0, 2],
    "repeats": [0, 0, 2, 0],
    "array": np.array([[0, 2], [2, 2]]),
    "arrays": (np.array([0, 2, 0]), np.array([3, 3, 3])),
    "array and slice": (slice(None), [1, 1, 3], slice(0, 1)),
    "arrays apart": ([0, 1], slice(None), [1, 1]),
    "mask": MASK,
    "mask and slice": (MASK, slice(1, 3)),
    "mask of everything": np.arange(24).reshape(3, 4, 2) % 3 == 0,
    "mask of two axes": (np.arange(12).reshape(3, 4) % 5 == 0,),
    "empty mask": np.zeros(3, bool),
    "two masks": (MASK, np.array([True, False, False, True])),
    "true": True,
    "tensor": mr.Tensor([2, 0, 2]),
    "tensors": (mr.Tensor([0, 0]), mr.Tensor([1, 1])),
    "mask tensor": mr.Tensor(MASK),
    "zero-dimensional tensor": mr.Tensor(1),
}


def plain(index: Any) -> Any:
    if isinstance(index, tuple):
        return tuple(plain(i) for i in index)
    return index.numpy() if isinstance(index, mr.Tensor) else index


@pytest.mark.parametrize("name", INDICES)
def test_slicing(name: str, rng: np.random.Generator) -> None:
    x, index = rng.standard_normal((3, 4, 2)), INDICES[name]
    check_operation(lambda x: x[index], lambda x: x[plain(index)], [x], rng)
    check_orders(lambda x: (x * x * x)[index], [x], rng)


@given(st.data())
def test_drawn_basic_slices(data: Any) -> None:
    shape = data.draw(array_shapes(min_dims=1, max_dims=3, max_side=4))
    index = data.draw(basic_indices(shape, allow_newaxis=True, allow_ellipsis=True))
    rng = np.random.default_rng(0)
    check_operation(lambda x: x[index], lambda x: x[index], [rng.standard_normal(shape)], rng)


def test_channels_last_memory_survives_a_strided_slice(rng: np.random.Generator) -> None:
    """As on an option A shortcut: another order would have the join copied pixel by pixel."""
    pixels = rng.standard_normal((2, 6, 6, 3))
    x = mr.Tensor(pixels.transpose(0, 3, 1, 2), requires_grad=True)
    y = mr.functional.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, 0, 2))
    y.backward(rng.standard_normal((2, 3, 3, 5)).transpose(0, 3, 1, 2))
    assert x.grad is not None
    for images in (y, x.grad):
        assert images.data.transpose(0, 2, 3, 1).flags.c_contiguous


def test_a_slice_of_a_slice(rng: np.random.Generator) -> None:
    x = rng.standard_normal((4, 6))
    check_operation(lambda x: x[::-1, 1:][:, [0, 0, 3]][1], lambda x: x[::-1, 1:][:, [0, 0, 3]][1],
                    [x], rng)  # fmt: skip


def test_the_index_is_taken_as_it_was(rng: np.random.Generator) -> None:
    """Writing into the index array after the slice must not move the gradient."""
    x = mr.Tensor(np.arange(4.0), requires_grad=True)
    for index, other in (
        (np.array([0, 1]), 3), (np.array([True, True, False, False]), False)
    ):  # fmt: skip
        y = x[index]
        index[...] = other
        (g,) = mr.grad(y, [x], np.ones(2))
        np.testing.assert_array_equal(g.numpy(), [1, 1, 0, 0])


def test_the_condition_of_where_is_taken_as_it_was() -> None:
    x, mask = mr.Tensor([1.0, 2.0], requires_grad=True), np.array([True, False])
    y = mr.where(mask, x, 0.0)
    mask[:] = [False, True]
    np.testing.assert_array_equal(mr.grad(y.sum(), [x])[0].numpy(), [1, 0])


@pytest.mark.parametrize("index", [5, (0, 0, 0, 0), [7], 1.5, np.array([0.5]), np.ones(4, bool)])
def test_slices_that_do_not_exist(index: Any) -> None:
    with pytest.raises(IndexError, match=r"indexing a tensor of shape \(3, 4, 2\): "):
        mr.Tensor(np.ones((3, 4, 2)))[index]


def test_iteration(rng: np.random.Generator) -> None:
    x = mr.Tensor(rng.standard_normal((3, 2)), requires_grad=True)
    rows = list(x)
    assert len(rows) == len(x) == 3
    (g,) = mr.grad((rows[0] + rows[2] * 2).sum(), [x])
    np.testing.assert_array_equal(g.numpy(), [[1, 1], [0, 0], [2, 2]])
    for f in (len, iter):
        with pytest.raises(TypeError, match="0-d tensor"):
            f(mr.Tensor(1.0))


# -- joins ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("axis", [0, 1, -1])
def test_concatenate(axis: int, rng: np.random.Generator) -> None:
    shapes = [[2, 3, 2], [2, 3, 2], [2, 3, 2]]
    for size, shape in zip((1, 0, 4), shapes, strict=True):
        shape[axis] = size
    arrays = [rng.standard_normal(s) for s in shapes]
    check_operation(
        lambda *a: concatenate(a, axis), lambda *a: np.concatenate(a, axis), arrays, rng
    )
    check_orders(lambda *a: concatenate([t * t * t for t in a], axis), arrays, rng)


@pytest.mark.parametrize("axis", [0, 1, 2, -1, -3])
def test_stack(axis: int, rng: np.random.Generator) -> None:
    arrays = [rng.standard_normal((2, 3)) for _ in range(3)]
    check_operation(lambda *a: stack(a, axis), lambda *a: np.stack(a, axis), arrays, rng)
    assert_close(stack([1.0, mr.Tensor(2.0)]), np.array([1, 2], np.float32))


def test_a_tensor_joined_with_itself(rng: np.random.Generator) -> None:
    x = rng.standard_normal((2, 2))
    check_operation(
        lambda x: concatenate([x, x * 2, x]), lambda x: np.concatenate([x, x * 2, x]), [x], rng
    )


def test_joins_of_two_dtypes() -> None:
    a = mr.Tensor([1.0], requires_grad=True)
    b = mr.Tensor(np.array([2.0]), requires_grad=True)
    y = concatenate([a, b])
    assert y.dtype == np.float64
    assert [g.dtype for g in mr.grad(y.sum(), [a, b])] == [np.float32, np.float64]


@pytest.mark.parametrize(
    ("tensors", "axis", "message"),
    [
        ([], 0, "concatenate: needs at least one tensor"),
        ([np.ones((2, 3)), np.ones((3, 2))], 0, "must match exactly"),
        ([np.ones((2, 3)), np.ones(2)], 0, "same number of dimensions"),
        ([np.ones((2, 3))], 2, "concatenate: axis 2 is out of range for 2 dimensions"),
        ([np.ones((2, 3))], -3, "concatenate: axis -3 is out of range for 2 dimensions"),
        ([1.0, 2.0], 0, "concatenate: axis 0 is out of range for 0 dimensions"),
    ],
)
def test_joins_that_do_not_fit(tensors: list[Any], axis: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        concatenate(tensors, axis)


def test_stacks_that_do_not_fit() -> None:
    with pytest.raises(ValueError, match="needs at least one tensor"):
        stack([])
    with pytest.raises(ValueError, match="must match exactly"):
        stack([np.ones(2), np.ones(3)])


def test_pad(rng: np.random.Generator) -> None:
    x = rng.standard_normal((2, 3))
    widths = [(1, 0), (2, 3)]
    check_operation(
        lambda x: pad_axes(x, widths, 1.5), lambda x: np.pad(x, widths, constant_values=1.5), [x],
        rng,
    )  # fmt: skip
    check_orders(lambda x: pad_axes(x * x * x, widths), [x], rng)
    with pytest.raises(ValueError, match="pad: 1 pairs of widths for 2 dimensions"):
        pad_axes(x, [(1, 1)])
    with pytest.raises(ValueError, match="pad: widths must not be negative"):
        pad_axes(x, [(1, 1), (-1, 0)])


# -- copies and dtypes ----------------------------------------------------------------------------


def test_clone_and_cast(rng: np.random.Generator) -> None:
    x = rng.standard_normal((2, 3))
    check_operation(lambda x: x.clone(), lambda x: x, [x], rng)
    single = mr.Tensor(x, requires_grad=True)
    (g,) = mr.grad(single.float(), [single], np.ones((2, 3), np.float32))
    assert g.dtype == np.float64
    cubed = (single * single).float().double() * single
    (g,) = mr.grad(cubed, [single], np.ones((2, 3)), create_graph=True)
    assert_close(g, 3 * x**2, rtol=1e-6)
    (g,) = mr.grad(g.sum(), [single])
    assert_close(g, 6 * x, rtol=1e-6)


def test_a_clone_keeps_its_memory_layout() -> None:
    x = mr.Tensor(np.zeros((2, 4, 5, 3)).transpose(0, 3, 1, 2))
    assert x.clone()._data.strides == x._data.strides
    assert not np.shares_memory(x.clone()._data, x._data)
