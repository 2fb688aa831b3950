"""The sources compile for real architectures, and the recorded resources are of these sources."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from minires.kernels.cuda import resources, source
from minires.kernels.cuda.resources import VARIANTS, Variant

RECORDED = json.loads((Path(__file__).parents[3] / resources.RESULTS).read_text())

FIRST = list({v.source: v for v in reversed(VARIANTS)}.values())
"""The first variant of each source: of the convolutions, the one with the largest tiles."""


needs_compiler = pytest.mark.skipif(
    resources.compiler() is None, reason="needs nvcc, or pip install minires[cuda-check]"
)


def test_the_table_is_of_these_sources() -> None:
    """After a change of a source: python -m minires.kernels.cuda.resources."""
    recorded = {name: row["digest"] for name, row in RECORDED["variants"].items()}
    assert recorded == {str(v): v.digest for v in VARIANTS}


def test_nothing_spills() -> None:
    for variant in VARIANTS:
        name, row = str(variant), RECORDED["variants"][str(variant)]
        for architecture in variant.architectures:
            for kernel, found in row[architecture].items():
                assert found["spilled"] == found["stack"] == 0, (name, architecture, kernel)
                assert found["registers"] <= 255
                assert found["shared"] <= 48 << 10


@needs_compiler
@pytest.mark.parametrize("variant", FIRST, ids=str)
def test_compiles_as_recorded(variant: Variant) -> None:
    """Without a warning and without a spill, to the recorded registers and shared memory."""
    recorded = RECORDED["variants"][str(variant)]["sm_90a"]
    for name, found in resources.measure(variant, "sm_90a").items():
        assert found.spilled == 0, name
        if resources.compiler() == RECORDED["compiler"]:
            assert vars(found) == recorded[name], name


@needs_compiler
def test_a_warning_is_an_error() -> None:
    text = 'extern "C" __global__ void k(int* y) { int unused = 1; y[0] = 2; }'
    variant = Variant(source.give("warns.cu", text), ())
    with pytest.raises(RuntimeError, match="unused"):
        resources.compile_log(variant, "sm_80")
