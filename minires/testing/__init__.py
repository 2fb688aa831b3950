"""Testing gradients and kernels: public, and what minires itself is tested with.

    gradcheck(fn, inputs)             is this gradient right, and if not, where and why?
    gradgradcheck(fn, inputs)         the same for gradients of gradients
    assert_gradients(fn, inputs)      both, in one line of a test
    FAULTS, ADVICE                    the kinds of fault that are told apart, and where to look
    step_curve(fn, inputs)            the error against the step: the V
    strategies                        Hypothesis strategies: tensors, geometries, small nets
    check_conv_adjoints(geometry)     exact identities, at full layer size
    check_kernel("conv2d", "mine")    a kernel against the reference, on shapes that break kernels
    kernel_case("conv2d", "mine", g)  one call of a kernel, with its arrays
    check_all()                       gradcheck over every operation and layer there is
    assert_close(actual, expected)    the one comparison of arrays
"""

from typing import TYPE_CHECKING, Any

from minires.testing.adjoint import (
    AdjointResult,
    check_adaptive_pool_adjoint,
    check_adjoint,
    check_conv_adjoints,
    check_pool_adjoints,
)
from minires.testing.cases import Case, OperationResult, check_all
from minires.testing.compare import assert_close
from minires.testing.curve import StepCurve
from minires.testing.faults import ADVICE, FAULTS
from minires.testing.gradcheck import assert_gradients, gradcheck, gradgradcheck, step_curve
from minires.testing.kernel_report import KernelCase, KernelReport
from minires.testing.kernels import check_kernel, kernel_case
from minires.testing.kinks import record_branches, register_kink
from minires.testing.report import Cause, GradcheckError, GradcheckReport, PrecisionResult
from minires.testing.taylor import SlopeTest

if TYPE_CHECKING:
    from minires.testing import strategies


def __getattr__(name: str) -> Any:
    """The strategies are imported when first asked for: they need Hypothesis."""
    if name == "strategies":
        import importlib

        return importlib.import_module("minires.testing.strategies")
    raise AttributeError(f"module 'minires.testing' has no attribute {name!r}")
