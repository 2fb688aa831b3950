"""Arithmetic, reductions, shapes and indexing against PyTorch."""

import numpy as np
import pytest
from against_torch import compare, to_torch, torch

import minires as mr


def numbers(*shape, positive=False, seed=0):
    x = np.random.default_rng([seed, *shape]).standard_normal(shape)
    return np.abs(x) + 0.1 if positive else x


BINARY = {
    "add": lambda a, b: a + b,
    "sub": lambda a, b: a - b,
    "mul": lambda a, b: a * b,
    "div": lambda a, b: a / b,
    "fused": lambda a, b: (a - b) * (a + 2.0) / (b * b + 1.0),
}
BROADCASTS = [
    ((3, 4), (3, 4)),
    ((3, 4), (4,)),
    ((3, 1), (1, 4)),
    ((2, 1, 4), (3, 1)),
    ((), (2, 3)),
    ((1, 1), (5,)),
    ((2, 3, 4, 5), (1, 3, 1, 1)),
]


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
@pytest.mark.parametrize("shapes", BROADCASTS)
@pytest.mark.parametrize("name", BINARY)
def test_arithmetic_with_broadcasting(name, shapes, dtype):
    a, b = (numbers(*shape, seed=i).astype(dtype) for i, shape in enumerate(shapes))
    b = np.where(np.abs(b) < 0.1, dtype(0.5), b)
    compare(BINARY[name], BINARY[name], {"a": a, "b": b})


@pytest.mark.parametrize(
    ("name", "function"),
    {
        "x + 2": lambda x: x + 2,
        "2 - x": lambda x: 2 - x,
        "-x * 0.5": lambda x: -x * 0.5,
        "1 / x": lambda x: 1 / x,
        "x**2": lambda x: x**2,
        "x**3.0": lambda x: x**3.0,
        "x**0": lambda x: x**0,
        "x**-1": lambda x: x**-1,
        "abs": abs,
        "used twice": lambda x: x * x + x,
    }.items(),
)
def test_numbers_and_tensors(name, function):
    compare(function, function, {"x": numbers(3, 4)})


@pytest.mark.parametrize("name", ["exp", "log", "sqrt", "tanh", "sigmoid"])
def test_functions_of_one_tensor(name):
    for dtype in (np.float64, np.float32):
        x = numbers(3, 5, positive=True).astype(dtype)
        compare(getattr(mr, name), getattr(torch, name), {"x": x})


def test_powers_of_tensors():
    a, b = numbers(3, 4, positive=True), numbers(4)
    compare(lambda a, b: a**b, lambda a, b: a**b, {"a": a, "b": b})
    compare(lambda b: 2.0**b, lambda b: 2.0**b, {"b": b})


def test_extremes_of_two_with_ties():
    rng = np.random.default_rng(0)
    a, b = (rng.integers(0, 3, shape).astype(np.float64) for shape in ((4, 5), (5,)))
    assert (a == b).any()
    compare(mr.maximum, torch.maximum, {"a": a, "b": b})
    compare(mr.minimum, torch.minimum, {"a": a, "b": b})


@pytest.mark.parametrize(("low", "high"), [(-1, 1), (None, 0), (0, None)])
def test_clip_with_values_on_the_bounds(low, high):
    x = np.random.default_rng(0).integers(-2, 3, (4, 5)).astype(np.float64)
    compare(lambda x: mr.clip(x, low, high), lambda x: torch.clamp(x, low, high), {"x": x})


def test_abs_at_zero():
    compare(abs, abs, {"x": np.array([-1.0, 0.0, -0.0, 2.0])})


def test_where():
    condition = np.random.default_rng(0).random((3, 4)) < 0.5
    compare(
        lambda a, b: mr.where(condition, a, b),
        lambda a, b: torch.where(to_torch(condition), a, b),
        {"a": numbers(3, 4), "b": numbers(4)},
    )


AXES = [None, 0, -1, (0, 2), (1, -1), (0, 1, 2)]


@pytest.mark.parametrize("keepdims", [False, True])
@pytest.mark.parametrize("axis", AXES)
@pytest.mark.parametrize("name", ["sum", "mean", "var"])
def test_reductions(name, axis, keepdims):
    dims = tuple(range(3)) if axis is None else axis
    compare(
        lambda x: getattr(x, name)(axis=axis, keepdims=keepdims),
        lambda x: getattr(x, name)(dim=dims, keepdim=keepdims),
        {"x": numbers(3, 4, 5)},
    )


@pytest.mark.parametrize("correction", [0, 1, 2])
def test_variance_with_a_correction(correction):
    compare(
        lambda x: x.var(axis=1, correction=correction),
        lambda x: x.var(dim=1, correction=correction),
        {"x": numbers(3, 4)},
    )


@pytest.mark.parametrize("keepdims", [False, True])
@pytest.mark.parametrize("axis", AXES)
@pytest.mark.parametrize("name", ["max", "min"])
def test_extremes_share_ties_as_amax_does(name, axis, keepdims):
    """Elements that tie share the gradient equally: PyTorch's rule for amax and amin."""
    x = np.random.default_rng(0).integers(0, 3, (3, 4, 5)).astype(np.float64)
    dims = () if axis is None else axis
    compare(
        lambda x: getattr(x, name)(axis=axis, keepdims=keepdims),
        lambda x: getattr(torch, f"a{name}")(x, dim=dims, keepdim=keepdims),
        {"x": x},
    )


@pytest.mark.parametrize(
    ("a", "b"),
    [((3, 4), (4, 5)), ((4,), (4,)), ((3, 4), (4,)), ((4,), (4, 5)), ((2, 3, 4), (4, 5)),
     ((2, 1, 3, 4), (5, 4, 2)), ((1, 1), (1, 1))],
)  # fmt: skip
def test_matmul(a, b):
    compare(lambda a, b: a @ b, lambda a, b: a @ b, {"a": numbers(*a), "b": numbers(*b)})


SHAPING = {
    "reshape": lambda x: x.reshape(6, -1),
    "flatten": lambda x: x.flatten(1),
    "flatten inside": lambda x: x.flatten(0, 1),
    "transpose": lambda x: x.transpose(0, -1),
    "permute": lambda x: x.permute(2, 0, 1),
    "unsqueeze": lambda x: x.unsqueeze(1),
    "squeeze": lambda x: x.unsqueeze(0).squeeze(0),
    "expand": lambda x: x.unsqueeze(1).expand(2, 3, -1, 4),
    "permute and reshape": lambda x: x.permute(1, 2, 0).reshape(4, 6) * 2.0,
}


@pytest.mark.parametrize("name", SHAPING)
def test_shaping(name):
    compare(SHAPING[name], SHAPING[name], {"x": numbers(2, 3, 4)})


def test_joining():
    a, b = numbers(2, 3), numbers(2, 3, seed=1)
    for axis in (0, 1, -1):
        compare(
            lambda a, b, i=axis: mr.concatenate([a, b, a], axis=i),
            lambda a, b, i=axis: torch.cat([a, b, a], dim=i),
            {"a": a, "b": b},
        )
        compare(
            lambda a, b, i=axis: mr.stack([a, b], axis=i),
            lambda a, b, i=axis: torch.stack([a, b], dim=i),
            {"a": a, "b": b},
        )


ROWS, COLUMNS = np.array([0, 2, 2, -1]), np.array([3, 3, 3, 0])
INDICES = {
    "integer": 1,
    "negative": -1,
    "slice": slice(1, None),
    "steps": (slice(None, None, 2), slice(0, 4, 3)),
    "ellipsis": (Ellipsis, 2),
    "new axis": (slice(None), None, 1),
    "all integers": (1, 2, 3),
    "repeated rows": ROWS,
    "pairs, some twice": (ROWS, COLUMNS),
    "rows and a slice": (slice(None), ROWS, slice(1, 3)),
    "empty": slice(2, 2),
}


@pytest.mark.parametrize("name", INDICES)
def test_indexing(name):
    index = INDICES[name]
    parts = index if isinstance(index, tuple) else (index,)
    theirs = tuple(to_torch(p) if isinstance(p, np.ndarray) else p for p in parts)
    compare(lambda x: x[index], lambda x: x[theirs], {"x": numbers(3, 4, 5)})


def test_indexing_with_masks():
    x = numbers(3, 4, 5)
    for mask in (x > 0, x[..., 0] > 0):
        compare(lambda x, m=mask: x[m], lambda x, m=mask: x[to_torch(m)], {"x": x})


def test_a_tensor_used_many_times_sums_its_gradients():
    def tangle(x):
        y = x * x
        z = y[1:] + x[:-1]
        return (z.sum() * y.mean() + (z * z).sum()) * x.sum()

    compare(tangle, tangle, {"x": numbers(4, 3)})
