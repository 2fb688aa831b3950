"""Cross-entropy with all its options against its definition, and the other losses."""

from __future__ import annotations

from typing import Any

import numpy as np
import oracles
import pytest
from hypothesis import given
from hypothesis import strategies as st

import minires as mr
from minires import functional as F
from minires.testing.compare import assert_close

N, K = 5, 4


def definition(
    x: Any, target: Any, weight: Any = None, ignore_index: int = -100, reduction: str = "mean",
    label_smoothing: float = 0.0,
) -> Any:  # fmt: skip
    """Written out for one image after the other; accepts complex x."""
    n, k = x.shape
    weight = np.ones(k) if weight is None else np.asarray(weight)
    target = np.asarray(target)
    losses, total = [], 0.0
    for i in range(n):
        p = oracles.log_softmax(x[i], 0)
        if target.ndim == 2:
            q = target[i]
            total += 1
        elif target[i] == ignore_index:
            losses.append(0 * x[i, 0])
            continue
        else:
            q = np.array([float(j == target[i]) for j in range(k)])
            total += weight[target[i]]
        q = (1 - label_smoothing) * q + label_smoothing / k
        losses.append(-sum(weight[j] * q[j] * p[j] for j in range(k)))
    losses = np.array(losses)
    return {"none": losses, "sum": losses.sum(), "mean": losses.sum() / total}[reduction]


@given(
    weighted=st.booleans(),
    kind=st.sampled_from(["labels", "some ignored", "probabilities"]),
    reduction=st.sampled_from(["mean", "sum", "none"]),
    smoothing=st.sampled_from([0.0, 0.1, 1.0]),
    seed=st.integers(0, 1000),
)
def test_options_together(
    weighted: bool, kind: str, reduction: str, smoothing: float, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((N, K)) * 3
    target = rng.integers(0, K, N)
    if kind == "some ignored":
        target[1:] = np.where(rng.random(N - 1) < 0.5, -7, target[1:])
    if kind == "probabilities":
        target = rng.dirichlet(np.ones(K), N)
    options: dict[str, Any] = {
        "weight": rng.uniform(0.5, 2, K) if weighted else None,
        "ignore_index": -7,
        "reduction": reduction,
        "label_smoothing": smoothing,
    }
    tensor = mr.Tensor(x, requires_grad=True)
    loss = F.cross_entropy(tensor, target, **options)
    assert_close(loss, np.asarray(definition(x, target, **options)))
    u = rng.standard_normal(loss.shape)
    (expected,) = oracles.complex_step_gradients(
        lambda x: definition(x, target, **options), [x], u
    )
    assert_close(mr.grad(loss, [tensor], u)[0], expected)
    if kind != "probabilities" and not smoothing:
        nll = F.nll_loss(
            oracles.log_softmax(x, 1), target, options["weight"], -7, reduction
        )
        assert_close(nll, loss.numpy(), rtol=1e-10, atol=1e-12)


def test_the_gradient_is_softmax_minus_one_hot(rng: np.random.Generator) -> None:
    array, labels = rng.standard_normal((N, K)), rng.integers(0, K, N)
    x = mr.Tensor(array, requires_grad=True)
    (g,) = mr.grad(F.cross_entropy(x, labels), [x])
    p = np.exp(array) / np.exp(array).sum(1, keepdims=True)
    p[np.arange(N), labels] -= 1
    assert_close(g, p / N)


def test_to_third_order(rng: np.random.Generator) -> None:
    array, labels = rng.standard_normal((3, K)), rng.integers(0, K, 3)
    v, step = rng.standard_normal((3, K)), 1e-5

    def slope(array: np.ndarray, order: int) -> float:
        x = mr.Tensor(array, requires_grad=True)
        f = F.cross_entropy(x, labels, label_smoothing=0.1)
        for _ in range(order):
            (g,) = mr.grad(f, [x], create_graph=True)
            f = (g * v).sum()
        return f.item()

    for order in (1, 2, 3):
        ends = [slope(array + s * step * v, order - 1) for s in (1, -1)]
        assert_close(slope(array, order), (ends[0] - ends[1]) / (2 * step), rtol=1e-6, atol=1e-8)


def test_uniform_logits_cost_log_k() -> None:
    assert_close(F.cross_entropy(np.zeros((2, 10), np.float32), [3, 4]), np.float32(np.log(10)))


@pytest.mark.parametrize("weight", [None, [1.0, 1.0, 1.0]])
@pytest.mark.parametrize(
    ("logits", "label", "loss", "gradient"),
    [
        ([1e4, 0.0, -1e4], 0, 0.0, [0, 0, 0]),
        ([1e4, 0.0, -1e4], 2, 2e4, [1, 0, -1]),
        ([3e38, -3e38, 0.0], 0, 0.0, [0, 0, 0]),
        ([0.0, -np.inf, 0.0], 0, np.log(2), [-0.5, 0, 0.5]),  # a class that is ruled out
        ([-np.inf, -np.inf, 5.0], 2, 0.0, [0, 0, 0]),
        ([0.0, -np.inf, 0.0], 1, np.inf, [0.5, -1, 0.5]),
    ],
)
def test_extreme_logits(logits: Any, label: int, loss: float, gradient: Any, weight: Any) -> None:
    x = mr.Tensor(np.array([logits], np.float32), requires_grad=True)
    y = F.cross_entropy(x, [label], weight=weight)
    assert_close(y, np.float32(loss))
    assert_close(mr.grad(y, [x])[0], np.array([gradient], np.float32))


def test_nan_logits_are_not_hidden() -> None:
    loss = F.cross_entropy(np.array([[np.nan, 0.0]]), [1])
    assert np.isnan(loss.item())


def test_all_labels_ignored() -> None:
    x = mr.Tensor(np.ones((2, 3)), requires_grad=True)
    ignored = [-100, -100]
    assert np.isnan(F.cross_entropy(x, ignored).item())
    assert F.cross_entropy(x, ignored, reduction="sum").item() == 0
    np.testing.assert_array_equal(F.cross_entropy(x, ignored, reduction="none").numpy(), [0, 0])
    (g,) = mr.grad(F.cross_entropy(x, ignored, reduction="sum"), [x])
    np.testing.assert_array_equal(g.numpy(), np.zeros((2, 3)))


def test_ignored_labels_do_not_count_in_nll() -> None:
    x = np.array([[-1.0, -2.0], [-3.0, -4.0]])
    assert_close(F.nll_loss(x, [1, -100]), np.float64(2))
    assert_close(F.nll_loss(x, [1, 0]), np.float64(2.5))


def test_no_image_has_no_mean() -> None:
    assert np.isnan(F.cross_entropy(np.ones((0, 3)), np.zeros(0, np.int64)).item())


@pytest.mark.parametrize("dtype", [np.uint8, np.int32, np.int64])
def test_labels_of_any_integer_dtype(dtype: Any, rng: np.random.Generator) -> None:
    x, labels = rng.standard_normal((3, K)), np.array([0, 3, 1], dtype)
    expected = np.asarray(definition(x, labels.astype(np.int64)))
    for target in (labels, mr.Tensor(labels), labels.tolist()):
        assert_close(F.cross_entropy(x, target), expected)


def test_the_loss_has_the_dtype_of_the_logits() -> None:
    for dtype in (np.float32, np.float64):
        x = np.ones((2, 3), dtype)
        for target in ([0, 1], np.full((2, 3), 1 / 3)):
            for weight in (None, [1.0, 2.0, 3.0]):
                assert F.cross_entropy(x, target, weight).dtype == dtype


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"x": np.ones(3)}, ValueError, r"expected logits \(N, K\), got 3"),
        ({"x": np.ones((2, 3), np.int64)}, TypeError, "x must be floating point, got int64"),
        ({"target": [0, 3]}, ValueError, r"label 3 at position 1 is out of range for 3 classes \("),
        ({"target": [-1, 0]}, ValueError, "label -1 at position 0 is out of range"),
        ({"target": [0]}, ValueError, r"expected 2 labels for 2x3, got shape \(1,\)"),
        ({"target": [[0], [1]]}, ValueError, r"expected 2 labels for 2x3, got shape \(2, 1\)"),
        ({"target": [True, False]}, TypeError, "labels must be integers, got bool"),
        ({"target": np.ones((2, 2))}, ValueError, "target probabilities have shape 2x2, logits 2x"),
        ({"target": [0.0, 1.0]}, ValueError, "target probabilities have shape 2, logits 2x3"),
        ({"weight": [1.0, 2.0]}, ValueError, r"weight must have shape \(3,\), got \(2,\)"),
        ({"reduction": "avg"}, ValueError, r"reduction is one of \('mean', 'sum', 'none'\), got"),
        ({"label_smoothing": 1.5}, ValueError, r"label_smoothing is in \[0, 1\], got 1\.5"),
        ({"target": mr.Tensor(np.full((2, 3), 1 / 3), requires_grad=True)}, ValueError,
         r"no gradient goes to target; pass target.detach\(\)"),
    ],
)  # fmt: skip
def test_refusals(arguments: dict[str, Any], error: Any, message: str) -> None:
    defaults = {"x": np.ones((2, 3)), "target": [0, 1]}
    with pytest.raises(error, match=f"^cross_entropy: {message}"):
        F.cross_entropy(**(defaults | arguments))


def test_nll_refusals() -> None:
    x = np.ones((2, 3))
    with pytest.raises(ValueError, match=r"^nll_loss: label 3 at position 1 is out of range"):
        F.nll_loss(x, [0, 3])
    with pytest.raises(ValueError, match=r"^nll_loss: expected log-probabilities \(N, K\), got 3"):
        F.nll_loss(x[0], [0])
    with pytest.raises(ValueError, match=r"^nll_loss: weight must have shape"):
        F.nll_loss(x, [0, 1], [1.0])


def test_one_hot() -> None:
    q = F.one_hot(np.array([2, 0], np.uint8), 3)
    np.testing.assert_array_equal(q, [[0, 0, 1], [1, 0, 0]])
    assert q.dtype == np.float32
    assert F.one_hot([1], 2, np.float64).dtype == np.float64
    for labels, error, message in (
        ([-1], ValueError, "one_hot: label -1 at position 0 is out of range for 3 classes"),
        ([0, 3], ValueError, "one_hot: label 3 at position 1"),
        ([0.5], TypeError, "one_hot: labels must be integers, got float64"),
        ([[1]], ValueError, r"one_hot: expected labels of shape \(N,\), got \(1, 1\)"),
    ):
        with pytest.raises(error, match=message):
            F.one_hot(labels, 3)


def test_mse_loss(rng: np.random.Generator) -> None:
    a, b = rng.standard_normal((2, 3)), rng.standard_normal((2, 3))
    x, t = mr.Tensor(a, requires_grad=True), mr.Tensor(b, requires_grad=True)
    loss = F.mse_loss(x, t)
    assert_close(loss, ((a - b) ** 2).sum() / 6)
    gx, gt = mr.grad(loss, [x, t])
    assert_close(gx, (a - b) / 3)
    assert_close(gt, (b - a) / 3)
    with pytest.raises(ValueError, match=r"mse_loss: shapes \(2, 3\) and \(3,\) differ"):
        F.mse_loss(a, b[0])
