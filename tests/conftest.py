"""Settings that all tests share: Hypothesis profiles, NumPy's error state, seeded randomness."""

from __future__ import annotations

import os
import zlib
from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import HealthCheck, settings

import minires as mr

# Kernels are chosen by the registered conditions, whatever was measured on this machine before.
os.environ["MINIRES_TUNING"] = "off"

# HYPOTHESIS_PROFILE=ci draws the same examples every time, =thorough draws many.
# No deadlines: the first call of a kernel may compile it.
_SLOW = [HealthCheck.too_slow, HealthCheck.function_scoped_fixture]
settings.register_profile("dev", max_examples=25, deadline=None, suppress_health_check=_SLOW)
settings.register_profile(
    "ci",
    max_examples=50,
    deadline=None,
    derandomize=True,
    database=None,
    print_blob=True,
    suppress_health_check=_SLOW,
)
settings.register_profile("thorough", max_examples=1000, deadline=None, suppress_health_check=_SLOW)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "dev"))


@pytest.fixture(autouse=True)
def known_state() -> Iterator[None]:
    """Every test starts from one seed and from NumPy's error settings, whatever ran before.

    What NumPy warns of is an error here, as every warning is.
    """
    mr.manual_seed(0)
    with np.errstate(divide="warn", over="warn", invalid="warn", under="ignore"):
        yield


@pytest.fixture
def rng(request: pytest.FixtureRequest) -> np.random.Generator:
    """A generator of the test's own: the same numbers every time, other ones in other tests."""
    return np.random.default_rng(zlib.crc32(request.node.nodeid.encode()))
