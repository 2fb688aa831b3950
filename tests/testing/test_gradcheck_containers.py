"""Arguments in dicts, lists and tuples; functions that return their value and its gradient."""

from __future__ import annotations

from collections import namedtuple
from typing import Any

import numpy as np
import pytest
from planting import failed, tensor

import minires as mr
from minires.testing import assert_gradients, gradcheck, gradgradcheck
from minires.testing.tree import leaves, rebuilt

Pair = namedtuple("Pair", "left right")


def names(report: Any) -> list[str]:
    return [t.name for t in report.tensors]


def test_values_are_taken_apart_and_put_together() -> None:
    a, b, c = (np.full(2, k) for k in range(3))
    value = {"x": [a, (b, 3)], "shape": (4, 5), "p": Pair(c, None)}
    found = list(leaves(value, "v"))
    assert [name for name, _ in found] == [
        "v['x'][0]", "v['x'][1][0]", "v['x'][1][1]", "v['shape']", "v['p'][0]", "v['p'][1]",
    ]  # fmt: skip
    again = rebuilt(value, iter([part for _, part in found]))
    assert again == value
    assert isinstance(again["p"], Pair)
    assert again["x"] is not value["x"]
    assert list(leaves((1, 2), "shape")) == [("shape", (1, 2))]


def test_tensors_in_containers(rng: np.random.Generator) -> None:
    params = {"W": tensor(rng, 3, 2), "rest": [tensor(rng, 2), tensor(rng)]}

    def fn(params: dict[str, Any], x: mr.Tensor) -> dict[str, mr.Tensor]:
        y = x @ params["W"] + params["rest"][0]
        return {"y": y.tanh(), "scaled": y * params["rest"][1]}

    report = gradcheck(fn, (params, tensor(rng, 4, 3)))
    assert names(report) == ["params['W']", "params['rest'][0]", "params['rest'][1]", "x"]
    assert gradgradcheck(fn, (params, tensor(rng, 4, 3)))
    assert gradcheck(lambda p: p["W"] ** 2, {"W": tensor(rng, 3)})
    assert gradcheck(lambda pair: pair.left * pair.right, [Pair(tensor(rng, 3), tensor(rng, 3))])
    assert gradcheck(mr.stack, [[tensor(rng, 2), tensor(rng, 2)]])


def test_a_fault_is_named_with_its_place_in_the_container(rng: np.random.Generator) -> None:
    report = failed(lambda p: p["a"] * p["b"].detach(), {"a": tensor(rng, 3), "b": tensor(rng, 3)})
    assert [t.passed for t in report.tensors] == [True, False]
    assert report.elements[0].tensor == "p['b']"


def test_what_the_function_does_to_its_containers_stays_its_own(rng: np.random.Generator) -> None:
    params = {"a": tensor(rng, 3)}
    assert gradcheck(lambda p: p.pop("a") * 2.0, params)
    assert list(params) == ["a"]


def layer(p: dict[str, Any], x: Any) -> Any:
    return np.tanh(x @ p["W"] + p["b"])


def layer_gradient(p: dict[str, Any], x: Any, u: Any) -> Any:
    z = u * (1 - layer(p, x) ** 2)
    return {"W": x.T @ z, "b": z.sum(0)}, z @ p["W"].T


def test_numpy_functions_of_dicts(rng: np.random.Generator) -> None:
    p = {"W": rng.standard_normal((3, 2)), "b": rng.standard_normal(2).astype(np.float32)}
    x = rng.standard_normal((4, 3))
    report = gradcheck(layer, (p, x), grad=layer_gradient)
    assert names(report) == ["p['W']", "p['b']", "x"]
    assert p["b"].dtype == np.float32
    assert_gradients(layer, (p, x), grad=layer_gradient, dtype="float32")

    def only_dict(p: Any) -> Any:
        return p["W"].sum() * p["b"]

    def only_gradient(p: Any, u: Any) -> Any:
        return {"W": np.full(p["W"].shape, (u * p["b"]).sum()), "b": u * p["W"].sum()}

    assert gradcheck(only_dict, p, grad=only_gradient)
    forgotten = failed(only_dict, p, grad=lambda p, u: {"W": only_gradient(p, u)["W"]})
    assert forgotten.kinds == {"missing"}
    assert "p['b']" in str(forgotten)


def test_numpy_functions_of_lists(rng: np.random.Generator) -> None:
    weights = [rng.standard_normal((3, 3)), rng.standard_normal((3, 3))]
    x = rng.standard_normal((2, 3))

    def fn(weights: Any, x: Any) -> Any:
        return x @ weights[0] @ weights[1]

    def gradient(weights: Any, x: Any, u: Any) -> Any:
        a, b = weights
        return [x.T @ u @ b.T, (x @ a).T @ u], u @ b.T @ a.T

    assert gradcheck(fn, (weights, x), grad=gradient)
    assert gradcheck(lambda w: w[0] * w[1], [weights], grad=lambda w, u: [u * w[1], u * w[0]])


def test_a_value_with_its_gradient(rng: np.random.Generator) -> None:
    x, y = rng.standard_normal(4), rng.standard_normal(4)

    def distance(x: Any, y: Any) -> Any:
        d = x - y
        return 0.5 * d @ d, (d, -d)

    assert gradcheck(distance, (x, y), grad=True)
    assert gradcheck(lambda x: (0.5 * x @ x, x), x, grad=True)
    wrong = failed(lambda x: (x @ x, x), x, grad=True)
    assert wrong.kinds == {"half"}
    held = failed(lambda p: (p["a"] @ p["a"], {"a": -2 * p["a"]}), {"a": x}, grad=True)
    assert held.kinds == {"sign"}


def test_outputs_with_a_function_that_pulls_back(rng: np.random.Generator) -> None:
    def product(a: Any, b: Any) -> Any:
        return a @ b, lambda u: (u @ b.T, a.T @ u)

    a, b = rng.standard_normal((3, 4)), rng.standard_normal((4, 2))
    assert gradcheck(product, (a, b), grad=True)

    def two(a: Any) -> Any:
        return (a.sum(), a * a), lambda u, v: u + 2 * a * v

    assert gradcheck(two, a, grad=True)


@pytest.mark.parametrize(
    ("fn", "grad", "message"),
    [
        (lambda p: p["a"] * 2, lambda p, u: {"a": 2 * u, "c": u}, "with (some of) these keys"),
        (lambda p: p["a"] * 2, lambda p, u: 2 * u, "must be a dict"),
        (lambda p: (p["a"], {"a": p["a"]}), True, "a value that is one number"),
    ],
)
def test_gradients_that_do_not_fit_are_findings(
    fn: Any, grad: Any, message: str, rng: np.random.Generator
) -> None:
    report = failed(fn, {"a": rng.standard_normal(3)}, grad=grad)
    assert report.kinds == {"error"}
    assert message in str(report)


def test_one_value_where_two_are_wanted(rng: np.random.Generator) -> None:
    with pytest.raises(TypeError, match=r"returns \(value, gradients\), got ndarray"):
        gradcheck(lambda a: a * 2, rng.standard_normal(3), grad=True)
