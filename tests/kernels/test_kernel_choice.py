"""Choosing kernels: approximate ones ruled out, the shell's choices, late modules, conditions."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from minires.kernels import (
    available,
    conv_geometry,
    never,
    operation,
    pool_geometry,
    register,
    registry,
    use,
)
from minires.kernels.condition import condition_text
from minires.kernels.registry import _operations, define

X = np.zeros(1)
G = conv_geometry((1, 1, 4, 4), (1, 1, 3, 3))


@pytest.fixture
def toy() -> Iterator[Any]:
    """An operation with an exact kernel "plain" and an approximate one "fast", the latter used."""
    op = define("toy_op", "toy_op(x, g) -> text")
    register("toy_op", name="plain")(lambda x, g: "plain")
    register("toy_op", name="other")(lambda x, g: "other")
    register("toy_op", name="fast", exact=False)(lambda x, g: "fast")
    yield op
    del _operations["toy_op"]


def set_in_shell(monkeypatch: pytest.MonkeyPatch, op: Any, **values: str) -> None:
    for name, value in values.items():
        monkeypatch.setenv(name, value)
    op.forget()


def test_exact_rules_out_approximate_kernels(toy: Any) -> None:
    assert toy(X, G) == "fast"
    with use(algorithm="exact"):
        assert toy(X, G) == "other"
        with use(toy_op="plain"):
            assert toy(X, G) == "plain"
        with use(algorithm="any"):
            assert toy(X, G) == "fast"
        assert toy(X, G) == "other"
    assert toy(X, G) == "fast"


def test_exact_overrules_an_earlier_choice_and_refuses_a_later_one(toy: Any) -> None:
    with use(toy_op="fast"):
        with use(algorithm="exact"):
            assert toy(X, G) == "other"
        assert toy(X, G) == "fast"
    refused = "toy_op kernel 'fast' is not exact, and algorithm='exact' rules it out"
    with pytest.raises(ValueError, match=refused):
        use(toy_op="fast", algorithm="exact")
    with use(algorithm="exact"):
        with pytest.raises(ValueError, match=refused):
            use(toy_op="fast")
        with use(toy_op="fast", algorithm="any"):
            assert toy(X, G) == "fast"
    assert toy(X, G) == "fast"


def test_the_algorithm_is_checked(toy: Any) -> None:
    with pytest.raises(ValueError, match=r"unknown algorithm 'exactly'\. Did you mean 'exact'"):
        use(algorithm="exactly")
    assert toy(X, G) == "fast"


def test_without_an_exact_kernel_the_error_says_so() -> None:
    op = define("toy_op", "toy_op(x, g) -> text")
    try:
        register("toy_op", name="fast", exact=False)(lambda x, g: "fast")
        with use(algorithm="exact"), pytest.raises(ValueError, match="toy_op: no exact kernel on"):
            op(X, G)
    finally:
        del _operations["toy_op"]


def test_winograd_is_approximate_and_the_reference_exact() -> None:
    for name in ("conv2d", "conv2d_grad_input", "conv2d_grad_weight"):
        kernels = {k.name: k for k in available(name)}
        assert not kernels["winograd"].exact
        assert kernels["im2col"].exact
        large = conv_geometry((128, 64, 32, 32), (64, 64, 3, 3), 1, 1)
        with use(algorithm="exact"):
            assert operation(name).select("cpu", large).exact


def test_the_algorithm_from_the_shell(toy: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    set_in_shell(monkeypatch, toy, MINIRES_ALGORITHM="exact")
    assert toy(X, G) == "other"
    with use(algorithm="any"):
        assert toy(X, G) == "fast"
    set_in_shell(monkeypatch, toy, MINIRES_ALGORITHM="fast")
    with pytest.raises(ValueError, match="MINIRES_ALGORITHM: unknown algorithm 'fast'"):
        toy(X, G)


def test_kernels_from_the_shell(toy: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    set_in_shell(monkeypatch, toy, MINIRES_KERNELS=" conv2d=im2col, toy_op = plain,")
    assert toy(X, G) == "plain"
    assert operation("conv2d").select("cpu", G).name == "im2col"
    with use(toy_op="other"):
        assert toy(X, G) == "other"
    assert toy(X, G) == "plain"


def test_the_shell_may_name_a_kernel_registered_later(
    toy: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    set_in_shell(monkeypatch, toy, MINIRES_KERNELS="toy_op=mine")
    register("toy_op", name="mine", worth=never)(lambda x, g: "mine")
    assert toy(X, G) == "mine"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("toy_op", "expected operation=kernel, separated by commas .*, got 'toy_op'"),
        ("toy_op=", "expected operation=kernel"),
        ("=plain", "expected operation=kernel"),
        ("toy_op=plain,toy_op=other", "names two kernels for toy_op"),
        ("toy_op=plane", "unknown toy_op kernel 'plane'. Did you mean 'plain'"),
        ("conv2=im2col", "unknown operation 'conv2'. Did you mean 'conv2d'"),
    ],
)
def test_a_wrong_variable_is_explained(
    toy: Any, monkeypatch: pytest.MonkeyPatch, text: str, message: str
) -> None:
    set_in_shell(monkeypatch, toy, MINIRES_KERNELS=text)
    with pytest.raises(ValueError, match=f"MINIRES_KERNELS: {message}"):
        toy(X, G)


LATE = """
from minires.kernels import register, never
register("toy_op", name="late", worth=never)(lambda x, g: "late")
register("toy_op", name="plain", worth=never)(lambda x, g: "plain from the late module")
"""


@pytest.fixture
def late(toy: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A module of kernels that is to be imported late."""
    (tmp_path / "late_kernels.py").write_text(LATE)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(registry, "_late", [])
    registry.register_later("late_kernels")
    yield "late_kernels"
    sys.modules.pop("late_kernels", None)


def test_late_kernels_are_imported_when_listed(toy: Any, late: str) -> None:
    assert toy(X, G) == "fast"
    assert late not in sys.modules
    assert [k.name for k in available("toy_op")] == ["plain", "other", "fast", "late"]
    assert late in sys.modules
    assert toy(X, G) == "fast"


def test_late_kernels_are_imported_when_named(toy: Any, late: str) -> None:
    with use(toy_op="plain"):
        assert late not in sys.modules
    with use(toy_op="late"):
        assert toy(X, G) == "late"


def test_late_kernels_replace_none(toy: Any, late: str) -> None:
    available()
    with use(toy_op="plain"):
        assert toy(X, G) == "plain"


def test_a_late_module_that_fails_fails_again(toy: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "_late", ["minires_no_such_module"])
    for _ in range(2):
        with pytest.raises(ImportError):
            available()


def test_registering_is_checked(toy: Any) -> None:
    with pytest.raises(ValueError, match=r"unknown backend 'cud'\. Did you mean 'cuda'"):
        register("toy_op", backend="cud", name="mine")
    with pytest.raises(ValueError, match="register: unknown dtype 'float23'"):
        register("toy_op", name="mine", dtypes=("float23",))
    for name in ("", "a b", "a=b", "a,b"):
        with pytest.raises(ValueError, match="a kernel's name is one word"):
            register("toy_op", name=name)
    with pytest.raises(TypeError, match="a kernel is a function, got str"):
        register("toy_op", name="mine")("text")  # type: ignore[arg-type]
    register("toy_op", name="mine", dtypes="float64")(lambda x, g: "mine")  # type: ignore[arg-type]
    assert available("toy_op")[-1].dtypes == ("float64",)


def test_workspace(toy: Any) -> None:
    def buffer(g: Any, dtype: str) -> int:
        return g.N * np.dtype(dtype).itemsize

    register("toy_op", name="mine", workspace=buffer)(lambda x, g: "mine")
    kernels = {k.name: k for k in available("toy_op")}
    assert kernels["mine"].workspace_bytes(G, "float64") == 8
    assert kernels["plain"].workspace_bytes(G, "float64") is None


def small(g: Any) -> bool:
    """Small ones.

    And more.
    """
    return bool(g.N < 3)


def one_expression(g: Any) -> Any:
    return g.N < 3 and (
        g.C == 1  # greyscale
    )


def two_statements(g: Any) -> Any:
    limit = 2
    count = g.N - limit
    return count < 0


class Condition:
    def __call__(self, g: Any) -> bool:
        return True

    def __repr__(self) -> str:
        return "whatever fits"


first, second = (lambda g: g.kernel == (3, 3)), (lambda g: g.stride == (1, 1) and g.groups == 1)


@pytest.mark.parametrize(
    ("condition", "text"),
    [
        (None, "any"),
        (never, "Only when asked for by name"),
        (small, "Small ones"),
        (first, "g.kernel == (3, 3)"),
        (second, "g.stride == (1, 1) and g.groups == 1"),
        (one_expression, "g.N < 3 and g.C == 1"),
        (two_statements, "two_statements"),
        (Condition(), "whatever fits"),
        (bool, "at least one axis"),
        (eval("lambda g: g.N == 1"), "<lambda>"),
    ],
)
def test_conditions_as_text(condition: Any, text: str) -> None:
    assert condition_text(condition) == text


def test_never() -> None:
    assert not never(G)
    assert not never(pool_geometry("pool", (1, 1, 2, 2), 2))
