"""Every operation and every layer: gradients, gradients of gradients, and none left out."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import minires as mr
from minires import nn
from minires.functional.activation import ReLU
from minires.testing import Case, check_all, record_branches
from minires.testing import cases as cases_module
from minires.testing.cases import cases, covered, own_functions

TABLE = cases()


@pytest.mark.parametrize("operation", list(dict.fromkeys(case.operation for case in TABLE)))
def test_gradients_and_gradients_of_gradients(operation: str) -> None:
    (result,) = check_all([operation])
    assert result.passed, "\n".join(map(str, result.failures))
    assert result.first_error < 1e-8
    assert result.second_error < 1e-8


def test_no_operation_is_left_out() -> None:
    """A new operation in minires fails here until it has a case (see minires/testing/cases.py)."""
    missing = set(own_functions().values()) - covered()
    assert not missing, f"no case differentiates {sorted(f.__name__ for f in missing)}"


def test_an_operation_without_a_case_would_be_noticed() -> None:
    without = covered([case for case in TABLE if case.operation not in ("sqrt", "pow")])
    missed = {f.__name__ for f in set(own_functions().values()) - without}
    assert missed == {"Sqrt", "Pow", "PowTensor"}


def test_called_is_not_covered() -> None:
    detached = Case("relu", "detached", lambda x: mr.functional.relu(x.detach()) + x.exp(), ((3,),))
    assert ReLU not in covered([detached])
    assert ReLU in covered([Case("relu", "plain", mr.functional.relu, ((3,),))])


def test_modules_are_checked_away_from_their_initial_values() -> None:
    for case in cases(["nn.BatchNorm2d"]):
        module, _ = case.build()
        for name, tensor in [*module.named_parameters(), *module.named_buffers()]:
            if tensor.dtype.kind == "f":
                assert not np.isin(tensor.data, (0.0, 1.0)).any(), name


def test_no_layer_is_left_out() -> None:
    layers = {
        f"nn.{name}"
        for name, value in vars(nn).items()
        if isinstance(value, type)
        and issubclass(value, nn.Module)
        and value not in (nn.Module, nn.Sequential, nn.ModuleList)
    }
    assert layers <= {case.operation for case in TABLE}


def test_names_are_unique_and_inputs_repeat() -> None:
    names = [case.name for case in TABLE]
    assert len(set(names)) == len(names)
    for case in TABLE[:20]:
        (_, first), (_, again), (_, other) = case.build(0), case.build(0), case.build(1)
        for a, b in zip(first, again, strict=True):
            np.testing.assert_array_equal(np.asarray(a), np.asarray(b))
        if all(isinstance(a, mr.Tensor) for a in other) and len(other) == 1:
            assert not np.array_equal(first[0].numpy(), other[0].numpy())


def test_building_modules_does_not_touch_the_random_generator() -> None:
    state = mr.functional.random.get_rng_state()
    for case in TABLE:
        if case.module:
            case.build()
    assert mr.functional.random.get_rng_state() == state


def test_cases_at_kinks_are_on_kinks_and_the_others_are_not() -> None:
    for case in TABLE:
        if case.second_order:
            continue
        (result,) = (r for r in check_all([case.operation], second_order=False))
        assert result.kinks > 0
        fn, inputs = case.build()
        with record_branches() as branches:
            fn(*inputs)
        assert branches.taken


def test_second_order_is_left_out_at_kinks_and_on_request(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    checked = []
    original = cases_module.gradgradcheck

    def noted(fn: Any, inputs: Any, **options: Any) -> Any:
        checked.append(inputs[0].shape)
        return original(fn, inputs, **options)

    monkeypatch.setattr(cases_module, "gradgradcheck", noted)
    check_all(["abs"])
    assert checked == [(3, 4)]  # the case at zero has three elements
    check_all(["abs"], second_order=False)
    assert checked == [(3, 4)]


def test_failures_are_returned_not_raised(monkeypatch: pytest.MonkeyPatch) -> None:
    from minires.autograd.elementwise import Exp

    monkeypatch.setattr(Exp, "backward", lambda self, gy: -gy * self.saved.y)
    (result,) = check_all(["exp"])
    assert not result.passed
    assert result.first_error > 0.1
    assert np.isnan(result.second_error)
    (report,) = result.failures
    assert report.name == "exp: matrix"
    assert report.kinds == {"sign"}
