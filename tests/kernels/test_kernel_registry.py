"""Registering kernels, choosing between them, and forgetting the choice."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from minires.kernels import (
    Kernel,
    available,
    conv_geometry,
    operation,
    register,
    registry,
    use,
)
from minires.kernels.registry import _operations, backend_of, define

G3 = conv_geometry((1, 1, 4, 4), (1, 1, 3, 3))
G1 = conv_geometry((1, 1, 4, 4), (1, 1, 1, 1))


@pytest.fixture
def toy() -> Iterator[Any]:
    """An operation of our own with kernels "slow" and "fast", gone after the test."""
    op = define("toy_op", "toy_op(x, g or None) -> text")
    register("toy_op", name="slow")(lambda x, g=None: "slow")
    register("toy_op", name="fast", only=three_by_three)(lambda x, g=None: "fast")
    yield op
    del _operations["toy_op"]


def three_by_three(g: Any) -> bool:
    return g == G3


X = np.zeros(1)


def test_the_last_kernel_that_supports_the_geometry_is_used(toy: Any) -> None:
    assert toy(X, G3) == "fast"
    assert toy(X, G1) == "slow"
    assert toy.select("cpu", G3).name == "fast"


def test_without_a_geometry_the_shape_decides(toy: Any) -> None:
    register("toy_op", name="vectors", only=lambda shape: len(shape) == 1)(lambda x: "vectors")
    assert toy(X) == "vectors"
    assert toy(np.zeros((2, 2))) == "slow"


def test_dtypes_decide(toy: Any) -> None:
    register("toy_op", name="single", dtypes=("float32",))(lambda x, g: "single")
    assert toy(X, G1) == "slow"
    assert toy(X.astype(np.float32), G1) == "single"
    assert toy(X, G1) == "slow"


def test_a_kernel_that_is_not_worth_it_must_be_asked_for(toy: Any) -> None:
    register("toy_op", name="large", worth=lambda g: g.N > 1)(lambda x, g: "large")
    assert toy(X, G3) == "fast"
    with use(toy_op="large"):
        assert toy(X, G3) == "large"
    many = conv_geometry((2, 1, 4, 4), (1, 1, 1, 1))
    assert toy(X, many) == "large"


def test_what_is_not_worth_it_still_computes_where_nothing_else_does(toy: Any) -> None:
    op = define("toy_op", "toy_op(x, g or None) -> text")
    register("toy_op", name="large", worth=lambda g: False)(lambda x, g: "large")
    assert op(X, G1) == "large"


def test_use_for_a_block_and_nested(toy: Any) -> None:
    assert toy(X, G3) == "fast"
    with use(toy_op="slow"):
        assert toy(X, G3) == "slow"
        with use(toy_op="fast"):
            assert toy(X, G3) == "fast"
            assert toy(X, G1) == "slow"  # not supported: another one computes it
        assert toy(X, G3) == "slow"
    assert toy(X, G3) == "fast"


def test_use_from_here_on(toy: Any) -> None:
    before = use(toy_op="slow")
    try:
        assert toy(X, G3) == "slow"
    finally:
        before.__exit__(None, None, None)
    assert toy(X, G3) == "fast"


def test_use_is_undone_by_an_exception(toy: Any) -> None:
    with pytest.raises(KeyError), use(toy_op="slow"):
        raise KeyError
    assert toy(X, G3) == "fast"


def test_a_new_kernel_is_chosen_at_the_next_call(toy: Any) -> None:
    assert toy(X, G3) == "fast"
    register("toy_op", name="newest")(lambda x, g: "newest")
    assert toy(X, G3) == "newest"
    assert [k.name for k in available("toy_op")] == ["slow", "fast", "newest"]


def test_a_name_used_again_is_replaced(toy: Any) -> None:
    register("toy_op", name="slow")(lambda x, g=None: "slower")
    assert toy(X, G1) == "slower"
    assert sorted(k.name for k in available("toy_op")) == ["fast", "slow"]


def test_the_same_name_on_another_backend_is_another_kernel(toy: Any) -> None:
    register("toy_op", backend="cuda", name="slow")(lambda x, g: "on the device")
    assert toy(X, G1) == "slow"
    assert toy.select("cuda", G1).function(X, G1) == "on the device"
    assert len(available("toy_op")) == 3


def test_an_observer_is_called_in_place_of_the_kernel(
    toy: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Any] = []

    def observe(op: Any, kernel: Kernel, args: tuple[Any, ...]) -> Any:
        seen.append((op, kernel.name, args))
        return kernel.function(*args).upper()

    monkeypatch.setattr(registry, "observer", observe)
    assert toy(X, G3) == "FAST"
    assert toy(X, G1) == "SLOW"
    assert [(op, name, len(args)) for op, name, args in seen] == [
        (toy, "fast", 2), (toy, "slow", 2)
    ]  # fmt: skip
    assert all(args[0] is X for _, _, args in seen)
    monkeypatch.undo()
    assert toy(X, G3) == "fast"
    assert len(seen) == 2


def test_register_returns_the_function(toy: Any) -> None:
    def mine(x: Any, g: Any) -> str:
        """Summary line.

        More.
        """
        return "mine"

    assert register("toy_op", name="mine")(mine) is mine
    kernel = available("toy_op")[-1]
    assert kernel == Kernel("toy_op", "cpu", "mine", mine)
    assert kernel.summary == "Summary line."


def test_unknown_names_suggest() -> None:
    with pytest.raises(ValueError, match=r"unknown operation 'conv2'\. Did you mean 'conv2d'"):
        use(conv2="im2col")
    with pytest.raises(ValueError, match=r"unknown conv2d kernel 'im2cole'\. Did you mean"):
        use(conv2d="im2cole")
    with pytest.raises(ValueError, match=r"unknown operation 'cnv2d'\. Did you mean 'conv2d'"):
        register("cnv2d", name="mine")
    with pytest.raises(ValueError, match="unknown operation"):
        operation("")
    with pytest.raises(ValueError, match="Did you mean 'relu'"):
        available("rellu")


def test_an_error_changes_no_choice(toy: Any) -> None:
    with pytest.raises(ValueError, match="unknown relu kernel"):
        use(toy_op="slow", relu="none")
    assert toy(X, G3) == "fast"


@pytest.mark.parametrize("last", [(), (None,), ((1, 1),)])
def test_an_operation_without_its_geometry(last: tuple[Any, ...]) -> None:
    x, weight = np.zeros((1, 1, 4, 4)), np.zeros((1, 1, 3, 3))
    expected = r"conv2d: the last argument must be a geometry, .*conv2d\(x, weight, g\) -> y"
    with pytest.raises(TypeError, match=expected):
        operation("conv2d")(x, weight, *last)


def test_no_kernel_for_a_geometry_or_backend(toy: Any) -> None:
    op = define("toy_op", "toy_op(x, g or None) -> text")
    register("toy_op", name="fast", only=three_by_three)(lambda x, g: "fast")
    message = r"no kernel on backend 'cpu' takes float64 1x1x4x4 \* 1x1x1x1; known: cpu/fast"
    with pytest.raises(ValueError, match=message):
        op(X, G1)
    with pytest.raises(ValueError, match="no kernel on backend 'cuda'"):
        op.select("cuda", G3)


def test_arrays_only() -> None:
    assert backend_of(np.zeros(2)) == "cpu"
    for value in ([1.0], 1.0, None):
        with pytest.raises(TypeError, match="kernels take NumPy or CuPy arrays, got"):
            operation("relu")(value)


def test_every_operation_has_a_reference_kernel_for_any_geometry() -> None:
    from minires.kernels import operations

    defined = [v for v in vars(operations).values() if type(v).__name__ == "Operation"]
    assert len(defined) >= 19
    for op in defined:
        unconditional = [
            k for k in available(op.name) if k.only is None and k.worth is None and not k.dtypes
        ]
        modules = [k.function.__module__ for k in unconditional]
        assert any(m.startswith("minires.kernels.reference.") for m in modules), op
        assert op.__doc__.startswith(f"{op.name}(")
