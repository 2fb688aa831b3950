"""report=True: the V, the slope test, the explanation and the picture."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from planting import failed, tensor

import minires as mr
from minires import functional as F
from minires.testing import ADVICE, FAULTS, GradcheckError, gradcheck, gradgradcheck
from minires.testing import strategies as drawn


def cubic(x: np.ndarray) -> np.ndarray:
    return x**3


@pytest.mark.parametrize("factor", [3.0, 3.003, 2.0, -3.0])
def test_the_slope_tells_right_from_wrong_without_a_tolerance(
    factor: float, rng: np.random.Generator
) -> None:
    x = rng.uniform(0.5, 1.0, 5)
    report = gradcheck(cubic, x, grad=lambda x, u: factor * u * x * x, report=True)
    slopes = report.slopes
    assert slopes is not None
    assert report.passed == slopes.passed == (factor == 3.0)
    assert slopes.order_without == pytest.approx(1.0, abs=0.05)
    assert slopes.order_with == pytest.approx(2.0 if factor == 3.0 else 1.0, abs=0.1)
    assert ("right: second order" in str(report)) == report.passed


@given(x=drawn.tensors(elements=st.floats(-2.0, 2.0, width=32)))
def test_every_smooth_function_passes_it(x: mr.Tensor) -> None:
    report = gradcheck(lambda x: (x * 0.7 + 0.3).exp(), x, report=True)
    assert report.passed
    assert report.slopes is not None
    assert report.slopes.order_with == pytest.approx(2.0, abs=0.1)


def test_a_linear_function_leaves_nothing_but_rounding(rng: np.random.Generator) -> None:
    report = gradcheck(lambda x: 3.0 * x, tensor(rng, 4), report=True)
    assert report.slopes is not None
    assert report.slopes.order_with is None
    assert report.slopes.passed
    assert "a linear function" in str(report)


def test_steps_across_a_kink_are_left_out(rng: np.random.Generator) -> None:
    x = mr.Tensor(np.array([0.01, -0.02, 1.0]), requires_grad=True)
    report = gradcheck(lambda x: F.relu(x).exp(), x, report=True)
    assert report.slopes is not None
    assert np.isnan(report.slopes.remainder[0])
    assert report.slopes.order_with == pytest.approx(2.0, abs=0.05)


def test_a_report_of_a_wrong_gradient_is_returned_unless_asked_otherwise(
    rng: np.random.Generator,
) -> None:
    x = rng.standard_normal(4)
    assert not gradcheck(cubic, x, grad=lambda x, u: u, report=True)
    with pytest.raises(GradcheckError):
        gradcheck(cubic, x, grad=lambda x, u: u, report=True, raise_exception=True)
    with pytest.raises(GradcheckError):
        gradcheck(cubic, x, grad=lambda x, u: u, curve=True)
    second = gradgradcheck(lambda x: x**3, tensor(rng, 4), report=True)
    assert second.curve is not None
    assert second.slopes is not None
    assert second.slopes.passed


@pytest.mark.parametrize("factor", [3.0, 2.0])
def test_the_picture(factor: float, rng: np.random.Generator, tmp_path: Path) -> None:
    from PIL import Image

    x = rng.uniform(0.5, 1.0, 5)
    report = gradcheck(cubic, x, grad=lambda x, u: factor * u * x * x, report=True)
    path = report.plot(tmp_path / "new" / "v.png")
    with Image.open(path) as image:
        assert image.width > 1000
        colours = {colour for _, colour in image.convert("RGB").getcolors(1 << 20)}
    blue, red = (0x25, 0x63, 0xA8), (0xC0, 0x39, 0x2B)
    assert (blue in colours) == (factor == 3.0)
    assert (red in colours) == (factor != 3.0)


def test_no_picture_of_what_was_not_measured(rng: np.random.Generator) -> None:
    report = gradcheck(lambda x: x * x, tensor(rng, 3))
    with pytest.raises(ValueError, match="report=True"):
        report.plot("never.png")
    shapes: Any = gradcheck(cubic, rng.standard_normal(3), grad=lambda x, u: u[:1], report=True)
    with pytest.raises(ValueError, match="failed before"):
        shapes.plot("never.png")


def test_every_kind_has_words_and_advice() -> None:
    assert set(FAULTS) == set(ADVICE)
    assert all(text and not text.endswith(".") for text in (*FAULTS.values(), *ADVICE.values()))


def test_a_cause_comes_with_the_number_that_speaks_for_it(rng: np.random.Generator) -> None:
    report = failed(cubic, rng.uniform(0.5, 1.0, 5), grad=lambda x, u: 6.0 * u * x * x)
    (cause,) = report.causes
    assert cause.kind == "twice"
    assert cause.evidence.startswith("error 1 of the gradient, ")
    left = float(cause.evidence.split(", ")[1].split()[0])
    assert left < 1e-8
    assert str(cause).endswith(cause.evidence)
    text = report.explain()
    for part in (FAULTS["twice"], ADVICE["twice"], cause.evidence):
        assert part in text
    assert "nothing to explain" in gradcheck(lambda x: x * x, tensor(rng, 3)).explain()
